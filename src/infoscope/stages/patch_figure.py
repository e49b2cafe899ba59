"""The figures of what fires on a patch, and of what speaks for a text: the picture, the map of each latent over it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infoscope.report.figure_style import GREY, INK, WIDTH_IN, NotebookFigure, house_style
from infoscope.runtime.errors import InputError
from infoscope.stages.score.example_figure import lay_heat

if TYPE_CHECKING:
    from infoscope.stages.patch_latents import PatchLatents
    from infoscope.stages.prediction_latents import PredictionLatents

N_ACROSS = 4
"""Maps in a row, beside the picture."""
PICTURE_IN, TILE_IN, GAP_IN = 1.9, 1.22, 0.06
"""Sides of the picture and of a map; between maps."""
TEXT_IN, LINE_IN = 0.28, 0.12
"""Room for what is said over a map, and for a line of text more."""


def draw_patch(found: PatchLatents, labels: Mapping[int, str] | None) -> Figure:
    """Draw a picture with its patch outlined and the maps of the latents over it, in the style of the reports.

    Args:
        labels: what is said of a latent under its number.

    Raises:
        InputError: labels that are no mapping.
    """
    shares = found.activations / found.maps.max(axis=(1, 2), initial=0)
    told = [
        f"{latent}: {contribution:.2f} ({share:.0%} of max.)"
        for latent, contribution, share in zip(found.latents, found.contributions, shares, strict=True)
    ]
    title = f"patch ({found.row}, {found.column})"
    return _draw(found, _add_labels(told, found, labels), title, _describe(found), (found.row, found.column))


def draw_prediction(found: PredictionLatents, labels: Mapping[int, str] | None) -> Figure:
    """Draw a picture and over it the patches where each latent speaks for a text, in the style of the reports.

    Args:
        labels: what is said of a latent under its number.

    Raises:
        InputError: labels that are no mapping.
    """
    told = [
        f"{latent}: {attribution:+.4f} ({loss:+.4f})"
        for latent, attribution, loss in zip(found.latents, found.attributions, found.losses, strict=True)
    ]
    title = textwrap.shorten(found.texts[found.text], 30, placeholder=" ...")
    facts = f"Cosine {found.cosine:.3f}; {found.n_active} latents fire."
    facts += "\nOver a map: latent, attribution, and\nwhat the cosine loses without it."
    return _draw(found, _add_labels(told, found, labels), title, facts)


def _add_labels(
    told: list[str], found: PatchLatents | PredictionLatents, labels: Mapping[int, str] | None
) -> list[str]:
    """Return what stands over each map with what is said of the latent under it."""
    if labels is None:
        return told
    if not isinstance(labels, Mapping):
        raise InputError(f"Expected labels= to be a dict {{latent: text}}, got {labels!r}.")
    pairs = zip(told, found.latents.tolist(), strict=True)
    return [f"{text}\n{labels[latent]}" if labels.get(latent) else text for text, latent in pairs]


def _draw(
    found: PatchLatents | PredictionLatents,
    told: list[str],
    title: str,
    facts: str,
    patch: tuple[int, int] | None = None,
) -> Figure:
    """Draw the picture at the left and the maps, where they are above 0, at its right.

    Args:
        told: what stands over each map. title, facts: over and under the picture. patch: to outline.
    """
    with house_style():
        n_rows = max(2, math.ceil(len(told) / N_ACROSS))
        row_in = TILE_IN + TEXT_IN + LINE_IN * max((text.count("\n") for text in told), default=0)
        figure = NotebookFigure(figsize=(WIDTH_IN, n_rows * row_in + 0.08))
        height = figure.get_figheight()
        bottom = 1 - (TEXT_IN + PICTURE_IN) / height
        whole = figure.add_axes((0.01, bottom, PICTURE_IN / WIDTH_IN, PICTURE_IN / height))
        _show(whole, found, found.picture / 255, patch)
        whole.set_title(title, fontsize=8.5, pad=3)
        figure.text(0.01, bottom - 0.08 / height, facts, va="top", color=GREY, fontsize=7)
        left_in = WIDTH_IN - N_ACROSS * (TILE_IN + GAP_IN)
        for number, text in enumerate(told):
            row, column = divmod(number, N_ACROSS)
            x, y = left_in + column * (TILE_IN + GAP_IN), (row + 1) * row_in
            axes = figure.add_axes((x / WIDTH_IN, 1 - y / height, TILE_IN / WIDTH_IN, TILE_IN / height))
            largest = found.maps[number].max()
            heat = found.maps[number] / largest if largest > 0 else np.zeros_like(found.maps[number])
            _show(axes, found, lay_heat(found.picture, heat), patch)
            axes.set_title(text, fontsize=6.5, fontweight="normal", pad=2)
        return figure


def _show(
    axes: Axes, found: PatchLatents | PredictionLatents, picture: Any, patch: tuple[int, int] | None = None
) -> None:
    """Draw a picture and the outline of a patch."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_axis_off()
    if patch is not None:
        side = found.picture.shape[0] / found.maps.shape[-1]
        corner = patch[1] * side - 0.5, patch[0] * side - 0.5
        for colour, width in (("white", 2.2), (INK, 0.9)):
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=width))


def _describe(found: PatchLatents) -> str:
    """Return what stands under the picture."""
    n = len(found.latents)
    explained = f"The SAE explains {found.explained:.0%} of the token."
    if n == 0:
        return f"No latent fires here.\n{explained}"
    shown = "" if n == found.n_active else f", the {n} of\nlargest contribution are shown"
    numbers = "Over a map: latent, z x norm of its\ndecoder row, z as a share of the\nmap's maximum."
    return f"{found.n_active} latents fire here{shown}.\n{explained}\n{numbers}"
