"""Figures of predictions: reliability under removal, and test images whose prediction changes most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.predictions.metrics import compute_reliability
from infoscope.predictions.results import ChangedImage, PredictionResult
from infoscope.report.figure_style import FAINT, GREY, INK, WIDTH_IN, colour_groups, make_empty, make_panels
from infoscope.report.tables import format_signed
from infoscope.scope.partition import ABOVE, name_group
from infoscope.stages.probe.results import KEPT

MAX_POINT = 220.0
"""Area in square points of a bin that holds every prediction."""
MIN_IMAGES = 50
"""Neighbouring bins are joined until each holds so many: of fewer, the accuracy is chance."""
Z = 1.96
"""Standard errors of a 95% interval."""
PANELS_PER_ROW = 3
MAX_IMAGES = 5
"""Images in a row: more would be too small to read in a README."""
TEXT_IN = 0.86
"""Height of the lines under an image, in inches."""


class Bins(NamedTuple):
    """Images in each bin, their mean confidence, and the share that is right."""

    n: Float[np.ndarray, " n_bins"]
    confidence: Float[np.ndarray, " n_bins"]
    accuracy: Float[np.ndarray, " n_bins"]


def draw_reliability(results: Sequence[PredictionResult]) -> Figure:
    """Draw accuracy against confidence, a panel per group: original, without the group, random groups of its mass.

    Predictions of all seeds and draws are pooled; the original ones are the same for every seed and taken once. As all
    are of the same images, bins and intervals go by the images in a bin: its predictions over the runs that are pooled.
    """
    groups = _find_groups(results)
    if not groups or not all(result.has_labels for result in results):
        return make_empty("No labels, or no group: nothing can be right or wrong.", 1.2)
    n_columns = min(len(groups), PANELS_PER_ROW)
    n_rows = -(-len(groups) // n_columns)
    height_in = 0.75 + n_rows * min(WIDTH_IN / n_columns, 3.0)
    figure, panels = make_panels(len(groups), height_in, n_columns, sharex=True, sharey=True)
    colours = colour_groups(groups)
    handles = {}
    for number, (panel, group) in enumerate(zip(panels, groups, strict=True)):
        lines = {
            "original tokens": (INK, {"role": "original"}),
            "without random features of the same mass": (GREY, {"role": "control", "group": group, "control": "mass"}),
            f"without {name_group(group)}": (
                colours[group],
                {"role": "group", "group": group, "mode": KEPT},
            ),
        }
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        for label, (colour, wanted) in lines.items():
            pooled = results[:1] if label == "original tokens" else results  # the original is the same for every SAE
            if len((bins := _pool(pooled, wanted)).n):
                handles[label] = _draw_bins(panel, bins, colour)
        if not panel.collections:
            panel.text(0.5, 0.1, f"fewer than {MIN_IMAGES} images", ha="center", color=GREY, fontsize=7.5)
        panel.set(xlim=(0, 1.04), ylim=(-0.03, 1.04), aspect="equal", xlabel="confidence")
        panel.grid(color=FAINT, linewidth=0.6)
        panel.set_title(f"without {name_group(group)}".replace(" (", "\n("))
        if number % n_columns == 0:
            panel.set_ylabel("accuracy")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def _find_groups(results: Sequence[PredictionResult]) -> list[str]:
    variants = [variant for result in results for variant in result.variants]
    names = dict.fromkeys(one["group"] for one in variants if one["role"] == "group" and not one["empty"])
    return sorted(names, key=lambda name: name not in ABOVE)


def _pool(results: Sequence[PredictionResult], wanted: Mapping[str, str]) -> Bins:
    """The joined bins of all variants with these properties, over all results."""
    max_prob, right = [np.empty(0)], [np.empty(0, dtype=bool)]
    for result in results:
        for place, variant in enumerate(result.variants):
            if not variant["empty"] and all(variant[name] == value for name, value in wanted.items()):
                max_prob.append(result.max_prob[place])
                right.append(result.right[place])
    n, *means = compute_reliability(np.concatenate(max_prob), np.concatenate(right))
    return join_bins(Bins(n / max(1, len(max_prob) - 1), *means), MIN_IMAGES)


def join_bins(bins: Bins, n_least: int) -> Bins:
    """Join neighbouring bins, from the most confident ones down, until each holds at least `n_least`.

    What is left over at the low end joins the last one; no bin where all together hold fewer.
    """
    joined, some = [], np.zeros(3)
    for n, confidence, accuracy in reversed(list(zip(*bins, strict=True))):
        some += (n, n * confidence, n * accuracy) if n else 0
        if some[0] >= n_least:
            joined.append(some)
            some = np.zeros(3)
    if joined:
        joined[-1] = joined[-1] + some
    n, confidence, accuracy = np.array(joined[::-1]).reshape(-1, 3).T
    return Bins(n, confidence / n, accuracy / n)


def compute_interval(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of a share of n (Wilson, 1927)."""
    centre, spread = (share + Z**2 / (2 * n)), Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return (centre - spread) / (1 + Z**2 / n), (centre + spread) / (1 + Z**2 / n)


