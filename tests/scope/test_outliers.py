"""Outlier tokens: the threshold, how far their maps move, which groups act on them; planted and made-up norms."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.data.pictures import Pictures
from infoscope.data.reader import iterate_images
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import ignore
from infoscope.sae.activations import ReLU
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import measure_one
from infoscope.scope.cds import uniform_chance_score
from infoscope.scope.config import Diagonal, OutlierConfig, OutlierRule, ScopeConfig
from infoscope.scope.group_activation import Acts, GroupActivation, OutlierActs, measure_outlier_acts
from infoscope.scope.outliers import compute_norm_summary, compute_outlier_threshold
from infoscope.scope.token_outliers import (
    MAPS,
    TokenOutliers,
    choose_images,
    compute_norms_by_layer,
    compute_outlier_emd,
    compute_token_outliers,
    make_token_maps,
)
from infoscope.vision.backbone import Backbone
from infoscope.vision.planted import ContextFree, PlantedRegisters
from infoscope.vision.tokens.extract import TokenCache, extract_tokens
from tests.support.closed_forms import CONTEXT_RGB, MARKER_RGB, PlantedJump

GRID, PATCH_PX, SHIFT = 12, 2, 1
DIAGONAL = math.sqrt(2) * 10
SCOPE = ScopeConfig(shift_patches=SHIFT, n_workers=1, batch_images=7)


class JumpOverGround(PlantedJump):
    """One token of norm 10 that jumps by (3, 4), over ground that stays where it is (norms 1 to 2, its brightness)."""

    def __init__(self) -> None:
        super().__init__(GRID, PATCH_PX, offsets=[(3, 4), (0, 0)])

    def patch_tokens(self, patches: torch.Tensor) -> torch.Tensor:
        jumps = super().patch_tokens(patches)[..., 0] > 0
        ground = 1 + patches.mean((-1, -2, -3)) / 255
        return torch.stack([jumps * 10.0, torch.where(jumps, 0, ground)], -1)


def make_jump_pictures(n: int) -> np.ndarray:
    """At the size from which crops are cut: grey noise, a red patch each, a blue corner that crop 2 lacks."""
    rng = np.random.default_rng(0)
    side = (GRID + SHIFT) * PATCH_PX
    pictures = rng.integers(0, 200, (n, side, side, 1), dtype=np.uint8).repeat(3, axis=-1)
    for picture in pictures:
        row, column = (PATCH_PX * rng.integers(2, 7, 2)).tolist()
        picture[row : row + PATCH_PX, column : column + PATCH_PX] = MARKER_RGB
        picture[:PATCH_PX, :PATCH_PX] = CONTEXT_RGB
    return pictures


def make_noise(n: int, side: int = (GRID + SHIFT) * PATCH_PX) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def make_cache(backbone: Backbone, images: Pictures, folder: Path) -> TokenCache:
    return extract_tokens(
        backbone,
        lambda rows, n: iterate_images(images, backbone.image_px, n, rows),
        len(images),
        -2,
        folder,
        batch_images=16,
    )


def test_threshold_by_each_rule() -> None:
    norms = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert compute_outlier_threshold(norms) == pytest.approx(3 + 6 * 1.4826)
    assert compute_outlier_threshold(norms, OutlierConfig(c=2)) == pytest.approx(3 + 2 * 1.4826)
    assert compute_outlier_threshold(norms, OutlierConfig(rule=OutlierRule.absolute, value=7.5)) == 7.5
    quantile = OutlierConfig(rule=OutlierRule.quantile, quantile=0.75)
    assert compute_outlier_threshold(norms, quantile) == 4
    assert compute_norm_summary(norms, quantile).n_outliers == 1


def test_norm_summary_tells_a_mode_from_a_tail() -> None:
    rng = np.random.default_rng(0)
    body = rng.normal(10, 1, 20_000)
    assert not compute_norm_summary(body).has_outlier_mode
    summary = compute_norm_summary(np.r_[body, rng.normal(60, 3, 200)])
    assert summary.has_outlier_mode
    assert summary.n_outliers == 200
    assert summary.n_tokens == 20_200
    assert not compute_norm_summary(np.r_[body, np.geomspace(17, 60, 30)]).has_outlier_mode


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"c": 0}, "outliers.c"),
        ({"value": -1.0}, "outliers.value"),
        ({"rule": OutlierRule.absolute}, "outliers.value"),
        ({"quantile": 1.0}, "outliers.quantile"),
        ({"n_images": 0}, "outliers.n_images"),
        ({"n_layer_images": 0}, "outliers.n_layer_images"),
    ],
)
def test_bad_options_are_one_sentence(options: dict, word: str) -> None:
    with pytest.raises(InputError, match=rf"^Expected {word}\b.*\.$") as error:
        OutlierConfig(**options)
    assert "\n" not in str(error.value)


def test_images_with_outliers_are_chosen_evenly_and_all_where_there_are_none() -> None:
    has_outlier = np.zeros(20, dtype=bool)
    has_outlier[4:12] = True
    np.testing.assert_array_equal(choose_images(has_outlier, 4), [4, 6, 8, 10])
    np.testing.assert_array_equal(choose_images(has_outlier, 100), np.arange(4, 12))
    np.testing.assert_array_equal(choose_images(np.zeros(6, dtype=bool), 3), [0, 2, 4])


def test_maps_hold_outliers_the_next_highest_and_all_normal_tokens() -> None:
    norms = np.random.default_rng(0).uniform(1, 2, (3, 2, 5, 5))
    norms[:, 0, 2, 3] = norms[:, 0, 4, 4] = 9  # both crops show rows and columns 1..4 of crop 1, 0..3 of crop 2
    norms[:, 0, 0, 0] = 8  # crop 2 does not show it
    norms[1:, 1, 0, 1] = 7
    outlier, following, normal = make_token_maps(norms, 5.0, 1)
    assert (outlier[:, 0, 1:, 1:] > 0).sum() == 6
    assert (outlier[:, 0, 0, 0] == 0).all()
    np.testing.assert_array_equal((outlier[:, 1] > 0).sum((1, 2)), [0, 1, 1])
    for image in range(3):
        for side, shared in ((0, np.s_[1:, 1:]), (1, np.s_[:4, :4])):
            inside = norms[image, side][shared]
            n_outliers = (inside > 5).sum()
            highest = np.sort(inside[inside <= 5])[::-1][:n_outliers]
            chosen = following[image, side]
            np.testing.assert_allclose(np.sort(chosen[chosen > 0])[::-1], highest)
            assert (chosen > 0).sum() == (chosen[shared] > 0).sum()
            np.testing.assert_allclose(normal[image, side][shared], np.where(inside > 5, 0, inside))


def test_a_known_jump_is_the_distance_of_the_outliers_and_the_ground_stays() -> None:
    backbone, images = JumpOverGround(), Pictures(list(make_jump_pictures(9)))
    found = compute_outlier_emd(backbone, images, np.arange(9), -2, 5.0, SCOPE)
    outlier, following, normal = found.emd
    np.testing.assert_allclose(outlier, 5 / DIAGONAL, atol=1e-9)
    np.testing.assert_allclose(following, 0, atol=1e-9)
    assert (normal < 0.02).all()  # the jump leaves a hole and fills another
    assert backbone.n_images_encoded == 18
    assert found.crop_norms.shape == (9, 2, GRID, GRID)
    assert np.isfinite(found.chance_emd).all()


def test_crops_lie_on_the_main_diagonal_whatever_the_scores_do() -> None:
    backbone, images = JumpOverGround(), Pictures(list(make_jump_pictures(3)))
    scope = replace(SCOPE, diagonal=Diagonal.anti)
    found = compute_outlier_emd(backbone, images, np.arange(3), -2, 5.0, scope)
    np.testing.assert_allclose(found.emd[0], 5 / DIAGONAL, atol=1e-9)


def test_pairs_without_outliers_in_both_crops_have_no_distance() -> None:
    pictures = make_jump_pictures(4)
    pictures[2] = 40  # nothing red: no token jumps, so none is an outlier
    found = compute_outlier_emd(JumpOverGround(), Pictures(list(pictures)), np.arange(4), -2, 5.0, SCOPE)
    for name in ("outlier", "next_highest"):
        emd, chance = found.emd[MAPS.index(name)], found.chance_emd[MAPS.index(name)]
        np.testing.assert_array_equal(np.isnan(emd), [False, False, True, False])
        np.testing.assert_array_equal(np.isnan(chance), np.isnan(emd))
    assert np.isfinite(found.emd[MAPS.index("normal")]).all()


def test_norms_by_layer_are_those_of_every_block() -> None:
    backbone, images = ContextFree(GRID, PATCH_PX), Pictures(list(make_noise(5)))
    summaries = compute_norms_by_layer(backbone, images, [0, 1], np.array([1, 3]), OutlierConfig(), batch_images=1)
    batch = next(iter(iterate_images(images, backbone.image_px, 2, [1, 3])))
    norms = backbone.tokens(batch.images, 0).patches.norm(dim=-1).numpy()
    assert len(summaries) == 2
    assert summaries[0].n_tokens == 2 * GRID**2
    assert summaries[0].threshold == pytest.approx(compute_outlier_threshold(norms), rel=1e-6)
    np.testing.assert_array_equal(summaries[0].counts, summaries[1].counts)  # later blocks leave patches as they are


@pytest.fixture(scope="module")
def registers() -> tuple[PlantedRegisters, Pictures]:
    return PlantedRegisters(GRID, PATCH_PX).eval(), Pictures(list(make_noise(80)))


@pytest.fixture(scope="module")
def register_cache(registers: tuple[PlantedRegisters, Pictures], tmp_path_factory) -> TokenCache:
    return make_cache(*registers, tmp_path_factory.mktemp("tokens"))


def measure_acts(sae: SparseAutoencoder, tokens: TokenCache, threshold: float, progress: Any = ignore) -> OutlierActs:
    return measure_one(tokens, measure_outlier_acts(sae, tokens, threshold), progress).compute()


@pytest.fixture(scope="module")
def found(registers: tuple[PlantedRegisters, Pictures], register_cache: TokenCache) -> TokenOutliers:
    config = OutlierConfig(n_images=60, n_layer_images=10)
    return compute_token_outliers(*registers, register_cache, config, SCOPE)


def test_planted_registers_are_the_outliers(found: TokenOutliers) -> None:
    assert found.norms.n_outliers == found.n_images_with == found.n_images == 80  # one in each image
    assert found.norms.has_outlier_mode
    assert found.norms.threshold < 20 < found.norms.edges[-1]
    assert [summary.has_outlier_mode for summary in found.by_layer] == [True, True]
    assert [summary.n_outliers for summary in found.by_layer] == [10, 10]


def test_planted_registers_leap_and_normal_tokens_stay(found: TokenOutliers) -> None:
    outlier, following, normal = np.nanmean(found.distances.emd, axis=1)
    assert outlier > following + 0.1
    assert outlier > normal + 0.3
    # their places are drawn by a hash of the crop, evenly and independently
    assert outlier == pytest.approx(uniform_chance_score(GRID - SHIFT), abs=0.06)
    valid = np.isfinite(found.distances.emd[0])
    assert 35 < valid.sum() < 60  # a register may lie outside the region both crops show
    np.testing.assert_array_equal(found.pictured, np.flatnonzero(valid)[: len(found.pictures)])
    assert found.pictures.shape == (4, 26, 26, 3)


def test_the_group_of_registers_acts_on_outliers_and_the_local_group_on_normal_tokens(
    registers: tuple[PlantedRegisters, Pictures], register_cache: TokenCache, found: TokenOutliers
) -> None:
    backbone = registers[0]
    sae = SparseAutoencoder(backbone.d_in, backbone.n_codes, ReLU())
    with torch.no_grad():
        sae.W_enc.copy_(backbone.directions.T)
        sae.b_enc.fill_(-0.7)  # a local code is 1, less or more grain
        sae.b_enc[backbone.n_local :] = -10
    is_register = np.arange(backbone.n_codes) >= backbone.n_local
    groups = {"high": is_register, "low": ~is_register, "nobody": np.zeros(backbone.n_codes, dtype=bool)}
    measured = measure_acts(sae, register_cache, found.norms.threshold).of_groups(groups)
    high, low, nobody = measured.groups.values()
    assert high.ratio > 100 or high.on_normal == 0
    assert low.ratio < 0.2
    assert nobody.on_outlier == nobody.on_normal == 0
    assert math.isnan(nobody.ratio)
    assert [of.n_features for of in measured.groups.values()] == [4, 20, 0]

    # against plain dense arithmetic, tokens picked by hand
    tokens = register_cache.tokens(slice(None)).patches.flatten(0, 1)
    on_outlier = (tokens.norm(dim=-1) > found.norms.threshold).numpy()
    acts = sae.encode(tokens).detach().double().numpy()
    assert measured.n_outlier == on_outlier.sum() == 80
    assert measured.n_normal == (~on_outlier).sum()
    everyone = np.ones(backbone.n_codes, dtype=bool)
    pairs = [(measured.groups[name], mask) for name, mask in groups.items()]
    for of, mask in [*pairs, (measured.everyone, everyone)]:
        assert of.on_outlier == pytest.approx(acts[on_outlier][:, mask].sum(1).mean(), rel=1e-5)
        assert of.on_normal == pytest.approx(acts[~on_outlier][:, mask].sum(1).mean(), rel=1e-5)


def test_no_outlier_at_all_is_a_result(
    registers: tuple[PlantedRegisters, Pictures], register_cache: TokenCache, tmp_path: Path
) -> None:
    config = OutlierConfig(rule=OutlierRule.absolute, value=1e3, n_images=5, n_layer_images=2)
    found = compute_token_outliers(*registers, register_cache, config, SCOPE)
    assert found.norms.n_outliers == found.n_images_with == 0
    assert not found.norms.has_outlier_mode
    assert np.isnan(found.distances.emd[:2]).all()
    assert np.isfinite(found.distances.emd[2]).all()
    assert len(found.pictures) == len(found.pictured) == 0
    np.testing.assert_array_equal(found.distances.image_index, [0, 16, 32, 48, 64])
    found.save(tmp_path)
    assert TokenOutliers.load(tmp_path).pictures.shape == (0, 26, 26, 3)
    sae = SparseAutoencoder(32, 8, ReLU())
    measured = measure_acts(sae, register_cache, 1e3).of_groups({"all": np.ones(8, dtype=bool)})
    assert measured.n_outlier == 0
    assert math.isnan(measured.groups["all"].on_outlier)
    assert math.isnan(measured.groups["all"].ratio)
    assert measured.groups["all"].on_normal > 0


def test_progress_counts_the_images_read(
    registers: tuple[PlantedRegisters, Pictures], register_cache: TokenCache
) -> None:
    seen: list[tuple[int, int]] = []
    config = OutlierConfig(n_images=10, n_layer_images=4)
    compute_token_outliers(*registers, register_cache, config, SCOPE, progress=lambda *two: seen.append(two))
    assert seen == [(7, 14), (10, 14), (14, 14)]
    rows: list[int] = []
    measure_acts(SparseAutoencoder(32, 8, ReLU()), register_cache, 10.0, rows.append)
    assert rows == [64, 80]


def test_what_is_saved_is_what_is_loaded(found: TokenOutliers, tmp_path: Path) -> None:
    found.save(tmp_path / "tokens")
    assert_same(TokenOutliers.load(tmp_path / "tokens"), found)
    acts = OutlierActs(np.array([2.5, 0.0]), np.array([1.0, 1e-9]), 12, 345)
    acts.save(tmp_path / "group")
    assert_same(OutlierActs.load(tmp_path / "group"), acts)


def test_groups_are_sums_over_latents() -> None:
    acts = OutlierActs(np.array([12.0, 0.0, 6.0, 1.0]), np.array([1.0, 4.0, 5.0, 0.0]), 2, 10)
    masks = {"a": [True, True, False, False], "b": [False, True, True, False], "none": [False] * 4}
    found = acts.of_groups({name: np.array(mask) for name, mask in masks.items()})
    groups = {"a": Acts(2, 6.0, 0.5), "b": Acts(2, 3.0, 0.9), "none": Acts(0, 0.0, 0.0)}
    assert found == GroupActivation(groups, Acts(4, 9.5, 1.0), 2, 10)
    np.testing.assert_array_equal([of.ratio for of in found.groups.values()], [12, 3 / 0.9, np.nan])


def assert_same(got: object, expected: object) -> None:
    """Compare dataclasses field by field, arrays exactly."""
    assert type(got) is type(expected)
    for field in fields(expected):  # pyright: ignore[reportArgumentType]
        one, other = getattr(got, field.name), getattr(expected, field.name)
        if isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
        elif hasattr(other, "__dataclass_fields__"):
            assert_same(one, other)
        elif isinstance(other, tuple) and hasattr(other[0], "__dataclass_fields__"):
            assert len(one) == len(other)
            for pair in zip(one, other, strict=True):
                assert_same(*pair)
        else:
            assert one == other, field.name
            assert type(one) is type(other), field.name
