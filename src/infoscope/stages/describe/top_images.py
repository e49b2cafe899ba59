"""Features without maps, such as those of pooled embeddings, on the whole images or captions that excite them most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure

from infoscope.data.images import ImageSet
from infoscope.report.figure_style import INK, WIDTH_IN
from infoscope.report.tables import Align, Column, Table
from infoscope.sae.latent_table import LatentTable
from infoscope.stages.sae import UNIT

N_FEATURES = 8
N_IMAGES = 8
N_CAPTIONS = 3
SIZE_PX = 112


class TopFeature(NamedTuple):
    """A feature with the images, or captions, that excite it most, the most exciting first.

    numbers: of the images in their set. activations: of the feature there, in SAE units.
    pictures: empty for captions. captions: empty for pictures.
    """

    latent: int
    ms: float
    numbers: Int64[np.ndarray, " n"]
    activations: Float[np.ndarray, " n"]
    pictures: Sequence[UInt8[np.ndarray, "size size 3"]]
    captions: Sequence[str]

    @property
    def facts(self) -> str:
        """What is said of it."""
        return f"feature {self.latent}, monosemanticity {self.ms:.2f}, activation {self.activations[0]:.3g}"


def choose_most_monosemantic(table: LatentTable, n: int = N_FEATURES) -> list[int]:
    """Return the features of the highest monosemanticity, the highest first; fewer if fewer have one."""
    order = np.argsort(-table["ms"], kind="stable")[:n]  # NaN comes last
    return [int(latent) for latent in order if np.isfinite(table["ms"][latent])]


def read_top_feature(
    latent: int, ms: float, by_image: Float[np.ndarray, " n_images"], images: ImageSet, index: Int64[np.ndarray, " n"]
) -> TopFeature:
    """Return a feature with what excites it most; of captions that are the same, one.

    Args:
        by_image: its mean activation in each row's image.
        images, index: the image set, and the place in it of each row.

    Raises:
        ImageError: if an image cannot be read.
    """
    order = np.argsort(-by_image, kind="stable")
    order = order[by_image[order] > 0]
    if images.is_text:
        rows_of: dict[str, int] = {}
        for row in order:
            rows_of.setdefault(images.caption(int(index[row])), row)
            if len(rows_of) == N_CAPTIONS:
                break
        rows = np.array(list(rows_of.values()), np.int64)
        return TopFeature(latent, ms, index[rows], by_image[rows], [], list(rows_of))
    rows = order[:N_IMAGES]
    pictures = [images.load(int(number), SIZE_PX) for number in index[rows]]
    return TopFeature(latent, ms, index[rows], by_image[rows], pictures, [])


def draw_top_images(features: Sequence[TopFeature]) -> Figure:
    """Draw a row for each feature: the pictures that excite it most, the first of them at the left."""
    tile_in = (WIDTH_IN - 0.1) / N_IMAGES
    figure = Figure(figsize=(WIDTH_IN, (tile_in + 0.25) * len(features)))
    row = 1 / len(features)
    for number, feature in enumerate(features):
        top = 1 - row * number
        figure.text(0.01, top - 0.16 / figure.get_figheight(), feature.facts, color=INK)
        for place, picture in enumerate(feature.pictures):
            side = tile_in * 0.96
            at = (0.01 + place * tile_in / WIDTH_IN, top - (0.22 + side) / figure.get_figheight())
            axes = figure.add_axes((*at, side / WIDTH_IN, side / figure.get_figheight()))
            axes.imshow(picture)
            axes.set_axis_off()
    return figure


def make_caption_table(features: Sequence[TopFeature]) -> Table:
    """Return a table with a row for each caption of each feature."""
    columns = [
        Column("latent", "feature", digits=0, is_count=True),
        Column("ms", "monosemanticity", digits=2),
        Column("activation", f"activation ({UNIT})"),
        Column("caption", "caption", Align.left),
    ]
    table = Table("top_captions", "The most monosemantic features, by the captions that excite them most", columns)
    for feature in features:
        for activation, caption in zip(feature.activations, feature.captions, strict=True):
            table.add_row(feature.latent, feature.ms, float(activation), caption)
    return table
