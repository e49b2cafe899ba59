"""Figures of outlier tokens: where they lie on two crops of an image, how far they move, norms after every block."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from infoscope.report.figure_style import GREY, HIGH, INK, LOW, MIDDLE, make_figure
from infoscope.report.section import SectionFigure
from infoscope.report.tables import compute_stat
from infoscope.scope.cds import position_locked_score
from infoscope.scope.token_outliers import MAPS, N_PICTURES, TokenOutliers, make_token_maps
from infoscope.stages.score.example_figure import draw_pair

HEADINGS = {
    "outlier": "outlier tokens",
    "next_highest": "as many next-highest normal tokens",
    "normal": "all normal tokens",
}
COLOURS = {"outlier": HIGH, "next_highest": MIDDLE, "normal": LOW}


def compute_locked(tokens: TokenOutliers) -> float:
    """Return the distance of a map that stays at its place in the grid whatever the crop shows."""
    return position_locked_score(tokens.grid, tokens.shift_patches)


def make_figures(tokens: TokenOutliers) -> dict[str, SectionFigure]:
    """Return the figures by file name; where no two maps of outliers can be compared, that of the blocks alone."""
    by_layer = SectionFigure(
        lambda: draw_norms_by_layer(tokens),
        "Norms of the patch tokens after every block, each with its own threshold by the same rule.",
    )
    if len(tokens.pictures) == 0:
        return {"norms_by_layer": by_layer}
    return {
        "outlier_maps": SectionFigure(
            lambda: draw_outlier_maps(tokens),
            "Where the outlier tokens lie on both crops of some images, and where equally many next-highest normal ones"
            " do; the region both crops show is outlined.",
        ),
        "outlier_distances": SectionFigure(
            lambda: draw_outlier_distances(tokens),
            "How far the maps of norms move between the crops of each image; chance: against the next image's map.",
        ),
        "norms_by_layer": by_layer,
    }


def draw_outlier_maps(tokens: TokenOutliers) -> Figure:
    """Draw the outlier map of a few images on both crops, and below it that of the next-highest normal tokens.

    There must be pictures: some image with outliers in the region that both of its crops show.
    """
    shown = tokens.pictured
    figure = make_figure(2.1)
    panels = figure.subplots(2, N_PICTURES)
    for axes in panels.flat:
        axes.set_axis_off()
    maps = make_token_maps(tokens.distances.crop_norms[shown], tokens.norms.threshold, tokens.shift_patches)
    for row, name in zip(panels, ("outlier", "next_highest"), strict=True):
        number = MAPS.index(name)
        for axes, picture, both, image in zip(row, tokens.pictures, maps[number], shown, strict=False):
            draw_pair(axes, picture, both, tokens.shift_patches)
            title = f"EMD {tokens.distances.emd[number, image]:.3f}"
            axes.set_title(title, fontsize=7, fontweight="normal", color=GREY, pad=2)
        row[0].text(
            *(-0.05, 0.5),
            {"outlier": "outlier\ntokens", "next_highest": "as many\nnext-highest\nnormal"}[name],
            transform=row[0].transAxes,
            ha="right",
            va="center",
            color=COLOURS[name],
            weight="bold",
        )
    return figure


def draw_outlier_distances(tokens: TokenOutliers) -> Figure:
    """Draw the distances of every image as dots, a row per map that has any, with mean and chance."""
    names = [name for i, name in enumerate(MAPS) if np.isfinite(tokens.distances.emd[i]).any()]
    figure = make_figure(1.1 + 0.42 * len(names))
    axes = figure.subplots()
    rng = np.random.default_rng(0)  # where the dots lie across their row means nothing
    for place, name in enumerate(names):
        emd, chance = (values[MAPS.index(name)] for values in (tokens.distances.emd, tokens.distances.chance_emd))
        emd = emd[np.isfinite(emd)]
        axes.plot(emd, place + rng.uniform(-0.25, 0.25, len(emd)), "o", ms=2.5, mew=0, alpha=0.45, color=COLOURS[name])
        axes.plot([emd.mean()] * 2, [place - 0.34, place + 0.34], color=INK, linewidth=1.8)
        level = compute_stat(chance).mean
        if math.isfinite(level):
            axes.plot([level] * 2, [place - 0.34, place + 0.34], color=INK, linewidth=1.2, linestyle=(0, (1, 1)))
    axes.axvline(compute_locked(tokens), color=GREY, linewidth=1, linestyle=(0, (5, 2)), zorder=0)
    axes.set_yticks(range(len(names)), [HEADINGS[name] for name in names])
    axes.set(ylim=(len(names) - 0.5, -0.5), xlabel="EMD between the crops (diagonals of the shared region)")
    axes.set_xlim(left=-0.01)
    axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", markersize=3, label="one image"),
        Line2D([], [], color=INK, linewidth=1.8, label="mean"),
        Line2D([], [], color=INK, linewidth=1.2, linestyle=(0, (1, 1)), label="chance"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (5, 2)), label="position-locked"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def draw_norms_by_layer(tokens: TokenOutliers) -> Figure:
    """Draw a histogram of norms per block, upright and mirrored, with its threshold; both axes are logarithmic."""
    figure = make_figure(3.2)
    axes = figure.subplots()
    n_blocks = len(tokens.by_layer)
    axes.axvspan(tokens.layer - 0.5, tokens.layer + 0.5, color=INK, alpha=0.07, linewidth=0, zorder=-1)
    for block, summary in enumerate(tokens.by_layer):
        counts, edges = _widen_bins(summary.counts, summary.edges)
        half = 0.4 * np.log1p(counts) / np.log1p(counts.max())
        for members, colour in ((edges[:-1] <= summary.threshold, LOW), (edges[1:] > summary.threshold, HIGH)):
            side = np.r_[np.where(members, half, 0), 0.0]
            low, high = (-np.inf, summary.threshold) if colour == LOW else (summary.threshold, np.inf)
            axes.fill_betweenx(edges.clip(low, high), block - side, block + side, step="post", color=colour, lw=0)
        axes.plot([block - 0.45, block + 0.45], [summary.threshold] * 2, color=INK, linewidth=1.2)
        axes.annotate(
            f"{summary.n_outliers / summary.n_tokens:.2%}" if summary.n_outliers else "none",
            (block, 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=7 if n_blocks <= 16 else 5,
            color=HIGH if summary.n_outliers else GREY,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(-0.6, n_blocks - 0.4), xlabel="block", ylabel="norm of the raw patch token")
    axes.set_xticks(range(0, n_blocks, math.ceil(n_blocks / 16)))
    handles = [
        Patch(color=LOW, linewidth=0, label="tokens (log count)"),
        Patch(color=HIGH, linewidth=0, label="above the threshold, with their share"),
        Line2D([], [], color=INK, linewidth=1.2, label=f"threshold ({tokens.rule})"),
        Patch(color=INK, alpha=0.12, linewidth=0, label="block the SAE reads"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=1.4)
    return figure


def _widen_bins(
    counts: Int[np.ndarray, " n_bins"], edges: Float[np.ndarray, " n_edges"], n: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Join n bins each: what a narrow column can show."""
    starts = np.arange(0, len(counts), n)
    return np.add.reduceat(counts, starts), np.r_[edges[starts], edges[-1]]
