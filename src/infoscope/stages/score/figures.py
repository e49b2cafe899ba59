"""The CDS histogram: groups, chance, landmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from infoscope.report.figure_style import FAINT, GREY, INK, MIDDLE, colour_groups, make_figure, write_empty
from infoscope.scope.partition import name_group, order_groups
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.tables import compute_mass_share

N_BINS = 48
SOLID, PALE = 0.85, 0.4
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def draw_cds_histograms(panels: Mapping[str, Sequence[ScopeResult]]) -> Figure:
    """Draw how the CDS is distributed over features: groups stacked, chance outlined, landmarks as lines.

    Undecided features are pale, in the colour of their group, or grey where they are in none.
    Beside it, on the same scale, stand the features without a score; a bar that is taller than the axis is broken.
    With several SAE seeds the bars are means over seeds and thin lines show each seed; gamma is then the mean. It is
    drawn where groups are divided by the CDS, for of another measure it lies on another axis.

    Args:
        panels: one result per SAE seed, by the panel's title, which may be empty; panels lie one below the other.
    """
    figure = make_figure(0.5 + 2.8 * len(panels))
    for part, (title, seeds) in zip(figure.subfigures(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
        axes, beside = part.subplots(1, 2, width_ratios=(6, 1.2))
        if title:
            axes.set_title(title)
        finite = np.concatenate([np.zeros(0), *(result.cds[np.isfinite(result.cds)] for result in seeds)])
        if len(finite) == 0:
            write_empty(axes, "No feature has a CDS: too few pairs of crops in which both maps are non-zero.")
            _draw_unscored(beside, seeds, math.inf)
            continue
        handles = _draw_histogram(axes, seeds, finite)
        _draw_unscored(beside, seeds, axes.get_ylim()[1])
        part.legend(handles=handles, loc="outside right upper", handlelength=1.8, labelspacing=0.7)
    return figure


def _draw_histogram(axes: Axes, seeds: Sequence[ScopeResult], finite: np.ndarray) -> list[Patch | Line2D]:
    chances = [result.scores.chance(result.k_cds) for result in seeds]
    landmark = max(result.uniform_chance for result in seeds)
    largest = np.nanmax(np.concatenate([finite, [landmark], *[c[np.isfinite(c)] for c in chances]]))
    edges = _make_edges(min(1.0, 1.05 * float(largest)), _mean_gamma(seeds))
    handles = _draw_groups(axes, seeds, edges)
    handles += _draw_chance(axes, chances, edges)
    handles += _draw_landmarks(axes, seeds)
    axes.use_sticky_edges = False  # those of empty bars lie at the top of the tallest, which would touch the frame
    axes.set(xlim=(0, edges[-1]), ylim=(0, None), xlabel="contextual dependency score (CDS)", ylabel="features")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _add_quantile_axis(axes, finite)
    return handles


def _draw_unscored(axes: Axes, seeds: Sequence[ScopeResult], top: float) -> None:
    """Draw how many features have no score, and the share of the mass that they hold; means over seeds.

    Args:
        top: of the axis.
    """
    fires = [(result.firing_rate > 0) & ~np.isfinite(result.cds) for result in seeds]
    silent = [result.firing_rate == 0 for result in seeds]
    n_fires, n_silent = (float(np.mean([of.sum() for of in members])) for members in (fires, silent))
    mass = np.mean([compute_mass_share(result, of) for result, of in zip(seeds, fires, strict=True)])
    top = top if math.isfinite(top) else 1.2 * max(n_fires, n_silent, 1)
    labels = [f"{n_fires:,.0f}" + (f"\n{mass:.0%} of\nmass" if math.isfinite(mass) else ""), f"{n_silent:,.0f}"]
    for place, (n, label) in enumerate(zip((n_fires, n_silent), labels, strict=True)):
        axes.bar(place, min(n, top), 0.8, color=FAINT, edgecolor=GREY, linewidth=0.6, hatch="////")
        if n > top:
            axes.plot([place - 0.5, place + 0.5], [0.84 * top, 0.9 * top], color="white", linewidth=3.5)
        axes.annotate(label, (place, min(n, top)), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    axes.set(xlim=(-0.7, 1.7), ylim=(0, top))
    axes.set_yticks([])
    axes.set_xticks([0, 1], ["no\nscore", "silent"])
    axes.spines["left"].set_visible(False)


def _mean_gamma(seeds: Sequence[ScopeResult]) -> float | None:
    gammas = [result.cds_gamma for result in seeds if result.cds_gamma is not None]
    return float(np.mean(gammas)) if gammas else None


def _make_edges(right: float, gamma: float | None) -> np.ndarray:
    """About N_BINS bins from 0 to `right`, one of whose edges is gamma, so that no bar is in two groups."""
    width = right / N_BINS
    if gamma is not None and width < gamma < right:
        width = gamma / round(gamma / width)
    return width * np.arange(math.ceil(right / width - 1e-9) + 1)


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(values[np.isfinite(values)], edges)[0].astype(float)


def _draw_groups(axes: Axes, seeds: Sequence[ScopeResult], edges: np.ndarray) -> list[Patch | Line2D]:
    names = dict.fromkeys(name for result in seeds for name in result.partition.groups)
    names = order_groups(names)
    colours = colour_groups(names)
    undecided, base, n_pale = [result.undecided for result in seeds], np.zeros(len(edges) - 1), 0.0
    for name in [*names, ""]:
        members = [_find_members(result, name) for result in seeds]
        for is_pale in (False, True):
            masks = [of & (open_ if is_pale else ~open_) for of, open_ in zip(members, undecided, strict=True)]
            counts = np.mean([_count(r.cds[mask], edges) for r, mask in zip(seeds, masks, strict=True)], axis=0)
            style = {"color": colours.get(name, GREY), "alpha": PALE if is_pale else SOLID, "linewidth": 0}
            axes.bar(edges[:-1], counts, np.diff(edges), base, align="edge", **style)
            base, n_pale = base + counts, n_pale + is_pale * counts.sum()
    handles: list[Patch | Line2D] = []
    for name in names:
        label = name_group(name).replace(" (", "\n(")
        handles.append(Patch(color=colours[name], alpha=SOLID, linewidth=0, label=label))
    if n_pale:
        handles.append(Patch(color=GREY, alpha=PALE, linewidth=0, label="pale: undecided"))
    everything = [_count(result.cds, edges) for result in seeds]
    if len(seeds) > 1:
        for counts in everything:
            axes.stairs(counts, edges, color=INK, linewidth=0.5, alpha=0.45)
        handles.append(Line2D([], [], color=INK, linewidth=0.5, alpha=0.6, label=f"each of {len(seeds)} SAE seeds"))
    return handles


def _find_members(result: ScopeResult, name: str) -> np.ndarray:
    """The features of a group; for no name the scored ones that are in none."""
    groups = result.partition.groups
    if name:
        return groups.get(name, np.zeros(len(result.cds), dtype=bool))
    return np.isfinite(result.cds) & ~np.any([*groups.values()], axis=0)


def _draw_chance(axes: Axes, chances: Sequence[np.ndarray], edges: np.ndarray) -> list[Line2D]:
    counts = np.mean([_count(chance, edges) for chance in chances], axis=0)
    if not counts.sum():
        return []
    axes.stairs(counts, edges, color=INK, linewidth=1.3, linestyle=(0, (1, 1)))
    return [Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (1, 1)), label="chance of the same\nfeatures")]


def _draw_landmarks(axes: Axes, seeds: Sequence[ScopeResult]) -> list[Line2D]:
    gamma = _mean_gamma(seeds)
    gammas = {result.cds_gamma for result in seeds if result.cds_gamma is not None}
    gamma_label = "gamma" if len(gammas) < 2 else "gamma, mean and\nrange of seeds"
    if len(gammas) > 1:
        axes.axvspan(min(gammas), max(gammas), color=INK, alpha=0.12, linewidth=0)
    landmarks = [
        (math.nan if gamma is None else gamma, INK, "-", gamma_label),
        (seeds[0].locked, MIDDLE, (0, (5, 2)), "position-locked\nfeature"),
        (seeds[0].uniform_chance, GREY, (0, (5, 1.5, 1, 1.5)), "chance of two\nuniform patches"),
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
        if left <= place <= right and all(abs(place - other) > 0.075 * (right - left) for _, other in kept):
            kept.append((quantile, place))
    top = axes.secondary_xaxis("top")
    top.set_ticks([place for _, place in kept], [f"{100 * quantile:.0f}%" for quantile, _ in kept])
    top.tick_params(labelsize=7.5, colors=GREY, length=3)
    top.spines["top"].set_visible(False)
    top.set_xlabel("share of scored features below", color=GREY, fontsize=7.5)
