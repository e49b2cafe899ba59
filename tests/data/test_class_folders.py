"""Any folder whose subfolders are the classes: both layouts, what is left out, what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.data.class_folders import ClassFolders, name_classes, open_class_folders
from infoscope.data.config import SKIP, Decoder, Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageError, ImageSet, Truth
from infoscope.data.reader import iterate_images
from infoscope.data.sets import make_image_sets
from infoscope.runtime.errors import InputError
from tests.support.data_sets import configure

CLASSES = ("cat", "hot_dog", "zebra")


def plant(root: Path, **n_images: int) -> Path:
    """Save pictures, each of its own colour, in folders; `a__b` is the folder b in a."""
    for place, (folder, n) in enumerate(n_images.items()):
        target = root / folder.replace("__", "/")
        target.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (8 + i, 12), (50 * place, 10 * i, 0)).save(target / f"{i:02d}.png")
    return root


def open_sets(root: Path, **options) -> tuple[ClassFolders, ClassFolders]:
    return open_class_folders(configure("class_folders", root, **options))


def refuse(root: Path, *parts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        open_sets(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def read_classes(images: ImageSet) -> list[str]:
    return [images.class_ids[label] for label in images.labels("class")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of eight pictures, one of them in folders of its own."""
    return plant(tmp_path / "set", cat=8, hot_dog=4, hot_dog__more=4, zebra=8)


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    folders = {f"{split}__{name}": n for split, n in (("train", 3), ("val", 2)) for name in CLASSES}
    return plant(tmp_path / "divided", **folders)


class TestHashed:
    def test_folders_are_classes(self, root):
        train, test = open_sets(root, test_share=0.3)
        for images in (train, test):
            assert images.truths == {Truth.labels}
            assert images.class_ids == CLASSES
            assert images.class_names == ("cat", "hot dog", "zebra")
            assert read_classes(images) == [name.split("/")[0] for name in images.image_ids]
            assert images.image_ids == sorted(images.image_ids)
        assert len(train) + len(test) == 24
        assert any("more/" in name for name in train.image_ids)
        for index, name in enumerate(test.image_ids):  # the labels are those of what is read
            with Image.open(root / name) as image:
                assert np.array_equal(test.photograph(index), np.array(image))

    def test_the_split_is_that_of_an_image_folder_and_other_files_move_none(self, root):
        before = open_sets(root, test_share=0.4, seed=3)
        for images in before:
            assert images.image_ids == ImageFolder(root, images.split, test_share=0.4, seed=3).image_ids
        plant(root, ant=5)
        shutil.copy(root / "cat" / "00.png", root / "cat" / "new.png")
        for old, new in zip(before, open_sets(root, test_share=0.4, seed=3), strict=True):
            kept = [name for name in new.image_ids if not name.startswith("ant/") and "new" not in name]
            assert kept == old.image_ids
            assert read_classes(new) == [name.split("/")[0] for name in new.image_ids]

    def test_a_class_without_images_in_a_split_keeps_its_number(self, tmp_path):
        root = plant(tmp_path, a=1, b=1, c=30)
        train, test = open_sets(root, test_share=0.2)
        assert train.n_classes == test.n_classes == 3
        assert "a" not in read_classes(test)
        assert test.describe()["classes without images"].startswith("2 (a, b)")
        assert test.describe()["images of a class"].startswith("0 to ")
        assert "classes without images" not in train.describe()

    def test_labels_follow_the_draw(self, root):
        whole = dict(zip(*(lambda s: (s.image_ids, s.labels("class")))(open_sets(root)[0]), strict=True))
        train, _ = make_image_sets(configure("class_folders", root, max_train=6, seed=2))
        train_all, _ = make_image_sets(configure("class_folders", root, seed=2))
        assert len(train) == 6 < len(train_all)
        assert [whole[name] for name in train.image_ids if name in whole] == [
            label for name, label in zip(train.image_ids, train.labels("class"), strict=True) if name in whole
        ]
        assert train.class_ids == CLASSES
        assert read_classes(train) == [name.split("/")[0] for name in train.image_ids]

    def test_what_lies_beside_is_left_out_and_counted(self, root):
        for name in ("loose.png", "notes.txt", "cat/.hidden.png", ".cache/k.png", "cat/a.heic"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).touch()
        (root / "empty").mkdir()
        (root / "texts").mkdir()
        (root / "texts" / "a.txt").touch()
        train, test = open_sets(root)
        assert train.class_ids == CLASSES
        assert train.left_out.counts == test.left_out.counts
        assert train.left_out.counts == {
            "images outside of the class folders": 1,
            "folders without images": 2,
            "hidden": 1,
            "hidden folders": 1,
            ".txt": 2,
            ".heic": 1,
        }
        assert train.left_out.n_read == 24
        assert train.left_out.first["folders without images"] == ["empty", "texts"]

    def test_links_to_class_folders(self, root, tmp_path):
        plant(tmp_path / "elsewhere", dog=3)
        (root / "dog").symlink_to(tmp_path / "elsewhere" / "dog", target_is_directory=True)
        (root / "same").symlink_to(root / "cat", target_is_directory=True)
        train, _ = open_sets(root, test_share=0.0)
        assert train.class_ids == ("cat", "dog", "hot_dog", "zebra")
        assert read_classes(train).count("dog") == 3
        assert train.left_out.first["folders met before by another path"] == ["same"]

    def test_one_folder_of_a_split_alone(self, divided):
        (divided / "val").rename(divided.parent / "away")
        found, expected = open_sets(divided, test_share=0.3), open_sets(divided / "train", test_share=0.3)
        for one, other in zip(found, expected, strict=True):
            assert one.fingerprint == other.fingerprint
            assert one.image_ids == other.image_ids
        assert found[0].describe()["layout"] == "class folders in train, data.test_share=0.3 of their images held out"

    def test_a_class_may_be_called_train(self, tmp_path):
        train, _ = open_sets(plant(tmp_path, bus=2, train=2, car=2), test_share=0.0)
        assert train.class_ids == ("bus", "car", "train")


