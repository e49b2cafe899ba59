"""What a report is made from: plain arrays and dictionaries, read from artifacts by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from infoscope.report.paper import PAPER_VALUES
from infoscope.report.section import ReportSection
from infoscope.runtime.errors import InputError
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
        mean_act: mean activation per token; rows of W_dec have unit norm, so this is the mass per token.
        firing_rate: share of tokens on which the latent fires.
        partition: gamma and the groups.
        rule: how gamma was found, in words for people ("Otsu", "quantile 0.9", ...).
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
    mean_act: Float[np.ndarray, " d_sae"]
    firing_rate: Float[np.ndarray, " d_sae"]
    partition: Partition
    rule: str
    grid: int
    shift: int
    sae_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """The top images of one feature, with its maps on both crops.

    Args:
        latent: index into the SAE.
        cds: of the feature, NaN if it has none.
        band: "low", "middle" or "high", or any name of a quantile band.
        images: resized to (grid + shift) patches a side, before cropping, best first.
        maps: activations on the whole of crop 1 (origin at the top left) and of crop 2 (origin shifted).
        emd: between the shared regions, divided by D_grid.
        image_ids: what the images are called.
    """

    latent: int
    cds: float
    band: str
    images: UInt8[np.ndarray, "n size_px size_px 3"]
    maps: Float[np.ndarray, "n 2 grid grid"]
    emd: Float[np.ndarray, " n"]
    image_ids: Sequence[str] = ()


@dataclass(frozen=True)
class TokenStats:
    """Norms of the raw patch tokens of the training split, as a histogram.

    Args:
        counts: tokens in each bin.
        edges: of the bins, one more than counts.
        threshold: norms above it are outliers.
        n_outliers: how many tokens that is.
        rule: how the threshold was found, in words for people.
        has_outlier_mode: whether the histogram has a peak of its own above the threshold, whatever it has below.
    """

    counts: Int[np.ndarray, " n_bins"]
    edges: Float[np.ndarray, " n_bins_plus_1"]
    threshold: float
    n_outliers: int
    rule: str
    has_outlier_mode: bool

    @property
    def n_tokens(self) -> int:
        """All tokens counted."""
        return int(self.counts.sum())

    @property
    def statement(self) -> str:
        """One sentence about outliers: that there is no outlier mode is a legal result."""
        share = self.n_outliers / max(self.n_tokens, 1)
        mode = "Outlier mode" if self.has_outlier_mode else "No outlier mode"
        tokens = f"{self.n_outliers:,} of {self.n_tokens:,} patch tokens ({share:.2%})"
        peak = "a peak of its own" if self.has_outlier_mode else "no peak"
        return f"{mode}: the norm histogram has {peak} above {self.threshold:.4g}, where {tokens} lie."


@dataclass
class ReportInputs:
    """Everything a report is made from.

    Args:
        title: heading of the report.
        seeds: one result per SAE seed.
        results: one dictionary per (SAE seed, variant), as the probes write them; empty for unlabelled data.
        examples: features to show, in the order to show them in.
        token_stats: norms of the patch tokens, if known.
        context: model, data, layer, hardware, command, wall time, ...: printed as they are.
        paper_reference: a key of `PAPER_VALUES` when model and data are the paper's; never for anything else.
        sections: of the analyses beside the main table, in the order of the page.
    """

    title: str
    seeds: Sequence[ScopeResult]
    results: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[Example] = ()
    token_stats: TokenStats | None = None
    context: Mapping[str, str] = field(default_factory=dict)
    paper_reference: str | None = None
    sections: Sequence[ReportSection] = ()

    def __post_init__(self) -> None:
        if self.paper_reference is not None and self.paper_reference not in PAPER_VALUES:
            raise InputError(
                f"Expected report.paper_reference to be one of {', '.join(PAPER_VALUES)} or null,"
                f" got {self.paper_reference!r}."
            )
