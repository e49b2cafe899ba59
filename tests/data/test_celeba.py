"""CelebA: both published forms of its lists, which attributes go with which images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.data.config import DataConfig, DataKind, OnError
from infoscope.data.images import ImageSet
from infoscope.data.sample import draw_images
from infoscope.data.sets import make_image_sets
from infoscope.runtime.errors import InputError
from infoscope.stages.name.vocabulary import find_values, list_values

NAMES = ["Bald", "Blond_Hair", "Male", *(f"Attribute_{i}" for i in range(37))]
SPLITS = {"000003.jpg": 0, "000001.jpg": 0, "000002.jpg": 1, "000004.jpg": 2, "000005.jpg": 2}
VALUES = {name: np.random.default_rng(i).choice([-1, 1], len(NAMES)).tolist() for i, name in enumerate(sorted(SPLITS))}


def write(root: Path, kaggle: bool = False, published: bool = False, wilds: bool = False, png: bool = False) -> Path:
    """Write a tree as one of the forms in which CelebA is given; the grey of each picture is ten times its number.

    Without a flag as torchvision has it.
    """
    name = "img_align_celeba_png" if png else "img_align_celeba"
    folder = root / ("Img" if published else "") / name / (name if kaggle else "")
    folder.mkdir(parents=True)
    for name in SPLITS:
        file = (folder / name).with_suffix(".png" if png else ".jpg")
        Image.new("RGB", (8, 10), (10 * int(name[:6]),) * 3).save(file, quality=100)
    anno, evaluation = (root / "Anno", root / "Eval") if published else (root, root)
    anno.mkdir(exist_ok=True)
    evaluation.mkdir(exist_ok=True)
    is_csv = kaggle or wilds
    between, suffix = (",", "csv") if is_csv else (" ", "txt")
    rows = [between.join([name, *(f"{value:>{1 if is_csv else 2}}" for value in VALUES[name])]) for name in SPLITS]
    head = [f"image_id,{','.join(NAMES)}"] if is_csv else [str(len(SPLITS)), " ".join(NAMES) + " "]
    (anno / f"list_attr_celeba.{suffix}").write_text("\n".join([*head, *rows]) + "\n")
    rows = [f"{name}{between}{split}" for name, split in SPLITS.items()]
    (evaluation / f"list_eval_partition.{suffix}").write_text(
        "\n".join([*(["image_id,partition"] if is_csv else []), *rows]) + "\n"
    )
    return root


def open_both(root: Path, **settings: object) -> tuple[ImageSet, ImageSet]:
    return make_image_sets(DataConfig(DataKind.celeba, str(root), **settings))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", ["", "kaggle", "published", "wilds", "png", "published png"])
def test_attributes_go_with_the_images(tmp_path: Path, form: str) -> None:
    train, test = open_both(write(tmp_path, **dict.fromkeys(form.split(), True)))
    suffix = "png" if "png" in form else "jpg"
    assert train.image_ids == [f"000001.{suffix}", f"000003.{suffix}"]
    assert test.image_ids == [f"000004.{suffix}", f"000005.{suffix}"]
    assert [round(int(train.load(i, 4)[0, 0, 0]), -1) for i in range(2)] == [10, 30]
    assert train.attributes == tuple(NAMES)
    for place, attribute in enumerate(NAMES):
        for images in (train, test):
            expected = [int(VALUES[f"{name[:6]}.jpg"][place] == 1) for name in images.image_ids]
            assert images.labels(attribute).tolist() == expected
            assert attribute != "Blond_Hair" or images.labels("class").tolist() == expected
    assert train.class_names == ("no blond hair", "blond hair")
    assert train.spurious_target == "Male"
    assert train.left_out.describe().startswith("1 ")
    assert "which" in train.describe()["class"]


def test_lists_may_name_pngs(tmp_path: Path) -> None:
    for file in (write(tmp_path, png=True) / "img_align_celeba_png").parent.glob("list_*.txt"):
        file.write_text(file.read_text().replace(".jpg", ".png"))
    (tmp_path / "img_align_celeba_png").rename(tmp_path / "img_align_celeba")
    train, _ = open_both(tmp_path)
    assert train.image_ids == ["000001.png", "000003.png"]


def test_the_attribute_is_part_of_the_data(tmp_path: Path) -> None:
    train, _ = open_both(write(tmp_path))
    other, _ = open_both(tmp_path, attribute="Male")
    assert other.labels("class").tolist() == train.labels("Male").tolist()
    assert other.spurious_target is None
    assert other.fingerprint != train.fingerprint
    again, _ = open_both(tmp_path)
    assert again.fingerprint == train.fingerprint
    assert draw_images(train, 1, 0).attributes == train.attributes
    with pytest.raises(InputError, match=r"Expected a target of CelebA .* 'male' \(did you mean Male\?\)"):
        train.labels("male")


def change(root: Path, name: str, old: str, new: str) -> None:
    file = root / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected list_attr_celeba\.txt or list_attr_celeba\.csv of CelebA in"):
        open_both(tmp_path)
    kept, attributes, partition = write(tmp_path / "0"), "list_attr_celeba.txt", "list_eval_partition.txt"
    row = next(line for line in (kept / attributes).read_text().splitlines() if line.startswith("000004"))
    wrong = {
        (attributes, f"{row}\n", ""): "Expected 5 images in .*, as its first line says, got 4",
        (attributes, row, f"{row} 1"): r"Expected an image and 40 values in line 6 of .*, got 41 values",
        (attributes, row, f"{row.rsplit(' ', 1)[0]} 0"): "Expected Attribute_36 of 000004.jpg to be -1 or 1",
        (attributes, "5\n", "40\n5 "): "Expected an image and 41 values",
        (attributes, "000004.jpg", "000009.jpg"): r"attributes of every image, but 1 of 5 .*, first 000004\.jpg",
        (attributes, "000004.jpg", "000003.jpg"): r"lists 000003\.jpg again in line",
        (attributes, " Attribute_36", ""): "Expected an image and 39 values",
        (attributes, "Attribute_36", "Bald"): "Expected the 40 attributes of CelebA in .*, got 39 names",
        (partition, "000004.jpg 2\n", ""): r"Expected a split of every image, but 1 of 5 .*, first 000004\.jpg",
        (partition, "000004.jpg 2", "000004.jpg 3"): r"split of 000004\.jpg to be 0 or 1 or 2 in line 4 of .*, got '3'",
        (partition, "000004.jpg 2\n000005.jpg 2", "000004.jpg 0\n000005.jpg 1"): r"Expected test images \(2\)",
    }
    for number, ((name, old, new), words) in enumerate(wrong.items(), 1):
        root = write(tmp_path / str(number))
        change(root, name, old, new)
        with pytest.raises(InputError, match=words):
            open_both(root)
    with pytest.raises(InputError, match=r"Expected data\.attribute .* 'Blond' \(did you mean Blond_Hair\?\)"):
        open_both(kept, attribute="Blond")
    (kept / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(InputError, match=r"got 1 of 2 that are missing, first 000003\.jpg"):
        open_both(kept)
    assert len(open_both(kept, on_error=OnError.skip)[0]) == 2
    for file in (kept / "img_align_celeba").iterdir():
        file.unlink()
    (kept / "img_align_celeba").rmdir()
    with pytest.raises(InputError, match="got no such folder"):
        open_both(kept)
    (kept / "Img" / "img_celeba").mkdir(parents=True)
    with pytest.raises(InputError, match=r"img_celeba, the pictures that the faces were cut from: unpack img_align"):
        open_both(kept)


def test_images_without_attributes_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path)
    for number in (6, 7):
        Image.new("RGB", (8, 10)).save(root / "img_align_celeba" / f"00000{number}.jpg")
    train, test = open_both(root)
    told = "3 of 7 files: 2 in neither list (000006.jpg, 000007.jpg), 1 of the validation split (000002.jpg)"
    assert train.left_out.describe() == test.left_out.describe() == told


def test_features_may_be_named_by_attributes(tmp_path: Path) -> None:
    train, _ = open_both(write(tmp_path))
    words, index = list_values(train), np.array([1, 0])
    assert list(words)[:2] == ["bald", "blond hair"]
    values = find_values(train, index)
    for place, attribute in enumerate(NAMES):
        assert values[:, place].tolist() == (train.labels(attribute)[index] == 1).tolist()