def _draw_bins(axes: Axes, bins: Bins, colour: str) -> Line2D:
    axes.scatter(
        bins.confidence, bins.accuracy, MAX_POINT * bins.n / bins.n.sum(), color=colour, alpha=0.35, linewidths=0
    )
    axes.vlines(bins.confidence, *compute_interval(bins.accuracy, bins.n), color=colour, linewidth=0.8)
    line = {"color": colour, "marker": "o", "markersize": 2.2, "linewidth": 1.1}
    return axes.plot(bins.confidence, bins.accuracy, "-", **line)[0]


def draw_changed_predictions(
    changed: Sequence[ChangedImage],
    class_names: Sequence[str],
    pictures: Mapping[int, UInt8[np.ndarray, "size_px size_px 3"]],
) -> Figure:
    """Draw a row of images per group with their predictions before and after, and the features responsible.

    Args:
        pictures: by position in the test images; images that are not among them are left out.
    """
    rows: dict[str, list[ChangedImage]] = {}
    for image in changed:
        if image.image_index in pictures:
            rows.setdefault(image.group, []).append(image)
    if not rows:
        return make_empty("No prediction lost probability, so there is none to show.", 1.2)
    n_columns = min(MAX_IMAGES, max(map(len, rows.values())))
    side_in = min((WIDTH_IN - 0.2) / n_columns - 0.12, 1.6)
    row_in = 0.28 + side_in + TEXT_IN
    figure = Figure(figsize=(WIDTH_IN, row_in * len(rows) + 0.02))
    height, colours = figure.get_figheight(), colour_groups(list(rows))
    step = (WIDTH_IN - 0.2) / n_columns
    for row, (group, images) in enumerate(rows.items()):
        top = height - row * row_in
        figure.text(
            0.1 / WIDTH_IN,
            (top - 0.19) / height,
            f"without {name_group(group)}",
            color=colours[group],
            weight="bold",
        )
        for column, image in enumerate(images[:n_columns]):
            left = 0.1 + column * step
            box = (left / WIDTH_IN, (top - 0.28 - side_in) / height, side_in / WIDTH_IN, side_in / height)
            axes = figure.add_axes(box)
            axes.imshow(pictures[image.image_index], interpolation="nearest")
            axes.set_axis_off()
            n_letters = int(step / 0.063)
            lines = _describe(image, class_names, n_letters)
            for number, (line, colour) in enumerate(lines):
                y = (top - 0.28 - side_in - 0.12 - 0.125 * number) / height
                figure.text(left / WIDTH_IN, y, line, fontsize=6.8, va="center", color=colour)
    return figure


def _describe(image: ChangedImage, class_names: Sequence[str], n_letters: int) -> list[tuple[str, str]]:
    """The lines under an image, each with its colour."""

    def name(index: int) -> str:
        return _cut(class_names[index], n_letters - len(" >0.99") - len("→ "))

    after = "→ " + f"{name(image.new_class)} {_probability(image.new_prob)}"
    lines = [(f"{name(image.old_class)} {_probability(image.old_prob)}", INK), (after, INK)]
    if image.new_class == image.old_class:
        lines[1] = (f"→ the same {_probability(image.new_prob)}", INK)
    lines.append((f"group: {format_signed(-image.drop)} nats", GREY))
    for feature in image.features:
        lines.append((f"feature {feature.latent}: {format_signed(-feature.drop)}", GREY))
    return lines


def _cut(text: str, n_letters: int) -> str:
    """The text's beginning where it is too long; a single long word too."""
    return text if len(text) <= n_letters else text[: max(1, n_letters - 1)].rstrip() + "…"


def _probability(p: float) -> str:
    return f"{p:.2f}" if p < 0.995 else ">0.99" if p < 1 else "1.00"
