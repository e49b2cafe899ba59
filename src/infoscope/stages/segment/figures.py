"""Figures of latents as masks: IoU by label and group, and the maps on pictures that show the label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infoscope.analyses.segment_result import N_EXAMPLES, LabelResult, Segmentation
from infoscope.data.images import ImageSet
from infoscope.report.figure_style import FAINT, GREY, INK, colour_groups, make_empty, make_figure
from infoscope.report.tables import compute_stat
from infoscope.scope.partition import name_group
from infoscope.stages.score.example_figure import lay_heat

MAX_LABELS = 25
"""Labels in the figure of IoU."""
N_SHOWN, N_ACROSS = 6, 3
"""Labels whose latents are shown on pictures, and how many of them in a row."""


def draw_label_ious(
    by_label: Mapping[int, Sequence[LabelResult]], names: Sequence[str], groups: Sequence[str]
) -> Figure:
    """Draw a row for each label: IoU of its best latent, each group's, similar ones, a mask of everything."""
    means = {label: compute_stat(one.test for one in results).mean for label, results in by_label.items()}
    labels = sorted((label for label in means if math.isfinite(means[label])), key=lambda label: -means[label])
    labels = labels[:MAX_LABELS]
    if not labels:
        return make_empty("No test image has a label that training images have.")
    figure = make_figure(0.9 + 0.22 * len(labels))
    axes = figure.subplots()
    places = np.arange(len(labels))

    def draw(values: Sequence[float], label: str, colour: str, marker: str, size: float) -> None:
        style = {"color": colour, "marker": marker, "markersize": size, "linestyle": "", "label": label}
        axes.plot(values, places, **style)  # pyright: ignore[reportArgumentType]

    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    draw([compute_stat(one.everywhere for one in by_label[of]).mean for of in labels], "everywhere", GREY, "|", 7)
    draw([compute_stat(one.similar.mean for one in by_label[of]).mean for of in labels], "similar", GREY, "x", 4.5)
    draw([means[of] for of in labels], "best latent", INK, "o", 7)
    for name, colour in colour_groups(groups).items():
        values = [compute_stat(one.groups.get(name) for one in by_label[of]).mean for of in labels]
        draw(values, f"best {name_group(name)}", colour, "o", 4)
    axes.set_yticks(places, [names[label] for label in labels])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, min(1.02, axes.get_xlim()[1]))
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel="IoU on test images, in patches")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, handletextpad=0.2)
    return figure


def pick_shown(told: Sequence[LabelResult]) -> list[int]:
    """Return the places, among what is told of one seed, of the labels that are masked best on test images."""
    known = [place for place, one in enumerate(told) if math.isfinite(one.test)]
    return sorted(known, key=lambda place: -told[place].test)[:N_SHOWN]


def draw_masks(found: Segmentation, shown: Sequence[int], images: ImageSet, size_px: int) -> Figure:
    """Draw the maps of some labels' best latents over test pictures, with the outline of the label.

    Args:
        shown: places in `found.chosen`.
        size_px: side of the pictures, a multiple of the grid.
    """
    if not shown:
        return make_empty("No test image has a label that training images have.")
    n_rows = math.ceil(len(shown) / N_ACROSS)
    figure = make_figure(1.38 * n_rows)
    panels = figure.subplots(n_rows, N_ACROSS * N_EXAMPLES, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, place in enumerate(shown):
        row, left = divmod(number, N_ACROSS)
        label, latent = int(found.chosen.labels[place]), int(found.chosen.latents[place])
        pair = panels[row, left * N_EXAMPLES : (left + 1) * N_EXAMPLES]
        for axes, index, heat in zip(pair, found.examples.index[place], found.examples.maps[place], strict=True):
            if index >= 0:
                axes.imshow(lay_heat(images.load(int(index), size_px), heat), interpolation="nearest")
                _outline(axes, images.label_map(int(index)) == label, size_px)
        pair[0].set_title(f"{found.label_names[label]}: latent {latent}", fontsize=8, pad=3)
    return figure


def _outline(axes: Axes, mask: Bool[np.ndarray, "height width"], size_px: int) -> None:
    """Draw the border of a mask, which may have another size than the picture."""
    if mask.all():
        return
    y, x = ((np.arange(side) + 0.5) * size_px / side - 0.5 for side in mask.shape)
    for colour, width in (("white", 1.6), (INK, 0.6)):
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[colour], linewidths=[width])
