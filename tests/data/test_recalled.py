"""Images as they were: each position keeps its image, and what is gone, or is another now, is not read."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from infoscope.data.config import SKIP, DataConfig, DataKind
from infoscope.data.images import ImageError, ImageSet
from infoscope.data.recalled import FILE, RecalledImages, save_images
from infoscope.data.sets import make_image_sets, open_whole_sets
from infoscope.runtime.errors import InputError
from tests.support.data_sets import configure

N = 8


def encode(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 12), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_files(root: Path, reds: dict[int, int]) -> None:
    root.mkdir(exist_ok=True)
    for i, red in reds.items():
        (root / f"{i}.png").write_bytes(encode(red))


def write_list(root: Path, reds: dict[int, int]) -> None:
    write_files(root, reds)
    if not (root / "list.txt").exists():
        (root / "list.txt").write_text("".join(f"{i}.png\n" for i in reds))


def write_tar(root: Path, reds: dict[int, int]) -> None:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "all.tar", "w") as tar:
        for i, red in reds.items():
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(encode(red))
            tar.addfile(info, io.BytesIO(encode(red)))


def keep(folder: Path, images: ImageSet) -> None:
    assert images.fingerprint["n_images"] == len(images)  # it is asked for first, as for the key of tokens
    save_images(folder, images)


def recall(folder: Path, images: ImageSet, config: DataConfig) -> RecalledImages:
    now = open_whole_sets(replace(config, on_error=SKIP))[0]
    return RecalledImages(folder, "train", images.fingerprint, now)


@pytest.mark.parametrize(
    ("write", "source"),
    [(write_files, ""), (write_list, "list.txt"), (write_tar, "all.tar")],
    ids=["files", "list", "tar"],
)
@pytest.mark.parametrize("max_train", [None, 6])
def test_positions_stay_and_what_is_gone_or_changed_is_not_read(
    tmp_path: Path, write, source: str, max_train: int | None
) -> None:
    reds = {i: 10 * i for i in range(N)}
    write(tmp_path / "then", reds)
    config = configure("image_folder", tmp_path / "then" / source, test_share=0.0, max_train=max_train)
    images = make_image_sets(config)[0]
    keep(tmp_path, images)
    ids, then = list(images.image_ids), [int(images.load(i, 8)[0, 0, 0]) for i in range(len(images))]
    now = tmp_path / "now"
    (tmp_path / "then").rename(now)
    lost, other = sorted(then)[1] // 10, sorted(then)[3] // 10
    for i in (lost, other):
        (now / f"{i}.png").unlink(missing_ok=True)
    changed = {i: (250 if i == other else red) for i, red in reds.items() if i != lost}
    write(now, changed | {99: 200})  # a new one, too
    found = recall(tmp_path, images, replace(config, root=str(now / source)))
    assert found.image_ids == ids
    assert found.fingerprint == images.fingerprint
    for i, red in enumerate(then):
        if red // 10 in (lost, other):
            assert i in found.gone
            with pytest.raises(ImageError, match="not there any more"):
                found.load(i, 8)
        else:
            assert found.load(i, 8)[0, 0, 0] == red
    assert len(found.gone) == 2


def test_labels_and_classes_are_those_of_then(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "photos" / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / f"class{i % 3}" / f"{i}.png").write_bytes(encode(i))
    config = configure("class_folders", tmp_path / "photos", test_share=0.0)
    images = make_image_sets(config)[0]
    keep(tmp_path, images)
    for file in (tmp_path / "photos/class0").iterdir():
        file.unlink()
    found = recall(tmp_path, images, config)
    np.testing.assert_array_equal(found.labels("class"), images.labels("class"))
    assert (found.class_names, found.n_classes, found.truths) == (images.class_names, 3, images.truths)
    assert found.gone.tolist() == [0, 1]
    assert found.load(2, 8)[0, 0, 0] == images.load(2, 8)[0, 0, 0]


def test_how_much_was_hashed_then_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "photos", {i: i for i in range(N)})
    config = configure("image_folder", tmp_path / "photos", test_share=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("infoscope.data.photographs.WHOLE_CONTENT_BYTES", 100)
        patch.setattr("infoscope.data.photographs.HEAD_BYTES", 60)
        images = make_image_sets(config)[0]
        keep(tmp_path, images)
    assert images.fingerprint["hashed"] == "first 60 bytes"
    (tmp_path / "photos/3.png").unlink()
    assert recall(tmp_path, images, config).gone.tolist() == [3]


def test_tokens_of_earlier_versions_and_a_set_that_cannot_be_opened_leave_none(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", {i: i for i in range(N)})
    images, _ = make_image_sets(DataConfig(DataKind.image_folder, root=str(tmp_path / "photos"), test_share=0.0))
    unnamed = RecalledImages(tmp_path, "train", images.fingerprint, images)
    assert (len(unnamed), len(unnamed.gone), unnamed.is_named) == (N, N, False)
    keep(tmp_path, images)
    closed = RecalledImages(tmp_path, "train", images.fingerprint, None)
    assert (closed.image_ids, len(closed.gone), closed.is_named) == (images.image_ids, N, True)


@pytest.mark.parametrize("damage", [lambda table: table.slice(0, N - 1), lambda table: table.replace_schema_metadata()])
def test_a_table_of_other_images_is_damaged(tmp_path: Path, damage) -> None:
    write_files(tmp_path / "photos", {i: i for i in range(N)})
    images, _ = make_image_sets(configure("image_folder", tmp_path / "photos", test_share=0.0))
    keep(tmp_path, images)
    parquet.write_table(damage(parquet.read_table(tmp_path / FILE)), tmp_path / FILE)
    with pytest.raises(InputError, match="is damaged: without it nobody knows which image is which"):
        RecalledImages(tmp_path, "train", images.fingerprint, images)
