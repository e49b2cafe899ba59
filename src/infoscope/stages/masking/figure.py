"""The figure of masking: top-1 against the number of latents that are kept, or dropped."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from infoscope.analyses.masking import CLASS, RANDOM
from infoscope.report.figure_style import FAINT, GREY, INK, colour_groups, draw_means, make_panels
from infoscope.scope.partition import name_group
from infoscope.stages.masking.numbers import Point, Points

LINES = {"original tokens": "-", "all latents, decoded": (0, (5, 2)), "no latent": (0, (1, 1.5))}
"""How references are drawn."""


def draw_masking(points: Points, d_sae: int) -> Figure:
    """Draw top-1 against the number of latents of the true class, a line per curve, a panel per way of masking.

    Args:
        d_sae: the number that stands for all latents.
    """
    errors = list(dict.fromkeys(point.error_kept for point in points))
    curves = list(dict.fromkeys(point.curve for point in points))
    groups = [curve for curve in curves if curve not in (CLASS, RANDOM)]
    colours = {CLASS: INK, RANDOM: GREY, **colour_groups(groups)}
    figure, panels = make_panels(2 * len(errors), 5.4, len(errors), sharex=True, sharey=True)
    for number, panel in enumerate(panels):
        keeps, error_kept = number < len(errors), errors[number % len(errors)]
        for curve in curves:
            of = [one for one in points if (one.curve, one.keeps, one.error_kept) == (curve, keeps, error_kept)]
            style = {"linestyle": (0, (5, 2))} if curve == RANDOM else {}
            draw_means(panel, [o.n_latents for o in of], [points[o].top1 for o in of], 100, colours[curve], **style)
        _finish(panel, points, d_sae, keeps, error_kept, is_left=number % len(errors) == 0)
    names = {CLASS: "the class's top latents", RANDOM: "random latents"}
    handles = [
        Line2D(
            [],
            [],
            color=colours[curve],
            marker="o",
            markersize=3.5,
            linestyle=(0, (5, 2)) if curve == RANDOM else "-",
            label=names.get(curve) or f"its top {name_group(curve)} latents",
        )
        for curve in curves
    ]
    handles += [Line2D([], [], color=INK, linewidth=0.9, linestyle=style, label=name) for name, style in LINES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _finish(panel: Axes, points: Points, d_sae: int, keeps: bool, error_kept: bool, is_left: bool) -> None:
    references = {
        "original tokens": Point(CLASS, d_sae, True, True),
        "all latents, decoded": Point(CLASS, d_sae, True, False),
        "no latent": Point(CLASS, d_sae, False, error_kept),
    }
    if error_kept:
        del references["all latents, decoded"]
    for name, point in references.items():
        panel.axhline(100 * points[point].top1.mean, color=INK, linewidth=0.9, linestyle=LINES[name], zorder=1)
    numbers = sorted({point.n_latents for point in points})
    panel.set_xscale("log")
    panel.set_xticks(numbers, _label_ticks(numbers, d_sae))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(axis="y", color=FAINT, linewidth=0.6)
    words = "the SAE's error stays" if error_kept else "decoded"
    panel.set_title(f"{'kept alone' if keeps else 'dropped'}, {words}", fontsize=8.5)
    panel.set_xlabel("latents of the true class" if not keeps else "")
    if is_left:
        panel.set_ylabel("zero-shot top-1 (%)")


def _label_ticks(numbers: Sequence[int], d_sae: int) -> list[str]:
    """Return "all" for all latents, and nothing for a number that would stand on it."""
    return ["all" if n == d_sae else "" if n > 0.8 * d_sae else str(n) for n in numbers]
