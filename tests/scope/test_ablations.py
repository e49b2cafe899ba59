"""Which variants there are, what they share, and how random groups are matched."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.runtime.errors import InputError
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role, describe_variant, make_ablations, make_matched_ablations
from infoscope.scope.config import Control
from infoscope.scope.matching import match_groups

D_SAE = 100


@pytest.fixture
def mass() -> np.ndarray:
    return np.random.default_rng(0).exponential(size=D_SAE)


def first(n: int, start: int = 0) -> np.ndarray:
    latents = np.zeros(D_SAE, bool)
    latents[start : start + n] = True
    return latents


def test_rows_of_the_table(mass):
    variants = make_ablations({"high": first(10), "low": first(60, 10)}, first(70), mass, n_draws=5)
    assert variants[0].role is Role.original
    assert len({variant.name for variant in variants}) == len(variants) == 1 + 1 + 2 * 3 + 2 * 2 * 5
    assert all(variant.ablated.all() for variant in variants if variant.role is Role.all)
    assert {v.mode for v in variants if v.role is Role.nothing} == {EditMode.reconstruct}


def test_controls_are_drawn_from_scored_living_latents(mass):
    drawable = first(70)
    for variant in make_ablations({"high": first(10), "low": first(60, 10)}, drawable, mass, seed=3):
        if variant.role is Role.control:
            assert not (variant.ablated & ~drawable).any()
            members = first(10) if variant.group == "high" else first(60, 10)
            assert variant.overlap == pytest.approx((members & variant.ablated).sum() / variant.n_latents)


def test_shares_of_a_silent_sae_are_none_and_stay_so(mass):
    for variant in make_ablations({"high": first(10)}, first(70), mass, n_draws=1):
        said = describe_variant(variant, np.nan, np.nan)
        assert said["mass_share"] is said["energy_share"] is None
        assert describe_variant(variant, said["mass_share"], said["energy_share"]) == said


def test_size_and_mass_are_matched(mass):
    members = first(20)
    target = mass[members].sum() / mass.sum()
    for variant in make_ablations({"high": members, "low": first(60, 20)}, first(80), mass):
        if variant.role is Role.control and variant.group == "high":
            if variant.control is Control.size:
                assert variant.n_latents == 20
            else:
                assert variant.mass_share_train == pytest.approx(target, abs=mass.max() / mass.sum())


def test_a_group_with_nearly_all_mass_still_has_mass_matched_controls():
    mass = np.ones(D_SAE)
    mass[:5] = 1000
    variants = make_ablations({"high": first(5), "low": first(60, 5)}, first(65), mass)
    for variant in variants:
        if variant.control is Control.mass and variant.group == "high":
            assert variant.mass_share_train > 0.9
    outside = make_ablations(
        {"high": first(5), "low": first(60, 5)}, first(60, 5), mass
    )  # the pool cannot reach the group's mass
    assert [v.n_latents for v in outside if v.control is Control.mass and v.group == "high"] == [60] * 5


def test_draws_differ_and_are_a_function_of_the_seed(mass):
    def controls(seed: int) -> list[bytes]:
        variants = make_ablations({"high": first(20), "low": first(60, 20)}, first(80), mass, seed=seed)
        return [variant.ablated.tobytes() for variant in variants if variant.role is Role.control]

    assert controls(0) == controls(0)
    assert len(set(controls(0))) == 20
    assert not set(controls(0)) & set(controls(1))


def test_an_empty_group_is_a_marked_row(mass):
    variants = make_ablations({"high": first(0), "low": first(60)}, first(60), mass)
    empty = [variant for variant in variants if variant.empty]
    assert [(v.group, v.role, v.n_latents) for v in empty] == [("high", Role.group, 0)] * 2
    assert empty[0].key("sae") == variants[0].key("sae")
    assert not [v for v in variants if v.role is Role.control and v.group == "high"]


def test_original_rows_of_different_saes_have_one_key():
    small = Ablation("original", EditMode.error_preserving, np.zeros(64, bool), Role.original)
    large = Ablation("original", EditMode.error_preserving, np.zeros(128, bool), Role.original)
    assert small.key("sae a") == large.key("sae b") == small.key()


def test_keys_tell_apart_what_differs(mass):
    group = Ablation("x", EditMode.error_preserving, first(3), Role.group)
    same = Ablation("y", EditMode.error_preserving, first(3), Role.control)
    other_mode = Ablation("x", EditMode.reconstruct, first(3), Role.group)
    nothing = Ablation("x", EditMode.reconstruct, first(0), Role.nothing)
    assert group.key("a") == same.key("a")
    assert len({group.key("a"), group.key("b"), other_mode.key("a"), nothing.key("a"), nothing.key("b")}) == 5


def test_negative_draws_are_refused(mass):
    with pytest.raises(InputError, match="n_draws"):
        make_ablations({"high": first(3), "low": first(3, 3)}, first(6), mass, n_draws=-1)


def test_matched_groups(mass):
    rate = np.repeat([0.001, 0.01, 0.1, 0], 25)
    groups = {"high": first(40), "low": first(60, 40)}  # both fire at .01, high ones alone at .001
    support = np.random.default_rng(5).uniform(0.01, 0.3, D_SAE)
    pairs = match_groups(groups, rate, support, mass, seed=1)
    high, low, *others = make_matched_ablations(pairs, mass)
    assert [variant.group for variant in (high, low)] == ["high, matched frequency", "low, matched frequency"]
    assert [variant.name for variant in (high, low)] == [
        "error_preserving_without_high_matched",
        "error_preserving_without_low_matched",
    ]
    assert {(variant.role, variant.mode) for variant in (high, low)} == {(Role.group, EditMode.error_preserving)}
    assert np.sort(rate[high.ablated]).tolist() == np.sort(rate[low.ablated]).tolist() == [0.01] * 10
    assert not (high.ablated & ~groups["high"]).any()
    assert not (low.ablated & ~groups["low"]).any()
    assert high.mass_share_train == pytest.approx(mass[high.ablated].sum() / mass.sum())
    assert [variant.group for variant in others] == [
        f"{group}, matched {matching}" for matching in list(pairs)[1:] for group in ("high", "low")
    ]
    assert others[-1].name == "error_preserving_without_low_matched_frequency_support_and_mass"
    for variant, expected in zip(others, [group for pair in list(pairs.values())[1:] for group in pair], strict=True):
        np.testing.assert_array_equal(variant.ablated, expected)


def test_groups_that_have_nothing_in_common_are_empty_rows():
    rate = np.repeat([0.001, 0.1], 50)
    groups = {"high": first(50), "low": first(50, 50)}
    mass = np.where(rate < 0.01, 1, 100.0)
    variants = make_matched_ablations(match_groups(groups, rate, np.ones(D_SAE), mass), mass)
    assert [variant.empty for variant in variants] == [True, True, False, False, True, True, True, True]


def test_bands_have_no_matched_rows(mass):
    bands = {"band 1 of 2": first(50), "band 2 of 2": first(50, 50)}
    assert make_matched_ablations(match_groups(bands, np.ones(D_SAE), np.ones(D_SAE), mass), mass) == []
