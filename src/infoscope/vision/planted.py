"""Backbones that are a formula: what a feature of theirs sees, and how far it moves, is known before measuring.

In `ContextFree` no feature depends on context, so that every contextual dependency score is 0. `PlantedRegisters` is
the positive control of the whole chain: local features, and tokens that carry a fact about the whole picture. Neither
has weights to load or anything to learn; a seed fixes their random directions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.config import ModelConfig, ModelKind

PLANTED_VERSION = 1
"""Part of every fingerprint here: raise it whenever a token changes."""

# What the first row of patches shows in the pictures of infoscope.data.scenes: median RGB in clear air and in fog over
# 2,000 scenes of split clip_train, seed 0, at 96 px.
LIGHT_ANCHORS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "noon": ((122, 178, 243), (95, 99, 104)),
    "dusk": ((105, 72, 122), (67, 65, 68)),
    "night": ((10, 12, 34), (60, 60, 62)),
    "dawn": ((150, 169, 214), (91, 92, 95)),
}
"""The two colours of the sky by which `PlantedRegisters` tells the light, in the order of its factor codes."""
LOCAL_MEASURES = ("brightness", "warmth", "contrast", "edge direction", "row")
"""What `PlantedRegisters` knows of each patch, in the order of its local codes."""
N_QUARTERS = 4
N_BLOCKS = 2


class PlantedBackbone(Backbone):
    """Tokens computed from the pixels by a formula, then blocks that leave patches as they are.

    With `n_prefix_tokens=1` the CLS token is zero until the last block, which adds the mean of the patches to it: the
    pooled vector depends on edited patches alone. Without it the pooled vector is the mean of the patches.
    """

    def __init__(self, grid: int, patch_px: int, d_in: int, n_prefix_tokens: int, fingerprint: dict[str, Any]) -> None:
        identity = {"architecture": type(self).__name__, "version": PLANTED_VERSION, "grid": grid, "patch_px": patch_px}
        super().__init__(
            d_in=d_in,
            n_layers=N_BLOCKS,
            n_prefix_tokens=n_prefix_tokens,
            grid=grid,
            patch_px=patch_px,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            fingerprint={**identity, **fingerprint},
        )

    @abstractmethod
    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        """Return the tokens of patches whose pixels are whole numbers in 0..255."""

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[int]) -> list[Tokens]:
        levels = (pixels * 255).round()
        patches = levels.unfold(2, self.patch_px, self.patch_px).unfold(3, self.patch_px, self.patch_px)
        tokens = self.patch_tokens(patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2))
        prefix = tokens.new_zeros(len(tokens), self.n_prefix_tokens, self.d_in)
        last = prefix + tokens.mean(1, keepdim=True)
        return [Tokens(last if layer == self.n_layers - 1 else prefix, tokens) for layer in layers]

    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_in"]:
        pooled = tokens.patches.mean(1)
        return pooled + tokens.prefix[:, 0] if self.pools_prefix else pooled

    def _pool(self, tokens: Tokens) -> Float[Tensor, "batch d_in"]:
        return tokens.prefix[:, 0] if self.pools_prefix else tokens.patches.mean(1)


class ContextFree(PlantedBackbone):
    """Patch embedding alone: a fixed random projection of a patch's pixels, rectified. Every score is exactly 0.

    Weights are whole numbers, so that sums are exact in float32 and a patch gives the same bits wherever it lies.
    """

    def __init__(self, grid: int = 12, patch_px: int = 8, d_in: int = 32, seed: int = 0) -> None:
        super().__init__(grid, patch_px, d_in, n_prefix_tokens=0, fingerprint={"d_in": d_in, "seed": seed})
        n_pixels = 3 * patch_px**2
        if n_pixels * 128 * 8 >= 2**24:  # beyond, float32 no longer holds the sums exactly
            raise InputError(f"Expected patches of at most 73 px a side, got {patch_px}: use a smaller model.patch_px.")
        weight = np.random.default_rng([seed, 0]).integers(-8, 9, (n_pixels, d_in))
        self.weight: Tensor
        self.register_buffer("weight", torch.from_numpy(weight).float(), persistent=False)
        self._unit = 1 / (128 * 8 * math.sqrt(n_pixels))

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        return F.relu((patches.flatten(2) - 128) @ self.weight) * self._unit


class PlantedRegisters(PlantedBackbone):
    """Local features in every token but one, and in that one, chosen by context, the light of the whole scene.

    Local: for each of five measures of the patch (`LOCAL_MEASURES`) a one-hot code of the quarter of the crop's patches
    to which it belongs, written along fixed orthonormal directions. Every crop has as many patches in each quarter, so
    the mean local feature is a constant, and no linear readout of it knows anything of the picture.

    Register: on one patch the local part gives way to the light (noon, dusk, night, dawn: decided by the colour of the
    first row of patches) as one of four further directions, `register_norm` long. Which patch, a hash of all pixels of
    the crop decides: it leaps to another one as soon as the context changes.

    Grain: a hash of the patch's own pixels in every direction, `grain` strong. Its mean over the patches is a floor of
    noise under which a probe cannot read the tiny remainder that an edit leaves.
    """

    def __init__(
        self,
        grid: int = 12,
        patch_px: int = 8,
        d_in: int = 32,
        register_norm: float = 20.0,
        grain: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.n_local = len(LOCAL_MEASURES) * N_QUARTERS
        self.n_codes = self.n_local + len(LIGHT_ANCHORS)
        if d_in < self.n_codes:
            raise InputError(f"Expected d_in of at least {self.n_codes}, one direction for each code, got {d_in}.")
        if grid % 2:  # otherwise the quarters of the crop would not be of equal size
            raise InputError(f"Expected a grid of an even number of patches, got {grid}.")
        if patch_px < 2:
            raise InputError(f"Expected patches of at least 2 px, which can hold an edge, got {patch_px}.")
        parameters = {"d_in": d_in, "register_norm": register_norm, "grain": grain, "seed": seed}
        super().__init__(grid, patch_px, d_in, n_prefix_tokens=1, fingerprint=parameters)
        rng = np.random.default_rng([seed, 1])
        directions = np.linalg.qr(rng.standard_normal((d_in, d_in)))[0][: self.n_codes]
        grain_weight = rng.integers(-128, 128, (3 * patch_px**2, d_in))
        self.register_norm, self.grain = register_norm, grain
        self.directions: Tensor
        self.grain_weight: Tensor
        self.anchors: Tensor
        self.register_buffer("directions", torch.from_numpy(directions).float(), persistent=False)
        self.register_buffer("grain_weight", torch.from_numpy(grain_weight).float(), persistent=False)
        self.register_buffer("anchors", torch.tensor(list(LIGHT_ANCHORS.values())).float(), persistent=False)

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        local = compute_local_codes(patches, self.grid) @ self.directions[: self.n_local]
        # whole numbers: the sum is exact, so its remainder is a hash of the pixels and not of rounding
        phase = (patches.flatten(2) @ self.grain_weight).remainder(256) / 256
        grain = self.grain * math.sqrt(2) * torch.cos(2 * math.pi * phase)
        light = self.directions[self.n_local :][self.compute_light(patches)]
        at_register = F.one_hot(self.compute_place(patches), self.grid**2).bool()
        register = self.register_norm * light[:, None]
        return torch.where(at_register[..., None], register, local) + grain

    def compute_light(self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]) -> Int64[Tensor, " batch"]:
        """Return the light of each crop as a position in `LIGHT_ANCHORS`: the one with the nearest anchor."""
        sky = patches[:, : self.grid].transpose(1, 2).flatten(2).median(2).values

        def opponent(rgb: Tensor) -> Tensor:  # fog takes colour away: what is left must weigh more than brightness
            red, green, blue = rgb.unbind(-1)
            return torch.stack([green, 3 * (red - green), 3 * (blue - green)], -1)

        distance = (opponent(sky)[:, None, None] - opponent(self.anchors)).square().sum(-1)
        return distance.amin(-1).argmin(-1)

    def compute_place(self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]) -> Int64[Tensor, " batch"]:
        """Return the patch on which each crop's register lies: the sum of all pixel values, modulo the patches."""
        return patches.long().sum((1, 2, 3, 4)) % self.grid**2


