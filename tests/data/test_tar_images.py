import gc
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infoscope.data import tar_images
from infoscope.data.config import SKIP
from infoscope.data.images import ImageError
from infoscope.data.reader import iterate_images
from infoscope.data.tar_images import TarImages, is_tar_source, list_shards
from infoscope.runtime.errors import InputError


def encode(red: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 12), (red, 0, 0)).save(stream, form)
    return stream.getvalue()


def write_tar(file: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, mtime: float = 0) -> Path:
    with tarfile.open(file, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # pyright: ignore[reportAttributeAccessIssue]
            tar.addfile(info, io.BytesIO(data))
    return file


def members(first: int, n: int) -> dict[str, bytes]:
    """Samples as timm writes them: the label before the image, then what is known of it."""
    found: dict[str, bytes] = {}
    for i in range(first, first + n):
        found |= {f"n{i:03d}.cls": str(i % 7).encode(), f"n{i:03d}.png": encode(i), f"n{i:03d}.json": b"{}"}
    return found


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three shards of four samples; keys fall as shards rise."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(3):
        write_tar(folder / f"set-{number:04d}.tar", members(8 - 4 * number, 4))
    return folder


def read(source: str | Path, **options) -> TarImages:
    return TarImages(source, test_share=0.0, **options)


def reds(images: TarImages) -> list[int]:
    return [int(images.load(i, 8)[0, 0, 0]) for i in range(len(images))]


def refused(source: str | Path, *parts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        read(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


class TestReading:
    def test_a_folder_a_range_and_one_file(self, shards):
        everything = read(shards)
        assert everything.image_ids == [f"n{i:03d}" for i in range(12)]
        assert reds(everything) == list(range(12))
        assert everything.read_labels().tolist() == [i % 7 for i in range(12)]
        assert reds(read(f"{shards}/set-{{0001..0002}}.tar")) == list(range(8))
        assert reds(read(shards / "set-0000.tar")) == [8, 9, 10, 11]
        assert everything.describe() == {"layout": "WebDataset tars", "shards": "3", "images": "12"}
        assert everything.check_image(0) == {"mode": "RGB", "format": "PNG"}

    def test_names_with_dots_are_pictures_and_maps_of_others_are_not(self, tmp_path):
        """What webdataset drops: to it, IMG_2020.01.3.jpg is a field "01.3.jpg" of the key IMG_2020."""
        pictures = [
            "./a.b/x.JPEG",
            "a.b/z.jpg",
            "a/../u.webp",
            "IMG_2020.01.3.jpg",
            "IMG_2020.01.4.JPG",
            "q.jpg",
            "q.2.tif",
        ]
        others = ["a.b/y.seg.png", "q.any.png", "w.depth.png", "._w.jpg", "__MACOSX/x.jpg", ".git/k.png", "v", "t.png/"]
        others += ["q.json", "r.txt", "s.pickle.gz"]
        file = write_tar(tmp_path / "a.tar", {name: encode(7, "JPEG") for name in [*pictures, *others]})
        images = read(file)
        assert images.image_ids == sorted(
            ["IMG_2020.01.3", "IMG_2020.01.4", "a.b/x", "a.b/z", "a/../u", "q", "q.2"],
        )
        assert images.left_out.unit == "members"
        assert images.left_out.first == {
            "of another picture's key": ["a.b/y.seg.png", "q.any.png", "w.depth.png"],
            "hidden": ["._w.jpg", "__MACOSX/x.jpg", ".git/k.png"],
            "without a suffix": ["v", "t.png/"],
            ".json": ["q.json"],
            ".txt": ["r.txt"],
            ".gz": ["s.pickle.gz"],
        }

    def test_labels_of_names_with_dots(self, tmp_path):
        named = {"a.1.jpg": encode(1), "a.1.cls": b"4", "a.2.jpg": encode(2), "a.2.cls": b"5", "b.1.jpg": encode(3)}
        images = read(write_tar(tmp_path / "a.tar", {**named, "b.cls": b"6"}))
        assert images.image_ids == ["a.1", "a.2", "b.1"]
        assert images.read_labels().tolist() == [4, 5, 6]
        assert reds(images) == [1, 2, 3]

    def test_members_that_are_no_files(self, tmp_path):
        file = write_tar(tmp_path / "a.tar", {"a.png": encode(1)})
        with tarfile.open(file, "a") as tar:
            for name, kind in (("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE), ("d", tarfile.DIRTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "a.png"
                tar.addfile(info)
        assert read(file).left_out.first == {"links or devices": ["b.png", "c.png"]}

    def test_what_lies_beside_the_shards(self, shards):
        for name in ("0000_stats.json", ".lock", "0000.parquet"):
            (shards / name).touch()
        assert read(shards).left_out.counts == {".json": 13, "hidden": 1, ".parquet": 1}

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_header_that_tarfile_writes(self, tmp_path, form):
        names = ["a.png", "d" * 90 + "/" + "e" * 60 + ".png"]
        names += [] if form == tarfile.USTAR_FORMAT else ["ü" * 200 + "/f.png", "g" * 99 + ".png", "h" * 300 + ".png"]
        mtime = 0 if form == tarfile.USTAR_FORMAT else 1.5
        file = write_tar(tmp_path / "a.tar", {name: encode(i) for i, name in enumerate(names)}, form, mtime)
        with tarfile.open(file, "a", format=form) as tar:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info = tarfile.TarInfo(f"{kind.decode()}.png")
                info.type, info.linkname = kind, "a.png"
                tar.addfile(info)
            tar.addfile(tarfile.TarInfo("last.png"))
        with tarfile.open(file) as tar:
            expected = {m.name.removesuffix(".png"): (m.offset_data, m.size) for m in tar if m.isreg()}
        images = read(file)
        assert images.image_ids == sorted(expected)
        assert [tuple(place) for place in images._places[:, :2].tolist()] == [expected[k] for k in images.image_ids]

    def test_sizes_beyond_eight_gigabytes(self, tmp_path):
        """GNU's binary size, on a sparse file; pax says the same in a record."""
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            info = tarfile.TarInfo("huge.bin")
            info.size = 9 * 1024**3
            file = tmp_path / f"{form}.tar"
            with file.open("wb") as stream:
                stream.write(info.tobuf(form))
                stream.seek(info.size, os.SEEK_CUR)
                stream.write(write_tar(tmp_path / "rest.tar", {"a.png": encode(3)}).read_bytes())
            assert reds(read(file)) == [3]

    def test_the_splits_are_disjoint_and_whole(self, shards):
        train, test = (TarImages(shards, split, test_share=0.4) for split in ("train", "test"))
        assert sorted(train.image_ids + test.image_ids) == read(shards).image_ids
        assert sorted(reds(train) + reds(test)) == list(range(12))
        assert len(test.read_labels()) == len(test) > 0

    def test_workers_read_the_same(self, shards):
        images = read(shards)
        images.load(0, 8)  # a shard is open when the workers start
        assert images._opened
        here, there = (torch.cat([batch.images for batch in iterate_images(images, 8, 3, n_workers=n)]) for n in (0, 2))
        assert torch.equal(here, there)
        copy = pickle.loads(pickle.dumps(images))
        assert not copy._opened
        assert reds(copy) == list(range(12))

    @pytest.mark.long
    def test_few_shards_are_held_open_and_none_is_left(self, shards, monkeypatch):
        monkeypatch.setattr(tar_images, "_MAX_OPEN", 2)
        gc.collect()  # what other tests left open
        before = len(os.listdir("/proc/self/fd"))
        images = read(shards)
        for _ in range(2):
            assert reds(images) == list(range(12))
            assert len(images._opened) == 2
        del images
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_which_sources_are_tars(self, shards, tmp_path):
        for source in (shards, f"{shards}/set-{{0000..0002}}.tar", shards / "set-0000.tar", "a.tgz"):
            assert is_tar_source(source)
        assert not is_tar_source(tmp_path)
        assert not is_tar_source(tmp_path / "nowhere")
        (shards / "photo.jpg").touch()
        assert not is_tar_source(shards)


class TestRanges:
    def test_padding_follows_the_bounds(self):
        assert tar_images._expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
        assert tar_images._expand_braces("{8..10}") == ["8", "9", "10"]
        assert tar_images._expand_braces("a{0..1}-{1..2}") == ["a0-1", "a0-2", "a1-1", "a1-2"]

    @pytest.mark.parametrize("pattern", ["a-{b,c}.tar", "a-{3..1}.tar", "a-{0..9999999999}.tar", "{0..1}{.tar"])
    def test_what_is_no_range(self, tmp_path, pattern):
        refused(tmp_path / pattern, "Expected a range")


class TestErrors:
    def test_a_missing_shard(self, shards):
        (shards / "set-0001.tar").unlink()
        refused(
            f"{shards}/set-{{0000..0002}}.tar", "Expected the 3 tar files", "got 1 that are missing", "set-0001.tar"
        )

    def test_no_shards_and_no_images(self, tmp_path):
        refused(tmp_path, "Expected tar files", "got none")
        refused(
            write_tar(tmp_path / "a.tar", {"a.txt": b"x", "a.cls": b"1"}),
            "no member that ends in .jpg",
            "1 .txt (a.txt)",
        )

    def test_compressed(self, shards):
        with tarfile.open(shards / "set-0003.tar.gz", "w:gz"):
            pass
        refused(shards, "set-0003.tar.gz is compressed")
        refused(shards / "set-0003.tar.gz", "set-0003.tar.gz is compressed")

    def test_the_same_key_twice(self, shards):
        write_tar(shards / "set-0003.tar", members(5, 1))
        refused(shards, "n005 has an image in", "set-0001.tar", "set-0003.tar")
        file = write_tar(shards / "set-0003.tar", {"a.png": encode(1), "a.jpg": encode(2)})
        refused(file, "a has an image twice in", "set-0003.tar")

    @pytest.mark.parametrize("place", ["content", "header", "between", "end mark"])
    def test_a_shard_that_ends_in_the_middle(self, shards, place):
        file = shards / "set-0002.tar"
        with tarfile.open(file) as tar:
            last = tar.getmember("n003.png")
            end = {
                "content": last.offset_data + 9,
                "header": last.offset_data - 100,
                "between": last.offset,
                "end mark": tar.getmember("n003.json").offset_data + 512,
            }[place]
        os.truncate(file, end)
        lost = [] if place == "end mark" else [3]
        refused(shards, f"{file} ends in the middle", f"last whole key is n{3 - len(lost):03d}", "data.on_error=skip")
        images = read(shards, on_error=SKIP)
        assert reds(images) == [i for i in range(12) if i not in lost]
        assert len(images.read_labels()) == len(images)
        assert images.describe()["damaged shards"].startswith(f"1, first {file} (ends in the middle")

    def test_an_image_whose_label_was_cut_off_goes_too(self, tmp_path):
        file = write_tar(tmp_path / "a.tar", {"a.png": encode(1), "a.cls": b"1", "b.png": encode(2), "b.cls": b"2"})
        with tarfile.open(file) as tar:
            os.truncate(file, tar.getmember("b.cls").offset)
        images = read(file, on_error=SKIP)
        assert images.image_ids == ["a"]
        assert images.read_labels().tolist() == [1]

    def test_what_is_no_tar_file(self, shards):
        file = shards / "set-0000.tar"
        file.write_bytes(b"")
        refused(shards, "set-0000.tar is no tar file", "no image of it is whole")
        file.write_bytes(os.urandom(4096))
        refused(shards, "set-0000.tar is no tar file")
        file.write_bytes(encode(1) * 100)
        refused(shards, "set-0000.tar is no tar file")

    def test_damage_inside(self, shards):
        file = shards / "set-0001.tar"
        with tarfile.open(file) as tar:
            at = tar.getmember("n006.png").offset
        data = bytearray(file.read_bytes())
        data[at + 3] ^= 1
        file.write_bytes(data)
        refused(shards, "set-0001.tar holds no tar header where one should be", "the last whole key is n005")

    @pytest.mark.parametrize(
        "size", [b"-0000000777\0", b"77777777777\0", b"\x80" + b"\xff" * 11, b"zzzz\0\0\0\0\0\0\0\0"]
    )
    def test_sizes_are_not_trusted(self, tmp_path, size):
        header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT))
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
        refused(tmp_path / "a.tar", "a.tar")

    @pytest.mark.parametrize("record", [b"0 path=x\n", b"12 size=-77\n"])
    def test_pax_records_are_not_trusted(self, tmp_path, record):
        info = tarfile.TarInfo("header")
        info.type, info.size = tarfile.XHDTYPE, len(record)
        content = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
        rest = write_tar(tmp_path / "a.tar", {"a.png": encode(1)}).read_bytes()
        (tmp_path / "a.tar").write_bytes(content + rest)
        refused(tmp_path / "a.tar", "a.tar", "damaged")

    @pytest.mark.parametrize(
        ("label", "found"), [(None, "none"), (b"", "none"), (b"dog", "'dog'"), (b"1" * 99, "'111")]
    )
    def test_labels_that_are_none(self, tmp_path, label, found):
        file = write_tar(tmp_path / "a.tar", {"a.png": encode(1)} | ({} if label is None else {"a.cls": label}))
        with pytest.raises(InputError, match=f"class number in a.cls in .*a.tar, got {found}"):
            read(file).read_labels()

    def test_a_damaged_image_is_named_with_its_shard(self, tmp_path):
        file = write_tar(tmp_path / "a.tar", {"a.png": encode(1), "b.png": b"no image", "c.png": encode(2)[:-30]})
        images = read(file, on_error=SKIP)
        with pytest.raises(ImageError, match=r"the image b in .*a.tar \(it is no JPEG, PNG or other image"):
            images.load(1, 8)
        with pytest.raises(ImageError, match="c in "):
            images.check_image(2)
        assert sum(len(batch.index) for batch in iterate_images(images, 8, 2, on_error=SKIP)) == 1
        file.unlink()
        elsewhere = pickle.loads(pickle.dumps(images))  # the first one still has the shard open
        with pytest.raises(ImageError, match="no such file"):
            elsewhere.load(0, 8)


class TestFingerprint:
    def test_it_is_of_images_not_of_shards(self, shards, tmp_path):
        before = read(shards).fingerprint
        assert str(tmp_path) not in str(before)
        one = write_tar(tmp_path / "one.tar", members(0, 12), tarfile.GNU_FORMAT, mtime=77)
        assert read(one).fingerprint == before
        write_tar(one, {**members(0, 12), "n003.png": encode(99)})
        assert read(one).fingerprint != before

    def test_large_sets(self, shards, monkeypatch):
        monkeypatch.setattr("infoscope.data.photographs.WHOLE_CONTENT_BYTES", 0)
        assert read(shards).fingerprint["hashed"].startswith("first")
        monkeypatch.setattr("infoscope.data.photographs.MAX_HASHED_IMAGES", 3)
        assert read(shards).fingerprint["hashed"] == "names and sizes"


def test_random_headers_end_in_a_sentence_or_in_images(tmp_path):
    """Whatever bytes are flipped in the headers, nothing but an InputError comes out."""
    rng = np.random.default_rng(0)
    data = write_tar(tmp_path / "a.tar", members(0, 3), mtime=1.5).read_bytes()
    file = tmp_path / "b.tar"
    for _ in range(200):
        flipped = bytearray(data)
        at = 512 * int(rng.integers(len(data) // 512))
        flipped[at + int(rng.integers(512))] = int(rng.integers(256))
        header = flipped[at : at + 512]
        header[148:156] = b" " * 8
        flipped[at + 148 : at + 156] = struct.pack("8s", f"{sum(header):06o}\0 ".encode())  # so that it is believed
        file.write_bytes(flipped)
        try:
            images = read(file, on_error=SKIP)
        except InputError:
            continue
        assert len(images) <= 3


def test_all_shards_are_listed_in_order(shards):
    assert [shard.name for shard in list_shards(shards)] == [f"set-{i:04d}.tar" for i in range(3)]
