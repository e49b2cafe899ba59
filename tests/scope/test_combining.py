"""Scores that are combined: better together than alone, and never fitted on what they score."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.scope.combining import combine_out_of_fold
from infoscope.scope.separation import compute_auroc

N = 300


@pytest.fixture
def groups() -> tuple[np.ndarray, np.ndarray]:
    positive = np.arange(N) < N // 3
    return positive, ~positive


def test_two_halves_of_the_truth_are_worth_more_than_each(groups: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    columns = [groups[0] + rng.normal(size=N), -1.0 * groups[0] + rng.normal(size=N)]  # the second one is reversed
    columns[0][5], positive = np.nan, groups[0].copy()
    positive[7] = False
    combined = combine_out_of_fold(columns, positive, groups[1])
    alone = [compute_auroc(sign * of, positive, groups[1]).value for sign, of in zip((1, -1), columns, strict=True)]
    assert compute_auroc(combined, positive, groups[1]).value > max(alone) + 0.05
    assert np.isnan(combined[[5, 7]]).all()  # without a column, in no group
    assert np.isfinite(np.delete(combined, [5, 7])).all()


def test_only_ranks_count(groups: tuple[np.ndarray, np.ndarray]) -> None:
    rng = np.random.default_rng(1)
    columns = [groups[0] + rng.normal(size=N), rng.normal(size=N)]
    other = [np.exp(columns[0]), columns[1] ** 3]
    np.testing.assert_allclose(*(combine_out_of_fold(of, *groups) for of in (columns, other)), atol=1e-12)


def test_what_says_nothing_separates_nothing_out_of_fold() -> None:
    """Fitted on what it scores, a discriminant of so many columns would separate 20 from 20 latents well."""
    positive = np.arange(40) % 2 == 0
    values = []
    for seed in range(30):
        columns = np.random.default_rng(seed).normal(size=(10, 40))
        combined = combine_out_of_fold(list(columns), positive, ~positive, seed=seed)
        values.append(compute_auroc(combined, positive, ~positive, n_bootstrap=1).value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_groups_too_small_to_be_folded_have_no_score() -> None:
    columns, positive = [np.arange(6.0), np.arange(6.0)], np.arange(6) == 0
    assert np.isnan(combine_out_of_fold(columns, positive, ~positive)).all()
    positive[1] = True
    assert np.isfinite(combine_out_of_fold(columns, positive, ~positive)).all()  # two folds; columns that are the same
