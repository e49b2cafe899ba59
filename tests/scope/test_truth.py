"""Scores that are known in closed form: crops, ranking, distances and scores together must find them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.data.images import ImageSet, resize_image
from infoscope.data.scenes.render import render_split_part
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.cds import (
    compute_cds_with_zeros,
    compute_chance_ratio,
    compute_d_grid,
    count_zero_maps,
    position_locked_score,
)
from infoscope.scope.ranking import ImageTokens
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import ScopeConfig, score_latents
from infoscope.vision.backbone import Backbone
from infoscope.vision.planted import ContextFree
from tests.support.closed_forms import CONTEXT_RGB, MARKER_RGB, PlantedJump, PositionLocked
from tests.support.scope_samples import rank

PATCH_PX = 4
GEOMETRIES = [(12, 1), (7, 1), (7, 2), (13, 3), (4, 2)]  # grid and shift in patches


class Pictures(ImageSet):
    """Pictures in memory."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__("train", [f"{i:06d}" for i in range(len(images))])
        self.images = images

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "pictures", "n_images": len(self)}

    def load(self, index: int, size_px: int) -> np.ndarray:
        return resize_image(self.images[index], size_px)


def make_grey_noise(n_images: int, side_px: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 190, (n_images, side_px, side_px, 1), dtype=np.uint8)
    return np.repeat(noise, 3, axis=-1)


def paint(images: np.ndarray, row: int, column: int, rgb: tuple[int, int, int]) -> None:
    images[:, row * PATCH_PX : (row + 1) * PATCH_PX, column * PATCH_PX : (column + 1) * PATCH_PX] = rgb


def make_identity_sae(d_in: int, activation: Activation | None = None) -> SparseAutoencoder:
    """Return an SAE whose latents are the channels of the tokens, bit for bit."""
    sae = SparseAutoencoder(d_in, d_in, activation or ReLU(), seed=0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(d_in))
        sae.W_dec.copy_(torch.eye(d_in))
    return sae.requires_grad_(False)


def score(backbone: Backbone, sae: torch.nn.Module, pictures: Pictures, shift_patches: int, k: int) -> Scores:
    """Rank all pictures and score every latent on its first k."""
    ranking = rank(sae, ImageTokens(backbone, pictures, -2), k)
    config = ScopeConfig(k_cds=k, k_max=k, shift_patches=shift_patches, batch_images=3, n_workers=1)
    return score_latents(backbone, sae, pictures, ranking, config, layer=-2)


@pytest.mark.parametrize(("grid", "shift"), GEOMETRIES)
def test_without_context_every_score_is_exactly_zero(grid: int, shift: int) -> None:
    backbone = ContextFree(grid, PATCH_PX, d_in=19, seed=grid)
    noise = np.random.default_rng(0).integers(256, size=(11, 100, 70, 3), dtype=np.uint8)  # any size: all are resized
    scores = score(backbone, make_identity_sae(19), Pictures(noise), shift, k=6)
    assert np.isfinite(scores.emd).any()
    assert (scores.emd[np.isfinite(scores.emd)] == 0.0).all()
    values = scores.cds(6).values
    assert np.isfinite(values).sum() >= 15
    assert (values[np.isfinite(values)] == 0.0).all()
    assert np.nanmean(scores.chance(6)) > 0  # the maps themselves differ from picture to picture


@pytest.mark.parametrize("activation", [TopK(7), ReLU()], ids=["topk", "relu"])
def test_without_context_any_dictionary_scores_zero_up_to_rounding(activation: Activation) -> None:
    backbone = ContextFree(12, PATCH_PX, d_in=24, seed=1)
    pictures = Pictures(np.stack([scene.image for scene in render_split_part(3, "train", 0, 20, 64)]))
    sae = SparseAutoencoder(24, 60, activation, seed=2).requires_grad_(False)
    scores = score(backbone, sae, pictures, 1, k=8)
    values = scores.cds(8).values
    assert np.isfinite(values).sum() > 20
    assert np.nanmax(scores.emd) < 1e-6  # float32 matrix products may round a row differently at another place


