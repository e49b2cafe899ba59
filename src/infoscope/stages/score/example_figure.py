"""The figure of example features: top images as pairs of crops, the feature's map laid over each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infoscope.report.figure_style import BAND_COLOURS, GREY, INK, MIDDLE, WIDTH_IN, NotebookFigure, make_empty
from infoscope.scope.config import Diagonal
from infoscope.scope.partition import name_group

MAX_PAIRS = 4
"""Pairs of crops in a row: more would be too small to read in a README."""
MAX_ALPHA = 0.85
TITLE_IN, FACTS_IN = 0.17, 0.17
"""Room over a row of pairs, and for what is said of a feature."""
LETTER_IN = 0.08
"""Width of a bold letter."""
FADE = 0.45
"""How far the picture is faded to grey, so that the heat is seen on any colour."""
HEAT = (1.0, 0.16, 0.0)


@dataclass(frozen=True)
class Example:
    """The top images of one feature, with its maps on both crops.

    Args:
        latent: index into the SAE.
        cds: of the feature, NaN if it has none.
        group: that of the partition.
        images: resized to (grid + shift) patches a side, before cropping, best first.
        maps: activations on the whole of crop 1 (origin at the top left) and of crop 2 (origin shifted).
        emd: between the shared regions, divided by D_grid.
        ranks: of the images, 0 being the best; empty: in order from the best.
        diagonal: on which the crops lie.
        n_valid, k_cds: how many of how many pairs the CDS is a mean of.
        is_undecided: whether its pairs leave its group open.
        is_locked: whether it fires at one place of the grid whatever the picture.
        note: what else is said of it.
    """

    latent: int
    cds: float
    group: str
    images: UInt8[np.ndarray, "n size_px size_px 3"]
    maps: Float[np.ndarray, "n 2 grid grid"]
    emd: Float[np.ndarray, " n"]
    n_valid: int
    k_cds: int
    is_undecided: bool = False
    is_locked: bool = False
    note: str = ""
    ranks: tuple[int, ...] = ()
    diagonal: Diagonal = Diagonal.main

    @property
    def label(self) -> str:
        """Its group in words; "undecided" where its images do not settle it."""
        return "undecided" if self.is_undecided else name_group(self.group)

    @property
    def facts(self) -> str:
        """What is said beside the group."""
        cds = f"CDS {self.cds:.3f}" if math.isfinite(self.cds) else "no CDS"
        locked = ", position-locked" if self.is_locked else ""
        note = f", {self.note}" if self.note else ""
        return f"feature {self.latent}, {cds}, {self.n_valid} of {self.k_cds} pairs{locked}{note}"


def draw_examples(examples: Sequence[Example], shift: int) -> Figure:
    """Draw one row per feature: its group, its best images as crop 1 and crop 2 with their shared region outlined.

    The two maps of a pair have one scale, from 0 to the larger maximum of the two.
    """
    if not examples:
        return make_empty("No feature has a CDS, so there is none to show.", 1.2)
    n_pairs = min(MAX_PAIRS, max(1, *(len(example.images) for example in examples)))
    n_rows = [max(1, math.ceil(len(example.images) / n_pairs)) for example in examples]
    row_in = TITLE_IN + 0.5 * (WIDTH_IN - 0.3) / n_pairs
    height_in = 0.42 + FACTS_IN * len(examples) + row_in * sum(n_rows)
    figure = NotebookFigure(figsize=(WIDTH_IN, height_in))
    left, right, gap = 0.01, 0.99, 0.014
    width = (right - left - gap * (n_pairs - 1)) / n_pairs
    tile_in = width * WIDTH_IN / 2
    n_letters = max(len(example.label) for example in examples)
    _draw_key(figure)
    top_in = 0.4
    for example, n in zip(examples, n_rows, strict=True):
        is_grey = example.is_undecided or math.isnan(example.cds)
        colour = GREY if is_grey else BAND_COLOURS.get(example.group, MIDDLE)
        text_y = 1 - (top_in + FACTS_IN) / height_in
        figure.text(left, text_y, example.label, color=colour, weight="bold")
        figure.text(left + LETTER_IN / WIDTH_IN * (n_letters + 2), text_y, example.facts, color=INK)
        for place in range(len(example.images)):
            row, column = divmod(place, n_pairs)
            y = 1 - (top_in + FACTS_IN + TITLE_IN + row * row_in + tile_in) / height_in
            pair = figure.add_axes((left + column * (width + gap), y, width, tile_in / height_in))
            draw_pair(pair, example.images[place], example.maps[place], shift, example.diagonal)
            pair.set_title(_describe_pair(example, place), fontsize=7, fontweight="normal", pad=2, color=GREY)
        top_in += FACTS_IN + row_in * n
    return figure


def draw_pair(
    axes: Axes,
    image: UInt8[np.ndarray, "size_px size_px 3"],
    maps: Float[np.ndarray, "2 grid grid"],
    shift: int,
    diagonal: Diagonal = Diagonal.main,
) -> None:
    """Draw both crops of one image side by side, heat over them, the shared region outlined."""
    grid = maps.shape[-1]
    patch_px = image.shape[0] // (grid + shift)
    crop_px, shift_px = grid * patch_px, shift * patch_px
    largest = float(np.nanmax(maps, initial=0.0))
    space_px = max(2, crop_px // 24)
    for number, (top, other) in enumerate(((0, shift_px), (shift_px, 0))):
        # what a crop lies away from the corner, the shared region lies away from the crop's other corner
        across = top if diagonal is Diagonal.main else other
        shared_x, shared_y = shift_px - across, shift_px - top
        crop = image[top : top + crop_px, across : across + crop_px]
        heat = maps[number] / largest if largest > 0 else np.zeros_like(maps[number])
        left = number * (crop_px + space_px)
        extent = (left, left + crop_px, crop_px, 0)
        axes.imshow(lay_heat(crop, np.nan_to_num(heat)), extent=extent, interpolation="nearest")
        side = crop_px - shift_px
        for colour, line in (("white", 1.6), (INK, 0.6)):
            corner = left + shared_x, shared_y
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=line))
    axes.set(xlim=(0, 2 * crop_px + space_px), ylim=(crop_px, 0))
    axes.set_axis_off()


def lay_heat(
    image: UInt8[np.ndarray, "size_px size_px 3"], heat: Float[np.ndarray, "grid grid"]
) -> Float[np.ndarray, "size_px size_px 3"]:
    """Return the image in 0..1, faded, with one flat square of colour per patch, as opaque as `heat` (0..1) is high."""
    patch_px = image.shape[0] // heat.shape[0]
    alpha = MAX_ALPHA * np.kron(np.clip(heat, 0, 1), np.ones((patch_px, patch_px)))[..., None]
    colours = image.astype(np.float64) / 255
    grey = colours.mean(axis=-1, keepdims=True)
    faded = (1 - FADE) * colours + FADE * (0.25 + 0.75 * grey)
    return (1 - alpha) * faded + alpha * np.array(HEAT)


def _describe_pair(example: Example, place: int) -> str:
    emd, rank = float(example.emd[place]), example.ranks[place] if example.ranks else place
    distance = f"EMD {emd:.3f}" if math.isfinite(emd) else "EMD none (a map is zero)"
    return f"{rank + 1}.  {distance}"


def _draw_key(figure: Figure) -> None:
    height = figure.get_figheight()
    text_y = 1 - 0.2 / height
    figure.text(
        0.01,
        text_y,
        "Images as crop 1 | crop 2; EMD: in diagonals of the outlined region they share",
        va="center",
        color=GREY,
    )
    steps = np.linspace(0, 1, 64)[:, None]
    ramp = (1 - MAX_ALPHA * steps) * 0.75 + MAX_ALPHA * steps * np.array(HEAT)
    bar = figure.add_axes((0.79, text_y - 0.045 / height, 0.12, 0.09 / height))
    colorbar = figure.colorbar(ScalarMappable(cmap=ListedColormap(ramp)), cax=bar, orientation="horizontal", ticks=[])
    colorbar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    figure.text(0.783, text_y, "0", va="center", ha="right", color=GREY, fontsize=7.5)
    figure.text(0.917, text_y, "pair's max.", va="center", ha="left", color=GREY, fontsize=7.5)
