"""One look for every figure: typography, colours that colour-blind readers tell apart, saving."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from infoscope.report.tables import Stat

LOW, MIDDLE, HIGH = "#0072B2", "#009E73", "#D55E00"
INK, GREY, FAINT = "#222222", "#7A7A7A", "#DDDDDD"
"""Okabe and Ito's palette for the groups; landmarks and controls in greys."""
BAND_COLOURS = {"low": LOW, "narrow": LOW, "narrower": LOW, "patch-driven": LOW, "middle": MIDDLE}
BAND_COLOURS |= {"high": HIGH, "wide": HIGH, "wider": HIGH, "context-driven": HIGH}

WIDTH_IN = 7.2
"""Figures are as wide as a README's column; text is set at its final size."""
DPI, SCREEN_DPI = 200, 100

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures look the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,
}


def house_style() -> AbstractContextManager[None]:
    """In this context figures have the style of the reports, whatever style else is set."""
    return mpl.rc_context(cast(Any, RC))


class NotebookFigure(Figure):
    """A figure that a notebook shows where a cell ends with it, whether or not pyplot and its backends are loaded."""

    def _repr_png_(self) -> bytes:
        return write_png(self)


def write_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file for the screen."""
    file = io.BytesIO()
    with house_style():
        figure.savefig(file, format="png", dpi=SCREEN_DPI)
    return file.getvalue()


def save_figure(draw: Callable[[], Figure], name: str, folder: Path, suffixes: Iterable[str] = ("png",)) -> list[Path]:
    """Draw a figure in the house style and write it; no pyplot, so no global state and no display is touched."""
    paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
    with house_style():
        figure = draw()
        for path in paths:
            # Without a date the same numbers give the same file.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(path, dpi=DPI, metadata=metadata)
            figure.set_layout_engine(None)  # its parts have their places now, for all files
    return paths


def make_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """Return an empty figure that keeps its parts apart by itself."""
    return NotebookFigure(figsize=(width_in, height_in), layout="constrained")


def colour_groups(names: Sequence[str]) -> dict[str, str]:
    """Return a colour per group: low and high have their own, bands run through cividis from low to high."""
    bands = [name for name in names if name not in BAND_COLOURS]
    steps = mpl.colormaps["cividis"](np.linspace(0.05, 0.95, max(len(bands), 1)))
    return {name: BAND_COLOURS.get(name) or to_hex(steps[bands.index(name)]) for name in names}


def write_empty(axes: Axes, text: str) -> None:
    """Say in the place of a plot why there is none."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)


def make_empty(text: str, height_in: float = 1.6) -> Figure:
    """Return a figure that says why there is none."""
    figure = make_figure(height_in)
    write_empty(figure.subplots(), text)
    return figure


def make_panels(n: int, height_in: float, n_columns: int = 2, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of n panels in rows of `n_columns`; `options` are those of matplotlib's `subplots`."""
    n_rows = -(-n // n_columns)
    figure = make_figure(height_in)
    panels = figure.subplots(n_rows, min(n_columns, n), squeeze=False, **options).ravel()
    for panel in panels[n:]:
        panel.set_axis_off()
    return figure, list(panels[:n])


def draw_means(axes: Axes, x: Iterable[float], stats: Sequence[Stat], scale: float, colour: str, **line: Any) -> None:
    """Draw means as a line with marks, shaded by ± one standard deviation; places without a number are left out."""
    shown = [(at, stat.mean, stat.sd) for at, stat in zip(x, stats, strict=True) if math.isfinite(at + stat.mean)]
    if shown:
        places, mean, sd = np.array(shown).T
        mean, sd = scale * mean, scale * np.nan_to_num(sd)
        axes.plot(places, mean, color=colour, **{"linewidth": 1.3, "marker": "o", "markersize": 3.5, **line})
        axes.fill_between(places, mean - sd, mean + sd, color=colour, alpha=0.13, linewidth=0)
