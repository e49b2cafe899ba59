"""Figures of the score against its confounds, and from rank to rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from infoscope.report.figure_style import FAINT, GREY, HIGH, INK, LOW, make_empty, make_figure
from infoscope.report.tables import compute_stat, format_number
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.cds import mean_of_known
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.stages.confounds.numbers import Pairs


class Confound(NamedTuple):
    """What a score could be mistaken for: its name, and how its axis is drawn (None: not drawn)."""

    name: str
    scale: str | None = None


CONFOUNDS = {
    "firing_rate": Confound("firing frequency (share of patches)", "log"),
    "image_rate": Confound("share of images in which it fires"),
    "peak": Confound("peak activation", "log"),
    "peak_top": Confound("peak, mean of its top images"),
    "support": Confound("support (share of the grid)", "linear"),
    "participation": Confound("participation ratio (share of the grid)"),
    "one_sided": Confound("one-sided zeros (share of pairs)", "linear"),
}
"""By column of the table of latents, in the order of table and figure."""
EFFECTS = {
    "image_effect": Confound("effect of the global factors"),
    "label_effect": Confound("effect of the patch labels"),
}
"""What a score of scope should correlate with: positively with the first, negatively with the second."""


def draw_cds_confounds(pairs: Pairs, tables: Sequence[LatentTable]) -> Figure:
    """Draw each feature's CDS against what it could be mistaken for; features of all SAE seeds together."""
    if not any(np.isfinite(scope.cds).any() for scope, _ in pairs):
        return make_empty("No feature has a CDS.")
    figure = make_figure(4.9)
    drawn = {key: confound for key, confound in CONFOUNDS.items() if confound.scale}
    panels = figure.subplots(2, 2, sharey=True).flat
    groups = {"undeclared": GREY, "known-local": LOW, "known-global": HIGH}
    for axes, (key, confound) in zip(panels, drawn.items(), strict=True):
        rhos = []
        for (scope, found), table in zip(pairs, tables, strict=True):
            values = np.asarray(table[key], dtype=np.float64)
            rhos.append(compute_spearman(values, scope.cds)[0])
            if key == "one_sided":  # only a few values occur
                values = _spread(values, 0.3 / scope.k_cds)
            members = {"known-local": found.known_local, "known-global": found.known_global}
            members["undeclared"] = ~(found.known_local | found.known_global)
            for layer, (name, colour) in enumerate(groups.items()):
                size, alpha = (5, 0.35) if name == "undeclared" else (9, 0.8)
                chosen = members[name] & np.isfinite(scope.cds)
                style = {"color": colour, "alpha": alpha, "linewidth": 0, "zorder": 2 + layer, "rasterized": True}
                axes.scatter(values[chosen], scope.cds[chosen], s=size, **style)
        _set_ticks(axes, confound.scale == "log")
        axes.set_xlabel(confound.name + (", points spread" if key == "one_sided" else ""))
        axes.set_ylim(bottom=0)
        axes.grid(color=FAINT, linewidth=0.6)
        rho = format_number(compute_stat(rhos).mean, 2, signed=True)
        axes.set_title(f"Spearman {rho}", fontsize=8.5, fontweight="normal")
    for axes in figure.axes[::2]:
        axes.set_ylabel("CDS")
    if any(found.has_truth for _, found in pairs):
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", markersize=4, label=name)
            for name, colour in reversed(groups.items())
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _spread(shares: np.ndarray, by: float) -> np.ndarray:
    """Move shares at random, by at most `by` and not beyond 0 or 1, so that points of equal shares are seen."""
    low, high = np.maximum(shares - by, 0), np.minimum(shares + by, 1)
    return low + (high - low) * np.random.default_rng(104).random(len(shares))


def _set_ticks(axes: Axes, is_log: bool) -> None:
    """Plain numbers: on a logarithmic axis 1, 2, 5 where it is short; on a linear one no share below zero."""
    if not is_log:
        left, right = axes.get_xlim()
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= right])
        axes.set_xlim(left, right)
        return
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    is_short = right / left < 200
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_cds_by_rank(pairs: Pairs) -> Figure:
    """Draw the mean distance of the features that have one at each rank; with several seeds their range is shaded."""
    scopes, found = zip(*pairs, strict=True)
    if not any(np.isfinite(scope.scores.emd).any() for scope in scopes):
        return make_empty("No pair of crops has a distance.", 2.7)
    figure = make_figure(2.7)
    axes = figure.subplots()
    everyone = [np.ones(len(scope.cds), dtype=bool) for scope in scopes]
    chance, ours = [scope.scores.chance_emd for scope in scopes], [scope.scores.emd for scope in scopes]
    _draw_line(axes, chance, everyone, GREY, (0, (1, 1)), "chance: two different images")
    _draw_line(axes, ours, everyone, INK, "-", "all features")
    _draw_line(axes, ours, [one.known_global for one in found], HIGH, "-", "known-global")
    _draw_line(axes, ours, [one.known_local for one in found], LOW, "-", "known-local")
    k_cds = scopes[0].k_cds
    if k_cds < scopes[0].scores.k_max:
        label = f"the CDS ends here (k = {k_cds})"
        axes.axvline(k_cds + 0.5, color=INK, linewidth=0.9, linestyle=(0, (4, 2)), label=label)
    axes.set(xlabel="rank of the image", ylabel="mean EMD / largest distance")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _draw_line(
    axes: Axes, emds: Sequence[np.ndarray], groups: Sequence[np.ndarray], colour: str, style: object, label: str
) -> None:
    k_max = min(emd.shape[1] for emd in emds)
    lines = [mean_of_known(emd[group], axis=0)[:k_max] for emd, group in zip(emds, groups, strict=True)]
    lines = [line for line in lines if np.isfinite(line).any()]
    if not lines:
        return
    ranks = np.arange(1, k_max + 1)
    if len(lines) > 1:
        axes.fill_between(ranks, np.min(lines, axis=0), np.max(lines, axis=0), color=colour, alpha=0.15, linewidth=0)
    axes.plot(ranks, np.mean(lines, axis=0), color=colour, linestyle=style, marker="o", markersize=3, label=label)