def compute_local_codes(
    patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"], grid: int
) -> Float[Tensor, "batch n_patches n_codes"]:
    """Return for each patch and measure which quarter of its own crop's patches it belongs to, one-hot.

    Measures: brightness, warmth (red minus blue), contrast, edge direction (upright against level), and the row.
    Quarters are of equal size in every crop, so the mean over patches is the same for every picture.
    """
    red, green, blue = patches.mean((-1, -2)).unbind(-1)
    grey = patches.mean(2)
    across, down = (grey.diff(dim=axis).square().mean((-1, -2)) for axis in (-1, -2))
    row = (torch.arange(grid * grid, device=patches.device) // grid).expand(red.shape)
    measures = torch.stack([red + green + blue, red - blue, grey.std((-1, -2)), (across + 1) / (down + 1), row], 1)
    order = measures.argsort(dim=-1, stable=True)  # equal values are ranked by position
    quarter = order.argsort(dim=-1) * N_QUARTERS // grid**2
    return F.one_hot(quarter, N_QUARTERS).transpose(1, 2).flatten(2).float()


def fingerprint(config: ModelConfig, trained_folder: Path | None) -> dict[str, Any]:
    """Return what determines a planted backbone's numbers."""
    return {"kind": config.kind.name, "seed": config.seed}


def count_blocks(config: ModelConfig) -> int:
    """Return how many blocks a planted backbone has."""
    return N_BLOCKS


def facts(config: ModelConfig, trained_folder: Path | None) -> None:
    """Return None: a planted backbone reads pixels as they are."""


def make(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    """Return the planted backbone that a configuration stands for."""
    plant = PlantedRegisters if config.kind is ModelKind.planted_registers else ContextFree
    backbone = plant(seed=config.seed)
    backbone.fingerprint = fingerprint(config, trained_folder)
    return backbone
