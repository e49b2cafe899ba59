"""What removal costs each probe, as figures: absolute, and beyond removing random features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from infoscope.report.figure_style import FAINT, GREY, INK, colour_groups, make_empty, make_figure
from infoscope.report.tables import format_number
from infoscope.stages.probe.against_random import Excess, list_excess
from infoscope.stages.probe.results import (
    MAIN_METRICS,
    AblationRow,
    Metric,
    Result,
    group_by_variant,
    is_empty,
    present_metrics,
)

SHIFTS = {"error_preserving": -0.17, "reconstruct": 0.17}
"""Of the modes within a row."""
MARGIN = 0.06
"""Of an axis, on both sides of its points."""


def draw_removal(results: Sequence[Result]) -> Figure:
    """Draw each probe's metric for every variant, with that of the original tokens: further left is always worse.

    Limits are those of all rows but "all removed", which is far off: a number at the edge says where.
    """
    metrics = present_metrics(results, MAIN_METRICS)
    variants = [v for v in group_by_variant(results) if v.role != "original"]
    if not metrics or not variants:
        return make_empty("No probes: nothing was measured with features removed.")
    lines = list(dict.fromkeys((v.role, v.group, v.control) for v in variants))
    lines.sort(key=lambda line: {"nothing": 0, "all": 2}.get(line[0], 1))
    labels = [AblationRow(role, "", group, control).label for role, group, control in lines]
    figure = _draw_rows(metrics, labels, lambda axes, metric: _draw_metric(axes, results, metric, lines))
    handles = [
        Line2D([], [], color=INK, linewidth=0.9, label="original tokens"),
        Line2D([], [], color=INK, marker="o", linestyle="", markersize=5, label="error-preserving"),
        Line2D(
            [], [], color=INK, marker="D", markerfacecolor="white", linestyle="", markersize=4.5, label="reconstruct"
        ),
        Line2D([], [], color=INK, marker="_", linestyle="", markersize=9, label="± standard deviation"),
        Line2D([], [], color=INK, marker="|", alpha=0.6, linestyle="", markersize=8, label="one run"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.2, handletextpad=0.5)
    return figure


def _draw_rows(metrics: Sequence[Metric], labels: Sequence[str], draw: Callable[[Axes, Metric], None]) -> Figure:
    """Return a figure with a panel per metric and rows in common."""
    figure = make_figure(1.15 + 0.27 * len(labels))
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for axes, metric in zip(panels, metrics, strict=True):
        draw(axes, metric)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        for place in range(1, len(labels), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="#F5F5F5", zorder=-1, linewidth=0)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(metric.column.heading, fontsize=8.5)
        if not metric.higher_is_better:
            axes.invert_xaxis()
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure


def _draw_metric(axes: Axes, results: Sequence[Result], metric: Metric, lines: Sequence[tuple]) -> None:
    scale, shown, far = metric.column.scale, [], []
    colours = colour_groups([group for role, group, _ in lines if role == "group" and group])
    for variant, runs in group_by_variant(results).items():
        read = [metric.read(run) for run in runs if not is_empty(run)]
        values = scale * np.array([value for value in read if math.isfinite(value)])
        if not len(values):
            continue
        if variant.role == "original":
            axes.axvline(values.mean(), color=INK, linewidth=0.9, zorder=1)
            shown.append(values)
            continue
        place = lines.index((variant.role, variant.group, variant.control)) + SHIFTS.get(variant.mode, 0.0)
        colour = GREY if variant.role == "control" else colours.get(variant.group or "", INK)
        if variant.role == "all":
            far.append((values, place))
        else:
            shown.append(values)
        _draw_runs(axes, values, place, colour, variant.mode == "reconstruct")
    axes.set_xlabel(f"{metric.column.unit} (left: worse)")
    if shown:
        every = np.concatenate(shown)
        margin = MARGIN * max(float(np.ptp(every)), 1e-9)
        low, high = every.min() - margin, every.max() + margin
        for values, _ in sorted(far, key=lambda one: abs(one[0].mean() - every.mean())):
            if low <= values.mean() <= high:  # then its spread is not cut at the frame
                low, high = min(low, values.min() - margin), max(high, values.max() + margin)
        axes.set_xlim(low, high)
    for values, place in far:
        _mark_outside(axes, float(values.mean()), place, metric)


def _draw_runs(axes: Axes, values: np.ndarray, place: float, colour: str, is_hollow: bool) -> None:
    axes.plot(values, np.full(len(values), place), "|", color=colour, alpha=0.45, markersize=8, markeredgewidth=0.8)
    if len(values) > 1:
        axes.errorbar(values.mean(), place, xerr=values.std(ddof=1), color=colour, linewidth=1, capsize=0)
    style = {"marker": "D", "mfc": "white", "markersize": 4.5} if is_hollow else {"marker": "o", "markersize": 5}
    axes.plot(values.mean(), place, color=colour, **style)


def _mark_outside(axes: Axes, value: float, place: float, metric: Metric) -> None:
    """Put an arrow and the number at the edge beyond which a value lies."""
    low, high = axes.get_xlim()
    if low <= value <= high:
        return
    is_left = (value < low) == metric.higher_is_better
    text = format_number(value, metric.column.digits)
    axes.annotate(
        f"\N{LEFTWARDS ARROW} {text}" if is_left else f"{text} \N{RIGHTWARDS ARROW}",
        (0.0 if is_left else 1.0, place),
        xycoords=("axes fraction", "data"),
        ha="left" if is_left else "right",
        va="center",
        fontsize=6.5,
        color=INK,
    )


def draw_against_random(results: Sequence[Result]) -> Figure:
    """Draw how far each probe without a group lies from that without random features: left of zero is always worse."""
    excess = list_excess(results)
    if not excess:
        return make_empty("No random groups to compare with.")
    rows = list(dict.fromkeys((one.group, one.control) for one in excess))
    colours = colour_groups(list(dict.fromkeys(group for group, _ in rows)))
    labels = [f"{AblationRow('group', '', group).group_label}, equal {control}" for group, control in rows]

    def draw(axes: Axes, metric: Metric) -> None:
        for one in excess:
            if one.metric == metric:
                _draw_excess(axes, one, rows.index((one.group, one.control)), colours[one.group])
        axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
        axes.set_xlabel(f"{'points' if metric.column.unit == '%' else metric.column.unit} (left: worse)")

    figure = _draw_rows(list(dict.fromkeys(one.metric for one in excess)), labels, draw)
    handles = [
        Line2D([], [], color=INK, marker="o", mfc="none", linestyle="", markersize=4, label="one SAE seed"),
        Line2D([], [], color=INK, marker="D", linewidth=1.4, markersize=4, label="mean, 95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _draw_excess(axes: Axes, excess: Excess, place: int, colour: str) -> None:
    scale, mean = excess.metric.column.scale, excess.stat.mean
    values = scale * np.array(list(excess.by_seed.values()))
    axes.plot(values, np.full(len(values), place + 0.2), "o", color=colour, mfc="none", markersize=4, mew=0.9)
    if math.isfinite(excess.stat.half_width):
        half = scale * excess.stat.half_width
        axes.errorbar(scale * mean, place - 0.12, xerr=half, color=colour, linewidth=1.4, capsize=2)
    axes.plot(scale * mean, place - 0.12, "D", color=colour, markersize=4)
