"""Nearest neighbours in pairs: against a search by brute force, and how alike they make two groups."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.scope.matching import (
    CALIPER,
    MATCHINGS,
    compute_balance,
    find_matching,
    make_properties,
    match_groups,
    match_nearest,
    name_matched,
)
from infoscope.scope.partition import ENDS
from infoscope.scope.separation import match_frequency


def make_groups(n: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Two groups that differ in three properties, a latent without one of them, and latents of neither group."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(3, size=n)
    properties = [rng.normal(size=n) + 0.7 * (kind == 0) * place for place in range(3)]
    properties[1][kind.tolist().index(0)] = np.nan
    return kind == 0, kind == 1, properties


def match_slowly(high: np.ndarray, low: np.ndarray, properties: list[np.ndarray]) -> list[tuple[int, int]]:
    """The closest pair of all that are left, again and again."""
    values = np.stack(properties, axis=1)
    both = (high | low) & np.isfinite(values).all(axis=1)
    values = values / values[both].std(axis=0)
    ours, theirs, pairs = list(np.flatnonzero(high & both)), list(np.flatnonzero(low & both)), []
    while ours and theirs:
        distance, i, j = min((float(np.linalg.norm(values[i] - values[j])), i, j) for i in ours for j in theirs)
        if distance > CALIPER:
            break
        pairs.append((i, j))
        ours.remove(i)
        theirs.remove(j)
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_of_a_search_by_brute_force(seed: int) -> None:
    high, low, properties = make_groups(seed=seed)
    pairs = match_slowly(high, low, properties)
    chosen = match_nearest(high, low, properties)
    assert len(pairs) > 2
    assert [np.flatnonzero(of).tolist() for of in chosen] == [sorted(of) for of in zip(*pairs, strict=True)]


def test_equally_close_ones_are_paired_by_their_numbers() -> None:
    high, low, (values, *_) = make_groups()
    steps = [np.round(8 * values)]
    pairs = match_slowly(high, low, steps)
    assert sum(steps[0][i] == steps[0][j] for i, j in pairs) > 10
    chosen = match_nearest(high, low, steps)
    assert [np.flatnonzero(of).tolist() for of in chosen] == [sorted(of) for of in zip(*pairs, strict=True)]


def test_units_do_not_matter_and_latents_of_neither_group_neither() -> None:
    high, low, properties = make_groups()
    scaled = [1000 * properties[0], properties[1] + 5, properties[2]]
    scaled[0][~(high | low)] = 1e9
    for ours, theirs in zip(match_nearest(high, low, properties), match_nearest(high, low, scaled), strict=True):
        assert np.array_equal(ours, theirs)


def test_groups_far_apart_or_empty_have_no_pairs() -> None:
    high, low, properties = make_groups()
    nobody = np.zeros_like(high)
    for pair in (match_nearest(high, low, [properties[0] + 100 * high]), match_nearest(high, nobody, properties)):
        assert not any(of.any() for of in pair)


def test_matching_makes_groups_alike() -> None:
    rng = np.random.default_rng(0)
    n = 600
    high, rate = np.arange(n) < 400, 2 ** rng.normal(-6, 1, n)
    rate = np.where(high, rate / 2, rate)
    support, mass = rate**0.3 * rng.uniform(0.5, 1, n), rate * rng.gamma(3, size=n)
    properties = make_properties(rate, support, mass)
    for matching, pair in match_groups({"high": high, "low": ~high}, rate, support, mass).items():
        assert pair[0].sum() == pair[1].sum() > 50
        for name in MATCHINGS[matching]:
            balance = compute_balance((high, ~high), pair, properties[name])
            assert abs(balance.before) > 0.5
            assert abs(balance.after) < 0.15


def test_matched_frequency_is_that_of_bins() -> None:
    rng = np.random.default_rng(1)
    rate = np.where(rng.random(200) < 0.1, 0, rng.exponential(0.02, 200))
    high = rng.random(200) < 0.6
    found = match_groups({"high": high, "low": ~high}, rate, np.full(200, 0.1), rate, seed=3)
    for ours, theirs in zip(found["frequency"], match_frequency(high, ~high, rate, 3), strict=True):
        assert np.array_equal(ours, theirs)


def test_groups_by_another_measure_are_matched_alike() -> None:
    rng = np.random.default_rng(2)
    high, rate = rng.random(200) < 0.5, rng.exponential(0.02, 200)
    expected = match_groups({"high": high, "low": ~high}, rate, rate**0.5, rate)
    for above, below in ENDS.values():
        found = match_groups({below: ~high, above: high}, rate, rate**0.5, rate)
        assert found.keys() == expected.keys()
        for matching, pair in found.items():
            np.testing.assert_array_equal(pair, expected[matching])
    assert match_groups({"band 1 of 2": high, "band 2 of 2": ~high}, rate, rate, rate) == {}


def test_balance_by_hand() -> None:
    values = np.array([1.0, 3.0, 0.0, 2.0, np.nan])
    high, low = np.array([1, 1, 0, 0, 1], bool), np.array([0, 0, 1, 1, 0], bool)
    pair = np.array([1, 0, 0, 0, 0], bool), np.array([0, 0, 0, 1, 0], bool)
    assert compute_balance((high, low), pair, values) == (1.0, -1.0)
    nobody = np.zeros(5, bool)
    assert np.isnan(compute_balance((high, nobody), pair, values)).all()
    assert np.isnan(compute_balance((high, low), (nobody, nobody), values).after)


def test_names_tell_by_what_groups_are_matched() -> None:
    assert [find_matching(name_matched("high", matching)) for matching in MATCHINGS] == list(MATCHINGS)
    assert find_matching("high") is None
