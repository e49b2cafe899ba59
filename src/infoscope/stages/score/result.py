"""The information scope of one SAE's features, as tables and figures read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from infoscope.scope.partition import Partition


@dataclass(frozen=True)
class ScopeResult:
    """The information scope of one SAE's features.

    Args:
        sae_seed: the seed the SAE was trained with.
        k_cds: how many ranks the CDS is a mean of.
        cds: NaN where fewer than half of the ranks have a valid pair.
        emd: per rank, divided by D_grid; NaN where a map is all zero.
        chance_emd: the same between crop 1 of rank m and crop 2 of rank m + 1.
        mass1, mass2: sum of the activation over the shared region of crop 1 and 2; NaN where there is no image.
        mass: activation mass per token: the mean of z * |W_dec row|.
        firing_rate: share of tokens on which the latent fires.
        partition: gamma and the groups.
        rule: how gamma was found, in words ("Otsu", "quantile 0.9", ...).
        grid, shift: of the crops, in patches.
        sae_metrics: numbers to print, among them fvu, l0, dead_share and cosine when known.
    """

    sae_seed: int
    k_cds: int
    cds: Float[np.ndarray, " d_sae"]
    emd: Float[np.ndarray, "d_sae k_max"]
    chance_emd: Float[np.ndarray, "d_sae k_max"]
    mass1: Float[np.ndarray, "d_sae k_max"]
    mass2: Float[np.ndarray, "d_sae k_max"]
    mass: Float[np.ndarray, " d_sae"]
    firing_rate: Float[np.ndarray, " d_sae"]
    partition: Partition
    rule: str
    grid: int
    shift: int
    sae_metrics: Mapping[str, float] = field(default_factory=dict)
