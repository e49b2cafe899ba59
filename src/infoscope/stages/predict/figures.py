"""Figures of predictions: reliability under removal, and test images whose prediction changes most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.predictions.metrics import Reliability, compute_reliability
from infoscope.predictions.results import ChangedImage, PredictionResult
from infoscope.report.figure_style import FAINT, GREY, INK, WIDTH_IN, colour_groups, make_empty, make_panels
from infoscope.report.tables import format_number
from infoscope.scope.partition import name_group
from infoscope.stages.probe.results import KEPT

MAX_POINT = 220.0
"""Area in square points of a bin that holds every prediction."""
MIN_PREDICTIONS = 10
"""Bins with fewer are not drawn: their accuracy is chance."""
PANELS_PER_ROW = 3
MAX_IMAGES = 5
"""Images in a row: more would be too small to read in a README."""
TEXT_IN = 0.86
"""Height of the lines under an image, in inches."""


def draw_reliability(results: Sequence[PredictionResult]) -> Figure:
    """Draw accuracy against confidence, a panel per group: original, without the group, random groups of its mass.

    Predictions of all seeds and draws are pooled; the original ones are the same for every seed and taken once.
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
            f"without {name_group(group)}": (colours[group], {"role": "group", "group": group, "mode": KEPT}),
        }
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        for label, (colour, wanted) in lines.items():
            pooled = results[:1] if label == "original tokens" else results  # the original is the same for every SAE
            if (bins := _pool(pooled, wanted)) is not None:
                handles[label] = _draw_bins(panel, bins, colour)
        panel.set(xlim=(0, 1.04), ylim=(-0.03, 1.04), aspect="equal", xlabel="confidence")
        panel.grid(color=FAINT, linewidth=0.6)
        panel.set_title(f"without {name_group(group)}")
        if number % n_columns == 0:
            panel.set_ylabel("accuracy")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    return figure


def _find_groups(results: Sequence[PredictionResult]) -> list[str]:
    variants = [variant for result in results for variant in result.variants]
    names = dict.fromkeys(one["group"] for one in variants if one["role"] == "group" and not one["empty"])
    return sorted(names, key=lambda name: {"high": 0, "low": 1}.get(name, 2))


def _pool(results: Sequence[PredictionResult], wanted: Mapping[str, str]) -> Reliability | None:
    """The bins of all variants with these properties, over all results; None without any."""
    max_prob, right = [], []
    for result in results:
        for place, variant in enumerate(result.variants):
            if not variant["empty"] and all(variant[name] == value for name, value in wanted.items()):
                max_prob.append(result.max_prob[place])
                right.append(result.right[place])
    return compute_reliability(np.concatenate(max_prob), np.concatenate(right)) if max_prob else None


def _draw_bins(axes: Axes, bins: Reliability, colour: str) -> Line2D:
    filled = bins.n >= MIN_PREDICTIONS
    x, y = bins.confidence[filled], bins.accuracy[filled]
    axes.scatter(x, y, MAX_POINT * bins.n[filled] / bins.n.sum(), color=colour, alpha=0.35, linewidths=0)
    return axes.plot(x, y, "-", marker="o", markersize=2.2, color=colour, linewidth=1.1)[0]


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
            0.1 / WIDTH_IN, (top - 0.19) / height, f"without {name_group(group)}", color=colours[group], weight="bold"
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
    lines.append((f"group: {_signed(-image.drop)} nats", GREY))
    for feature in image.features:
        lines.append((f"feature {feature.latent}: {_signed(-feature.drop)}", GREY))
    return lines


def _cut(text: str, n_letters: int) -> str:
    """The text's beginning where it is too long; a single long word too."""
    return text if len(text) <= n_letters else text[: max(1, n_letters - 1)].rstrip() + "…"


def _probability(p: float) -> str:
    return f"{p:.2f}" if p < 0.995 else ">0.99" if p < 1 else "1.00"


def _signed(value: float) -> str:
    return format_number(value, 2, signed=True)
