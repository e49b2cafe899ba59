"""The figure of one latent: its top images as pairs of crops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from infoscope.data.images import ImageSet
from infoscope.report.figure_style import house_style, make_empty
from infoscope.scope.ranking import Ranking
from infoscope.stages.score.example_figure import draw_examples
from infoscope.stages.score.examples import make_example
from infoscope.stages.score.result import ScopeResult


def draw_latent(
    scope: ScopeResult,
    latent: int,
    group: str,
    ranking: Ranking,
    images: ImageSet,
    patch_px: int,
    ranks: Int[np.ndarray, " n"],
) -> Figure:
    """Draw a latent's images of some ranks, in the style of the reports; of none, why there are none.

    Raises:
        ImageError: one cannot be read.
    """
    with house_style():
        if not len(ranks):
            return make_empty(f"Feature {latent} fires on none of the {ranking.n_images:,} images.", 1.0)
        example = make_example(scope, latent, group, scope.scores, ranking, images, patch_px, ranks)
        if math.isnan(example.cds):
            example = replace(example, note=f"a CDS takes {math.ceil(scope.k_cds / 2)}")
        return draw_examples([example], scope.scores.shift_patches)