class TestDivided:
    def test_folders_divide(self, divided):
        train, test = open_sets(divided)
        assert (len(train), len(test)) == (9, 6)
        assert train.image_ids[:2] == ["cat/00.png", "cat/01.png"]
        for images in (train, test):
            assert images.class_ids == CLASSES
            assert read_classes(images) == [name.split("/")[0] for name in images.image_ids]
            assert images.describe()["layout"] == "class folders in train and val"
        with Image.open(divided / "val" / "zebra" / "01.png") as image:
            assert np.array_equal(test.photograph(5), np.array(image))

    @pytest.mark.parametrize(
        ("names", "taken"),
        [
            (("Train", "Val"), "Val"),
            (("Training", "Testing"), "Testing"),
            (("train", "valid", "test"), "test"),
            (("train", "validation", "valid"), "valid"),
        ],
    )
    def test_names_of_the_splits(self, tmp_path, names, taken):
        plant(tmp_path, **{f"{split}__{name}": 2 for split in names for name in CLASSES})
        train, test = open_sets(tmp_path)
        assert train.describe()["layout"] == f"class folders in {names[0]} and {taken}"
        assert train.left_out.n_read == len(train) + len(test) == 12
        others = {f"images outside of the class folders of {names[0]} and {taken}": 6}
        assert train.left_out.counts == (others if len(names) > 2 else {})

    def test_a_flat_folder_of_test_images_gives_way_to_val(self, divided):
        plant(divided, test=4)
        train, test = open_sets(divided)
        assert test.describe()["layout"] == "class folders in train and val"
        assert train.left_out.counts == {"images outside of the class folders of train and val": 4}
        shutil.rmtree(divided / "val")
        refuse(divided, f"Expected class folders in {divided / 'test'}", f"set data.root={divided / 'train'}, of whose")

    def test_the_classes_must_be_the_same(self, divided):
        plant(divided, val__yak=1)
        words = "got 1 of which only one of them has any, first yak (val has some, train has none)"
        refuse(divided, f"in train and val of {divided}", words, f"or set data.root={divided / 'train'}.")
        shutil.rmtree(divided / "val" / "yak")
        for file in (divided / "val" / "cat").iterdir():
            file.unlink()
        refuse(divided, "first cat (train has some, val has none)")

    @pytest.mark.parametrize("given", [{"test_share": 0.3}, {"seed": 4}])
    def test_settings_of_another_split_are_refused(self, divided, given):
        ((name, value),) = given.items()
        refuse(divided, f"data.{name}={value} is not read where folders divide the images (train and val of", **given)
        if name == "seed":
            train, _ = make_image_sets(configure("class_folders", divided, seed=4, max_train=5))
            assert len(train) == 5


class TestOrderAndNames:
    def test_numbers_are_in_the_order_of_numbers(self, tmp_path):
        train, _ = open_sets(plant(tmp_path, **{str(i): 1 for i in range(12)}), test_share=0.0)
        assert train.class_ids == tuple(map(str, range(12)))
        train, _ = open_sets(plant(tmp_path, other=1), test_share=0.0)
        assert train.class_ids[:4] == ("0", "1", "10", "11")

    def test_blanks_for_underscores_unless_two_would_be_one(self):
        assert name_classes(["a_b", "c__d_", "_"]) == ("a b", "c d", "_")
        assert name_classes(["a b", "a_b", "c_d"]) == ("a b", "a_b", "c d")
        assert name_classes([os.fsdecode(b"caf\xe9")]) == ("caf�",)

    def test_wnids_have_the_names_of_imagenet(self, tmp_path):
        train, _ = open_sets(plant(tmp_path, n01440764=1, n01443537=1), test_share=0.0)
        assert train.class_names == ("tench", "goldfish")
        assert train.class_ids == ("n01440764", "n01443537")
        train, _ = open_sets(plant(tmp_path, n00000001=1), test_share=0.0)  # none of the 1,000
        assert train.class_names == train.class_ids == ("n00000001", "n01440764", "n01443537")

    def test_another_target(self, root):
        with pytest.raises(
            InputError, match=r"of class folders \(class\), got 'colour': choose another by probe\.target"
        ):
            open_sets(root)[0].labels("colour")


