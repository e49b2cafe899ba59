"""The figure of a model and the adapted one: rates against rates, and the overlap of each class's latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infoscope.analyses.adaptation import ACROSS, ADAPTED, BASE, HALVES
from infoscope.report.figure_style import FAINT, GREY, INK, colour_groups, make_empty, make_figure
from infoscope.report.tables import compute_stat
from infoscope.scope.partition import name_group
from infoscope.stages.adapt.numbers import Found


def draw_adaptation(found: Sequence[Found], shown: Sequence[int]) -> Figure:
    """Draw the rates of the first SAE seed, coloured by scope, and the Jaccard index of some classes across halves.

    Args:
        shown: the classes, from the top; none: the rates alone.
    """
    if not (found[0].adaptation.tokens_on > 0).any():
        return make_empty("No latent fires in either model.")
    figure = make_figure(max(3.6, 0.9 + 0.2 * len(shown)))
    panels = figure.subplots(1, 2 if shown else 1, squeeze=False)[0]
    _draw_rates(panels[0], found[0])
    if shown:
        _draw_overlaps(panels[1], found, shown)
    known = {label: of for panel in panels for of, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(known.values()), list(known), loc="outside lower center", ncols=6, handletextpad=0.2, columnspacing=1.2
    )
    return figure


def _draw_rates(axes: Axes, found: Found) -> None:
    adaptation, groups = found.adaptation, found.scope.partition.groups
    half_a_token = 0.5 / (adaptation.n_images * adaptation.n_patches)  # where those that never fire in one are drawn
    rates, fires = np.maximum(adaptation.token_rate, half_a_token), adaptation.tokens_on.sum(0) > 0
    limits = 0.7 * rates[:, fires].min(), 1.3 * rates.max()
    axes.plot(limits, limits, color=GREY, linewidth=0.8, zorder=0)
    in_any = np.zeros(len(fires), dtype=bool)
    for name, colour in colour_groups(list(groups)).items():
        members = groups[name] & fires
        in_any |= members
        _scatter(axes, rates[:, members], colour, name_group(name))
    if (rest := fires & ~in_any).any():
        _scatter(axes, rates[:, rest], FAINT, "unscored")
    remapped = found.changes.remapped
    if remapped.any():
        ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 0.6}
        axes.scatter(rates[BASE, remapped], rates[ADAPTED, remapped], s=26, label="remapped", **ring)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="firing rate, model", ylabel="firing rate, adapted model")


def _scatter(axes: Axes, rates: np.ndarray, colour: str, label: str) -> None:
    axes.scatter(rates[BASE], rates[ADAPTED], s=7, color=colour, alpha=0.7, linewidths=0, label=label)


def _draw_overlaps(axes: Axes, found: Sequence[Found], shown: Sequence[int]) -> None:
    places = np.arange(len(shown))

    def mean(row: int) -> list[float]:
        return [compute_stat(one.adaptation.jaccard[row][label] for one in found).mean for label in shown]

    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.plot(mean(HALVES), places, "|", color=GREY, markersize=8, label="model and model")
    axes.plot(mean(ACROSS), places, "o", color=INK, markersize=4.5, label="model and adapted")
    axes.set_yticks(places, [found[0].class_names[label] for label in shown])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(shown) - 0.5, -0.5), xlabel="Jaccard index across halves of the images")
