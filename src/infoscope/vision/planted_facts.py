"""A backbone that is a formula and knows broad facts: what no small window of a picture tells, in known directions.

The positive control of evidence extent beside the CDS: the same facts lie on one patch that leaps with the context,
where both should be high, and evenly on all patches, where the CDS is 0 by definition and the evidence as broad. Beside
them stand codes of single patches, free of context: their extent, context effect and CDS are 0 exactly.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy.linalg import hadamard
from torch import Tensor

from infoscope.vision import planted
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.planted import LIGHT_ANCHORS, PlantedRegisters, count_blocks, facts

FACTS_VERSION = 2
"""Part of the fingerprint: raise it whenever a token changes."""
FACTS = ("alike", "even", "balanced", "symmetric")
"""Of the marks of `data.planted=marks`, see `infoscope.data.scenes.marks`."""
FACT_VALUES = ("no", "yes", "none")
"""None: the picture lacks a mark."""
# Octiles of all patches of 1,000 scenes of split train, seed 0, with marks, at 96 px.
LEVELS: dict[str, tuple[float, ...]] = {
    "brightness": (42, 56, 67, 80, 95, 114, 157),
    "warmth": (-71, -30, -8, 1, 12, 38, 72),
    "contrast": (4, 4.8, 6.4, 8.5, 11.3, 15.4, 22.2),
    "edge direction": (-4.8, -1.6, -0.7, -0.2, 0.2, 1, 4.1),
}
"""Where the levels of each measure of a patch end, in levels of 0 to 255: see `compute_levels`."""
N_LEVELS = 8
UPPER = "upper half"
CODES = (
    *(f"local, {of}, {level}" for of in LEVELS for level in (*(f"level {i + 1}" for i in range(N_LEVELS)), UPPER)),
    *(f"{form}, {fact}, {value}" for form in ("compact", "diffuse") for fact in FACTS for value in FACT_VALUES),
    *(f"diffuse, light, {light}" for light in LIGHT_ANCHORS),
)
"""What each direction of `PlantedFacts` says, in their order."""
PURITY = 224
"""By so many of 255 levels red or blue stands above the other channels in a mark, and in nothing else of a scene."""
MIN_PIXELS = 16
"""A mark has as many such pixels; its disc, squashed from a scene of 104 px to 96, has some 50."""


class PlantedFacts(PlantedRegisters):
    """Local features in every token, broad facts in one and in all, and the light in all.

    Local: for each measure of a patch a one-hot code of its level, and whether it is one of the upper four, one long
    each. Facts: for each of `FACTS` a one-hot code of `FACT_VALUES`, decided by whether the marks in the four quadrants
    of the crop are red or blue. Compact: `register_norm` long on one patch, which a hash of all pixels of the crop
    chooses. Diffuse: one long on every patch, in directions of their own, and so the light. There is no grain, and
    directions are the rows of a Hadamard matrix over 8, signs and order drawn: every projection on one is its code
    exactly, without rounding.
    """

    def __init__(self, grid: int = 12, patch_px: int = 8, register_norm: float = 8.0, seed: int = 0) -> None:
        super().__init__(grid, patch_px, len(CODES), register_norm, grain=0.0, seed=seed)
        rng = np.random.default_rng([seed, 2])
        signs = rng.choice((-1, 1), len(CODES))
        directions = hadamard(len(CODES))[rng.permutation(len(CODES))] * signs / math.sqrt(len(CODES))
        self.directions = torch.from_numpy(directions).float()

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        known = F.one_hot(self.compute_facts(patches), len(FACT_VALUES)).flatten(1).float()
        light = F.one_hot(self.compute_light(patches), len(LIGHT_ANCHORS)).float()
        at_register = F.one_hot(self.compute_place(patches), self.grid**2)[..., None]
        diffuse = torch.cat([known, light], 1)[:, None].expand(-1, self.grid**2, -1)
        compact = self.register_norm * at_register * known[:, None]
        return torch.cat([compute_levels(patches), compact, diffuse], -1) @ self.directions

    def compute_facts(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Int64[Tensor, "batch n_facts"]:
        """Return the value of each fact of each crop, a position in `FACT_VALUES`."""
        red, seen = self.find_marks(patches)
        upper, lower = red[:, 0] == red[:, 1], red[:, 2] == red[:, 3]
        n_red = red.sum(1)
        values = torch.stack([upper, n_red % 2 == 0, n_red == 2, upper & lower], 1).long()
        return torch.where(seen.all(1, keepdim=True), values, FACT_VALUES.index("none"))

    def find_marks(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> tuple[Bool[Tensor, "batch 4"], Bool[Tensor, "batch 4"]]:
        """Return of each quadrant whether its mark is red, by most of its pixels, and whether there is one.

        Quadrants: upper left, upper right, lower left, lower right.
        """
        red, green, blue = patches.unbind(2)
        half = self.grid // 2

        def count(purity: Tensor) -> Tensor:
            pure = (purity >= PURITY).sum((-1, -2)).unflatten(1, (2, half, 2, half))
            return pure.sum((2, 4)).flatten(1)

        n_red, n_blue = count(red - torch.maximum(green, blue)), count(blue - torch.maximum(red, green))
        return n_red > n_blue, n_red + n_blue >= MIN_PIXELS


def compute_levels(
    patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"],
) -> Float[Tensor, "batch n_patches n_codes"]:
    """Return for each patch and measure of `LEVELS` its level, one-hot, and after it whether that is an upper one.

    Measures, of the patch's own pixels alone: brightness, warmth (red minus blue), contrast (mean step between
    neighbouring pixels, across and down), edge direction (steps across minus steps down). They come from sums of whole
    numbers, which are exact in float32: a patch has the same levels wherever it lies and whatever is around it.
    """
    red, _, blue = patches.sum((-1, -2)).unbind(-1)
    n_pixels = patches.shape[-1] ** 2
    total = patches.sum(2)
    across, down = (total.diff(dim=axis).abs().sum((-1, -2)) for axis in (-1, -2))
    n_steps = 3 * (n_pixels - patches.shape[-1])
    measures = (
        *(total.sum((-1, -2)) / (3 * n_pixels), (red - blue) / n_pixels),
        *((across + down) / (2 * n_steps), (across - down) / n_steps),
    )
    codes = []
    for values, ends in zip(measures, LEVELS.values(), strict=True):
        level = torch.bucketize(values, values.new_tensor(ends))
        codes += [F.one_hot(level, N_LEVELS), (level >= N_LEVELS // 2)[..., None]]
    return torch.cat(codes, -1).float()


def fingerprint(config: ModelConfig, trained_folder: Path | None) -> dict[str, Any]:
    """Return what determines the numbers of this backbone."""
    return {**planted.fingerprint(config, trained_folder), "version": FACTS_VERSION}


def make(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    """Return the backbone that a configuration stands for."""
    backbone = PlantedFacts(seed=config.seed)
    backbone.fingerprint = fingerprint(config, trained_folder)
    return backbone


__all__ = ["CODES", "FACTS", "FACT_VALUES", "PlantedFacts", "count_blocks", "facts", "fingerprint", "make"]
