"""The figures on names: nearest images by a concept, and what a classifier makes of concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from infoscope.analyses.name_result import NameResult
from infoscope.report.figure_style import GREY, HIGH, LOW, make_empty, make_figure
from infoscope.stages.name.numbers import Found

ROWS = {
    "nearest": "nearest",
    "alone": "by {} alone",
    "zeroed": "without {}",
    "nearest_least": "nearest",
    "raised": "with {} raised",
}
"""What each row of the figure is searched by."""


def draw_search(result: NameResult, pictures: Mapping[int, UInt8[np.ndarray, "size size 3"]]) -> Figure:
    """Draw the image that was searched for at the left, then those nearest to it, a row for each way of searching."""
    if not result.shown_by:
        return make_empty("no name is valid, so there is no concept to search by")
    n_rows, n_columns = result.shown.shape
    figure = make_figure(1.0 * n_rows + 0.2)
    concept = result.concepts[result.shown_concept]
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for of, images, by in zip(panels, result.shown, result.shown_by, strict=True):
        for place, (panel, image) in enumerate(zip(of, images.tolist(), strict=True)):
            panel.set_xticks([])
            panel.set_yticks([])
            if image >= 0:
                panel.imshow(pictures[image])
            for spine in panel.spines.values():
                spine.set_visible(place == 0)
                spine.set_linewidth(2)
        of[0].set_ylabel(ROWS[by].format(f"“{concept}”"), fontsize=7.5)
    return figure


def draw_bias(found: Sequence[Found]) -> Figure:
    """Draw the slope of each class against how the data couple concept and class, a mark for each pair and seed."""
    figure = make_figure(2.9)
    panel = figure.subplots()
    for one in found:
        result = one.result
        known = np.isfinite(result.slopes) & np.isfinite(result.association) & ~result.is_own[:, None]
        first = known & (result.association > result.class_shares)
        for chosen, colour, label in (
            (known & ~first, LOW, "another class"),
            (first, HIGH, "a class that the data couple with the concept"),
        ):
            panel.scatter(
                result.association[chosen],
                result.slopes[chosen],
                s=9,
                color=colour,
                alpha=0.7,
                linewidths=0,
                label=label if one is found[0] else None,
            )
    panel.axhline(0, color=GREY, linewidth=0.6)
    panel.axvline(0, color=GREY, linewidth=0.6)
    panel.set_xlabel("share of the class in training images of the concept, less its share in all")
    panel.set_ylabel("change of its probability")
    panel.legend(loc="upper left")
    return figure
