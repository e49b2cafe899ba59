"""The norms of the tokens: a part of the report."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from infoscope.report.figure_style import HIGH, INK, LOW, make_empty, make_figure
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.scope.outliers import NormSummary


def make_token_section(norms: NormSummary, rule: str) -> ReportSection:
    """Return the section: one figure, and whether there is an outlier mode.

    Args:
        norms: of the raw patch tokens of the training split.
        rule: how the threshold was found, in words.
    """
    statement = _describe(norms)
    return ReportSection(
        "tokens",
        "Norms of the tokens",
        findings=(statement,),
        figures={
            "token_norms": SectionFigure(
                lambda: draw_token_norms(norms, rule),
                f"Norms of the patch tokens at the layer the SAE reads. {statement}",
            )
        },
        summary={
            "n_tokens": norms.n_tokens,
            "n_outliers": norms.n_outliers,
            "threshold": norms.threshold,
            "rule": rule,
            "has_outlier_mode": norms.has_outlier_mode,
        },
        is_lead=True,
    )


def _describe(norms: NormSummary) -> str:
    mode, peak = ("Outlier mode", "a peak of its own") if norms.has_outlier_mode else ("No outlier mode", "no peak")
    share = norms.n_outliers / max(norms.n_tokens, 1)
    tokens = f"{norms.n_outliers:,} of {norms.n_tokens:,} patch tokens ({share:.2%})"
    return f"{mode}: the norm histogram has {peak} above {norms.threshold:.4g}, where {tokens} lie."


def draw_token_norms(norms: NormSummary, rule: str) -> Figure:
    """Draw the histogram of patch-token norms with the outlier threshold; counts on a logarithmic axis."""
    if norms.n_tokens == 0:
        return make_empty("No tokens were counted.", 2.6)
    figure = make_figure(2.6)
    axes = figure.subplots()
    edges, threshold = norms.edges, norms.threshold
    is_outlier = (edges[:-1] + edges[1:]) / 2 > threshold
    for members, colour, label in ((~is_outlier, LOW, "normal tokens"), (is_outlier, HIGH, "outlier tokens")):
        counts = np.where(members, norms.counts, 0)
        if counts.sum():
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, linewidth=0, label=label)
    axes.axvline(threshold, color=INK, linewidth=1.4, label=f"threshold {threshold:.4g} ({rule})")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    occupied = np.flatnonzero(norms.counts)
    left, right = float(edges[occupied[0]]), max(float(edges[occupied[-1] + 1]), threshold)
    margin = 0.03 * (right - left)
    axes.set_xlim(left - margin, right + margin)
    axes.set(xlabel="norm of the raw patch token", ylabel="tokens")
    axes.set_title(_describe(norms), fontsize=8.5, fontweight="normal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
