"""Scope as a continuum: what each probe loses without each band of the CDS, against the band's mean score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.report.figure_style import FAINT, GREY, INK, make_figure, write_empty
from infoscope.report.tables import Stat, compute_stat
from infoscope.stages.probe.results import (
    MAIN_METRICS,
    Metric,
    Result,
    find_originals,
    get_variant,
    is_empty,
    present_metrics,
    read_difference,
)
from infoscope.stages.score.result import ScopeResult

PER_ROW = 2
MODE = "error_preserving"
LINES = {
    ("group", None): ("without the band", INK, "-"),
    ("control", "size"): ("random features, as many", GREY, (0, (1, 1.2))),
    ("control", "mass"): ("random features of its mass", GREY, (0, (5, 2))),
}
"""{(role, control): (label, colour, line)}."""


def draw_continuum(seeds: Sequence[ScopeResult], results: Sequence[Result]) -> Figure:
    """Draw differences from the original tokens, the SAE's error kept, a point per band: lower is always worse.

    Points are means over SAE seeds (and draws), shades ± one standard deviation.
    """
    bands = [name for name, _ in seeds[0].partition.bands] if seeds else []
    metrics = list(present_metrics(results, MAIN_METRICS))
    if not bands or not metrics:
        figure = make_figure(1.6)
        write_empty(figure.subplots(), "No bands, or no probes.")
        return figure
    places = [_mean_score(seeds, band) for band in bands]
    n_rows = -(-len(metrics) // PER_ROW)
    figure = make_figure(0.7 + 2.1 * n_rows)
    panels = figure.subplots(n_rows, min(PER_ROW, len(metrics)), squeeze=False).ravel()
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
    for panel, metric in zip(panels, metrics, strict=False):
        _draw_panel(panel, results, metric, bands, places)
    handles = [Line2D([], [], color=colour, linestyle=line, label=label) for label, colour, line in LINES.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _mean_score(seeds: Sequence[ScopeResult], band: str) -> float:
    scores = [result.cds[members] for result in seeds for name, members in result.partition.bands if name == band]
    return float(np.concatenate(scores).mean()) if any(len(part) for part in scores) else math.nan


def _draw_panel(
    axes: Axes, results: Sequence[Result], metric: Metric, bands: Sequence[str], places: Sequence[float]
) -> None:
    scale = metric.column.scale
    for (role, control), (_, colour, line) in LINES.items():
        stats = [_measure(results, metric, role, control, band) for band in bands]
        shown = [(place, stat) for place, stat in zip(places, stats, strict=True) if math.isfinite(place + stat.mean)]
        if not shown:
            continue
        x = np.array([place for place, _ in shown])
        mean = scale * np.array([stat.mean for _, stat in shown])
        sd = scale * np.nan_to_num([stat.sd for _, stat in shown])
        axes.plot(x, mean, color=colour, linestyle=line, linewidth=1.3, marker="o", markersize=3.5)
        axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.13, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_title(metric.column.heading, fontsize=8.5)
    axes.set_ylabel(f"difference ({'points' if metric.column.unit == '%' else metric.column.unit})")
    axes.set_xlabel("mean CDS of the band")
    if not metric.higher_is_better:
        axes.invert_yaxis()


def _measure(results: Sequence[Result], metric: Metric, role: str, control: str | None, band: str) -> Stat:
    originals = find_originals(results)
    chosen = []
    for result in results:
        variant = get_variant(result)
        if (variant.role, variant.control, variant.group, variant.mode) == (role, control, band, MODE):
            chosen.append(result)
    return compute_stat(read_difference(run, originals, metric) for run in chosen if not is_empty(run))
