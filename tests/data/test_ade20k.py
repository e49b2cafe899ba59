"""ADE20K in the benchmark's layout, written here and read back; real samples where INFOSCOPE_SAMPLES is set."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

from infoscope.data.ade20k import ADE20K
from infoscope.data.check import check_sample
from infoscope.data.config import SKIP, Resize
from infoscope.data.images import ImageError, Truth
from infoscope.data.reader import iterate_images
from infoscope.probes.metrics import SegmentationMetrics
from infoscope.runtime.errors import InputError
from tests.support.data_sets import open_set

RNG = np.random.default_rng(0)
SIZES = [(30, 20), (16, 24), (20, 20)]  # width, height


def photograph(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_file(root: Path, number: int, split: str = "validation") -> Path:
    return root / "images" / split / f"ADE_{split.removesuffix('ing').removesuffix('idation')}_{number:08d}.jpg"


def annotation_file(root: Path, number: int, split: str = "validation") -> Path:
    return root / "annotations" / split / image_file(root, number, split).with_suffix(".png").name


@pytest.fixture
def root(tmp_path) -> Path:
    """ADEChallengeData2016 with three images in each split; annotation i holds the values i..150 row by row."""
    root = tmp_path / "data" / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for number, (width, height) in enumerate(SIZES, 1):
            for file in (image_file(root, number, split), annotation_file(root, number, split)):
                file.parent.mkdir(parents=True, exist_ok=True)
            photograph(width, height).save(image_file(root, number, split), quality=95)
            Image.fromarray(make_annotation(number, width, height)).save(annotation_file(root, number, split))
    rows = [f"{i}\t0.1\t10\t1\tthing {i}, object {i}" for i in range(1, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    return root


def make_annotation(number: int, width: int, height: int) -> np.ndarray:
    return ((np.arange(width * height) + number) % 151).astype(np.uint8).reshape(height, width)


def assert_one_sentence(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    for part in parts:
        assert part in message


def refuse(root: Path, *parts: str, split: str = "test", **options) -> None:
    with pytest.raises(InputError) as caught:
        open_set(ADE20K, root, split, **options)
    assert_one_sentence(caught.value, *parts)


def refuse_map(root: Path, *parts: str) -> None:
    """The second validation image: refused when its map is read, and when it is checked."""
    images = open_set(ADE20K, root, "test")
    for read in (images.label_map, images.check_image):
        with pytest.raises(InputError) as caught:
            read(1)
        assert_one_sentence(caught.value, *parts)


class TestReading:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_what_was_written(self, root, split):
        images = open_set(ADE20K, root, split)
        prefix, folder = {"train": ("ADE_train", "training"), "test": ("ADE_val", "validation")}[split]
        assert images.image_ids == [f"{prefix}_{number:08d}" for number in (1, 2, 3)]
        assert images.truths == {Truth.label_maps}
        for i, (width, height) in enumerate(SIZES):
            written = make_annotation(i + 1, width, height).astype(int)
            label_map = images.label_map(i)
            assert label_map.dtype == np.uint8
            assert np.array_equal(label_map, np.where(written == 0, 255, written - 1))
            assert images.load(i, 12).shape == (12, 12, 3)
            with Image.open(image_file(root, i + 1, folder)) as image:
                expected = np.array(image.resize((12, 12), Image.Resampling.BICUBIC))
            assert np.array_equal(images.load(i, 12), expected)
            assert images.check_image(i) == {"size": f"{width}x{height}", "mode": "RGB"}

    def test_150_classes_with_the_first_synonym(self, root):
        images = open_set(ADE20K, root.parent, "test")  # the folder it lies in
        assert images.label_names == tuple(f"thing {i}" for i in range(1, 151))
        assert images.describe() == {
            "layout": "ADEChallengeData2016, validation",
            "images": "3",
            "classes": "150, named by objectInfo150.txt",
        }

    def test_without_names_they_are_numbered(self, root):
        (root / "objectInfo150.txt").unlink()
        images = open_set(ADE20K, root, "test")
        assert images.label_names == tuple(str(i) for i in range(1, 151))
        assert "objectInfo150.txt is missing" in images.describe()["classes"]

    def test_other_names(self, root):
        (root / "objectInfo150.txt").write_text("Idx\tName\n1\twall\n")
        refuse(root, "objectInfo150.txt", "1 to 150")

    def test_the_indices_of_a_palette_are_the_labels(self, root):
        values = make_annotation(2, 16, 24)
        coloured = Image.fromarray(values)
        coloured.putpalette(bytes(range(255, -1, -1)) * 3)
        assert coloured.mode == "P"
        coloured.save(annotation_file(root, 2))
        assert np.array_equal(open_set(ADE20K, root, "test").label_map(1), values - np.uint8(1))

    def test_batches_through_workers_and_pickles(self, root):
        images = pickle.loads(pickle.dumps(open_set(ADE20K, root, "test")))
        alone = list(iterate_images(images, 12, 2))
        read_ahead = list(iterate_images(images, 12, 2, n_workers=2))
        assert all(torch.equal(a.images, b.images) for a, b in zip(alone, read_ahead, strict=True))

    def test_a_damaged_image_can_be_skipped_a_damaged_annotation_not(self, root):
        image_file(root, 2).write_bytes(b"nothing")
        images = open_set(ADE20K, root, "test", on_error=SKIP)
        with pytest.raises(ImageError, match=r"ADE_val_00000002\.jpg"):
            images.check_image(1)
        assert [batch.index.tolist() for batch in iterate_images(images, 12, 3, on_error=SKIP)] == [[0, 2]]
        shutil.copy(image_file(root, 2, "training"), image_file(root, 2))
        annotation_file(root, 2).write_bytes(annotation_file(root, 2).read_bytes()[:60])
        refuse_map(root, "ADE_val_00000002.png", "replace it")


class TestFingerprint:
    def test_a_moved_and_touched_folder_keeps_it(self, root, tmp_path):
        moved = tmp_path / "moved"
        shutil.copytree(root, moved, copy_function=shutil.copyfile)
        for file in moved.rglob("*.*"):
            os.utime(file, (0, 0))
        assert open_set(ADE20K, moved, "test").fingerprint == open_set(ADE20K, root, "test").fingerprint
        assert str(tmp_path) not in str(open_set(ADE20K, root, "test").fingerprint)

    def test_split_image_annotation_and_on_error_change_it(self, root):
        found = [open_set(ADE20K, root, "test").fingerprint]
        found += [
            open_set(ADE20K, root, "train").fingerprint,
            open_set(ADE20K, root, "test", on_error=SKIP).fingerprint,
        ]
        Image.fromarray(np.zeros((24, 16), np.uint8)).save(annotation_file(root, 2))
        found.append(open_set(ADE20K, root, "test").fingerprint)
        photograph(16, 24).save(image_file(root, 2))
        found.append(open_set(ADE20K, root, "test").fingerprint)
        assert len({str(fingerprint) for fingerprint in found}) == len(found)
        assert found[0]["hashed"] == "whole files"


class TestRefusals:
    def test_a_missing_folder_a_file_and_another_folder(self, root, tmp_path):
        refuse(tmp_path / "nowhere", "nowhere", "no such file or directory", "data.root")
        refuse(image_file(root, 1), "not a directory", "data.root")
        refuse(root / "images", "ADEChallengeData2016", "images and annotations", "data.root")

    def test_a_missing_split(self, root):
        shutil.rmtree(root / "images" / "training")
        refuse(root, "train images", "images/training", "ADEChallengeData2016.zip", split="train")
        assert len(open_set(ADE20K, root, "test")) == 3
        shutil.rmtree(root / "annotations" / "validation")
        refuse(root, "annotations/validation")

    def test_what_is_left_out_and_other_formats(self, root):
        before = open_set(ADE20K, root, "test").fingerprint
        for name in ("images/validation/Thumbs.db", "images/validation/._x.jpg", "annotations/validation/a.txt"):
            (root / name).touch()
        images = open_set(ADE20K, root, "test")
        assert images.fingerprint == before
        assert images.left_out.counts == {".db": 1, "hidden": 1, ".txt": 1}
        with Image.open(image_file(root, 2)) as image:
            image.save(image_file(root, 2).with_suffix(".PNG"))
        refuse(root, "one file ADE_val_00000002", "ADE_val_00000002.PNG and ADE_val_00000002.jpg")
        image_file(root, 2).unlink()
        assert open_set(ADE20K, root, "test").check_image(1) == {"size": "16x24", "mode": "RGB"}

    def test_an_empty_split(self, root):
        for number in (1, 2, 3):
            image_file(root, number).unlink()
            annotation_file(root, number).unlink()
        refuse(root, "there is none")

    def test_an_unknown_split_and_a_crop(self, root):
        refuse(root, "train or test, got 'val'", split="val")
        refuse(root, "data.resize=squash", "got crop", resize=Resize.crop)

    def test_images_without_annotation_and_the_other_way_round(self, root):
        annotation_file(root, 2).unlink()
        annotation_file(root, 3).unlink()
        refuse(root, "an annotation", "2 have none", "the first: ADE_val_00000002.jpg", "images/validation")
        image_file(root, 1, "training").unlink()
        image_file(root, 2, "training").unlink()
        refuse(root, "an image", "2 have none", "the first: ADE_train_00000001.png", split="train")

    def test_the_full_data_set_by_its_annotations(self, root):
        photograph(16, 24).save(annotation_file(root, 2))
        refuse_map(root, "ADE_val_00000002.png has colours", "full ADE20K", "ADEChallengeData2016.zip")
        annotation_file(root, 3).rename(root / "annotations" / "validation" / "ADE_val_00000003_seg.png")
        refuse(root, "ADE_val_00000003_seg.png", "full ADE20K", "ADEChallengeData2016.zip")

    @pytest.mark.parametrize(
        "place",
        [
            "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000001_seg.png",
            "ADE20K_2016_07_26/images/validation/a/abbey/ADE_val_00000001_seg.png",
            "renamed/images/validation/a/abbey/ADE_val_00000001_seg.png",
        ],
    )
    def test_the_full_data_set_by_its_folders(self, tmp_path, place):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        photograph(4, 4).save(file)
        root = tmp_path / place.split("/")[0]
        refuse(root, "full ADE20K", "ADEChallengeData2016.zip")
        if root.name != "renamed":
            refuse(tmp_path, root.name, "full ADE20K", "ADEChallengeData2016.zip")

    def test_another_size(self, root):
        Image.fromarray(make_annotation(2, 24, 16)).save(annotation_file(root, 2))
        refuse_map(root, "ADE_val_00000002.png", "16x24, got 24x16")

    def test_the_size_is_that_of_the_upright_image(self, root):
        exif = Image.Exif()
        exif[0x0112] = 6
        photograph(24, 16).save(image_file(root, 2), exif=exif)
        assert open_set(ADE20K, root, "test").check_image(1)["size"] == "16x24"

    @pytest.mark.parametrize("value", [151, 255])
    def test_a_value_above_150(self, root, value):
        values = make_annotation(2, 16, 24)
        values[3, 4] = value
        Image.fromarray(values).save(annotation_file(root, 2))
        refuse_map(root, "0 to 150", f"holds {value}", "ADE_val_00000002.png")

    def test_classes_counted_from_0(self, root):
        values = make_annotation(2, 16, 24) - np.uint8(1)  # what makes 255 of "other"
        Image.fromarray(values).save(annotation_file(root, 2))
        refuse_map(root, "holds 255", "counted from 0", "unchanged")
        with pytest.raises(InputError, match="counted from 0"):
            check_sample(open_set(ADE20K, root, "test"))

    def test_16_bits_and_1(self, root):
        Image.fromarray(make_annotation(2, 16, 24).astype(np.uint16)).save(annotation_file(root, 2))
        refuse_map(root, "8 bits", "has 16 bits")
        Image.fromarray(make_annotation(2, 16, 24) > 70).save(annotation_file(root, 2))
        refuse_map(root, "8 bits", "mode 1")


class TestRealSamples:
    """Validation images 1 and 2 of the benchmark."""

    @pytest.fixture
    def images(self) -> ADE20K:
        samples = os.environ.get("INFOSCOPE_SAMPLES")
        if not samples:
            pytest.skip("INFOSCOPE_SAMPLES is not set")
        return open_set(ADE20K, samples, "test")

    def test_they_are_read(self, images):
        assert images.image_ids == ["ADE_val_00000001", "ADE_val_00000002"]
        assert images.label_names[:4] == ("wall", "building", "sky", "floor")
        assert len(set(images.label_names)) == 150
        facts = [images.check_image(i) for i in range(2)]
        assert facts == [{"size": "683x512", "mode": "RGB"}, {"size": "500x364", "mode": "RGB"}]
        assert {images.label_names[label] for label in np.unique(images.label_map(1)) if label != 255} >= {"building"}
        with pytest.raises(InputError, match="images/training"):
            open_set(ADE20K, images.root, "train")

    def test_a_perfect_prediction(self, images):
        """Its mean IoU is 1; with absent classes as 0 it would be the share of the 150 classes that occur."""
        ours, theirs = SegmentationMetrics(1, 150), MulticlassJaccardIndex(150, ignore_index=255)
        occurring = set()
        for i in range(2):
            truth = torch.from_numpy(images.label_map(i))
            prediction = truth.long().masked_fill(truth == 255, 7)  # what is said of ignored pixels counts nowhere
            ours.update(prediction[None], truth)
            theirs.update(prediction.flatten(), truth.long().flatten())
            occurring |= set(truth.unique().tolist()) - {255}
        values = {name: value.item() for name, value in ours.compute().items()}
        assert values["miou"] == values["pixel_accuracy"] == theirs.compute().item() == 1
        assert values["miou_absent_zero"] == pytest.approx(len(occurring) / 150)
        assert len(occurring) == 8

    def test_a_wrong_prediction(self, images):
        """Shifted by 20 pixels: torchmetrics and a count by numpy say the same."""
        ours, theirs = SegmentationMetrics(1, 150), MulticlassJaccardIndex(150, ignore_index=255)
        hits, union = np.zeros(150), np.zeros(150)
        for i in range(2):
            truth = images.label_map(i)
            prediction = np.roll(truth, 20, axis=1)
            prediction[prediction == 255] = 149
            ours.update(torch.from_numpy(prediction)[None], torch.from_numpy(truth))
            theirs.update(torch.from_numpy(prediction).long().flatten(), torch.from_numpy(truth).long().flatten())
            for label in range(150):
                said, true = (prediction == label) & (truth != 255), truth == label
                hits[label] += (said & true).sum()
                union[label] += (said | true).sum()
        miou = ours.compute()["miou"].item()
        assert miou == pytest.approx((hits[union > 0] / union[union > 0]).mean())
        assert miou == pytest.approx(theirs.compute().item(), abs=1e-6)
        assert 0.1 < miou < 0.95
