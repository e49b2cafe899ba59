"""Crops and windows of photographs: where they lie, and cutting them out of image and truth alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from infoscope.data.images import ImageSet
from infoscope.probes.config import CropConfig, Task
from infoscope.probes.metrics import IGNORE_LABEL
from infoscope.probes.pixels import upsample
from infoscope.runtime.errors import InputError

FILL = {Task.segmentation: IGNORE_LABEL, Task.depth: 0}
"""The truth of padding: none."""


class Photograph(NamedTuple):
    """A photograph and the truth of one task, both as they are stored: labels (255 = ignored), or metres (0 = none)."""

    image: UInt8[np.ndarray, "height width 3"]
    truth: Shaped[np.ndarray, "height width"]

    def cut(self, region: tuple[slice, slice] | None) -> Photograph:
        """Return some rows and columns of it; None: all."""
        return self if region is None else Photograph(self.image[region], self.truth[region])


class Crop(NamedTuple):
    """A square cut out of a photograph that was scaled to [height_px, width_px] before, then mirrored or not.

    Where the scaled photograph ends before the crop does, below or on the right, it is padded.
    """

    height_px: int
    width_px: int
    top_px: int
    left_px: int
    flip: bool = False


def read_photograph(images: ImageSet, index: int, task: Task) -> Photograph:
    """Return an image of a set with its truth.

    Raises:
        ImageError: if the image cannot be read.
        InputError: if the truth has another size, or is not what the data set should hold.
    """
    image = images.photograph(index)
    truth = images.label_map(index) if task is Task.segmentation else images.depth_m(index)
    if truth.shape != image.shape[:2]:
        raise InputError(
            f"Expected the {'label map' if task is Task.segmentation else 'depth'} of {images.image_ids[index]} at the"
            f" size of its image, {image.shape[1]}x{image.shape[0]}, got {truth.shape[1]}x{truth.shape[0]}: take both"
            " from one source, unscaled, or probe whole images."
        )
    return Photograph(image, truth)


def round_to_patches(size_px: int, patch_px: int) -> int:
    """Return the multiple of the patch, at least one, that is nearest to a size in pixels (512, 14: 518)."""
    return max(1, round(size_px / patch_px)) * patch_px


def compute_size(height_px: int, width_px: int, short_side_px: int | None, scale: float = 1.0) -> tuple[int, int]:
    """Return height and width in pixels of a photograph resized to a short side (None: its own), times a scale."""
    factor = scale * (1 if short_side_px is None else short_side_px / min(height_px, width_px))
    return max(1, int(height_px * factor + 0.5)), max(1, int(width_px * factor + 0.5))


def choose_crop(rng: np.random.Generator, height_px: int, width_px: int, crops: CropConfig, crop_px: int) -> Crop:
    """Return a random crop of a photograph: uniform in scale, then in place; mirrored or not with equal chance."""
    low, high = crops.scale_range
    scale = rng.uniform(low, high)
    height, width = compute_size(height_px, width_px, crops.short_side_px, scale)
    top, left = (int(rng.integers(max(0, size - crop_px) + 1)) for size in (height, width))
    return Crop(height, width, top, left, crops.flip and bool(rng.integers(2)))


def cut_image(
    image: UInt8[np.ndarray, "height width 3"], crop: Crop, crop_px: int, fill: UInt8[np.ndarray, " 3"]
) -> UInt8[np.ndarray, "crop_px crop_px 3"]:
    """Return a crop of an image, antialiased bicubic: what resizing all of it first would give."""
    height, width = image.shape[:2]
    bottom, right = min(crop.top_px + crop_px, crop.height_px), min(crop.left_px + crop_px, crop.width_px)
    if (crop.height_px, crop.width_px) == (height, width):
        part = image[crop.top_px : bottom, crop.left_px : right]
    else:
        down, across = height / crop.height_px, width / crop.width_px
        box = (crop.left_px * across, crop.top_px * down, min(right * across, width), min(bottom * down, height))
        size = (right - crop.left_px, bottom - crop.top_px)
        part = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box))
    padded = np.empty((crop_px, crop_px, 3), np.uint8)
    padded[:] = fill
    padded[: part.shape[0], : part.shape[1]] = part
    return padded[:, ::-1] if crop.flip else padded


def cut_truth(
    truth: Shaped[np.ndarray, "height width"], crop: Crop, crop_px: int, fill: int
) -> Shaped[np.ndarray, "crop_px crop_px"]:
    """Return the same crop of a label map or depth map: the nearest pixel's value."""
    height, width = truth.shape
    rows = np.arange(crop.top_px, min(crop.top_px + crop_px, crop.height_px))
    columns = np.arange(crop.left_px, min(crop.left_px + crop_px, crop.width_px))
    rows, columns = (
        ((places + 0.5) * size / scaled).astype(np.int64)
        for places, size, scaled in ((rows, height, crop.height_px), (columns, width, crop.width_px))
    )
    padded = np.full((crop_px, crop_px), fill, truth.dtype)
    padded[: len(rows), : len(columns)] = truth[np.ix_(rows, columns)]
    return padded[:, ::-1] if crop.flip else padded


