"""The section on latents as masks: what its tables, its figures and its sentences say of planted counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.analyses.segment_result import Examples, Segmentation
from infoscope.analyses.segmentation import Overlap, PixelCounts, Segmenters
from infoscope.data.images import ImageSet, Truth
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import Stat, Table
from infoscope.stages.segment.section import Found, make_segment_section
from tests.support.report_samples import make_scope_result, make_unscored_result

NAMES = ("sky", "wall", "never")
N, GRID, PX = 200, 4, 32


class Pictures(ImageSet):
    """Two grey pictures, the upper half of which is sky."""

    truths = frozenset({Truth.label_maps})
    label_names = NAMES

    def __init__(self) -> None:
        super().__init__("test", ["0", "1"])

    @property
    def fingerprint(self):
        return {}

    def load(self, index, size_px):
        return np.full((size_px, size_px, 3), 128, np.uint8)

    def label_map(self, index):
        return np.repeat([0, 1], 10)[:, None].repeat(15, axis=1).astype(np.uint8)


def make_segmentation(best: int, other: int, n_hits: int = 80, n_latents: int = N) -> Segmentation:
    """Of 100 patches of sky and 100 of wall one latent has some of the sky alone, another one 40; others are silent."""
    hits, masks = np.zeros((n_latents, 3, 2), int), np.zeros((n_latents, 2), int)
    hits[best, 0, 1] = masks[best, 1] = n_hits
    hits[best, 0, 0], masks[best, 0] = n_hits, 190
    hits[other, 0], masks[other] = 40, 40
    counts = Overlap(hits, masks, np.array([100, 100, 0]))
    chosen = Segmenters(np.array([0]), np.array([best]), np.array([0.5], np.float32))
    pixels = PixelCounts(np.array([900]), np.array([1000]), np.array([1100]))
    examples = Examples(np.array([[1, -1]]), np.ones((1, 2, GRID, GRID), np.float32))
    candidates = np.tile(np.arange(3, dtype=np.int16), (n_latents, 1))
    return Segmentation(NAMES, np.array([0, 0.5], np.float32), candidates, counts, counts, chosen, pixels, examples)


def make_section(n_hits: int = 80) -> ReportSection:
    """Two seeds: the best latent is of low scope, the other one of high scope."""
    found = []
    for seed in (0, 1):
        scope = make_scope_result(seed)
        low, high = (int(np.flatnonzero(scope.partition.groups[name])[3]) for name in ("low", "high"))
        found.append(Found(scope, make_segmentation(low, high, n_hits)))
    return make_segment_section(found, Pictures(), PX)


def read(table: Table, row: int) -> dict[str, Any]:
    values = (cell.value for cell in table.rows[row])
    return {
        column.key: value.mean if isinstance(value, Stat) else value
        for column, value in zip(table.columns, values, strict=True)
    }


def test_tables_hold_the_ious() -> None:
    section = make_section()
    sky = read(section.tables["segment"], 1)
    expected = {"everywhere": 0.5, "iou_train": 0.8, "iou_test": 0.8, "iou_pixels": 0.75, "similar": 0.4}
    assert sky == {
        "label": "sky",
        **{k: pytest.approx(v) for k, v in expected.items()},
        "best_high": 0.4,
        "best_low": 0.8,
    }
    assert read(section.tables["segment"], 0) == {**sky, "label": "mean over labels"}
    assert section.tables["segment"].notes[0].endswith("2 of 3 labels have no latent.")
    high, low = (read(section.tables["segment_groups"], row) for row in (0, 1))
    assert (high["n_best"], low["n_best"]) == (0, 1)
    assert (high["iou_test"], low["iou_test"]) == (pytest.approx(0.4), pytest.approx(0.8))
    assert high["iou_equal"] == pytest.approx(0.4)  # the smaller group is itself
    assert low["iou_equal"] < 0.8  # most draws of the larger group lack its best latent
    latent = read(section.tables["segment_latents"], 0)
    assert (latent["label"], latent["group"], latent["threshold"]) == ("sky", "low-scope", 0.5)
    assert latent["cds"] <= 0.2
    assert section.summary["labels"]["sky"]["iou_test"].mean == pytest.approx(0.8)


def test_findings_follow_the_numbers() -> None:
    main, compared = make_section().findings
    assert "IoU of 80.0% with it (75.0% in pixels; mean over labels), against 40.0%" in main
    assert compared.startswith(
        "Of equally many latents of either group, the best low-scope one has an IoU of"
    )  # at no rate are there both
    assert compared.endswith("of 2 labels and SAE seeds.")
    worse = make_section(n_hits=45).findings
    assert worse[1] == "No better than a mask that covers everything: sky (1 of 1 labels)."


def test_a_page_has_figures(tmp_path: Path) -> None:
    page = Page("Masks", {}, sections=[make_section()])
    files = write_report(page, tmp_path)
    assert files.figures.keys() == {"label_iou", "label_masks"}
    assert json.loads(files.summary.read_text())["segment"]["mean"]["iou_test"]["mean"] == pytest.approx(0.8)


def test_without_groups_and_without_labels_it_says_so() -> None:
    unscored = Found(make_unscored_result(), make_segmentation(1, 2, n_latents=10))
    section = make_segment_section([unscored], Pictures(), PX)
    assert section.findings[-1] == "Which scope masks labels better is not known: a group is empty."
    assert read(section.tables["segment_latents"], 0)["group"] == "unscored"
    empty = unscored.segmentation
    none = Segmenters(*(of[:0] for of in empty.chosen))
    bare = Segmentation(
        *(NAMES, empty.thresholds, empty.candidates, empty.train, empty.test),
        *(none, PixelCounts(*(of[:0] for of in empty.pixels)), Examples(*(of[:0] for of in empty.examples))),
    )
    section = make_segment_section([Found(make_unscored_result(), bare)], Pictures(), PX)
    assert section.findings == ("No label has a latent that fires on it in a training image.",)
    assert section.figures == {}