@pytest.mark.parametrize("activation", [TopK(6), ReLU()], ids=["topk", "relu"])
@pytest.mark.parametrize(("grid", "shift"), GEOMETRIES)
def test_a_jump_scores_its_length_over_the_diagonal(grid: int, shift: int, activation: Activation) -> None:
    row, column = shift + (grid - shift) // 2, shift  # of the marker in the whole picture
    offsets = [(0, 0), (0, 1), (-1, 0), (-1, 1), (0, grid - shift - 1), (-(row - shift), grid - shift - 1)]
    pictures = make_grey_noise(9, (grid + shift) * PATCH_PX, seed=grid)
    paint(pictures, row, column, MARKER_RGB)
    paint(pictures, 0, 0, CONTEXT_RGB)
    backbone = PlantedJump(grid, PATCH_PX, offsets)
    scores = score(backbone, make_identity_sae(len(offsets), activation), Pictures(pictures), shift, k=8)
    expected = np.hypot(*np.array(offsets).T) / compute_d_grid(grid, shift)
    np.testing.assert_allclose(scores.emd, np.repeat(expected[:, None], 8, axis=1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.cds(8).values, expected, rtol=0, atol=1e-12)


def test_the_longest_jump_scores_one() -> None:
    grid, shift = 7, 2
    pictures = make_grey_noise(4, (grid + shift) * PATCH_PX, seed=5)
    paint(pictures, grid - 1, shift, MARKER_RGB)  # bottom left of what both crops show
    paint(pictures, 0, 0, CONTEXT_RGB)
    diagonal = grid - shift - 1
    backbone = PlantedJump(grid, PATCH_PX, [(-diagonal, diagonal)])
    scores = score(backbone, make_identity_sae(1), Pictures(pictures), shift, k=4)
    assert scores.cds(4).values[0] == pytest.approx(1.0, abs=1e-12)


def test_a_score_is_the_mean_over_pictures() -> None:
    pictures = make_grey_noise(8, 13 * PATCH_PX, seed=6)
    paint(pictures, 6, 5, MARKER_RGB)
    paint(pictures[:3], 0, 0, CONTEXT_RGB)  # three of eight jump
    scores = score(PlantedJump(12, PATCH_PX, [(3, 4)]), make_identity_sae(1), Pictures(pictures), 1, k=8)
    assert scores.cds(8).values[0] == pytest.approx(3 / 8 * 5 / (10 * math.sqrt(2)), abs=1e-12)


def test_a_jump_out_of_the_shared_region_has_no_distance() -> None:
    pictures = make_grey_noise(8, 13 * PATCH_PX, seed=7)
    paint(pictures, 3, 5, MARKER_RGB)
    paint(pictures, 0, 0, CONTEXT_RGB)
    # crop 1 shares rows 1..11 of its grid: row 3 minus 3 is in the crop, and not in what crop 2 shows
    scores = score(PlantedJump(12, PATCH_PX, [(-3, 0), (-2, 0)]), make_identity_sae(2), Pictures(pictures), 1, k=8)
    assert count_zero_maps(scores.mass1, scores.mass2, 8).one_sided.tolist() == [8, 0]
    assert np.isnan(scores.cds(8).values[0])
    assert compute_cds_with_zeros(scores.emd, scores.mass1, scores.mass2, 8).values[0] == 1
    assert scores.cds(8).values[1] == pytest.approx(2 / compute_d_grid(12, 1), abs=1e-12)


@pytest.mark.parametrize(("grid", "shift"), GEOMETRIES)
def test_a_position_locked_feature_scores_its_landmark(grid: int, shift: int) -> None:
    last = grid - shift - 1
    inside = [(row, column) for row in range(shift, last + 1) for column in range(shift, last + 1)]
    half_seen = [(0, last), (grid - 1, shift)]  # shared in one crop only
    backbone = (
        PositionLocked(grid, PATCH_PX, inside + half_seen) if inside else PositionLocked(grid, PATCH_PX, half_seen)
    )
    pictures = Pictures(make_grey_noise(6, 40, seed=8))
    scores = score(backbone, make_identity_sae(backbone.d_in), pictures, shift, k=6)
    landmark = shift / (grid - shift - 1)
    assert position_locked_score(grid, shift) == landmark
    np.testing.assert_allclose(scores.cds(6).values[: len(inside)], landmark, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        compute_chance_ratio(scores.cds(6).values, scores.chance(6))[: len(inside)], 1, rtol=0, atol=1e-12
    )
    assert np.isnan(scores.cds(6).values[len(inside) :]).all()
    assert (count_zero_maps(scores.mass1, scores.mass2, 6).one_sided[len(inside) :] == 6).all()
