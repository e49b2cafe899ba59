from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoscope.runtime.errors import InputError
from infoscope.scope.config import By, PartitionConfig, Rule
from infoscope.scope.partition import (
    ENDS,
    Partition,
    find_ends,
    find_extremes,
    make_partition,
    mass_threshold,
    name_group,
    order_groups,
    otsu_threshold,
)

NAN = np.nan
NUMBERS = {Rule.mass: {"mass_share": 0.4}, Rule.threshold: {"gamma": 0.1}, Rule.quantile: {"quantile": 0.4}}
SCORES = np.array([0.3, NAN, 0.1, 0.05, 0.1000001, NAN, 0.9])
score_lists = st.lists(st.one_of(st.just(NAN), st.integers(0, 20).map(lambda i: i / 20)), max_size=30)


def divide(cds: np.ndarray, mass: np.ndarray | None = None, **config: Any) -> Partition:
    """Every feature has the same mass unless said otherwise; energies add up as masses do."""
    weights = np.ones(len(cds)) if mass is None else mass
    return make_partition(cds, weights, PartitionConfig(**config), lambda latents: np.cumsum(weights[latents]))


def test_high_is_above_gamma_and_low_is_not():
    found = divide(SCORES, gamma=0.1)
    assert found.gamma == 0.1
    assert np.flatnonzero(found.high).tolist() == [0, 4, 6]
    assert np.flatnonzero(found.low).tolist() == [2, 3]  # a score of gamma itself is low
    assert np.flatnonzero(found.unscored).tolist() == [1, 5]
    assert [*found.groups] == ["high", "low"]


@given(scores=score_lists, rule=st.sampled_from(list(Rule)), n_bands=st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_every_scored_feature_is_in_one_group(scores, rule, n_bands):
    cds = np.array(scores, dtype=float)
    numbers = {"n_bands": n_bands} if rule is Rule.bands else NUMBERS.get(rule, {})
    found = divide(cds, np.random.default_rng(0).random(len(cds)), rule=rule, **numbers)
    membership = np.sum([*found.groups.values()], axis=0)
    np.testing.assert_array_equal(membership, ~np.isnan(cds))
    np.testing.assert_array_equal(found.unscored, np.isnan(cds))
    assert len(found.groups) == (n_bands if rule is Rule.bands else 2)
    if found.gamma is not None:
        assert (cds[found.high] > found.gamma).all()
        assert (cds[found.low] <= found.gamma).all()


def test_quantile_divides_by_rank():
    cds = np.r_[NAN, np.linspace(0, 1, 10)]
    assert divide(cds, quantile=0.7).low.sum() == 7
    scaled = divide(cds**3, quantile=0.7)
    np.testing.assert_array_equal(scaled.low, divide(cds, quantile=0.7).low)


@pytest.mark.parametrize("n", [4, 10, 41])
@pytest.mark.parametrize("n_bands", [2, 3, 4])
def test_bands_have_equal_counts_in_ascending_order(n, n_bands):
    cds = np.random.default_rng(0).permutation(np.linspace(0, 1, n) ** 2)
    found = divide(cds, n_bands=n_bands)
    counts = [int(mask.sum()) for mask in found.groups.values()]
    assert max(counts) - min(counts) <= 1
    ends = [(cds[mask].min(), cds[mask].max()) for mask in found.groups.values()]
    assert all(below[1] < above[0] for below, above in pairwise(ends))
    assert found.gamma is None
    with pytest.raises(InputError, match=r"got bands: take \.groups"):
        _ = found.high


def test_equal_scores_share_a_band():
    found = divide(np.array([0.5] * 6 + [0.7]), n_bands=3)
    assert [int(mask.sum()) for mask in found.groups.values()] == [6, 0, 1]


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
    for rule in (Rule.otsu, Rule.quantile, Rule.mass):
        found = divide(np.full(4, 0.25), rule=rule)
        assert found.gamma == 0.25
        assert found.low.all()
        assert not found.high.any()


@pytest.mark.parametrize("rule", list(Rule))
def test_without_scores_all_groups_are_empty(rule):
    found = divide(np.full(3, NAN), rule=rule, **NUMBERS.get(rule, {}))
    assert not any(mask.any() for mask in found.groups.values())
    assert found.unscored.all()
    assert found.gamma == (0.1 if rule is Rule.threshold else None)


@pytest.mark.parametrize(
    "bad",
    [
        {"gamma": 1.5},
        {"gamma": NAN},
        {"quantile": 0.0},
        {"quantile": NAN},
        {"mass_share": 1.0},
        {"mass_share": -0.1},
        {"mass_share": NAN},
        {"n_bands": 1},
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=rf"Expected partition\.{next(iter(bad))}"):
        PartitionConfig(**bad)


@pytest.mark.parametrize(
    ("given", "rule", "number"),
    [
        ({}, Rule.mass, {"mass_share": 0.5}),
        ({"gamma": 0.1}, Rule.threshold, {"gamma": 0.1}),
        ({"mass_share": 0.3}, Rule.mass, {"mass_share": 0.3}),
        ({"quantile": 0.3}, Rule.quantile, {"quantile": 0.3}),
        ({"n_bands": 3}, Rule.bands, {"n_bands": 3}),
        ({"rule": Rule.quantile}, Rule.quantile, {"quantile": 0.5}),
        ({"rule": Rule.bands}, Rule.bands, {"n_bands": 4}),
        ({"rule": Rule.otsu}, Rule.otsu, {}),
    ],
)
def test_the_number_given_says_which_rule_it_is(given, rule, number):
    config = PartitionConfig(**given)
    assert config.chosen == (rule, *(number.values() or [None]))
    assert config.cache_key_fields() == {"rule": rule.name} | number


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rule": Rule.mass, "gamma": 0.1}, ["partition.gamma=0.1", "partition.rule=mass", "partition=threshold"]),
        ({"rule": Rule.otsu, "n_bands": 3}, ["partition.n_bands=3", "partition.rule=otsu", "partition=bands"]),
        ({"gamma": 0.1, "quantile": 0.5}, ["partition.quantile=0.5", "partition.rule=threshold"]),
        ({"rule": Rule.threshold}, ["partition.gamma", "got none"]),
    ],
)
def test_a_number_that_the_rule_does_not_read_is_refused(given, words):
    with pytest.raises(InputError) as refused:
        PartitionConfig(**given)
    assert all(word in str(refused.value) for word in words)


