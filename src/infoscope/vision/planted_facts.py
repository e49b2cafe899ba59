"""A backbone that is a formula and knows broad facts: what no small window of a picture tells, in known directions.

The positive control of evidence extent beside the CDS: the same facts lie on one patch that leaps with the context,
where both should be high, and evenly on all patches, where the CDS is 0 by definition and the evidence as broad.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.planted import (
    LIGHT_ANCHORS,
    LOCAL_MEASURES,
    N_QUARTERS,
    PlantedRegisters,
    compute_local_codes,
    count_blocks,
    facts,
    fingerprint,
)

FACTS = ("alike", "even", "balanced", "symmetric")
"""Of the marks of `data.planted=marks`, see `infoscope.data.scenes.marks`."""
FACT_VALUES = ("no", "yes", "none")
"""None: the picture lacks a mark."""
CODES = (
    *(f"local, {measure}, quarter {quarter + 1}" for measure in LOCAL_MEASURES for quarter in range(N_QUARTERS)),
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

    Local: as in `PlantedRegisters`, one long. Facts: for each of `FACTS` a one-hot code of `FACT_VALUES`, decided by
    whether the marks in the four quadrants of the crop are red or blue. Compact: `register_norm` long on one patch,
    which a hash of all pixels of the crop chooses. Diffuse: one long on every patch, in directions of their own, and
    so the light. There is no grain: every projection on a direction is its code, up to rounding.
    """

    n_more_codes = 2 * len(FACTS) * len(FACT_VALUES)

    def __init__(self, grid: int = 12, patch_px: int = 8, register_norm: float = 8.0, seed: int = 0) -> None:
        super().__init__(grid, patch_px, len(CODES), register_norm, grain=0.0, seed=seed)

    def patch_tokens(
        self, patches: Float[Tensor, "batch n_patches 3 patch_px patch_px"]
    ) -> Float[Tensor, "batch n_patches d_in"]:
        known = F.one_hot(self.compute_facts(patches), len(FACT_VALUES)).flatten(1).float()
        light = F.one_hot(self.compute_light(patches), len(LIGHT_ANCHORS)).float()
        at_register = F.one_hot(self.compute_place(patches), self.grid**2)[..., None]
        diffuse = torch.cat([known, light], 1)[:, None].expand(-1, self.grid**2, -1)
        compact = self.register_norm * at_register * known[:, None]
        return torch.cat([compute_local_codes(patches, self.grid), compact, diffuse], -1) @ self.directions

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


def make(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    """Return the backbone that a configuration stands for."""
    backbone = PlantedFacts(seed=config.seed)
    backbone.fingerprint = fingerprint(config, trained_folder)
    return backbone


__all__ = ["CODES", "FACTS", "FACT_VALUES", "PlantedFacts", "count_blocks", "facts", "fingerprint", "make"]
