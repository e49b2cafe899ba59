"""Variants of the score, and what they are worth when latents are drawn anew."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr, trim_mean

from infoscope.runtime.errors import InputError
from infoscope.scope.agreement import compute_split_half
from infoscope.scope.cds import compute_cds, compute_cds_with_zeros, compute_chance_ratio
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.scope.resampling import draw_auroc, draw_partial, draw_spearman, draw_split_half, draw_weights
from infoscope.scope.scores import Scores
from infoscope.scope.separation import compute_auroc
from infoscope.scope.variants import (
    Variant,
    count_vanished,
    list_variants,
    mean_of_pairs,
    median_of_pairs,
    trimmed_mean_of_pairs,
)

NAN = np.nan


def make_scores(seed: int, n: int = 60, k_max: int = 32) -> Scores:
    rng = np.random.default_rng(seed)
    emd = np.clip(np.random.default_rng(0).random((n, 1)) / 2 + 0.1 * rng.random((n, k_max)), 0, 1)
    mass1, mass2 = rng.random((2, n, k_max)).astype(np.float32) + 0.1
    mass2[rng.random((n, k_max)) < 0.2] = 0
    emd[mass2 == 0] = NAN
    chance = np.where(np.isnan(emd), NAN, 0.3 + 0.1 * rng.random(emd.shape))
    return Scores(emd, mass1, mass2, chance, np.empty(0), 12, 1)


def list_named(k: int = 8) -> dict[str, Variant]:
    return {variant.name: variant for variant in list_variants(*(make_scores(seed) for seed in range(4)), k)}


def test_summaries_leave_out_what_is_missing() -> None:
    pairs = np.random.default_rng(0).random((50, 11))
    pairs[np.random.default_rng(1).random(pairs.shape) < 0.3] = NAN
    pairs[0], pairs[1, 1:] = NAN, NAN
    for found, expected in (
        (mean_of_pairs(pairs), lambda row: row.mean()),
        (median_of_pairs(pairs), np.median),
        (trimmed_mean_of_pairs(pairs), lambda row: trim_mean(row, 0.2)),
    ):
        assert np.isnan(found[0])
        np.testing.assert_allclose(found[1:], [expected(row[np.isfinite(row)]) for row in pairs[1:]])


def test_vanished_mass_counts_as_the_largest_distance() -> None:
    mass1, mass2 = np.array([[1.0, 1, 0, NAN, 2, 4]]), np.array([[1.0, 0, 0, NAN, 4, 2]])
    scores = Scores(np.array([[0.2, NAN, NAN, NAN, 0.2, 0.2]]), mass1, mass2, mass1, np.empty(0), 12, 1)
    np.testing.assert_allclose(count_vanished(scores), [[0.2, 1, NAN, NAN, 0.6, 0.6]])


def test_variants_are_what_they_are_called() -> None:
    top, named = make_scores(0), list_named()
    for name, expected in {
        "mean of 8 (the paper's)": compute_cds(top.emd, 8).values,
        "16 images": compute_cds(top.emd, 16).values,
        "8 drawn images": compute_cds(make_scores(2).emd, 8).values,
        "8, a one-sided zero is 1": compute_cds_with_zeros(top.emd, top.mass1, top.mass2, 8).values,
        "8, minus chance": compute_cds(top.emd, 8).values - top.chance(8),
        "8, over chance": compute_chance_ratio(compute_cds(top.emd, 8).values, top.chance(8)),
    }.items():
        np.testing.assert_allclose(named[name].scores, expected, err_msg=name)
    both = named["4 images, both diagonals"]
    assert (both.n_images, both.n_pairs, both.is_drawn) == (4, 8, False)
    emds = np.stack([make_scores(seed).emd[:, :4] for seed in (0, 1)])
    whole = np.isfinite(emds).all(axis=(0, 2))
    np.testing.assert_allclose(both.scores[whole], emds[:, whole].mean(axis=(0, 2)))
    assert {variant.n_pairs for variant in named.values()} == {8, 16, 32}
    assert list(list_named(16)) == [name for name in list_named(16) if "64" not in name]


def test_the_first_row_is_the_number_itself() -> None:
    rng, n = np.random.default_rng(0), 60
    a, b, given = rng.integers(0, 20, (3, n)).astype(float)
    a[:3] = NAN
    positive = rng.random(n) < 0.4
    weights = draw_weights(np.stack([positive, ~positive]), 200)
    assert (weights[0] == 1).all()
    assert (weights[1:, positive].sum(axis=1) == positive.sum()).all()
    assert draw_spearman(a, b, weights)[0] == pytest.approx(spearmanr(a[3:], b[3:])[0])
    assert draw_partial(a, b, given, weights)[0] == pytest.approx(compute_spearman(a, b, given=given)[0])
    auroc, plain = draw_auroc(a, positive, ~positive, weights), compute_auroc(a, positive, ~positive)
    assert auroc[0] == pytest.approx(plain.value)
    assert np.quantile(auroc[1:], [0.025, 0.975]) == pytest.approx(plain.interval, abs=0.04)
    paper = list_named()["mean of 8 (the paper's)"]
    expected = compute_split_half(make_scores(0).emd, 8, n_splits=20).reliability
    assert draw_split_half(paper, draw_weights(positive[None], 3))[0] == pytest.approx(expected, abs=0.02)


def test_a_draw_is_that_of_repeated_latents() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 9, (2, 30)).astype(float)
    weights = draw_weights(np.ones((1, 30), dtype=bool), 5)
    for row, rho in zip(weights, draw_spearman(a, b, weights), strict=True):
        repeated = np.repeat(np.arange(30), row.astype(int))
        assert rho == pytest.approx(spearmanr(a[repeated], b[repeated])[0])


def test_nothing_to_compare_is_nan() -> None:
    weights = draw_weights(np.ones((1, 4), dtype=bool), 2)
    ones, nobody = np.ones(4), np.zeros(4, dtype=bool)
    assert np.isnan(draw_spearman(ones, np.arange(4.0), weights)).all()
    assert np.isnan(draw_spearman(np.array([1, 2, NAN, NAN]), ones, weights)).all()
    assert np.isnan(draw_auroc(ones, nobody, ~nobody, weights)).all()
    with pytest.raises(InputError, match="at least one draw"):
        draw_weights(nobody[None], 0)
