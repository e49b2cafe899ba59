"""Scope as a continuum: what each probe loses without each band of the scores, against the band's mean score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.report.figure_style import FAINT, GREY, INK, MIDDLE, draw_means, make_empty, make_panels
from infoscope.report.tables import Stat, compute_stat
from infoscope.stages.probe.results import (
    KEPT,
    MAIN_METRICS,
    AblationRow,
    Metric,
    Result,
    find_originals,
    get_variant,
    is_empty,
    present_metrics,
    read_difference,
)
from infoscope.stages.score.result import ScopeResult

LINES = {
    ("group", None): ("without the band", INK, "-"),
    ("control", "size"): ("random features, as many", GREY, (0, (1, 1.2))),
    ("control", "mass"): ("random features of its mass", GREY, (0, (5, 2))),
    ("control", "energy"): ("random features of its energy", MIDDLE, (0, (3, 1.5, 1, 1.5))),
}
"""{(role, control): (label, colour, line)}."""


def draw_continuum(seeds: Sequence[ScopeResult], results: Sequence[Result]) -> Figure:
    """Draw differences from the original tokens, the SAE's error kept, a point per band: lower is always worse.

    Points are means over SAE seeds (and draws), shades ± one standard deviation.
    """
    bands = [*seeds[0].partition.groups] if seeds else []
    metrics = present_metrics(results, MAIN_METRICS)
    if not bands or not metrics:
        return make_empty("No bands, or no probes.")
    places = [_mean_score(seeds, band) for band in bands]
    figure, panels = make_panels(len(metrics), 0.7 + 2.1 * math.ceil(len(metrics) / 2))
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_panel(panel, results, metric, bands, places)
        panel.set_xlabel(f"mean {seeds[0].by.words} of the band")
    drawn = {(variant.role, variant.control) for variant in map(get_variant, results)}
    handles = [
        Line2D([], [], color=colour, linestyle=line, label=label)
        for key, (label, colour, line) in LINES.items()
        if key in drawn
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _mean_score(seeds: Sequence[ScopeResult], band: str) -> float:
    scores = [
        result.measure[members] for result in seeds for name, members in result.partition.groups.items() if name == band
    ]
    return float(np.concatenate(scores).mean()) if any(len(part) for part in scores) else math.nan


def _draw_panel(
    axes: Axes, results: Sequence[Result], metric: Metric, bands: Sequence[str], places: Sequence[float]
) -> None:
    for (role, control), (_, colour, line) in LINES.items():
        stats = [_measure(results, metric, role, control, band) for band in bands]
        draw_means(axes, places, stats, metric.column.scale, colour, linestyle=line)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_title(metric.column.heading, fontsize=8.5)
    axes.set_ylabel(f"difference ({'points' if metric.column.unit == '%' else metric.column.unit})")
    if not metric.higher_is_better:
        axes.invert_yaxis()


def _measure(results: Sequence[Result], metric: Metric, role: str, control: str | None, band: str) -> Stat:
    originals, wanted = find_originals(results), AblationRow(role, KEPT, band, control)
    chosen = [result for result in results if get_variant(result) == wanted and not is_empty(result)]
    return compute_stat(read_difference(run, originals, metric) for run in chosen)