# -- the split by mass ---------------------------------------------------------------------------------------------


def test_gamma_is_where_the_cumulative_mass_reaches_the_share():
    cds = np.array([0.4, 0.1, NAN, 0.3, 0.2])
    mass = np.array([4.0, 1.0, 100.0, 3.0, 2.0])  # by ascending score 1, 2, 3, 4 of 10; an unscored one counts nowhere
    for share, gamma in [(0.05, 0.1), (0.1, 0.1), (0.11, 0.2), (0.3, 0.2), (0.5, 0.3), (0.6, 0.3), (0.61, 0.4)]:
        assert divide(cds, mass, mass_share=share).gamma == gamma, share


@given(
    scores=score_lists.filter(lambda scores: not np.isnan(scores).all()),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_low_scope_holds_the_share_and_would_not_without_its_highest_scores(scores, share, seed):
    cds = np.array(scores, dtype=float)
    mass = np.random.default_rng(seed).exponential(size=len(cds)) + 1e-3
    found = divide(cds, mass, mass_share=share)
    total = mass[~np.isnan(cds)].sum()
    assert mass[found.low].sum() >= share * total * (1 - 1e-9)
    assert mass[cds < found.gamma].sum() < share * total
    np.testing.assert_array_equal(found.low, divide(cds, 1e-6 * mass, mass_share=share).low)  # only ratios matter


def test_sums_of_floats_reach_a_share_that_they_are():
    scores = np.arange(10) / 10
    for n in range(1, 10):
        assert mass_threshold(scores, np.full(10, 0.1), n / 10) == scores[n - 1]


def test_equal_scores_stay_together_whatever_their_mass():
    found = divide(np.array([0.1, 0.2, 0.2, 0.2, 0.3]), np.array([1.0, 9, 9, 9, 1]))
    assert found.low.tolist() == [True, True, True, True, False]


def test_bands_are_told_with_their_ends() -> None:
    names = [name_group(f"band {i} of 3") for i in (1, 2, 3)]
    assert names == ["band 1 of 3 (lowest CDS)", "band 2 of 3", "band 3 of 3 (highest CDS)"]
    assert (name_group("high"), name_group("unscored")) == ("high-scope", "unscored")


def test_groups_by_another_measure_have_its_names() -> None:
    for by, names in ENDS.items():
        found = divide(SCORES, gamma=0.1, by=by)
        assert (*found.groups,) == names == find_ends(found.groups) == find_extremes(found.groups)
        np.testing.assert_array_equal(found.groups[names[0]], found.high)
        np.testing.assert_array_equal(found.groups[names[1]], found.low)
        assert order_groups(found.groups) == [*names[::-1]]
    assert [name_group(name) for name in ENDS[By.extent]] == ["wide", "narrow"]
    assert [name_group(name, " ") for name in ("high", "context-driven")] == ["high scope", "context-driven"]
    bands = divide(SCORES, n_bands=3, by=By.extent).groups
    assert (find_ends(bands), find_extremes(bands)) == (None, ([*bands][-1], next(iter(bands))))
    names = ["band 1 of 3 (lowest evidence extent)", "band 2 of 3", "band 3 of 3 (highest evidence extent)"]
    assert [name_group(name) for name in bands] == names
    assert PartitionConfig(by=By.extent, n_bands=3).rule_in_words == "3 bands, by evidence extent"


def test_what_is_divided_is_in_the_key_where_it_is_not_the_cds() -> None:
    plain = PartitionConfig().cache_key_fields()
    assert plain == {"rule": "mass", "mass_share": 0.5}
    keys = [PartitionConfig(by=by).cache_key_fields() for by in (By.extent, By.context_effect)]
    assert keys == [{**plain, "by": "extent"}, {**plain, "by": "context_effect"}]


def test_only_a_score_with_an_interval_is_decided() -> None:
    with pytest.raises(InputError, match=r"decided_only=true means nothing to partition\.by=extent"):
        PartitionConfig(by=By.extent, decided_only=True)


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.bands])
def test_many_equal_extents_stay_together_and_may_leave_a_group_empty(rule: Rule) -> None:
    """Half of the latents have extent 0: none of them is above a gamma that another of them is not above."""
    extents, rng = np.array([0.0] * 6 + [NAN] + [0.2, 0.4, 1.0, 1.0]), np.random.default_rng(1)
    found = divide(extents, rng.random(11), rule=rule, by=By.extent, **NUMBERS.get(rule, {}))
    for value in np.unique(extents[~np.isnan(extents)]):
        assert len(set(found.high[extents == value])) == 1
    alike = divide(np.zeros(5), rng.random(5), rule=rule, by=By.extent, **NUMBERS.get(rule, {}))
    assert (alike.high.sum(), alike.low.sum()) == (0, 5)
