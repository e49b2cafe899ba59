"""Between the grid of patches and the pixels of a label map: bilinear interpolation at some pixels, or at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class PixelSample(NamedTuple):
    """How chosen pixels read a grid: `weights @ grid values` is the bilinear upsampling at those pixels.

    weights: [batch, n_pixels, grid * grid]; four corners of a row are not zero, and a row sums to 1.
    """

    weights: Float[Tensor, "batch n_pixels n_patches"]

    def read(self, maps: Float[Tensor, "n_variants batch n_patches n"]) -> Float[Tensor, "n_variants batch n_pixels n"]:
        """Return the maps' values at the pixels."""
        return torch.einsum("bpt,vbtc->vbpc", self.weights, maps)


class AllPixels(NamedTuple):
    """Every pixel of images of one size, row by row."""

    height_px: int
    width_px: int

    def read(self, maps: Float[Tensor, "n_variants batch n_patches n"]) -> Float[Tensor, "n_variants batch n_pixels n"]:
        """Return the maps' values at the pixels."""
        return upsample(maps, *self).flatten(-2).transpose(-1, -2)


def choose_pixels(
    seed: int, step: int, row: int, height_px: int, width_px: int, n_pixels: int | None
) -> tuple[Int[np.ndarray, " n_pixels"], Int[np.ndarray, " n_pixels"]]:
    """Return (rows, columns) of pixels drawn with replacement, a function of the arguments alone.

    Args:
        row: which image; images of one step draw independently.
        n_pixels: None: every pixel, row by row.
    """
    if n_pixels is None:
        rows, columns = np.divmod(np.arange(height_px * width_px), width_px)
    else:
        rng = np.random.default_rng([seed, step, row])
        rows, columns = rng.integers(height_px, size=n_pixels), rng.integers(width_px, size=n_pixels)
    return rows, columns


def compute_pixel_weights(
    rows: Int[np.ndarray, " n_pixels"],
    columns: Int[np.ndarray, " n_pixels"],
    height_px: int,
    width_px: int,
    grid: int,
) -> Float[np.ndarray, "n_pixels n_patches"]:
    """Return what each pixel takes from each patch, as `torch.nn.functional.interpolate` (bilinear) weighs them."""
    along_rows = compute_axis_weights(height_px, grid)[rows]
    along_columns = compute_axis_weights(width_px, grid)[columns]
    return (along_rows[:, :, None] * along_columns[:, None, :]).reshape(len(rows), grid * grid)


def compute_axis_weights(size_px: int, grid: int) -> Float[np.ndarray, "size_px grid"]:
    """Return the bilinear weights along one axis: pixel centres between patch centres, held constant at the border."""
    source = np.clip((np.arange(size_px) + 0.5) * grid / size_px - 0.5, 0, grid - 1)
    lower = np.floor(source).astype(np.int64)
    upper = np.minimum(lower + 1, grid - 1)
    share = source - lower
    weights = np.zeros((size_px, grid))
    weights[np.arange(size_px), lower] += 1 - share
    weights[np.arange(size_px), upper] += share
    return weights.astype(np.float32)


def upsample(
    maps: Float[Tensor, "*batch n_patches n"], height_px: int, width_px: int
) -> Float[Tensor, "*batch n height width"]:
    """Return maps on a square grid of patches, upsampled bilinearly to every pixel; the last axis comes to the front.

    Two products with the axes' weights: the same numbers as `torch.nn.functional.interpolate`, several times faster
    on a CPU for many small maps.
    """
    grid = round(maps.shape[-2] ** 0.5)
    vertical = torch.from_numpy(compute_axis_weights(height_px, grid)).to(maps)
    horizontal = torch.from_numpy(compute_axis_weights(width_px, grid)).to(maps)
    square = maps.transpose(-1, -2).unflatten(-1, (grid, grid))
    return vertical @ (square @ horizontal.T)
