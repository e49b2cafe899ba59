"""What removal costs each probe, as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from infoscope.report.figure_style import BAND_COLOURS, FAINT, GREY, INK, MIDDLE, make_empty, make_figure
from infoscope.stages.probe.results import (
    MAIN_METRICS,
    AblationRow,
    Metric,
    Result,
    find_originals,
    group_by_variant,
    is_empty,
    present_metrics,
    read_difference,
)

MODE_MARKERS = {"error_preserving": "o", "reconstruct": "D", "": "o"}


def draw_removal(results: Sequence[Result]) -> Figure:
    """Draw each probe's difference from the original tokens for every variant: left of zero is always worse."""
    metrics = present_metrics(results, MAIN_METRICS)
    variants = [v for v in group_by_variant(results) if v.role != "original"]
    if not metrics or not variants:
        return make_empty("No probes: nothing was measured with features removed.")
    lines = list(dict.fromkeys((v.role, v.group, v.control) for v in variants))
    lines.sort(key=lambda line: {"nothing": 0, "all": 2}.get(line[0], 1))
    figure = make_figure(1.15 + 0.27 * len(lines))
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_effects(panel, results, metric, lines)
    labels = [AblationRow(role, "", group, control).label for role, group, control in lines]
    panels[0].set_yticks(range(len(lines)), labels)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=INK, marker="o", linestyle="", markersize=5, label="error-preserving"),
        Line2D(
            [], [], color=INK, marker="D", markerfacecolor="white", linestyle="", markersize=4.5, label="reconstruct"
        ),
        Line2D([], [], color=INK, linewidth=1, label="± standard deviation"),
        Line2D([], [], color=INK, marker="|", alpha=0.6, linestyle="", markersize=8, label="one run"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _draw_effects(axes: Axes, results: Sequence[Result], metric: Metric, lines: Sequence[tuple]) -> None:
    originals = find_originals(results)
    for variant, runs in group_by_variant(results).items():
        if variant.role == "original":
            continue
        differences = [read_difference(run, originals, metric) for run in runs if not is_empty(run)]
        values = metric.column.scale * np.array([d for d in differences if math.isfinite(d)])
        if not len(values):
            continue
        place = lines.index((variant.role, variant.group, variant.control))
        place += {"error_preserving": -0.17, "reconstruct": 0.17}.get(variant.mode, 0.0)
        colour = _line_colour(variant)
        axes.plot(values, np.full(len(values), place), "|", color=colour, alpha=0.45, markersize=8, markeredgewidth=0.8)
        if len(values) > 1:
            axes.errorbar(values.mean(), place, xerr=values.std(ddof=1), color=colour, linewidth=1, capsize=0)
        fill = "white" if variant.mode == "reconstruct" else colour
        size = 4.5 if variant.mode == "reconstruct" else 5
        axes.plot(values.mean(), place, MODE_MARKERS.get(variant.mode, "o"), color=colour, mfc=fill, markersize=size)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    for place in range(1, len(lines), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#F5F5F5", zorder=-1, linewidth=0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    column = metric.column
    axes.set_title(column.heading, fontsize=8.5)
    axes.set_xlabel(f"{'points' if column.unit == '%' else column.unit} (left: worse)")
    if not metric.higher_is_better:
        axes.invert_xaxis()


def _line_colour(variant: AblationRow) -> str:
    if variant.role == "group":
        return BAND_COLOURS.get(variant.group or "", MIDDLE)
    return GREY if variant.role == "control" else INK
