"""Which latents each rule keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoscope.probes.config import SelectConfig
from infoscope.probes.heads import LinearMaps
from infoscope.probes.selection import (
    BY_ACTIVATION,
    BY_CHANCE,
    compute_probe_importance,
    make_selection_ablations,
    name_probe_rule,
)
from infoscope.runtime.errors import InputError
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role

D_SAE = 60
CONFIG = SelectConfig(n_kept=[5, 20, 30], n_bands=2, n_draws=3)


@pytest.fixture
def mass() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.linspace(1, 2, D_SAE))


@pytest.fixture
def variants(mass: np.ndarray) -> list[Ablation]:
    """Of 60 latents 50 are candidates; the bands are the first 25 of them and the others."""
    latents = np.arange(D_SAE)
    bands = {"band 1 of 2": latents < 25, "band 2 of 2": latents >= 25}
    weights = np.where(latents % 2 == 0, 10.0 + latents, 0.0)
    return make_selection_ablations(bands, latents < 50, mass, {name_probe_rule("depth"): weights}, CONFIG, seed=3)


def get_kept(variants: list[Ablation], rule: str, n_kept: int) -> list[list[int]]:
    chosen = [v for v in variants if v.group == rule and (~v.ablated).sum() == n_kept]
    return [np.flatnonzero(~v.ablated).tolist() for v in chosen]


def test_they_keep_what_they_say_and_decode_from_it_alone(variants: list[Ablation]) -> None:
    assert len({v.name for v in variants}) == len(variants)
    assert all(v.mode is EditMode.reconstruct and v.role is Role.kept and not v.empty for v in variants)
    assert {int((~v.ablated).sum()) for v in variants} == {5, 20, 30}
    assert all(v.ablated[50:].all() for v in variants)  # no candidate


def test_bands_keep_their_most_active(variants: list[Ablation], mass: np.ndarray) -> None:
    (kept,) = get_kept(variants, "band 2 of 2", 5)
    assert kept == sorted(sorted(range(25, 50), key=lambda j: -mass[j])[:5])


def test_a_band_of_too_few_is_left_out(variants: list[Ablation]) -> None:
    assert get_kept(variants, "band 1 of 2", 20) != []
    assert get_kept(variants, "band 1 of 2", 30) == []
    assert get_kept(variants, BY_ACTIVATION, 30) != []


def test_the_most_active_of_all(variants: list[Ablation], mass: np.ndarray) -> None:
    (kept,) = get_kept(variants, BY_ACTIVATION, 20)
    assert kept == sorted(sorted(range(50), key=lambda j: -mass[j])[:20])


def test_the_heaviest_in_the_probe(variants: list[Ablation]) -> None:
    assert get_kept(variants, name_probe_rule("depth"), 5) == [[40, 42, 44, 46, 48]]


def test_random_choices_differ_and_are_a_function_of_the_seed(variants: list[Ablation], mass: np.ndarray) -> None:
    drawn = get_kept(variants, BY_CHANCE, 5)
    assert len(drawn) == 3
    assert len({tuple(kept) for kept in drawn}) == 3
    again = make_selection_ablations({}, np.arange(D_SAE) < 50, mass, {}, CONFIG, seed=3)
    other = make_selection_ablations({}, np.arange(D_SAE) < 50, mass, {}, CONFIG, seed=4)
    assert get_kept(again, BY_CHANCE, 5) == drawn
    assert get_kept(other, BY_CHANCE, 5) != drawn


def test_mass_that_is_removed(variants: list[Ablation], mass: np.ndarray) -> None:
    for variant in variants:
        assert variant.mass_share_train == pytest.approx(mass[variant.ablated].sum() / mass.sum())


def test_importance_is_what_a_latent_adds_to_the_outputs() -> None:
    """An orthonormal dictionary: latent j writes dimension j, which the heads weigh as the test says."""
    d = 6
    weight = torch.zeros(1, d, 3)
    weight[0, 0] = torch.tensor([1.0, -1.0, 0.0])  # tells classes apart
    weight[0, 1] = 5.0  # lifts all logits alike: no class gains
    weight[0, 2] = torch.tensor([0.0, 2.0, -2.0])
    heads = {name: LinearMaps(weight, torch.zeros(1, 3)) for name in ("classification/patch_mean", "depth")}
    heads["classification/cls_final"] = heads["depth"]
    mean_act = np.array([3.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    found = compute_probe_importance(heads, np.eye(d), mean_act)
    of_classes, of_depth = (name_probe_rule(task) for task in ("classification/patch_mean", "depth"))
    assert found.keys() == {of_classes, of_depth}  # final CLS is not linear in the latents
    np.testing.assert_allclose(found[of_classes], [3 * 2**0.5, 0, 8**0.5, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[of_depth], [3 * 2**0.5, 75**0.5, 8**0.5, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_kept": []}, "select.n_kept"),
        ({"n_kept": [8, 4]}, "to ascend"),
        ({"n_kept": [0, 4]}, "at least 1"),
        ({"n_kept": [4, 4]}, "to ascend"),
        ({"n_bands": 1}, "select.n_bands to be at least 2"),
        ({"n_draws": 0}, "select.n_draws to be at least 1"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        SelectConfig(**given)
