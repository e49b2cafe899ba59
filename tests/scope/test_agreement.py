"""How far scores can be relied on: reliability by halves of the pairs, and features whose group these leave open."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.runtime.errors import InputError
from infoscope.scope.agreement import (
    Interval,
    bootstrap_cds,
    compute_split_half,
    correct_halves,
    find_undecided,
    partition_scores,
    split_pairs,
)
from infoscope.scope.cds import compute_cds
from infoscope.scope.config import PartitionConfig, Rule, StabilityConfig
from infoscope.scope.partition import make_partition

NAN = np.nan


def draw_pairs(n: int, k: int, noise_sd: float, seed: int = 0) -> np.ndarray:
    """Return [n, k] normal pairs of features whose true scores have a standard deviation of 1."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)) + noise_sd * rng.normal(size=(n, k))


@pytest.mark.parametrize("noise_sd", [0.5, 2.0, 3.0])
@pytest.mark.parametrize("k", [4, 8])
def test_reliability_is_the_true_one(noise_sd: float, k: int) -> None:
    """Of a mean of k pairs it is 1 / (1 + noise / k); rank correlations of normal variables are a little lower."""
    found = compute_split_half(draw_pairs(3000, k, noise_sd), k, n_splits=20)
    rho = 1 / (1 + noise_sd**2 / (k / 2))
    assert found.reliability == pytest.approx(correct_halves(6 / np.pi * np.arcsin(rho / 2)), abs=0.04)
    assert found.reliability == pytest.approx(1 / (1 + noise_sd**2 / k), abs=0.06)
    assert found.n == 3000


def test_noise_has_no_reliability_and_equal_pairs_have_all_of_it() -> None:
    noise = np.random.default_rng(1).random((2000, 8))
    assert abs(compute_split_half(noise, 8).reliability) < 0.05
    assert compute_split_half(np.repeat(noise[:, :1], 8, axis=1), 8).reliability == pytest.approx(1)


def test_reliability_is_over_scored_features_and_the_first_ranks() -> None:
    pairs = draw_pairs(400, 16, 1.0)
    pairs[:100, :5] = NAN  # 3 of 8 valid: unscored
    pairs[100:200, :3] = NAN
    found = compute_split_half(pairs, 8)
    assert found.n == 300
    assert found == compute_split_half(pairs[100:, :8], 8)
    assert 0.8 < found.reliability < 0.93
    assert compute_split_half(pairs, 16).reliability > found.reliability


def test_too_few_pairs_or_features_have_no_reliability() -> None:
    pairs = draw_pairs(50, 8, 1.0)
    for found in (compute_split_half(pairs, 1), compute_split_half(pairs[:2], 8), compute_split_half(pairs[:0], 8)):
        assert np.isnan(found.reliability)
    assert compute_split_half(pairs, 1).n == 0  # of one pair there is no other half
    with pytest.raises(InputError, match="at least one split"):
        compute_split_half(pairs, 8, n_splits=0)


def test_halves_divide_the_valid_pairs_evenly() -> None:
    pairs = np.array([[1, NAN, 2, 3, 4], [NAN, NAN, 5, 6, 7], [NAN, NAN, NAN, NAN, 8]])
    seen = set()
    for first, second in split_pairs(pairs, 40):
        assert np.array_equal(first ^ second, np.isfinite(pairs))
        assert first.sum(axis=1).tolist() == [2, 2, 1]
        seen.add(tuple(np.flatnonzero(first[0])))
    assert len(seen) == 6  # 2 of 4


def test_undecided_are_those_whose_interval_crosses_gamma_or_who_have_none() -> None:
    interval = Interval(np.array([0.1, 0.2, 0.3, NAN, NAN]), np.array([0.2, 0.4, 0.6, NAN, NAN]))
    cds = np.array([0.15, 0.3, 0.5, 0.4, NAN])
    assert find_undecided(cds, interval, 0.2).tolist() == [False, True, False, True, False]  # 0.2 itself is low
    assert not find_undecided(cds, interval, None).any()


def test_groups_of_decided_features_keep_gamma_and_leave_out_the_others() -> None:
    emd = np.clip(0.3 + 0.1 * draw_pairs(300, 8, 2.0), 0, 1)
    mass = np.random.default_rng(2).random(300)
    cds = compute_cds(emd, 8).values
    plain = partition_scores(emd, 8, mass, PartitionConfig())
    decided = partition_scores(emd, 8, mass, PartitionConfig(decided_only=True))
    assert plain.gamma == decided.gamma == make_partition(cds, mass, PartitionConfig()).gamma
    lower, upper = bootstrap_cds(emd, 8)
    assert np.array_equal(decided.high, lower > plain.gamma)
    assert np.array_equal(decided.low, upper <= plain.gamma)
    undecided = plain.high & ~decided.high | plain.low & ~decided.low
    assert 50 < undecided.sum() < 250
    assert np.array_equal(undecided, find_undecided(cds, bootstrap_cds(emd, 8), plain.gamma))
    narrow = StabilityConfig(level=0.5)
    more = partition_scores(emd, 8, mass, PartitionConfig(decided_only=True), stability=narrow)
    assert np.array_equal(more.high, bootstrap_cds(emd, 8, level=0.5).lower > plain.gamma)
    assert more.high.sum() > decided.high.sum()


def test_settings_of_decided_groups() -> None:
    assert "decided_only" not in PartitionConfig().cache_key_fields()
    chosen = PartitionConfig(gamma=0.1, decided_only=True)
    assert chosen.cache_key_fields() == {"rule": "threshold", "gamma": 0.1, "decided_only": True}
    assert chosen.rule_in_words.endswith("decided features only")
    with pytest.raises(InputError, match="bands, which has no gamma"):
        PartitionConfig(rule=Rule.bands, decided_only=True)
