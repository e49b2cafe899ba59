"""The figures of attributions: curves of deletion and insertion, and what groups of latents have of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.analyses.attribution import AttributionResult, GroupShares
from infoscope.analyses.latent_orders import (
    ABLATION,
    COSINE,
    DELETION,
    GRADIENT,
    INSERTION,
    INTEGRATED,
    METHODS,
    PLACES,
    PROB,
    RANDOM,
)
from infoscope.report.figure_style import (
    FAINT,
    GREY,
    INK,
    colour_groups,
    draw_means,
    make_empty,
    make_figure,
    make_panels,
)
from infoscope.report.tables import compute_stat
from infoscope.scope.cds import mean_of_known
from infoscope.scope.partition import name_group

STYLES = {
    GRADIENT: (INK, "-"),
    ABLATION: ("#D55E00", (0, (5, 2))),
    INTEGRATED: ("#CC79A7", "-"),
    "mass_lens": ("#0072B2", "-"),
    "lens": ("#56B4E9", "-"),
    "mass": ("#009E73", "-"),
    RANDOM: (GREY, (0, (1, 1.5))),
}
"""Colour and line of each method."""


def draw_curves(results: Sequence[AttributionResult]) -> Figure:
    """Draw what is left of the class as latents are removed, and as they are put back: a line for each order."""
    figure, panels = make_panels(4, 5.2, 2, sharex=True)
    n_steps = results[0].curves.shape[2] - 1
    share = 100 * np.arange(n_steps + 1) / n_steps
    words = {(DELETION, PROB): "removed", (INSERTION, PROB): "kept", (DELETION, COSINE): "", (INSERTION, COSINE): ""}
    for panel, ((way, what), title) in zip(panels, words.items(), strict=True):
        for name in METHODS:
            colour, line = STYLES[name]
            curves = [one.curves[way, PLACES[name], ..., what] for one in results]
            stats = [compute_stat(of[step].mean() for of in curves) for step in range(n_steps + 1)]
            draw_means(panel, share, stats, 100 if what == PROB else 1, colour, linestyle=line)
        panel.grid(axis="y", color=FAINT, linewidth=0.6)
        if title:
            panel.set_title(f"the first latents are {title}" + " alone" * (way == INSERTION), fontsize=8.5)
        if what == COSINE:
            panel.set_xlabel("share of the image's latents (%)")
        if way == DELETION:
            panel.set_ylabel("probability of the class (%)" if what == PROB else "cosine with the class")
    handles = [
        Line2D([], [], color=colour, linestyle=line, marker="o", markersize=3.5, label=words)
        for (name, words) in METHODS.items()
        for colour, line in [STYLES[name]]
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def draw_groups(shares: Sequence[GroupShares], shown: Mapping[int, str]) -> Figure:
    """Draw what groups have of the attribution of some classes, over what they have of the activation.

    Args:
        shares: of each SAE seed.
        shown: the names of the classes, from the top, by their number.
    """
    if not shown:
        return make_empty("No feature has a score, or no image a class.")
    attribution, mass = (
        100 * mean_of_known(np.stack([np.vstack([overall, by_class[list(shown)]]) for overall, by_class in of]), axis=0)
        for of in (
            [(one.attribution, one.by_class) for one in shares],
            [(one.mass, one.mass_by_class) for one in shares],
        )
    )
    figure = make_figure(1.1 + 0.2 * (len(shown) + 1), 5.0)
    axes, rows = figure.subplots(), -np.arange(len(shown) + 1)
    for place, (group, colour) in enumerate(colour_groups(list(shares[0].groups)).items()):
        axes.hlines(rows, mass[:, place], attribution[:, place], color=colour, linewidth=1.2, alpha=0.5)
        axes.scatter(mass[:, place], rows, s=18, facecolors="white", edgecolors=colour, linewidths=1, zorder=2)
        axes.scatter(attribution[:, place], rows, s=18, color=colour, linewidths=0, label=name_group(group), zorder=3)
    axes.set_yticks(rows, ["all", *shown.values()])
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_xlabel("share of the activation (open) and of the attribution (filled), %")
    figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2)
    return figure
