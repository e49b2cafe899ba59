"""The planted backbones do what their formulas say, on made-up pixels and on scenes with known factors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from infoscope.data.scenes.factors import LIGHTS
from infoscope.data.scenes.render import render_split_part
from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone
from infoscope.vision.planted import (
    LIGHT_ANCHORS,
    LOCAL_MEASURES,
    N_QUARTERS,
    ContextFree,
    PlantedRegisters,
    compute_local_codes,
)
from tests.support.closed_forms import CONTEXT_RGB, MARKER_RGB, PlantedJump, PositionLocked

GRID, PATCH_PX = 12, 8
CROP_PX = GRID * PATCH_PX


def make_noise(n_images: int, side_px: int, seed: int) -> Tensor:
    return torch.randint(256, (n_images, 3, side_px, side_px), generator=torch.Generator().manual_seed(seed)).byte()


def paint(images: Tensor, row: int, column: int, rgb: tuple[int, int, int], patch_px: int = PATCH_PX) -> None:
    box = images[..., row * patch_px : (row + 1) * patch_px, column * patch_px : (column + 1) * patch_px]
    box[:] = torch.tensor(rgb, dtype=torch.uint8).view(3, 1, 1)


def cut_patches(images: Tensor) -> Tensor:
    cut = images.float().unfold(2, PATCH_PX, PATCH_PX).unfold(3, PATCH_PX, PATCH_PX)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, Tensor]:
    """Two hundred scenes one patch larger than a crop, and the position of their light in LIGHTS."""
    parts = render_split_part(0, "train", 0, 200, CROP_PX + PATCH_PX)
    images = torch.from_numpy(np.stack([scene.image for scene in parts])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([LIGHTS.index(scene.factors.light) for scene in parts])


@pytest.mark.parametrize(
    "backbone",
    [ContextFree(), PositionLocked(places=[(3, 4), (0, 0)]), PlantedJump(offsets=[(1, 2)]), PlantedRegisters()],
    ids=lambda backbone: type(backbone).__name__,
)
def test_every_planted_backbone_keeps_the_interface(backbone: Backbone) -> None:
    images = make_noise(3, CROP_PX, seed=0)
    hooked, last = backbone.tokens(images, -2), backbone.tokens(images, -1)
    assert hooked.patches.shape == (3, GRID**2, backbone.d_in)
    assert hooked.prefix.shape == (3, backbone.n_prefix_tokens, backbone.d_in)
    assert hooked.patches.dtype == torch.float32
    assert torch.equal(hooked.patches, last.patches)
    pooled = last.prefix[:, 0] if backbone.pools_prefix else last.patches.mean(1)
    assert torch.equal(backbone.resume(hooked, -2), pooled)
    assert backbone.n_images_encoded == 6
    assert json.loads(json.dumps(backbone.fingerprint)) == backbone.fingerprint
    with pytest.raises(InputError, match=r"model\.layer in -2\.\.1"):
        backbone.tokens(images, 2)


def test_fingerprints_tell_parameters_and_kinds_apart() -> None:
    backbones = [
        ContextFree(seed=0),
        ContextFree(seed=1),
        PlantedRegisters(seed=0),
        PlantedRegisters(seed=1),
        PlantedRegisters(grid=10, seed=0),
        PlantedRegisters(grain=0.2),
    ]
    assert len({json.dumps(backbone.fingerprint, sort_keys=True) for backbone in backbones}) == len(backbones)
    assert PlantedRegisters(seed=3).fingerprint == PlantedRegisters(seed=3).fingerprint


def test_a_seed_fixes_every_bit() -> None:
    images = make_noise(2, CROP_PX, seed=1)
    for make in (ContextFree, PlantedRegisters):
        first = make(seed=5).tokens(images, 0).patches
        assert torch.equal(first, make(seed=5).tokens(images, 0).patches)
        assert not torch.equal(first, make(seed=6).tokens(images, 0).patches)


def test_context_free_tokens_are_the_same_bits_wherever_a_patch_lies() -> None:
    images = make_noise(4, CROP_PX + PATCH_PX, seed=2)
    backbone = ContextFree(d_in=37, seed=0)
    crops = images[..., :CROP_PX, :CROP_PX], images[..., PATCH_PX:, PATCH_PX:]
    maps = [backbone.tokens(crop, -2).patches.unflatten(1, (GRID, GRID)) for crop in crops]
    assert torch.equal(maps[0][:, 1:, 1:], maps[1][:, :-1, :-1])
    alone = backbone.tokens(crops[0][:1], -2).patches
    assert torch.equal(alone[0], maps[0][0].flatten(0, 1))
    firing = (maps[0] > 0).float().mean()
    assert 0.2 < firing < 0.8


def test_position_locked_fires_at_its_places_on_any_picture() -> None:
    backbone = PositionLocked(grid=GRID, patch_px=PATCH_PX, places=[(3, 4), (11, 0)])
    patches = backbone.tokens(make_noise(2, CROP_PX, seed=3), -2).patches.unflatten(1, (GRID, GRID))
    expected = torch.zeros(2, GRID, GRID, 2)
    expected[:, 3, 4, 0] = expected[:, 11, 0, 1] = 1
    assert torch.equal(patches, expected)


@pytest.mark.parametrize("places", [[], [(0, 12)], [(-1, 3)]])
def test_position_locked_refuses_places_off_the_grid(places: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="places within a grid"):
        PositionLocked(grid=GRID, places=places)


def test_planted_jump_moves_only_in_its_context() -> None:
    backbone = PlantedJump(grid=GRID, patch_px=PATCH_PX, offsets=[(0, 0), (2, -3), (20, 0)])
    images = torch.full((2, 3, CROP_PX, CROP_PX), 90, dtype=torch.uint8)
    paint(images, 5, 6, MARKER_RGB)
    paint(images[1:], 0, 0, CONTEXT_RGB)
    patches = backbone.tokens(images, -2).patches.unflatten(1, (GRID, GRID))
    expected = torch.zeros(2, GRID, GRID, 3)
    expected[0, 5, 6] = 1
    expected[1, 5, 6, 0] = expected[1, 7, 3, 1] = 1  # the third target lies off the grid
    assert torch.equal(patches, expected)


def test_planted_jump_needs_a_red_patch() -> None:
    images = torch.full((1, 3, CROP_PX, CROP_PX), 90, dtype=torch.uint8)
    paint(images, 4, 4, (100, 120, 100))
    assert not PlantedJump(offsets=[(1, 1)]).tokens(images, -2).patches.any()
    with pytest.raises(InputError, match="at least one offset"):
        PlantedJump(offsets=[])


def test_registers_write_the_light_of_the_scene(scenes: tuple[Tensor, Tensor]) -> None:
    images, light = scenes
    backbone = PlantedRegisters()
    assert tuple(LIGHT_ANCHORS) == LIGHTS
    crop1, crop2 = (cut_patches(images[..., o : o + CROP_PX, o : o + CROP_PX]) for o in (0, PATCH_PX))
    decided1, decided2 = backbone.compute_light(crop1), backbone.compute_light(crop2)
    assert (decided1 == light).float().mean() > 0.9
    assert (decided1 == decided2).float().mean() > 0.85


def test_registers_jump_and_local_codes_stay(scenes: tuple[Tensor, Tensor]) -> None:
    images, _ = scenes
    backbone = PlantedRegisters()
    crop1, crop2 = (cut_patches(images[..., o : o + CROP_PX, o : o + CROP_PX]) for o in (0, PATCH_PX))
    stays = backbone.compute_place(crop1) - backbone.compute_place(crop2) == GRID + 1
    assert stays.float().mean() < 0.05
    codes = [compute_local_codes(crop, GRID).unflatten(1, (GRID, GRID)) for crop in (crop1, crop2)]
    both = (codes[0][:, 1:, 1:] * codes[1][:, :-1, :-1]).unflatten(-1, (len(LOCAL_MEASURES), N_QUARTERS)).sum(-1)
    *shown, row = both.mean((0, 1, 2)).tolist()
    assert min(shown) > 0.8  # relative to the crop, which changes by a row and a column of patches
    assert row == pytest.approx(8 / 11)  # three of the eleven rows of the shared region change their quarter


def test_one_token_per_picture_carries_the_register(scenes: tuple[Tensor, Tensor]) -> None:
    images = scenes[0][..., :CROP_PX, :CROP_PX]
    backbone = PlantedRegisters()
    tokens = backbone.tokens(images, -2)
    assert not tokens.prefix.any()
    along_light = tokens.patches @ backbone.directions[backbone.n_local :].T
    is_register = along_light.amax(-1) > backbone.register_norm / 2
    assert torch.equal(is_register.sum(1), torch.ones(len(images), dtype=torch.int64))
    place, light = backbone.compute_place(cut_patches(images)), backbone.compute_light(cut_patches(images))
    assert torch.equal(is_register.long().argmax(1), place)
    assert torch.equal(along_light[is_register].argmax(-1), light)


def test_the_mean_local_feature_is_the_same_whatever_the_picture(scenes: tuple[Tensor, Tensor]) -> None:
    codes = compute_local_codes(cut_patches(scenes[0][..., :CROP_PX, :CROP_PX]), GRID)
    assert codes.shape == (len(scenes[0]), GRID**2, len(LOCAL_MEASURES) * N_QUARTERS)
    assert torch.equal(codes.mean(1), torch.full_like(codes[:, 0], 1 / N_QUARTERS))
    assert torch.equal(codes.sum(-1), torch.full_like(codes[..., 0], len(LOCAL_MEASURES)))
    assert codes.std(0).mean() > 0.2  # and yet a patch shows different things in different pictures


def test_each_measure_sees_what_its_name_says() -> None:
    images = torch.full((1, 3, CROP_PX, CROP_PX), 100, dtype=torch.uint8)
    for row, part in enumerate(images[0].unflatten(1, (GRID, PATCH_PX)).unbind(1)):  # rows 0, 4 and 8 differ
        if row % 4 == 0:
            part[:, :, : CROP_PX // 2] = torch.tensor([[220], [100], [20]], dtype=torch.uint8)[..., None]
    stripes = images[0, :, 16:24, 48:]
    stripes[:, ::2] += 40  # level stripes: brightness changes down the patch
    codes = compute_local_codes(cut_patches(images), GRID).unflatten(-1, (len(LOCAL_MEASURES), N_QUARTERS))
    brightness, warmth, contrast, edge, row = codes.argmax(-1)[0].unflatten(0, (GRID, GRID)).unbind(-1)
    assert (warmth[4, :6] == 3).all()
    assert (brightness[4, :6] == 3).all()
    assert (contrast[2, 6:] == 3).all()
    assert (edge[2, 6:] == 0).all()
    assert torch.equal(row[:, 0], torch.arange(GRID) * N_QUARTERS // GRID)


def test_an_odd_grid_has_no_equal_quarters() -> None:
    with pytest.raises(InputError, match="even number of patches, got 7"):
        PlantedRegisters(grid=7)


def test_too_few_directions_are_refused() -> None:
    with pytest.raises(InputError, match="d_in of at least 24"):
        PlantedRegisters(d_in=23)


def test_huge_patches_are_refused_where_sums_would_not_be_exact() -> None:
    with pytest.raises(InputError, match="at most 73 px"):
        ContextFree(patch_px=80)
