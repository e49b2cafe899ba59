"""Figures of distributions and effects: the CDS histogram, what removal costs, token norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from infoscope.report.figure_style import (
    BAND_COLOURS,
    FAINT,
    GREY,
    HIGH,
    INK,
    LOW,
    MIDDLE,
    colour_groups,
    make_figure,
    write_empty,
)
from infoscope.report.inputs import ScopeResult, TokenStats
from infoscope.report.scope_table import compute_chance
from infoscope.report.variants import (
    MAIN_METRICS,
    Metric,
    Result,
    Variant,
    find_originals,
    group_by_variant,
    is_empty,
    present_metrics,
    read_difference,
)
from infoscope.scope.cds import position_locked_score, uniform_chance_score

N_BINS = 48
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MODE_MARKERS = {"error_preserving": "o", "reconstruct": "D", "": "o"}


def draw_cds_histogram(seeds: Sequence[ScopeResult]) -> Figure:
    """Draw how the CDS is distributed over features: groups stacked, chance outlined, landmarks as lines.

    With several SAE seeds the bars are means over seeds and thin lines show each seed; gamma is then the mean.
    """
    return draw_cds_histograms({"": seeds})


def draw_cds_histograms(panels: Mapping[str, Sequence[ScopeResult]]) -> Figure:
    """Draw a histogram as `draw_cds_histogram` for each configuration, one below the other, under its title."""
    figure = make_figure(0.5 + 2.8 * len(panels))
    for part, (title, seeds) in zip(figure.subfigures(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
        axes = part.subplots()
        if title:
            axes.set_title(title)
        finite = np.concatenate([np.zeros(0), *(result.cds[np.isfinite(result.cds)] for result in seeds)])
        if len(finite) == 0:
            write_empty(axes, "No feature has a CDS: too few pairs of crops in which both maps are non-zero.")
            continue
        handles = _draw_histogram(axes, seeds, finite)
        part.legend(handles=handles, loc="outside right upper", handlelength=1.8, labelspacing=0.7)
    return figure


def _draw_histogram(axes: Axes, seeds: Sequence[ScopeResult], finite: np.ndarray) -> list[Patch | Line2D]:
    chances = [compute_chance(result) for result in seeds]
    landmark = max(uniform_chance_score(result.grid - result.shift) for result in seeds)
    largest = np.nanmax(np.concatenate([finite, [landmark], *[c[np.isfinite(c)] for c in chances]]))
    edges = _make_edges(min(1.0, 1.05 * float(largest)), _mean_gamma(seeds))
    handles = _draw_groups(axes, seeds, edges)
    handles += _draw_chance(axes, chances, edges)
    handles += _draw_landmarks(axes, seeds)
    axes.set(xlim=(0, edges[-1]), xlabel="contextual dependency score (CDS)", ylabel="features")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _add_quantile_axis(axes, finite)
    return handles


def _mean_gamma(seeds: Sequence[ScopeResult]) -> float | None:
    gammas = [result.partition.gamma for result in seeds if result.partition.gamma is not None]
    return float(np.mean(gammas)) if gammas else None


def _make_edges(right: float, gamma: float | None) -> np.ndarray:
    """About N_BINS bins from 0 to `right`, one of whose edges is gamma, so that no bar is in two groups."""
    width = right / N_BINS
    if gamma is not None and width < gamma < right:
        width = gamma / round(gamma / width)
    return width * np.arange(math.ceil(right / width - 1e-9) + 1)


def _from_low(name: str) -> int:
    return {"low": 0, "high": 2}.get(name, 1)


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(values[np.isfinite(values)], edges)[0].astype(float)


def _draw_groups(axes: Axes, seeds: Sequence[ScopeResult], edges: np.ndarray) -> list[Patch | Line2D]:
    # Low below high, so that the stack reads from left to right.
    names = sorted(dict.fromkeys(name for result in seeds for name, _ in result.partition.groups), key=_from_low)
    colours = colour_groups(names)
    handles: list[Patch | Line2D] = []
    base = np.zeros(len(edges) - 1)
    for name in names:
        groups = [dict(result.partition.groups).get(name) for result in seeds]
        members = [r.cds[g] if g is not None else np.zeros(0) for r, g in zip(seeds, groups, strict=True)]
        counts = np.mean([_count(values, edges) for values in members], axis=0)
        axes.bar(edges[:-1], counts, np.diff(edges), base, align="edge", color=colours[name], alpha=0.85, linewidth=0)
        label = f"{name}-scope" if name in ("low", "high") else name
        handles.append(Patch(color=colours[name], alpha=0.85, linewidth=0, label=label))
        base = base + counts
    everything = [_count(result.cds, edges) for result in seeds]
    if len(seeds) > 1:
        for counts in everything:
            axes.stairs(counts, edges, color=INK, linewidth=0.5, alpha=0.45)
        handles.append(Line2D([], [], color=INK, linewidth=0.5, alpha=0.6, label=f"each of {len(seeds)} SAE seeds"))
    return handles


def _draw_chance(axes: Axes, chances: Sequence[np.ndarray], edges: np.ndarray) -> list[Line2D]:
    counts = np.mean([_count(chance, edges) for chance in chances], axis=0)
    if not counts.sum():
        return []
    axes.stairs(counts, edges, color=INK, linewidth=1.3, linestyle=(0, (1, 1)))
    return [Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (1, 1)), label="chance of the same\nfeatures")]


def _draw_landmarks(axes: Axes, seeds: Sequence[ScopeResult]) -> list[Line2D]:
    grid, shift = seeds[0].grid, seeds[0].shift
    gamma = _mean_gamma(seeds)
    gammas = {result.partition.gamma for result in seeds if result.partition.gamma is not None}
    gamma_label = "gamma" if len(gammas) < 2 else "gamma, mean and\nrange of seeds"
    if len(gammas) > 1:
        axes.axvspan(min(gammas), max(gammas), color=INK, alpha=0.12, linewidth=0)
    landmarks = [
        (math.nan if gamma is None else gamma, INK, "-", gamma_label),
        (position_locked_score(grid, shift), MIDDLE, (0, (5, 2)), "position-locked\nfeature"),
        (uniform_chance_score(grid - shift), GREY, (0, (5, 1.5, 1, 1.5)), "chance of two\nuniform patches"),
    ]
    handles = []
    for value, colour, style, label in landmarks:
        if math.isfinite(value):
            axes.axvline(value, color=colour, linestyle=style, linewidth=1.4)
            handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=1.4, label=f"{label}, {value:.3f}"))
    return handles


def _add_quantile_axis(axes: Axes, values: np.ndarray) -> None:
    """Mark the quantiles of the CDS on top, as many as have room: one gamma means different things in two models."""
    left, right = axes.get_xlim()
    kept: list[tuple[float, float]] = []
    for quantile in sorted(QUANTILES, key=lambda q: abs(q - 0.5)):
        place = float(np.quantile(values, quantile))
        if left <= place <= right and all(abs(place - other) > 0.055 * (right - left) for _, other in kept):
            kept.append((quantile, place))
    top = axes.secondary_xaxis("top")
    top.set_ticks([place for _, place in kept], [f"{100 * quantile:.0f}%" for quantile, _ in kept])
    top.tick_params(labelsize=7.5, colors=GREY, length=3)
    top.spines["top"].set_visible(False)
    top.set_xlabel("share of scored features below", color=GREY, fontsize=7.5)


def draw_removal(results: Sequence[Result]) -> Figure:
    """Draw each probe's difference from the original tokens for every variant: left of zero is always worse."""
    metrics = list(present_metrics(results, MAIN_METRICS))
    variants = [v for v in group_by_variant(results) if v.role != "original"]
    if not metrics or not variants:
        figure = make_figure(1.6)
        write_empty(figure.subplots(), "No probes: nothing was measured with features removed.")
        return figure
    lines = list(dict.fromkeys((v.role, v.group, v.control) for v in variants))
    lines.sort(key=lambda line: {"nothing": 0, "all": 2}.get(line[0], 1))
    figure = make_figure(1.15 + 0.27 * len(lines))
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_effects(panel, results, metric, lines)
    labels = [Variant(role, "", group, control).label for role, group, control in lines]
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


def _line_colour(variant: Variant) -> str:
    if variant.role == "group":
        return BAND_COLOURS.get(variant.group or "", MIDDLE)
    return GREY if variant.role == "control" else INK


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
