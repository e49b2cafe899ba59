"""Which latents the removal curve takes: growing shares of the mass, from either end and at random."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.curve import ORDERS, make_curve_ablations, name_part

D_SAE, SHARES = 200, (0.1, 0.5, 0.9)


@pytest.fixture
def cds() -> np.ndarray:
    cds = np.random.default_rng(0).random(D_SAE)
    cds[:10] = np.nan
    return cds


@pytest.fixture
def mass() -> np.ndarray:
    mass = np.random.default_rng(1).exponential(size=D_SAE)
    mass[10:20] = 0
    return mass


@pytest.fixture
def variants(cds: np.ndarray, mass: np.ndarray) -> dict[str, Ablation]:
    return {variant.name: variant for variant in make_curve_ablations(cds, mass, SHARES, n_draws=2)}


def test_each_share_is_taken_from_each_end_and_at_random(variants: dict[str, Ablation]) -> None:
    parts = ["low_{}", "high_{}", "random_{}_0", "random_{}_1"]
    assert list(variants) == [f"curve_{part.format(share)}" for share in SHARES for part in parts]
    assert {variant.group for variant in variants.values()} == {name_part(end, of) for end in ORDERS for of in SHARES}
    assert {(variant.mode, variant.role) for variant in variants.values()} == {(EditMode.error_preserving, Role.part)}
    assert variants["curve_low_0.1"].draw is None
    assert variants["curve_random_0.1_1"].draw == 1


def test_the_mass_is_as_close_as_whole_features_allow(
    variants: dict[str, Ablation], cds: np.ndarray, mass: np.ndarray
) -> None:
    pool = ~np.isnan(cds) & (mass > 0)
    for variant in variants.values():
        assert not (variant.ablated & ~pool).any()
        share = float(str(variant.group).split()[1])
        taken = mass[variant.ablated].sum()
        assert taken == pytest.approx(share * mass[pool].sum(), abs=mass.max() / 2)
        assert variant.mass_share_train == pytest.approx(taken / mass.sum())


def test_ends_are_those_of_the_score(variants: dict[str, Ablation], cds: np.ndarray, mass: np.ndarray) -> None:
    pool = ~np.isnan(cds) & (mass > 0)
    for share in SHARES:
        low, high = (variants[f"curve_{end}_{share}"].ablated for end in ("low", "high"))
        assert cds[low].max() < cds[pool & ~low].min()
        assert cds[high].min() > cds[pool & ~high].max()


def test_an_order_goes_on_where_the_smaller_share_ended(variants: dict[str, Ablation]) -> None:
    for part in ("low_{}", "high_{}", "random_{}_0", "random_{}_1"):
        small, middle, large = (variants[f"curve_{part.format(share)}"].ablated for share in SHARES)
        assert not (small & ~middle).any()
        assert not (middle & ~large).any()
    assert (variants["curve_random_0.5_0"].ablated != variants["curve_random_0.5_1"].ablated).any()


def test_draws_are_a_function_of_the_seed(cds: np.ndarray, mass: np.ndarray) -> None:
    def draw(seed: int) -> list[bytes]:
        return [v.ablated.tobytes() for v in make_curve_ablations(cds, mass, SHARES, 2, seed) if v.draw is not None]

    assert draw(0) == draw(0)
    assert not set(draw(0)) & set(draw(1))


def test_one_feature_is_removed_at_least(mass: np.ndarray) -> None:
    heavy = mass.copy()
    heavy[:5] = 1000
    variants = make_curve_ablations(np.arange(D_SAE) / D_SAE, heavy, [0.01], n_draws=0)
    assert [variant.n_latents for variant in variants if "low" in variant.name] == [1]


def test_nothing_scored_leaves_no_variant(mass: np.ndarray) -> None:
    assert make_curve_ablations(np.full(D_SAE, np.nan), mass, SHARES, 2) == []
