import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from infoscope.data import photographs
from infoscope.data.config import SKIP
from infoscope.data.image_list import ImageList
from infoscope.data.images import ImageError
from infoscope.data.reader import iterate_images
from infoscope.runtime.errors import InputError

NAMES = [f"photos/{i:02d} #1.png" for i in range(12)]


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve small files and a list of them."""
    folder = tmp_path / "set"
    (folder / "photos").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("RGB", (8 + i, 16), (20 * i, 0, 0)).save(folder / name)
    (folder / "list.txt").write_text("\n".join(NAMES))
    return folder


def read(file: Path, **options) -> ImageList:
    return ImageList(file, test_share=0.0, **options)


def refused(file: Path, *parts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        read(file, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


class TestReading:
    def test_home_and_variables_in_lines(self, root, monkeypatch):
        monkeypatch.setenv("HOME", str(root))
        monkeypatch.delenv("NOPE", raising=False)
        shutil.copy(root / NAMES[0], root / "$NOPE.png")
        (root / "list.txt").write_text(f"~/{NAMES[1]}\n$HOME/{NAMES[2]}\n$NOPE.png")
        assert sorted(read(root / "list.txt").image_ids) == ["$NOPE.png", *NAMES[1:3]]
        (root / "list.txt").write_text("$NOPE/a.png")
        refused(root / "list.txt", "no variable NOPE", "a line of it", "$NOPE/a.png")

    def test_bytes_as_windows_and_people_write_them(self, root):
        text = f"# photographs\r\n\r\n{NAMES[3]}\r\n  ./{NAMES[1]}  \r\n#{NAMES[0]}\r\n{root / NAMES[2]}\r\n"
        (root / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        images = read(root / "list.txt")
        assert images.image_ids == NAMES[1:4]
        assert [images.load(i, 4)[0, 0, 0] for i in range(3)] == [20, 40, 60]
        assert images.left_out.describe() == "3 of 6 lines: 2 of comment (line 1, line 5), 1 blank (line 2)"

    def test_files_outside_keep_the_path_that_was_written(self, root):
        (root / "lists").mkdir()
        (root / "lists" / "a.txt").write_text(f"../{NAMES[0]}\n{root / NAMES[1]}\n")
        images = read(root / "lists" / "a.txt")
        assert images.image_ids == [f"../{NAMES[0]}", (root / NAMES[1]).as_posix()]
        assert images.load(1, 4)[0, 0, 0] == 20

    def test_a_list_in_the_working_directory(self, root, monkeypatch):
        monkeypatch.chdir(root)
        assert read(Path("list.txt")).image_ids == NAMES

    def test_the_splits_are_disjoint_and_whole(self, root):
        train, test = (ImageList(root / "list.txt", split, test_share=0.4, seed=1) for split in ("train", "test"))
        assert sorted(train.image_ids + test.image_ids) == NAMES
        assert 0 < len(test) < len(NAMES)
        with pytest.raises(InputError, match="holds out all 12 images"):
            ImageList(root / "list.txt", test_share=1.0)
        with pytest.raises(InputError, match="train or test, got 'val'"):
            ImageList(root / "list.txt", "val")

    def test_what_is_said_of_it(self, root):
        images = read(root / "list.txt")
        assert images.describe() == {"layout": "list of files", "images": "12", "listed": "12"}
        Image.new("L", (9, 9)).save(root / NAMES[0], format="JPEG")
        assert images.check_image(0) == {"mode": "L", "format": "JPEG"}


class TestErrors:
    def test_repeats(self, root):
        (root / "list.txt").write_text(f"{NAMES[0]}\n{NAMES[1]}\nphotos/../{NAMES[1]}\n")
        refused(root / "list.txt", f"lists {NAMES[1]} more than once")

    def test_missing_files(self, root):
        (root / NAMES[4]).unlink()
        (root / NAMES[5]).unlink()
        refused(root / "list.txt", f"2 of 12 that are missing, first {NAMES[4]}")
        images = read(root / "list.txt", on_error=SKIP)
        assert sum(len(batch.index) for batch in iterate_images(images, 8, 4, on_error=SKIP)) == 10
        assert sorted(images.skipped) == NAMES[4:6]

    @pytest.mark.parametrize("text", ["", "# nothing\n\n"])
    def test_an_empty_list(self, root, text):
        (root / "list.txt").write_text(text)
        refused(root / "list.txt", "lists none")

    def test_what_is_no_list(self, root):
        refused(root / "nowhere.txt", "no such file or directory", "data.root")
        refused(root / NAMES[0], "it is no UTF-8 text")
        refused(root, "is a directory")

    def test_a_damaged_image_is_named(self, root):
        (root / NAMES[0]).write_text("no image")
        with pytest.raises(ImageError, match="00 #1"):
            read(root / "list.txt").check_image(0)


class TestFingerprint:
    def test_a_moved_and_touched_set_keeps_it(self, root, tmp_path):
        before = read(root / "list.txt").fingerprint
        shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
        assert read(tmp_path / "copy" / "list.txt").fingerprint == before
        assert str(tmp_path) not in str(before)
        assert before["hashed"] == "whole files"

    def test_contents_change_it_until_there_are_too_many(self, root, monkeypatch):
        def flip(name: str) -> None:
            data = bytearray((root / name).read_bytes())
            data[-20] ^= 1
            (root / name).write_bytes(data)

        before = read(root / "list.txt").fingerprint
        flip(NAMES[0])
        assert read(root / "list.txt").fingerprint != before
        monkeypatch.setattr(photographs, "WHOLE_CONTENT_BYTES", 0)
        monkeypatch.setattr(photographs, "HEAD_BYTES", 16)
        assert read(root / "list.txt").fingerprint["hashed"] == "first 16 bytes"
        monkeypatch.setattr(photographs, "MAX_HASHED_IMAGES", 11)
        before = read(root / "list.txt").fingerprint
        assert before["hashed"] == "names and sizes"
        flip(NAMES[0])
        assert read(root / "list.txt").fingerprint == before
        os.truncate(root / NAMES[0], 10)
        assert read(root / "list.txt").fingerprint != before

    def test_a_file_that_went_is_named_or_counted(self, root):
        images = read(root / "list.txt")
        skipping = read(root / "list.txt", on_error=SKIP)
        (root / NAMES[2]).unlink()
        with pytest.raises(ImageError, match="no such file"):
            _ = images.fingerprint
        assert skipping.fingerprint["n_images"] == 12
        with pytest.raises(ImageError, match=r"or set data\.on_error=skip\.$"):
            images.load(2, 8)
        for read_one in (lambda: skipping.load(2, 8), lambda: skipping.photograph(2)):
            with pytest.raises(ImageError, match=r"skip has not left out: .* Put it back, or run again without it"):
                read_one()
