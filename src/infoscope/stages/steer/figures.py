"""The figures of steering: effects by scope, and accuracies as latents that mislead are removed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.analyses.steering import LATENT, RANDOM
from infoscope.analyses.suppression import CHOSEN, CONTROL
from infoscope.report.figure_style import FAINT, GREY, INK, draw_means, make_figure, make_panels
from infoscope.stages.steer.numbers import Found, Removal, Spurious, name_sizes


def draw_effects(found: Sequence[Found]) -> Figure:
    """Draw the effect of each measured latent over its score, and how many have which effect."""
    scored = [one for one in found if one.scope is not None]
    figure, (*left, right) = make_panels(2 if scored else 1, 3.0)
    for one in scored:
        assert one.scope is not None
        result = one.result
        cds, effect = one.scope.cds[result.measured], result.effect[LATENT]
        for of, colour, marker, label in (
            (~result.is_steerable[LATENT], GREY, "o", "not steerable"),
            (result.is_steerable[LATENT], "#CC79A7", "^", "steerable"),
        ):
            label = label if one is scored[0] else None
            left[0].scatter(cds[of], effect[of], s=7, color=colour, marker=marker, linewidths=0, label=label)
    for panel in left:
        panel.set_xlabel("CDS")
        panel.set_ylabel("effect (nats)")
        panel.grid(axis="y", color=FAINT, linewidth=0.6)
        panel.legend()
    for along, colour, label, line in (
        (LATENT, INK, "features", "-"),
        (RANDOM, GREY, "random directions", (0, (5, 2))),
    ):
        effect = np.sort(np.concatenate([one.result.effect[along] for one in found]))
        right.plot(effect, 100 * np.arange(1, len(effect) + 1) / len(effect), color=colour, linestyle=line, label=label)
    right.axvline(found[0].result.min_effect, color=FAINT, linewidth=0.9, zorder=0)
    right.set_xlabel("effect (nats)")
    right.set_ylabel("features with less (%)")
    right.legend()
    return figure


def draw_removals(removals: Sequence[Removal], spurious: Spurious) -> Figure:
    """Draw accuracies over the number of latents that are removed: chosen ones, and random ones of their mass."""
    figure = make_figure(3.2, 5.4)
    axes = figure.subplots()
    colours = {"accuracy": INK, "others": "#0072B2", "worst": "#D55E00"}
    sizes = sorted({one.size for one in removals})
    for kind, line in ((CHOSEN, "-"), (CONTROL, (0, (5, 2)))):
        of = [removals[0], *(one for one in removals if one.kind == kind)]
        places = [sizes.index(one.size) for one in of]
        for name, colour in colours.items():
            draw_means(axes, places, [getattr(one, name) for one in of], 100, colour, linestyle=line)
    axes.set_xticks(range(len(sizes)), [name_sizes(removals)[size] for size in sizes])
    axes.set_xlabel(f"features that carry {spurious.carried}, removed")
    axes.set_ylabel("zero-shot top-1 (%)")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    labels = {"accuracy": "all images", "others": f"images with {spurious.other}", "worst": "worst group"}
    handles = [Line2D([], [], color=colours[name], label=label) for name, label in labels.items()]
    if any(one.kind == CONTROL for one in removals):
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (5, 2)), label="random features of equal mass"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure
