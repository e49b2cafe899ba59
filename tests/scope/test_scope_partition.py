from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoscope.errors import InputError
from infoscope.scope.examples import choose_example_latents
from infoscope.scope.partition import PartitionConfig, Rule, make_partition, otsu_threshold

NAN = np.nan
SCORES = np.array([0.3, NAN, 0.1, 0.05, 0.1000001, NAN, 0.9])
score_lists = st.lists(st.one_of(st.just(NAN), st.integers(0, 20).map(lambda i: i / 20)), max_size=30)


def test_high_is_above_gamma_and_low_is_not():
    found = make_partition(SCORES, PartitionConfig(gamma=0.1))
    assert found.gamma == 0.1
    assert np.flatnonzero(found.high).tolist() == [0, 4, 6]
    assert np.flatnonzero(found.low).tolist() == [2, 3]  # a score of gamma itself is low
    assert np.flatnonzero(found.unscored).tolist() == [1, 5]
    assert [name for name, _ in found.groups] == ["high", "low"]


@given(scores=score_lists, rule=st.sampled_from(list(Rule)), n_bands=st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_every_scored_feature_is_in_one_group(scores, rule, n_bands):
    cds = np.array(scores, dtype=float)
    found = make_partition(cds, PartitionConfig(rule=rule, n_bands=n_bands))
    membership = np.sum([mask for _, mask in found.groups], axis=0)
    np.testing.assert_array_equal(membership, ~np.isnan(cds))
    np.testing.assert_array_equal(found.unscored, np.isnan(cds))
    assert len(found.groups) == (n_bands if rule is Rule.bands else 2)
    if found.gamma is not None:
        assert (cds[found.high] > found.gamma).all()
        assert (cds[found.low] <= found.gamma).all()


def test_quantile_divides_by_rank():
    cds = np.r_[NAN, np.linspace(0, 1, 10)]
    assert make_partition(cds, PartitionConfig(rule=Rule.quantile, quantile=0.7)).low.sum() == 7
    scaled = make_partition(cds**3, PartitionConfig(rule=Rule.quantile, quantile=0.7))
    np.testing.assert_array_equal(scaled.low, make_partition(cds, PartitionConfig(Rule.quantile, quantile=0.7)).low)


@pytest.mark.parametrize("n", [4, 10, 41])
@pytest.mark.parametrize("n_bands", [2, 3, 4])
def test_bands_have_equal_counts_in_ascending_order(n, n_bands):
    cds = np.random.default_rng(0).permutation(np.linspace(0, 1, n) ** 2)
    found = make_partition(cds, PartitionConfig(rule=Rule.bands, n_bands=n_bands))
    counts = [int(mask.sum()) for _, mask in found.bands]
    assert max(counts) - min(counts) <= 1
    ends = [(cds[mask].min(), cds[mask].max()) for _, mask in found.bands]
    assert all(below[1] < above[0] for below, above in pairwise(ends))
    assert found.gamma is None
    assert not found.high.any()
    assert not found.low.any()


def test_equal_scores_share_a_band():
    found = make_partition(np.array([0.5] * 6 + [0.7]), PartitionConfig(rule=Rule.bands, n_bands=3))
    assert [int(mask.sum()) for _, mask in found.bands] == [6, 0, 1]


def brute_force_otsu(values):
    """Least variance within the groups over every cut between neighbours."""

    def variance_within(cut):
        return sum(len(group) * np.var(group) for group in (values[values <= cut], values[values > cut]))

    return min(np.unique(values)[:-1], key=variance_within)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_equals_a_search_over_all_cuts(seed):
    rng = np.random.default_rng(seed)
    values = np.r_[rng.beta(2, 20, 60), rng.beta(9, 6, rng.integers(5, 60))]
    np.testing.assert_array_equal(values <= otsu_threshold(values), values <= brute_force_otsu(values))


def test_equal_scores_have_an_empty_high_group():
    for rule in (Rule.otsu, Rule.quantile):
        found = make_partition(np.full(4, 0.25), PartitionConfig(rule=rule))
        assert found.gamma == 0.25
        assert found.low.all()
        assert not found.high.any()


@pytest.mark.parametrize("rule", list(Rule))
def test_without_scores_all_groups_are_empty(rule):
    found = make_partition(np.full(3, NAN), PartitionConfig(rule=rule))
    assert not any(mask.any() for _, mask in found.groups)
    assert found.unscored.all()
    assert found.gamma == (0.1 if rule is Rule.threshold else None)


@pytest.mark.parametrize(
    ("bad", "key"), [({"gamma": 1.5}, "gamma"), ({"quantile": 0.0}, "quantile"), ({"n_bands": 1}, "n_bands")]
)
def test_values_out_of_range_are_refused(bad, key):
    with pytest.raises(InputError, match=f"partition.{key}"):
        PartitionConfig(**bad)


def test_examples_come_from_the_ends_and_the_middle():
    cds = np.random.default_rng(1).permutation(np.linspace(0, 1, 101))
    cds[::10] = NAN
    chosen = choose_example_latents(cds, 3)
    assert list(chosen) == ["low", "middle", "high"]
    for level, near in (("low", 0.05), ("middle", 0.5), ("high", 0.95)):
        assert len(chosen[level]) == 3
        np.testing.assert_allclose(cds[chosen[level]], near, atol=0.06)
        assert (np.diff(cds[chosen[level]]) > 0).all()


@given(scores=score_lists, n_each=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_examples_are_scored_and_never_repeat(scores, n_each):
    cds = np.array(scores, dtype=float)
    chosen = choose_example_latents(cds, n_each)
    flat = list(chain(*chosen.values()))
    assert len(flat) == len(set(flat))
    assert not np.isnan(cds[flat]).any() if flat else np.isnan(cds).all()
    assert len(flat) >= min(n_each, (~np.isnan(cds)).sum() // 3)
    assert all(len(latents) <= n_each for latents in chosen.values())
    assert sorted(cds[flat].tolist()) == cds[flat].tolist()


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="n_examples"):
        choose_example_latents(np.zeros(3), 0)
