"""The figure of what fires on a patch: the picture with the patch outlined, the map of each latent over it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infoscope.report.figure_style import GREY, INK, RC, WIDTH_IN
from infoscope.stages.score.example_figure import lay_heat

if TYPE_CHECKING:
    from infoscope.stages.patch_latents import PatchLatents

N_ACROSS = 4
"""Maps in a row, beside the picture."""
PICTURE_IN, TILE_IN, GAP_IN = 1.9, 1.22, 0.06
"""Sides of the picture and of a map; between maps."""
TEXT_IN, LINE_IN = 0.28, 0.12
"""Room for what is said over a map, and for a line of text more."""


def draw_patch(found: PatchLatents, labels: Mapping[int, str]) -> Figure:
    """Draw a picture with its patch outlined and the maps of the latents over it, in the style of the reports.

    Args:
        labels: what is said of a latent under its number.
    """
    with mpl.rc_context(cast(Any, RC)):
        n_rows = max(2, math.ceil(len(found.latents) / N_ACROSS))
        told = [_tell(found, number, labels) for number in range(len(found.latents))]
        row_in = TILE_IN + TEXT_IN + LINE_IN * max((text.count("\n") for text in told), default=0)
        figure = Figure(figsize=(WIDTH_IN, n_rows * row_in + 0.08))
        height = figure.get_figheight()
        bottom = 1 - (TEXT_IN + PICTURE_IN) / height
        whole = figure.add_axes((0.01, bottom, PICTURE_IN / WIDTH_IN, PICTURE_IN / height))
        _show(whole, found, found.picture / 255)
        whole.set_title(f"patch ({found.row}, {found.column})", fontsize=8.5, pad=3)
        figure.text(0.01, bottom - 0.08 / height, _describe(found), va="top", color=GREY, fontsize=7)
        left_in = WIDTH_IN - N_ACROSS * (TILE_IN + GAP_IN)
        for number, text in enumerate(told):
            row, column = divmod(number, N_ACROSS)
            x, y = left_in + column * (TILE_IN + GAP_IN), (row + 1) * row_in
            axes = figure.add_axes((x / WIDTH_IN, 1 - y / height, TILE_IN / WIDTH_IN, TILE_IN / height))
            _show(axes, found, lay_heat(found.picture, found.maps[number] / found.maps[number].max()))
            axes.set_title(text, fontsize=6.5, fontweight="normal", pad=2)
        return figure


def _show(axes: Axes, found: PatchLatents, picture: Any) -> None:
    """Draw a picture and the outline of the patch."""
    side = found.picture.shape[0] / found.maps.shape[-1]
    axes.imshow(picture, interpolation="nearest")
    corner = found.column * side - 0.5, found.row * side - 0.5
    for colour, width in (("white", 2.2), (INK, 0.9)):
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=width))
    axes.set_axis_off()


def _tell(found: PatchLatents, number: int, labels: Mapping[int, str]) -> str:
    """Return what stands over a map."""
    latent, share = int(found.latents[number]), found.activations[number] / found.maps[number].max()
    told = f"{latent}: {found.contributions[number]:.2f} ({share:.0%} of max.)"
    return f"{told}\n{labels[latent]}" if labels.get(latent) else told


def _describe(found: PatchLatents) -> str:
    """Return what stands under the picture."""
    n = len(found.latents)
    explained = f"The SAE explains {found.explained:.0%} of the token."
    if n == 0:
        return f"No latent fires here.\n{explained}"
    shown = "" if n == found.n_active else f", the {n} of\nlargest contribution are shown"
    numbers = "Over a map: latent, z x norm of its\ndecoder row, z as a share of the\nmap's maximum."
    return f"{found.n_active} latents fire here{shown}.\n{explained}\n{numbers}"
