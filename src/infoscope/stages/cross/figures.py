"""The figure of the cross: quantities in bands of the CDS."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from infoscope.report.figure_style import FAINT, GREY, HIGH, make_empty, make_panels
from infoscope.report.tables import format_number
from infoscope.scope.cds import mean_of_known
from infoscope.stages.cross.findings import FEATURED
from infoscope.stages.cross.quantities import Crossed

N_DRAWN = 12
"""Panels."""
N_COLUMNS = 3


def pick_drawn(crossed: Mapping[str, Crossed]) -> list[Crossed]:
    """Return what the figure shows.

    The firing rate, what findings tell of by name, what is told from 0 at like firing rate, the rest by their rho; but
    no switches and levels, of which a median says little, and nothing that is there beyond chance as well.
    """

    def order(name: str) -> tuple[bool, bool, bool, float]:
        of = crossed[name]
        strength = of.within.mean if of.is_told else of.rho.mean
        return name != "firing_rate", name not in FEATURED, not of.is_told, -abs(strength)

    known = [
        name
        for name, of in crossed.items()
        if np.isfinite(of.rho.mean) and of.column.values.dtype.kind == "f" and f"{name}_excess" not in crossed
    ]
    return [crossed[name] for name in sorted(known, key=order)[:N_DRAWN]]


def draw_bands(
    drawn: Sequence[Crossed],
    band_cds: Float[np.ndarray, "n_seeds n_bands"],
    matched_cds: Float[np.ndarray, "n_seeds n_bands"],
) -> Figure:
    """Draw median and quartiles of each quantity against the median CDS of each band, dashed those of like firing rate.

    Args:
        drawn: see `pick_drawn`.
        band_cds, matched_cds: see `CrossResult`.
    """
    if not drawn:
        return make_empty("No quantity has a correlation with the CDS.")
    n_rows = -(-len(drawn) // N_COLUMNS)
    figure, panels = make_panels(len(drawn), 0.3 + 1.8 * n_rows, N_COLUMNS, sharex=True)
    cds, like_cds = mean_of_known(band_cds, axis=0), mean_of_known(matched_cds, axis=0)
    for place, (axes, of) in enumerate(zip(panels, drawn, strict=True)):
        low, median, high = of.band_quartiles.T
        colour = HIGH if of.is_told else GREY
        axes.fill_between(cds, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(cds, median, color=colour, marker="o", markersize=3, linewidth=1.3)
        rhos = f"rho {format_number(of.rho.mean, 2, signed=True)}"
        if np.isfinite(of.within.mean):
            rhos += f", at like frequency {format_number(of.within.mean, 2, signed=True)}{'*' if of.is_told else ''}"
        axes.plot(
            like_cds, of.matched_medians, color=colour, marker="o", markersize=2, linewidth=1, linestyle=(0, (4, 2))
        )
        title = f"{of.label} ({of.unit})" if of.unit else of.label
        axes.set_title(f"{textwrap.fill(title, 34)}\n{rhos}", fontsize=7.5, fontweight="normal")
        axes.grid(color=FAINT, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(labelsize=7)
        if place + N_COLUMNS >= len(drawn):
            axes.set_xlabel("CDS")
            axes.tick_params(labelbottom=True)
    return figure
