"""How strongly each group of features acts on outlier and on normal tokens.

A group's activation is a sum over its latents: what a pass over the tokens finds is kept latent by latent, and any
groups are arithmetic on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from infoscope.runtime.arrays import load_result, save_result
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, SumMeter
from infoscope.vision.tokens.source import TokenSource


class Acts(NamedTuple):
    """How strongly some features act on outlier tokens and on normal ones.

    n_features: how many they are.
    on_outlier, on_normal: their summed activation per token (times the norms of decoder rows where these are not 1),
        mean over the tokens of that kind, in SAE units; NaN without such tokens.
    """

    n_features: int
    on_outlier: float
    on_normal: float

    @property
    def ratio(self) -> float:
        """Activation on outlier tokens / on normal ones; NaN where the latter is 0."""
        return self.on_outlier / self.on_normal if self.on_normal > 0 else math.nan


class GroupActivation(NamedTuple):
    """How strongly groups of one SAE's features act, by name, and all of them; how many tokens of either kind."""

    groups: dict[str, Acts]
    everyone: Acts
    n_outlier: int
    n_normal: int


@dataclass(frozen=True)
class OutlierActs:
    """How strongly each latent of one SAE acts on outlier tokens and on normal ones.

    on_outlier, on_normal: [d_sae] sum of its activation over the tokens of that kind, in SAE units.
    n_outlier, n_normal: tokens of either kind.
    """

    on_outlier: Float64[np.ndarray, " d_sae"]
    on_normal: Float64[np.ndarray, " d_sae"]
    n_outlier: int
    n_normal: int

    def of_groups(self, groups: Mapping[str, Bool[np.ndarray, " d_sae"]]) -> GroupActivation:
        """Return what groups of latents do.

        Args:
            groups: by name, masks over the latents; they may be empty, and may overlap.
        """

        def sum_up(mask: Bool[np.ndarray, " d_sae"]) -> Acts:
            both = (self.on_outlier, self.n_outlier), (self.on_normal, self.n_normal)
            return Acts(int(mask.sum()), *(float(sums[mask].sum()) / n if n else math.nan for sums, n in both))

        everyone = sum_up(np.ones(len(self.on_outlier), dtype=bool))
        by_name = {name: sum_up(mask) for name, mask in groups.items()}
        return GroupActivation(by_name, everyone, self.n_outlier, self.n_normal)

    def save(self, folder: Path) -> None:
        """Write outlier_acts.npz and outlier_acts.json into `folder` (made if missing)."""
        save_result(folder, "outlier_acts", vars(self))

    @classmethod
    def load(cls, folder: Path) -> OutlierActs:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "outlier_acts")
        return cls(**arrays, **facts)


class OutlierMeter(SumMeter):
    """Sums the activation of each latent over outlier tokens and over normal ones.

    Args:
        norms: raw norm of each patch token, by row.
        threshold: tokens of a greater norm are outliers.
    """

    def __init__(
        self,
        d_sae: int,
        norms: Float32[np.ndarray, "n_images n_patches"],
        threshold: float,
        device: torch.device | str = "cpu",
        known: OutlierMeter | None = None,
    ) -> None:
        super().__init__(device, acts=(2 * d_sae,), n_tokens=(2,))  # normal ones first
        self.d_sae, self.norms, self.threshold = d_sae, norms, threshold

    def update(self, batch: LatentBatch) -> None:
        acts, is_outlier = self.sums["acts"], torch.from_numpy(self.norms[batch.rows] > self.threshold).flatten().long()
        is_outlier = is_outlier.to(acts.device)
        tokens, latents, values = batch.entries
        acts.index_add_(0, is_outlier[tokens] * self.d_sae + latents, values.double())
        self.sums["n_tokens"] += torch.bincount(is_outlier, minlength=2)

    def compute(self) -> OutlierActs:
        """Return what all tokens say."""
        normal, outlier = self.sums["acts"].view(2, self.d_sae).cpu().numpy()
        n_normal, n_outlier = self.sums["n_tokens"].long().tolist()
        return OutlierActs(outlier, normal, n_outlier, n_normal)


def measure_outlier_acts(sae: SparseAutoencoder, tokens: TokenSource, threshold: float) -> Measurement[OutlierMeter]:
    """Return what a pass over these tokens measures for `OutlierActs`, see `OutlierMeter`."""
    return Measurement(sae, partial(OutlierMeter, sae.d_sae, tokens.norms, threshold))