def place_windows(size_px: int, window_px: int, stride_px: int) -> list[int]:
    """Return where windows begin along one side, the last one shifted back to end with it.

    As mmsegmentation's slide_inference. A side shorter than a window has one, at 0.
    """
    n_windows = max(size_px - window_px + stride_px - 1, 0) // stride_px + 1
    return [max(min(i * stride_px, size_px - window_px), 0) for i in range(n_windows)]


class Windows(NamedTuple):
    """The windows that cover a photograph resized to [height_px, width_px], row by row, and where they begin."""

    images: UInt8[np.ndarray, "n_windows 3 window_px window_px"]
    tops_px: list[int]
    lefts_px: list[int]
    height_px: int
    width_px: int


def cut_windows(
    image: UInt8[np.ndarray, "height width 3"], crops: CropConfig, window_px: int, fill: UInt8[np.ndarray, " 3"]
) -> Windows:
    """Return the windows of a photograph; what is smaller than a window is padded below and on the right."""
    height, width = compute_size(image.shape[0], image.shape[1], crops.short_side_px)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    stride = min(crops.stride_px, window_px)
    tops, lefts = place_windows(height, window_px, stride), place_windows(width, window_px, stride)
    cut = [cut_image(image, Crop(height, width, top, left), window_px, fill) for top in tops for left in lefts]
    return Windows(np.stack(cut).transpose(0, 3, 1, 2), tops, lefts, height, width)


def merge_windows(
    maps: Float[Tensor, "n_variants n_windows n_patches n"], windows: Windows, height_px: int, width_px: int
) -> Float[Tensor, "n_variants n height_px width_px"]:
    """Return maps of windows as one map of the photograph at another size.

    Upsampled to the windows' pixels, averaged where windows overlap, padding cut off, resized, all bilinearly.
    """
    window_px = windows.images.shape[-1]
    size = (max(windows.height_px, window_px), max(windows.width_px, window_px))
    whole = maps.new_zeros(len(maps), maps.shape[-1], *size)
    n_seen = maps.new_zeros(size)
    for i, (top, left) in enumerate((top, left) for top in windows.tops_px for left in windows.lefts_px):
        place = (..., slice(top, top + window_px), slice(left, left + window_px))
        whole[place] += upsample(maps[:, i], window_px, window_px)
        n_seen[place] += 1
    whole = (whole.div_(n_seen))[..., : windows.height_px, : windows.width_px]
    if whole.shape[-2:] == (height_px, width_px):
        return whole
    return F.interpolate(whole, (height_px, width_px), mode="bilinear", align_corners=False)


def get_fill(mean: Float[Tensor, "1 3 1 1"]) -> UInt8[np.ndarray, " 3"]:
    """Return the colour of padding for a model's mean of RGB values in 0..1: about 0 once it is normalised."""
    return (mean.flatten().cpu() * 255).round().to(torch.uint8).numpy()
