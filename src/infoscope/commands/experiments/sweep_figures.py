"""Figures of a sweep: what probes lose without each group, how scores settle, which groups act on outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from infoscope.report.figure_style import (
    FAINT,
    GREY,
    HIGH,
    INK,
    LOW,
    draw_means,
    make_empty,
    make_figure,
    make_panels,
    write_empty,
)
from infoscope.report.tables import Column, Stat, compute_stat
from infoscope.scope.group_activation import GroupActivation
from infoscope.scope.partition import name_group
from infoscope.stages.probe.results import MAIN_METRICS, Metric, Result, get_variant, is_empty, present_metrics

MODE = "error_preserving"
LINES = {
    ("original", None, None): ("original tokens", INK, "-", ""),
    ("group", "high", None): ("without high scope", HIGH, "-", "o"),
    ("control", "high", "mass"): ("random, mass of high", HIGH, (0, (1, 1.2)), ""),
    ("group", "low", None): ("without low scope", LOW, "-", "o"),
    ("control", "low", "mass"): ("random, mass of low", LOW, (0, (1, 1.2)), ""),
}
"""{(role, group, control): (label, colour, line, marker)}."""


RATIOS = {0.0: "0", 0.1: "1/10", 1 / 3: "1/3", 1.0: "1", 3.0: "3", 10.0: "10", math.inf: "∞"}
"""Ticks of an axis of ratios."""


class Point(NamedTuple):
    """One configuration of a sweep: where it stands on the axis, its name there, and what the probes read."""

    x: float
    name: str
    results: Sequence[Result]


def draw_removal_sweep(points: Sequence[Point], xlabel: str, is_scale: bool = True) -> Figure:
    """Draw each probe's metric against what is swept, with and without each group; the SAE's error is kept.

    Lines are means over SAE seeds (and draws), shades ± one standard deviation.

    Args:
        is_scale: whether values between two points mean something; else points are only marked.
    """
    metrics = present_metrics([result for point in points for result in point.results], MAIN_METRICS)
    if not metrics:
        return make_empty("No probes: nothing was measured with features removed.")
    points = sorted(points, key=lambda point: point.x)
    figure, panels = make_panels(len(metrics), 0.8 + 2.1 * math.ceil(len(metrics) / 2), sharex=True)
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_metric(panel, points, metric, is_scale)
        _mark_points(panel, points, 0.08 * (points[-1].x - points[0].x) if is_scale else 0.5)
        panel.set_title(metric.column.title, fontsize=8.5)
    for panel in panels[-2:]:
        panel.set_xlabel(xlabel)
    handles = [
        Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=4, label=label)
        if is_scale
        else Line2D([], [], color=colour, linestyle="", marker=marker or "_", markersize=6, label=label)
        for label, colour, line, marker in LINES.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_metric(axes: Axes, points: Sequence[Point], metric: Metric, is_scale: bool) -> None:
    scale = metric.column.scale
    x = np.array([point.x for point in points])
    for number, (wanted, (_, colour, line, marker)) in enumerate(LINES.items()):
        stats = [_read(point.results, metric, wanted) for point in points]
        if is_scale:
            draw_means(axes, x, stats, scale, colour, linestyle=line, marker=marker)
            continue
        place = x + 0.13 * (number - (len(LINES) - 1) / 2)
        mean, sd = scale * np.array([(stat.mean, stat.sd) for stat in stats]).T
        axes.errorbar(
            place, mean, np.nan_to_num(sd), color=colour, linestyle="", marker=marker or "_", ms=5, elinewidth=1
        )
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if not metric.higher_is_better:
        axes.invert_yaxis()  # below is worse in every panel


def _read(results: Sequence[Result], metric: Metric, wanted: tuple[str, str | None, str | None]) -> Stat:
    values = []
    for result in results:
        variant = get_variant(result)
        if (variant.role, variant.group, variant.control) == wanted and variant.mode in ("", MODE):
            values += [] if is_empty(result) else [metric.read(result)]
    return compute_stat(values)


def _mark_points(axes: Axes, points: Sequence[Point], margin: float) -> None:
    axes.xaxis.set_major_locator(FixedLocator([point.x for point in points]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([point.x for point in points], [point.name for point in points], fontsize=7)
    if margin > 0:
        axes.set_xlim(points[0].x - margin, points[-1].x + margin)


def draw_settling(curves: Mapping[str, Mapping[int, Sequence[Stat]]], columns: Sequence[Column]) -> Figure:
    """Draw what becomes of some numbers as k grows, a panel per number and a line per configuration.

    Args:
        curves: per configuration and k, mean and spread over SAE seeds of each number.
        columns: how the numbers are headed and scaled.
    """
    figure = make_figure(2.6 if len(curves) == 1 else 3.0)
    panels = figure.subplots(1, len(columns), squeeze=False).ravel()
    styles = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))]
    ticks = sorted({k for by_k in curves.values() for k in by_k})
    for number, (panel, column) in enumerate(zip(panels, columns, strict=True)):
        for place, (name, by_k) in enumerate(curves.items()):
            ks = sorted(by_k)
            stats, style = [by_k[k][number] for k in ks], styles[place % len(styles)]
            draw_means(panel, ks, stats, column.scale, INK, linestyle=style, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(k) for k in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(column.title, fontsize=8.5)
        panel.set_xlabel("k_CDS")
        panel.grid(axis="y", color=FAINT, linewidth=0.6)
    if len(curves) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_group_activation(
    panels: Mapping[str, Sequence[GroupActivation]], paper: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """Draw how many times stronger each group acts on an outlier token than on a normal one, a row of dots per group.

    Args:
        panels: by title, one result per SAE seed.
        paper: by title, the paper's ratios by group, where they may stand beside ours.
    """
    names = {title: [*dict.fromkeys(name for run in runs for name in run.groups)] for title, runs in panels.items()}
    figure = make_figure(0.7 + sum(1.0 + 0.3 * len(of) for of in names.values()))
    heights = [1.5 + len(of) for of in names.values()]
    axes_of = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).ravel()
    for axes, (title, runs) in zip(axes_of, panels.items(), strict=True):
        axes.set_title(title)
        if not runs[0].n_outlier:
            write_empty(axes, "No token is an outlier.")
            continue
        _draw_ratios(axes, runs, names[title], (paper or {}).get(title, {}))
        axes.set_xlabel("activation on an outlier token / on a normal one")
    handles = [
        Line2D([], [], color=INK, marker="o", linestyle="", ms=4, label="one SAE"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (5, 2)), label="all features together"),
    ]
    if paper:
        handles.append(Line2D([], [], color=INK, marker="D", mfc="white", linestyle="", ms=5, label="the paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_ratios(axes: Axes, runs: Sequence[GroupActivation], names: Sequence[str], paper: Mapping[str, float]) -> None:
    for place, name in enumerate(names):
        ratios = [run.groups[name].ratio for run in runs if name in run.groups]
        colour = {"high": HIGH, "low": LOW}.get(name, GREY)
        axes.plot(list(map(_bound, ratios)), [place] * len(ratios), "o", color=colour, markersize=5, alpha=0.8)
        if name in paper:
            axes.plot(_bound(paper[name]), place, "D", color=colour, mfc="white", markersize=6)
    whole = compute_stat(run.everyone.ratio for run in runs).mean
    axes.axvline(_bound(whole), color=GREY, linewidth=1, linestyle=(0, (5, 2)), zorder=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(list(map(_bound, RATIOS)), list(RATIOS.values()))
    axes.set_yticks(range(len(names)), list(map(name_group, names)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)


def _bound(ratio: float) -> float:
    """Where a ratio stands on an axis that ends: 0 at 0, 1 in the middle, infinity at 1."""
    return 1.0 if math.isinf(ratio) else ratio / (1 + ratio)
