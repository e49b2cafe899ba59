"""Figures of extents: responses by radius, extent and context effect against CDS, and windows of some features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from infoscope.report.figure_style import (
    FAINT,
    GREY,
    HIGH,
    INK,
    LOW,
    MIDDLE,
    WIDTH_IN,
    NotebookFigure,
    colour_groups,
    draw_means,
    make_empty,
    make_figure,
)
from infoscope.report.tables import format_number
from infoscope.scope.extent.result import HALF
from infoscope.scope.partition import name_group
from infoscope.stages.extent.corners import N_EACH, Corner
from infoscope.stages.extent.numbers import ALL, MEASURES, NO_GROUP, Curve, Found, Seeds

SPREAD = 0.012
"""By how much extents of 0 and 1 are moved at most, so that points of equal ones are seen."""
LETTERING_IN = {"corner": 0.22, "feature": 0.17, "response": 0.19}
"""Height of each line of the figure of examples."""


def draw_responses(curves: Mapping[str, Curve], first: Found) -> Figure:
    """Draw the mean response of each group at each radius: the window kept, and the window replaced."""
    if not any(math.isfinite(of.mean) for curve in curves.values() for of in curve.kept):
        return make_empty("No feature has an extent.")
    figure = make_figure(2.9)
    axes = figure.subplots()
    radii = first.extent.radii.tolist()
    colours = {ALL: INK, NO_GROUP: GREY} | colour_groups([name for name in curves if name not in (ALL, NO_GROUP)])
    for name, curve in curves.items():
        label = name_group(name)
        draw_means(axes, radii, curve.kept, 1, colours[name], label=label)
        draw_means(axes, radii, curve.replaced, 1, colours[name], linestyle=(0, (4, 2)))
    axes.axhline(HALF, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set(xlabel="radius of the window (patches)", ylabel="response (share)", xticks=radii)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    styles = {"window kept": "-", "window replaced": (0, (4, 2)), "half: the extent": (0, (1, 2))}
    handles = [*axes.get_legend_handles_labels()[0]]
    handles += [Line2D([], [], color=GREY, linestyle=style, label=label) for label, style in styles.items()]
    figure.legend(handles=handles, loc="outside right upper")
    return figure


def draw_extent_cds(seeds: Seeds) -> Figure:
    """Draw each feature's extents and context effect against its CDS; features of all SAE seeds together.

    Where one of them divides features, a line for each seed marks its gamma.
    """
    if not any((np.isfinite(found.scope.cds) & np.isfinite(found.extent.extent)).any() for found in seeds):
        return make_empty("No feature has both an extent and a CDS.")
    figure = make_figure(3.4)
    legend: dict[str, str] = {}
    for axes, (measure, name) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        for found in seeds:
            for layer, (label, (colour, members)) in enumerate(_colour_features(found).items()):
                values = _spread(found.table[measure]) if measure == "extent" else found.table[measure]
                chosen = members & np.isfinite(found.scope.cds) & np.isfinite(values)
                size, alpha = (5, 0.35) if colour == GREY else (10, 0.8)
                style = {"color": colour, "alpha": alpha, "linewidth": 0, "zorder": 2 + layer, "rasterized": True}
                axes.scatter(found.scope.cds[chosen], values[chosen], s=size, **style)
                legend[label] = colour
            if found.scope.by.name == measure and found.scope.partition.gamma is not None:
                axes.axhline(found.scope.partition.gamma, color=INK, linewidth=1, linestyle=(0, (5, 2)))
        unit = "share of variance" if measure == "context_effect" else "share of the side"
        axes.set(xlabel="CDS", ylabel=f"{name} ({unit})")
        axes.set_xlim(left=0)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(color=FAINT, linewidth=0.6)
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=4, label=label)
        for label, colour in legend.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _colour_features(found: Found) -> dict[str, tuple[str, np.ndarray]]:
    """Return {what is known: colour, which features}; without a truth the groups."""
    of = found.confounds
    if not of.has_truth:
        groups = found.scope.partition.groups
        colours = colour_groups(list(groups))
        return {name_group(name): (colours[name], members) for name, members in groups.items()}
    known = {"known-local": (LOW, of.known_local), "known-global": (HIGH, of.known_global)}
    if of.known_broad.any():
        known["known-broad"] = (MIDDLE, of.known_broad)
    declared = np.logical_or.reduce([members for _, members in known.values()])
    return {"undeclared": (GREY, ~declared), **known}


def _spread(extent: np.ndarray) -> np.ndarray:
    at_an_end = (extent == 0) | (extent == 1)
    return extent + at_an_end * SPREAD * np.random.default_rng(104).uniform(-1, 1, len(extent))


def draw_corners(corners: Sequence[Corner]) -> Figure:
    """Draw the features of each corner in a row: images, the patch where they fire most, the window that is enough."""
    names = list(dict.fromkeys(corner.name for corner in corners))
    n_images = max(len(corner.images) for corner in corners)
    margin, gap = 0.006, 0.012
    width = (1 - 2 * margin - gap * (N_EACH * n_images - 1)) / (N_EACH * n_images)
    tile_in, lines_in = width * WIDTH_IN, sum(LETTERING_IN.values())
    row_in = tile_in + lines_in + 0.08
    height_in = row_in * len(names)
    figure = NotebookFigure(figsize=(WIDTH_IN, height_in))
    for row, name in enumerate(names):
        top_in = row * row_in
        figure.text(margin, 1 - (top_in + 0.16) / height_in, f"{name} evidence", weight="bold", color=INK)
        for number, corner in enumerate([one for one in corners if one.name == name]):
            left = margin + number * n_images * (width + gap)
            text_y = 1 - (top_in + LETTERING_IN["corner"] + 0.13) / height_in
            figure.text(left, text_y, _describe(corner), fontsize=7.5, color=INK)
            y = 1 - (top_in + LETTERING_IN["corner"] + LETTERING_IN["feature"] + tile_in) / height_in
            for place in range(len(corner.images)):
                box = (left + place * (width + gap), y, width, tile_in / height_in)
                _draw_windows(figure.add_axes(box), corner, place)
    return figure


def _describe(corner: Corner) -> str:
    truth = f", {corner.truth}" if corner.truth else ""
    return f"feature {corner.latent}, CDS {corner.cds:.3f}, extent {corner.extent:.2f}{truth}"


def _draw_windows(axes: Axes, corner: Corner, place: int) -> None:
    image, grid = corner.images[place], corner.grid
    axes.imshow(image, interpolation="nearest", extent=(0, grid, grid, 0))
    row, column = divmod(int(corner.patches[place]), grid)
    radius, own = corner.find_radius(place), float(corner.responses[0, place])
    _outline(axes, row, column, 0, grid)
    text = format_number(own, 2) if math.isfinite(own) else "unknown"
    if radius:
        _outline(axes, row, column, radius, grid)
        side, kept = 2 * radius + 1, float(corner.responses[corner.radii == radius, place][0])
        text += f", {format_number(kept, 2)} in {side} x {side}"
    elif radius is None and math.isfinite(own):
        text += ", none"
    axes.set(xlim=(0, grid), ylim=(grid, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(text, fontsize=6.5, color=GREY, labelpad=2)


def _outline(axes: Axes, row: int, column: int, radius: int, grid: int) -> None:
    top, left = max(0, row - radius), max(0, column - radius)
    bottom, right = min(grid, row + radius + 1), min(grid, column + radius + 1)
    for colour, line in (("white", 2.2), (HIGH, 1.0)):
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=line, clip_on=False
            )
        )
