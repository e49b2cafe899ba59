"""Backbones whose contextual dependency scores or extents are known in closed form; see `infoscope.vision.planted`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.vision.planted import PlantedBackbone

MARKER_RGB = (255, 0, 0)
"""A patch of this colour is where `PlantedJump` looks for its evidence: the reddest patch of a picture."""
CONTEXT_RGB = (0, 0, 255)
"""The jump happens if the top left patch of the crop is bluer than it is red and green."""


class PositionLocked(PlantedBackbone):
    """Channel i is 1 at the grid place `places[i]` (row, column) and 0 elsewhere, whatever the picture shows.

    A place in rows and columns s..p-s-1 lies in the shared region of both crops and scores s / (p - s - 1).
    """

    def __init__(self, grid: int = 12, patch_px: int = 8, places: Sequence[tuple[int, int]] = ((5, 5),)) -> None:
        places = [(int(row), int(column)) for row, column in places]
        if not places or not all(0 <= at < grid for place in places for at in place):
            raise InputError(f"Expected places within a grid of {grid} x {grid} patches, got {places}.")
        locked = torch.zeros(grid * grid, len(places))
        for channel, (row, column) in enumerate(places):
            locked[row * grid + column, channel] = 1
        super().__init__(grid, patch_px, len(places), 0, fingerprint={"places": [list(place) for place in places]})
        self.locked: Tensor
        self.register_buffer("locked", locked, persistent=False)

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        return self.locked.expand(len(patches), -1, -1)


class PlantedJump(PlantedBackbone):
    """Channel i fires at the reddest patch, moved by `offsets[i]` (rows, columns) if the crop's context says so.

    Context is the crop's own top left patch: where it is blue (`CONTEXT_RGB`), the activation moves. So in a picture
    with a red patch in the middle and a blue one in its top left corner, the activation of crop 1 jumps and that of
    crop 2, which does not see the corner, stays: the score is |offset| / D_grid. The activation is the patch's redness
    (red minus the mean of green and blue, in 0..1): without a red patch, or with a target off the grid, nothing fires.
    """

    def __init__(self, grid: int = 12, patch_px: int = 8, offsets: Sequence[tuple[int, int]] = ((0, 1),)) -> None:
        offsets = [(int(down), int(right)) for down, right in offsets]
        if not offsets:
            raise InputError("Expected at least one offset (rows, columns), got none.")
        super().__init__(grid, patch_px, len(offsets), 0, fingerprint={"offsets": [list(offset) for offset in offsets]})
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        red, green, blue = patches.mean((-1, -2)).unbind(-1)
        redness, place = (red - (green + blue) / 2).max(1)
        moves = (blue - (red + green) / 2)[:, 0] > 0
        start = torch.stack([place // self.grid, place % self.grid], -1)
        target = start[:, None] + moves[:, None, None] * self.offsets  # [batch, d_in, 2]
        fires = ((target >= 0) & (target < self.grid)).all(-1)
        index = (target * torch.tensor([self.grid, 1], device=target.device)).sum(-1)
        place_codes = F.one_hot(torch.where(fires, index, 0), self.grid**2).mT  # [batch, n_patches, d_in]
        return place_codes * (redness.clamp(min=0) / 255)[:, None, None] * fires[:, None]


class LocalSum(PlantedBackbone):
    """The sum of the levels of each colour over (2 r + 1) x (2 r + 1) patches around each patch, cut at the border.

    With reach=0 it is context free; from reach=grid - 1 on every patch knows the sum over the whole picture. So the
    evidence of a feature is of known extent. Sums are whole numbers, exact in float32.
    """

    def __init__(self, grid: int = 12, patch_px: int = 8, reach: int = 1) -> None:
        super().__init__(grid, patch_px, d_in=3, n_prefix_tokens=0, fingerprint={"reach": reach})
        n_pixels = patch_px**2 * min(2 * reach + 1, grid) ** 2
        if reach < 0 or n_pixels * 255 >= 2**24:  # beyond, float32 no longer holds the sums exactly
            raise InputError(
                f"Expected a reach from 0 on with windows of at most 65,792 pixels, got {reach} of {patch_px} px each."
            )
        self.reach = min(reach, grid - 1)

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        sums = patches.sum(dim=(3, 4)).mT.unflatten(2, (self.grid, self.grid)).contiguous()
        padded = F.pad(sums, (self.reach,) * 4)
        windows = padded.unfold(2, 2 * self.reach + 1, 1).unfold(3, 2 * self.reach + 1, 1)
        return windows.sum(dim=(4, 5)).flatten(2).mT
