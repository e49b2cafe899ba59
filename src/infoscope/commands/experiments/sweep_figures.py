"""The figure of a sweep: what probes lose without each group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from infoscope.report.figure_style import FAINT, HIGH, INK, LOW, draw_means, make_empty, make_panels
from infoscope.report.tables import Stat, compute_stat
from infoscope.scope.partition import ABOVE, ENDS, name_group
from infoscope.stages.probe.results import MAIN_METRICS, Metric, Result, get_variant, is_empty, present_metrics

MODE = "error_preserving"
Line = tuple[str, str, Any, str]
"""Label, colour, line and marker."""


def _make_lines() -> dict[tuple[str, str | None, str | None], Line]:
    """Return {(role, group, control): line} of groups by any measure."""
    lines: dict[tuple[str, str | None, str | None], Line] = {
        ("original", None, None): ("original tokens", INK, "-", "")
    }
    for ends in ENDS.values():
        for group, colour in zip(ends, (HIGH, LOW), strict=True):
            lines["group", group, None] = (f"without {name_group(group, ' ')}", colour, "-", "o")
            lines["control", group, "mass"] = (f"random, mass of {group}", colour, (0, (1, 1.2)), "")
    return lines


LINES = _make_lines()


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
    groups = {get_variant(result).group for point in points for result in point.results}
    lines = {wanted: line for wanted, line in LINES.items() if wanted[1] is None or wanted[1] in groups}
    figure, panels = make_panels(len(metrics), 0.8 + 2.1 * math.ceil(len(metrics) / 2), sharex=True)
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_metric(panel, points, metric, is_scale, lines)
        _mark_points(panel, points, 0.08 * (points[-1].x - points[0].x) if is_scale else 0.5)
        panel.set_title(metric.column.title, fontsize=8.5)
    for panel in panels[-2:]:
        panel.set_xlabel(xlabel)
    handles = [
        Line2D([], [], color=colour, linestyle=line, marker=marker, markersize=4, label=label)
        if is_scale
        else Line2D([], [], color=colour, linestyle="", marker=marker or "_", markersize=6, label=label)
        for label, colour, line, marker in lines.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_metric(
    axes: Axes,
    points: Sequence[Point],
    metric: Metric,
    is_scale: bool,
    lines: Mapping[tuple[str, str | None, str | None], Line],
) -> None:
    scale = metric.column.scale
    x = np.array([point.x for point in points])
    for wanted, (_, colour, line, marker) in lines.items():
        stats = [_read(point.results, metric, wanted) for point in points]
        if is_scale:
            draw_means(axes, x, stats, scale, colour, linestyle=line, marker=marker)
            continue
        place = x + 0.13 * (_find_slot(wanted[1], wanted[2]) - 2)
        mean, sd = scale * np.array([(stat.mean, stat.sd) for stat in stats]).T
        axes.errorbar(
            place, mean, np.nan_to_num(sd), color=colour, linestyle="", marker=marker or "_", ms=5, elinewidth=1
        )
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    if not metric.higher_is_better:
        axes.invert_yaxis()  # below is worse in every panel


def _find_slot(group: str | None, control: str | None) -> int:
    """Return which of five places side by side a line has: the original tokens, then each group and its random ones."""
    return 0 if group is None else 1 + 2 * (group not in ABOVE) + (control is not None)


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
