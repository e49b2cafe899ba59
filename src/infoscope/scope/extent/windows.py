"""Pictures of which a window, or all but a window, comes from another picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from infoscope.data.images import ImageSet
from infoscope.data.reader import open_images
from infoscope.runtime.errors import InputError
from infoscope.scope.config import POOL_IMAGES, Donor, ExtentConfig


@dataclass(frozen=True)
class Donors:
    """Pictures that replace pixels.

    index: [n] which image of the set each is; -1: none of them.
    pictures: of the size that the backbone reads.
    tokens: of their patches.
    """

    index: Int[np.ndarray, " n"]
    pictures: UInt8[Tensor, "n 3 px px"]
    tokens: Float[Tensor, "n n_patches d_in"]


def read_pool(
    image_set: ImageSet, size_px: int, config: ExtentConfig
) -> tuple[Int[np.ndarray, " n"], UInt8[Tensor, "n 3 px px"]]:
    """Return the pictures that all images draw donors from, and which image of the set each is.

    They are drawn from all images; where the set skips those that cannot be read, from the others. Of donor=mean it is
    one picture of the mean colour of such a pool, which is no image (-1); of donor=blur none.

    Raises:
        ImageError: one cannot be read, of a set whose images are not skipped.
        InputError: fewer images can be read than donors are wanted of other images.
    """
    if config.donor is Donor.blur:
        return np.zeros(0, dtype=np.int64), torch.zeros(0, 3, size_px, size_px, dtype=torch.uint8)
    order, read = np.random.default_rng([config.seed, 1]).permutation(len(image_set)), []
    n_missing, n_asked = POOL_IMAGES, 0
    with open_images(image_set, size_px, image_set.on_error) as reader:
        while n_missing and n_asked < len(order):
            found = list(reader.read(order[n_asked : n_asked + n_missing], POOL_IMAGES))
            n_asked += n_missing
            n_missing -= sum(len(batch.index) for batch in found)
            read += found
    n_read = POOL_IMAGES - n_missing
    check_donors(n_read, config)
    index, pictures = (torch.cat([getattr(batch, name) for batch in read]) for name in ("index", "images"))
    if config.donor is Donor.mean:
        colour = pictures.double().mean(dim=(0, 2, 3)).round().byte()
        return np.array([-1]), colour.view(1, 3, 1, 1).expand(1, *pictures.shape[1:])
    order = index.argsort()
    return index[order].numpy(), pictures[order]


def check_donors(n_images: int, config: ExtentConfig) -> None:
    """Refuse fewer images than donors, of which none is its own.

    Raises:
        InputError: so few.
    """
    needed = {Donor.images: config.n_donors + 1, Donor.mean: 1, Donor.blur: 0}[config.donor]
    if n_images < needed:
        raise InputError(
            f"Expected more images than scope.extent.n_donors={config.n_donors}, of which none is its own donor, got"
            f" {n_images}: lower it, or use scope.extent.donor=blur."
        )


def blur(images: UInt8[Tensor, "n 3 px px"], sd_px: float) -> UInt8[Tensor, "n 3 px px"]:
    """Return images blurred by a Gaussian of a standard deviation in pixels, cut at 3 of them and at the image."""
    reach = min(max(1, round(3 * sd_px)), images.shape[-1] - 1)
    return gaussian_blur(images, [2 * reach + 1] * 2, [sd_px] * 2)


def make_windows(
    grid: int, patches: Int[np.ndarray, " n"], radii: Sequence[int] | Int[np.ndarray, " n"]
) -> Bool[Tensor, "n grid grid"]:
    """Return which patches lie in windows of (2 r + 1) x (2 r + 1) patches around some patches, cut at the border.

    Args:
        patches: counted through the grid, row by row.
        radii: one for each, in patches.
    """
    row, column = (torch.from_numpy(place) for place in np.divmod(patches, grid))
    axis, reach = torch.arange(grid), torch.as_tensor(np.asarray(radii))[:, None]
    near_row, near_column = ((axis - place[:, None]).abs() <= reach for place in (row, column))
    return near_row[:, :, None] & near_column[:, None, :]


def compose(
    inside: UInt8[Tensor, "n 3 px px"], outside: UInt8[Tensor, "n 3 px px"], windows: Bool[Tensor, "n grid grid"]
) -> UInt8[Tensor, "n 3 px px"]:
    """Return pictures that show the first inside of windows and the second outside, at the same place of the grid."""
    patch_px = inside.shape[-1] // windows.shape[-1]
    mask = windows.to(inside.device).repeat_interleave(patch_px, 1).repeat_interleave(patch_px, 2)
    return torch.where(mask[:, None], inside, outside)
