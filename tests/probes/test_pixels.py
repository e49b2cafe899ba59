"""Bilinear interpolation at some pixels or at all is torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infoscope.probes.pixels import PixelSample, choose_pixels, compute_pixel_weights, upsample

SIZES = [(12, 96, 96), (7, 30, 45), (4, 3, 5), (12, 12, 12)]


def make_maps(grid: int, n: int = 3) -> torch.Tensor:
    return torch.randn(2, 2, grid * grid, n, generator=torch.Generator().manual_seed(0))


def torch_upsample(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    grid = round(maps.shape[-2] ** 0.5)
    square = maps.transpose(-1, -2).unflatten(-1, (grid, grid)).flatten(0, 1)
    return F.interpolate(square, (height, width), mode="bilinear").unflatten(0, maps.shape[:2])


@pytest.mark.parametrize(("grid", "height", "width"), SIZES)
def test_upsampling_is_torchs(grid, height, width):
    maps = make_maps(grid)
    torch.testing.assert_close(upsample(maps, height, width), torch_upsample(maps, height, width))


@pytest.mark.parametrize(("grid", "height", "width"), SIZES)
def test_sampled_pixels_are_picked_from_the_upsampled_map(grid, height, width):
    maps, samples, picked = make_maps(grid), [], []
    for image in range(2):
        rows, columns = choose_pixels(0, 5, image, height, width, 20)
        samples.append(torch.from_numpy(compute_pixel_weights(rows, columns, height, width, grid)))
        picked.append(torch_upsample(maps, height, width)[:, image][..., rows, columns].transpose(1, 2))
    torch.testing.assert_close(PixelSample(torch.stack(samples)).read(maps), torch.stack(picked, 1))


def test_upsampling_commutes_with_a_linear_head():
    tokens = make_maps(6, n=8)
    weight = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    late = torch.einsum("vbcxy,cn->vbnxy", upsample(tokens, 20, 20), weight)
    torch.testing.assert_close(upsample(tokens @ weight, 20, 20), late)


def test_pixels_are_a_function_of_seed_step_and_image():
    def draw(*key: int) -> bytes:
        return np.stack(choose_pixels(*key, 50, 60, 30)).tobytes()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({draw(0, 1, 2), draw(1, 1, 2), draw(0, 2, 2), draw(0, 1, 3)}) == 4


def test_all_pixels():
    rows, columns = choose_pixels(0, 0, 0, 3, 4, None)
    assert list(zip(rows, columns, strict=True)) == [(r, c) for r in range(3) for c in range(4)]
