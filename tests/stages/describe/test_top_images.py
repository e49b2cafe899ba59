"""Features without maps on the images or captions that excite them most."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8

from infoscope.data.images import ImageSet
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.stages.describe.top_images import (
    N_FEATURES,
    SIZE_PX,
    choose_most_monosemantic,
    draw_top_images,
    make_caption_table,
    read_top_feature,
)


class Pictures(ImageSet):
    """Pictures of one grey each."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "greys"}

    def decode(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        return np.full((4, 4, 3), 10 * index, np.uint8)


class Texts(Pictures):
    """Captions in the place of images."""

    is_text = True

    def caption(self, index: int) -> str:
        return f"caption {min(index, 4)}"  # the last two are the same


PICTURES, TEXTS = (of("train", list("abcdef")) for of in (Pictures, Texts))


def test_the_most_monosemantic_come_first_and_those_without_a_value_never() -> None:
    ms = np.array([0.2, np.nan, 0.9, 0.5])
    table = LatentTable(0, [LatentColumn("ms", ms, "monosemanticity", "1")])
    assert choose_most_monosemantic(table) == [2, 3, 0]
    assert choose_most_monosemantic(table, 1) == [2]


def test_pictures_stand_by_activation_and_silent_ones_are_left_out() -> None:
    feature = read_top_feature(7, 0.5, np.array([0.0, 1.0, 3.0]), PICTURES, np.array([3, 0, 1]))
    assert feature.numbers.tolist() == [1, 0]
    assert feature.activations.tolist() == [3.0, 1.0]
    assert np.array_equal(feature.pictures[0], PICTURES.load(1, SIZE_PX))
    assert not feature.captions
    figure = draw_top_images([feature] * N_FEATURES)
    assert len(figure.axes) == 2 * N_FEATURES
    assert "feature 7, monosemanticity 0.50" in figure.texts[0].get_text()


def test_captions_stand_in_a_table() -> None:
    feature = read_top_feature(7, 0.5, np.array([1.0, 0.0, 3.0, 2.0, 0.5]), TEXTS, np.arange(5))
    assert not feature.pictures
    assert feature.captions == ["caption 2", "caption 3", "caption 0"]
    rows = make_caption_table([feature]).rows
    assert [row[-1].value for row in rows] == list(feature.captions)
    twice = read_top_feature(7, 0.5, np.array([2.0, 0.0, 1.0, 0.0, 3.0, 4.0]), TEXTS, np.arange(6))
    assert twice.captions == ["caption 4", "caption 0", "caption 2"]
    assert twice.activations.tolist() == [4.0, 2.0, 1.0]
