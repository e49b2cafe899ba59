"""Waterbirds: which rows are which split's, with which labels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.data.config import DataConfig, DataKind, OnError
from infoscope.data.images import ImageSet
from infoscope.data.sets import make_image_sets
from infoscope.runtime.errors import InputError

HEADER = "img_id,img_filename,y,split,place,place_filename"
ROWS = [  # name, y, split, place: not in the order of names
    ("002.Gull/b.png", 1, 0, 1),
    ("001.Wren/a.png", 0, 0, 0),
    ("001.Wren/c.png", 0, 2, 1),
    ("002.Gull/a.png", 1, 2, 0),
    ("002.Gull/c.png", 1, 0, 0),
    ("001.Wren/b.png", 0, 1, 1),
]


def write(root: Path, rows: list[tuple[str, int, int, int]] = ROWS, header: str = HEADER) -> Path:
    """Write a tree in the published layout; the grey of each picture is its place in the table."""
    for number, (name, *_) in enumerate(ROWS):
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (8, 6), (40 * number,) * 3).save(root / name)
    lines = [f"{i},{name},{y},{split},{place},/x/y.jpg" for i, (name, y, split, place) in enumerate(rows)]
    (root / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def open_both(root: Path, **settings: object) -> tuple[ImageSet, ImageSet]:
    return make_image_sets(DataConfig(DataKind.waterbirds, str(root), **settings))  # pyright: ignore[reportArgumentType]


def test_labels_go_with_the_images_in_the_order_of_names(tmp_path: Path) -> None:
    train, test = open_both(write(tmp_path))
    assert train.image_ids == ["001.Wren/a.png", "002.Gull/b.png", "002.Gull/c.png"]
    assert [int(train.load(i, 4)[0, 0, 0]) for i in range(3)] == [40, 0, 160]
    for target, expected in {"class": [0, 1, 1], "place": [0, 1, 0], "group": [0, 3, 2]}.items():
        assert train.labels(target).tolist() == expected
    assert test.image_ids == ["001.Wren/c.png", "002.Gull/a.png"]
    assert test.labels("group").tolist() == [1, 2]
    assert train.class_names == ("landbird", "waterbird")
    assert train.spurious_target == "place"
    assert train.left_out.describe() == "1 of 6 files: 1 of the validation split (001.Wren/b.png)"
    Image.new("RGB", (8, 6)).save(tmp_path / "002.Gull/more.png")
    assert open_both(tmp_path)[1].left_out.describe().startswith("2 of 7 files: 1 not in the table")
    assert (
        train.describe()["groups"]
        == "landbird on land 1, landbird on water 0, waterbird on land 1, waterbird on water 1"
    )


def test_the_fingerprint_knows_labels_and_contents_and_no_place(tmp_path: Path) -> None:
    first, again = (open_both(write(tmp_path / name))[0].fingerprint for name in "ab")
    assert first == again
    changed = [(name, 1 - y, split, place) for name, y, split, place in ROWS]
    assert open_both(write(tmp_path / "c", changed))[0].fingerprint != first
    Image.new("RGB", (8, 6)).save(tmp_path / "b" / "002.Gull/c.png")
    assert open_both(tmp_path / "b")[0].fingerprint != first


def test_a_draw_keeps_labels_and_what_misleads(tmp_path: Path) -> None:
    whole, _ = open_both(write(tmp_path))
    drawn, _ = open_both(tmp_path, max_train=2, seed=3)
    assert len(drawn) == 2
    assert drawn.spurious_target == "place"
    places = [whole.image_ids.index(name) for name in drawn.image_ids]
    np.testing.assert_array_equal(drawn.labels("group"), whole.labels("group")[places])


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (ROWS, HEADER.replace("split", "part"), "got none of the name split: give the published table"),
        ([("001.Wren/a.png", 2, 0, 0)], HEADER, "y to be 0 or 1 in line 2 of .* got '2'"),
        ([*ROWS[:2], ("001.Wren/a.png", 0, 0, 3)], HEADER, "place to be 0 or 1 in line 4 of .* got '3'"),
        ([("001.Wren/a.png", 0, 5, 0)], HEADER, "split to be 0 or 1 or 2 in line 2 of .* got '5'"),
        ([*ROWS, ROWS[1]], HEADER, "lists 001.Wren/a.png again in line 8"),
        ([*ROWS, ("no/where.png", 0, 2, 0)], HEADER, "got 1 of 3 that are missing, first no/where.png"),
        (ROWS[:2], HEADER, r"Expected test images \(split 2\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, rows: list[tuple[str, int, int, int]], header: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        open_both(write(tmp_path, rows, header))


def test_a_folder_without_the_table_and_a_wrong_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected the table of Waterbirds at .*set data.root"):
        open_both(tmp_path)
    train, _ = open_both(write(tmp_path / "waterbirds_v1.0"))
    with pytest.raises(
        InputError, match=r"no such file or directory; what looks like it lies at .*waterbirds_v1\.0: set"
    ):
        open_both(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"{HEADER}\n0,a.png,0,0,0,{200_000 * 'x'}\n")
    with pytest.raises(InputError, match=r"line 2 is none \(field larger than field limit"):
        open_both(tmp_path)
    with pytest.raises(
        InputError,
        match=r"Expected a target of Waterbirds \(class, place, group\), got 'texture': choose another by probe",
    ):
        train.labels("texture")


def test_missing_images_can_be_left_to_be_skipped(tmp_path: Path) -> None:
    root = write(tmp_path, [*ROWS, ("no/where.png", 0, 2, 0)])
    assert len(open_both(root, on_error=OnError["skip"])[1]) == 3
