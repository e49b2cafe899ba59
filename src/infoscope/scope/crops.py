"""Shifted context cropping: two crops of one resized image that share patches, pixel for pixel."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.scope.config import Diagonal

Maps = TypeVar("Maps", Tensor, np.ndarray)


def check_shift(grid: int, shift_patches: int) -> None:
    """Refuse a shift (in patches) that leaves two crops of `grid` x `grid` patches with nothing to compare.

    Raises:
        InputError: if the shift is below 1 or the shared region has fewer than 2 patches per side.
    """
    if shift_patches < 1:
        raise InputError(f"Expected scope.shift_patches to be at least 1, got {shift_patches}: use 1 or more.")
    if grid - shift_patches < 2:
        advice = (
            f"use at most {grid - 2}"
            if grid > 2
            else "that is too few for any: take another model, or a larger model.image_px"
        )
        raise InputError(
            f"Expected scope.shift_patches to leave a shared region of at least 2 x 2 patches, got {shift_patches} on a"
            f" grid of {grid}: {advice}."
        )


def scc_size_px(grid: int, patch_px: int, shift_patches: int) -> int:
    """Return the side in pixels to which an image is resized, once, before it is cropped twice.

    Raises:
        InputError: as `check_shift`.
    """
    check_shift(grid, shift_patches)
    return (grid + shift_patches) * patch_px


def shifted_crops(
    images: UInt8[Tensor, "batch 3 size_px size_px"],
    patch_px: int,
    grid: int,
    shift_patches: int,
    diagonal: Diagonal = Diagonal.main,
) -> tuple[UInt8[Tensor, "batch 3 crop_px crop_px"], UInt8[Tensor, "batch 3 crop_px crop_px"]]:
    """Return crop 1, at the top, and crop 2, `shift_patches` patches further down and to the side.

    Origins (row, column) in patches: main (0, 0) and (s, s), anti (0, s) and (s, 0).

    Raises:
        InputError: if the images have another side than `scc_size_px`, or as `check_shift`.
    """
    size_px = scc_size_px(grid, patch_px, shift_patches)
    if tuple(images.shape[-2:]) != (size_px, size_px):
        raise InputError(
            f"Expected images of {size_px} x {size_px} px (grid + shift patches of {patch_px} px), got"
            f" {images.shape[-2]} x {images.shape[-1]}: resize them once, before cropping."
        )
    crop_px, offset_px = grid * patch_px, shift_patches * patch_px
    first, second = slice(0, crop_px), slice(offset_px, offset_px + crop_px)
    columns = (first, second) if diagonal is Diagonal.main else (second, first)
    return images[..., first, columns[0]], images[..., second, columns[1]]


def shared_slice(grid: int, shift_patches: int, crop: int) -> slice:
    """Return the rows of `crop` (1 or 2) that the other crop also shows; on the main diagonal the columns too.

    Crop 2 starts `shift_patches` later, so what it shows first lies `shift_patches` into crop 1.
    """
    assert crop in (1, 2), crop
    return slice(shift_patches, grid) if crop == 1 else slice(0, grid - shift_patches)


def shared_region(maps: Maps, shift_patches: int, crop: int, diagonal: Diagonal = Diagonal.main) -> Maps:
    """Cut [..., grid, grid] maps of one crop to the patches both crops show: [..., grid - shift, grid - shift].

    Position (r, c) of the result is the same patch of the image for crop 1 and crop 2. The result is a view.

    Raises:
        InputError: as `check_shift`.
    """
    grid = maps.shape[-1]
    assert maps.shape[-2] == grid, maps.shape
    check_shift(grid, shift_patches)
    rows = shared_slice(grid, shift_patches, crop)
    # on the other diagonal it is crop 1 that starts further right
    columns = rows if diagonal is Diagonal.main else shared_slice(grid, shift_patches, 3 - crop)
    return maps[..., rows, columns]
