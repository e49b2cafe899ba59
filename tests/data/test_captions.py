"""Captions of a text file: which lines are which split's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoscope.data.captions import Captions
from infoscope.data.config import DataConfig, DataKind
from infoscope.data.reader import iterate_images
from infoscope.data.sets import make_image_sets
from infoscope.runtime.errors import InputError

TEXTS = [f"a photo of thing {number}" for number in range(60)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "captions.txt"
    place.write_text("\n".join(TEXTS) + "\n")
    return place


def test_every_caption_is_in_one_split_in_the_order_of_the_file(file: Path) -> None:
    train, test = (Captions(file, split, test_share=0.3) for split in ("train", "test"))
    assert sorted(train.texts + test.texts) == sorted(TEXTS)
    assert 5 < len(test) < 30
    for images in (train, test):
        numbers = [int(name.removeprefix("line ")) for name in images.image_ids]
        assert numbers == sorted(numbers)
        assert (
            [TEXTS[number - 1] for number in numbers] == images.texts == [images.caption(i) for i in range(len(images))]
        )
    assert train.image_ids == sorted(train.image_ids)
    assert train.fingerprint != test.fingerprint


def test_a_caption_that_is_there_twice_lies_in_one_split(file: Path) -> None:
    file.write_text("\n".join(TEXTS + TEXTS[::-1]))
    train, test = (Captions(file, split, test_share=0.3) for split in ("train", "test"))
    assert not set(train.texts) & set(test.texts)
    assert len(train) + len(test) == 120


def test_lines_are_read_as_people_and_windows_write_them(tmp_path: Path) -> None:
    place = tmp_path / "captions.txt"
    place.write_bytes(b"\xef\xbb\xbf  a dog \r\n\r\n\xc3\xbcber uns\r\n\n")
    captions = Captions(place, test_share=0)
    assert captions.texts == ["a dog", "über uns"]
    assert captions.image_ids == ["line 1", "line 3"]
    assert captions.left_out.describe() == "2 of 4 lines: 2 blank (line 2, line 4)"


def test_readers_give_their_numbers_and_a_draw_keeps_its_captions(file: Path) -> None:
    config = DataConfig(DataKind.captions, str(file), max_train=7, seed=3)
    train, _ = make_image_sets(config)
    batches = list(iterate_images(train, 224, 3, [5, 0, 6, 1]))
    assert [batch.index.tolist() for batch in batches] == [[5, 0, 6], [1]]
    assert all(batch.images.tolist() == batch.index.tolist() for batch in batches)
    assert len(train) == 7
    assert {train.caption(i) for i in range(7)} < set(TEXTS)
    assert train.is_text


def test_they_have_no_pixels(file: Path) -> None:
    with pytest.raises(InputError, match="data=captions holds texts"):
        np.asarray(Captions(file).load(0, 32))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\n \n", "holds none: write one per line"), (b"\xff\xfe", "it is no UTF-8 text"), (None, "no such file")],
)
def test_a_file_without_captions_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    place = tmp_path / "captions.txt"
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(InputError, match=words):
        Captions(place)


def test_a_split_that_leaves_none_to_train_on_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "captions.txt"
    place.write_text("a dog\n")
    with pytest.raises(InputError, match=r"data\.test_share=0\.999 holds out all 1 of"):
        Captions(place, test_share=0.999)
