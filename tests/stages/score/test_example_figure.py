"""The figure of example features: heat on the patches, and examples of any number of images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infoscope.report.figure_style import save_figure
from infoscope.stages.score.example_figure import Example, draw_examples, lay_heat
from tests.support.report_samples import SHIFT, make_examples


def test_heat_is_one_flat_square_per_patch() -> None:
    image, heat = np.zeros((6, 6, 3), dtype=np.uint8), np.zeros((3, 3))
    heat[1, 2] = 1
    laid = lay_heat(image, heat)
    changed = np.abs(laid - lay_heat(image, 0 * heat)).sum(axis=-1) > 0
    expected = np.zeros((6, 6), dtype=bool)
    expected[2:4, 4:6] = True
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.long
@pytest.mark.parametrize("n_pairs", [0, 1, 6])
def test_examples_with_few_or_many_images(n_pairs: int, tmp_path: Path) -> None:
    examples = [*make_examples(n_pairs), replace(make_examples(n_pairs)[0], cds=math.nan, group="band 1 of 3")]
    save_figure(lambda: draw_examples(examples, SHIFT), "examples", tmp_path)
    assert (tmp_path / "examples.png").stat().st_size > 0


def test_an_example_says_its_group_its_pairs_and_whether_it_is_locked() -> None:
    examples = make_examples(6)
    examples[2] = replace(examples[2], is_locked=True)
    texts = [text.get_text() for text in draw_examples(examples, SHIFT).texts]
    assert [text for text in texts if text.endswith("scope") or text == "undecided"] == [
        "low-scope",
        "undecided",
        "high-scope",
    ]
    facts = [text for text in texts if text.startswith("feature")]
    assert facts[0] == "feature 100, CDS 0.000, 6 of 8 pairs"
    assert facts[2].endswith("6 of 8 pairs, position-locked")
    band = replace(examples[0], group="band 1 of 3", cds=math.nan)
    assert (band.label, band.facts) == ("band 1 of 3 (lowest CDS)", "feature 100, no CDS, 6 of 8 pairs")


def test_example_without_activation(tmp_path: Path) -> None:
    example = make_examples(1)[0]
    silent = Example(0, math.nan, "low", example.images, 0 * example.maps, np.full(1, math.nan), 0, 8)
    save_figure(lambda: draw_examples([silent], SHIFT), "examples", tmp_path)