class TestRefused:
    def test_fewer_than_two_classes(self, tmp_path):
        plant(tmp_path / "flat", photos=3)
        refuse(tmp_path / "flat" / "photos", "Expected at least two class folders with images in", "got none: set data")
        refuse(
            tmp_path / "flat", "got one (photos): set data.root to a folder whose subfolders are the classes, or give"
        )
        plant(tmp_path / "deep", pictures__cat=2, pictures__dog=2)
        refuse(tmp_path / "deep", "got one (pictures): set data.root to", f"such as {tmp_path / 'deep' / 'pictures'}")
        (tmp_path / "none" / "cat").mkdir(parents=True)
        refuse(tmp_path / "none", "Expected images, but", "holds no file with the suffix")
        (tmp_path / "list.txt").touch()
        refuse(tmp_path / "list.txt", "list.txt is a file: set data.root to a folder.")
        refuse(tmp_path / "nowhere", "Expected a folder of images at", "check data.root")

    def test_folders_that_are_splits_and_no_classes(self, tmp_path):
        plant(tmp_path, seg_train__sea=2, seg_test__sea=2, seg_pred=1)
        refuse(tmp_path, "or the folders train and test of them, got 3 (seg_pred, seg_test, seg_train): set data.root")

    def test_maps_are_no_classes(self, tmp_path):
        plant(tmp_path, images__a=2, masks__a=2)
        refuse(tmp_path, "2 images below", "are maps of labels or depth")

    def test_all_images_held_out(self, root):
        refuse(root, "data.test_share=0.999 holds out all 24 images", test_share=0.999)

    def test_an_unreadable_image(self, root):
        (root / "cat" / "00.png").write_text("no picture")
        images, _ = open_sets(root, test_share=0.0)
        with pytest.raises(ImageError, match=r"cat/00\.png"):
            images.check_image(0)
        images, _ = open_sets(root, test_share=0.0, on_error=SKIP)
        read = [int(i) for batch in iterate_images(images, 16, 4, on_error=SKIP) for i in batch.index]
        assert read == list(range(1, 24))
        assert list(images.skipped) == ["cat/00.png"]


class TestFingerprint:
    def test_what_changes_it(self, root, divided):
        found = [
            open_sets(root)[0],
            open_sets(root)[1],
            open_sets(root, seed=1)[0],
            open_sets(root, resize=Resize.crop)[0],
            open_sets(root, on_error=SKIP)[0],
            open_sets(root, decoder=Decoder.torchvision)[0],
            *open_sets(divided),
        ]
        assert len({str(images.fingerprint) for images in found}) == len(found)
        before = open_sets(root)[0].fingerprint
        moved = root.rename(root.parent / "moved")
        assert open_sets(moved)[0].fingerprint == before
        (moved / "zebra").rename(moved / "yak")
        assert open_sets(moved)[0].fingerprint != before

    def test_the_name_of_the_folder_of_test_images_does_not_matter(self, divided):
        before = [images.fingerprint for images in open_sets(divided)]
        (divided / "val").rename(divided / "Testing")
        (divided / "train").rename(divided / "Training")
        assert [images.fingerprint for images in open_sets(divided)] == before

    def test_a_class_that_has_images_in_the_other_split_alone_counts(self, tmp_path):
        _, test = open_sets(plant(tmp_path, a=1, b=1, c=30), test_share=0.2)
        (tmp_path / "a").rename(tmp_path / "aa")
        assert "aa" not in read_classes(open_sets(tmp_path, test_share=0.2)[1])
        assert open_sets(tmp_path, test_share=0.2)[1].fingerprint != test.fingerprint


def test_real_photographs() -> None:
    samples = os.environ.get("INFOSCOPE_SAMPLES")
    if not samples:
        pytest.skip("INFOSCOPE_SAMPLES is not set")
    train, test = open_sets(Path(samples) / "imagenet")  # val alone lies there
    assert len(train) + len(test) == train.n_classes == 400
    assert train.class_names[:2] == ("tench", "goldfish")
    assert train.describe()["images of a class"] == "0 to 1"
