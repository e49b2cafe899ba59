"""The norms of the tokens: a part of the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from infoscope.report.figure_style import HIGH, INK, LOW, make_figure, write_empty
from infoscope.report.section import ReportSection, SectionFigure


@dataclass(frozen=True)
class TokenStats:
    """Norms of the raw patch tokens of the training split, as a histogram.

    Args:
        counts: tokens in each bin.
        edges: of the bins, one more than counts.
        threshold: norms above it are outliers.
        n_outliers: how many tokens that is.
        rule: how the threshold was found, in words.
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


def make_token_section(stats: TokenStats) -> ReportSection:
    """Return the section: one figure, and whether there is an outlier mode."""
    caption = f"Norms of the patch tokens at the layer the SAE reads. {stats.statement}"
    return ReportSection(
        "tokens",
        "Norms of the tokens",
        findings=(stats.statement,),
        figures={"token_norms": SectionFigure(lambda: draw_token_norms(stats), caption)},
        summary={
            "n_tokens": stats.n_tokens,
            "n_outliers": stats.n_outliers,
            "threshold": stats.threshold,
            "rule": stats.rule,
            "has_outlier_mode": stats.has_outlier_mode,
        },
        is_lead=True,
    )


def draw_token_norms(stats: TokenStats) -> Figure:
    """Draw the histogram of patch-token norms with the outlier threshold; counts on a logarithmic axis."""
    figure = make_figure(2.6)
    axes = figure.subplots()
    if stats.n_tokens == 0:
        write_empty(axes, "No tokens were counted.")
        return figure
    centres = (stats.edges[:-1] + stats.edges[1:]) / 2
    is_outlier = centres > stats.threshold
    for members, colour, label in ((~is_outlier, LOW, "normal tokens"), (is_outlier, HIGH, "outlier tokens")):
        counts = np.where(members, stats.counts, 0)
        if not counts.sum():
            continue
        axes.bar(stats.edges[:-1], counts, np.diff(stats.edges), align="edge", color=colour, linewidth=0, label=label)
    axes.axvline(stats.threshold, color=INK, linewidth=1.4, label=f"threshold {stats.threshold:.4g} ({stats.rule})")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    occupied = np.flatnonzero(stats.counts)
    right = max(float(stats.edges[occupied[-1] + 1]), stats.threshold)
    left = float(stats.edges[occupied[0]])
    margin = 0.03 * (right - left)
    axes.set_xlim(left - margin, right + margin)
    axes.set(xlabel="norm of the raw patch token", ylabel="tokens")
    axes.set_title(stats.statement, fontsize=8.5, fontweight="normal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
