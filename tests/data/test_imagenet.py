import io
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image
from scipy.io import savemat

from infoscope.data.config import SKIP, Resize
from infoscope.data.imagenet import ImageNet, _check_order, get_wnids, open_imagenet
from infoscope.data.images import Truth
from infoscope.data.reader import iterate_images
from infoscope.runtime.errors import InputError
from tests.support.data_sets import configure, open_set

WNIDS = get_wnids()
FEW = (WNIDS[0], WNIDS[134], WNIDS[639])  # tench, crane bird, one-piece bathing suit: three classes, not neighbours
POSITIONS = (0, 134, 639)
# ILSVRC2012_IDs of these classes, in another order than the wnids, as in the devkit.
IDS = {WNIDS[0]: 3, WNIDS[134]: 1, WNIDS[639]: 2}


def encode(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 12), (red, 0, 0)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write(file: Path, content: bytes | str = b"") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def write_folders(root: Path, split: str, wnids: Iterable[str], n: int = 2, *, empty: bool = False) -> None:
    for wnid in wnids:
        for i in range(n):
            data = b"" if empty else encode(WNIDS.index(wnid) // 4 + i)
            write(root / split / wnid / f"{wnid}_{i}.JPEG", data)


def write_flat(root: Path, classes: Iterable[str], *, empty: bool = False) -> None:
    for i, wnid in enumerate(classes, 1):
        write(root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG", b"" if empty else encode(WNIDS.index(wnid) // 4))


def write_devkit(folder: Path, classes: Iterable[str], ids: dict[str, int]) -> Path:
    """As ILSVRC2012_devkit_t12/data: ids of the images, and synsets, those with subclasses after the others."""
    rows = [(n, wnid, "words", "gloss", 0, np.array([]), 0, 1300) for wnid, n in ids.items()]
    rows.append((len(ids) + 1, "n00001740", "entity", "all", 2, np.array([1, 2]), 9, 0))
    names = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    synsets = np.array(rows, dtype=[(name, object) for name in names]).reshape(-1, 1)
    savemat(folder / "meta.mat", {"synsets": synsets})
    lines = "".join(f"{ids[wnid]}\n" for wnid in classes)
    return write(folder / "ILSVRC2012_validation_ground_truth.txt", lines)


def write_solution(file: Path, classes: Iterable[str]) -> Path:
    """As Kaggle's LOC_val_solution.csv: in no order, one box or more."""
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 111 108 230 212 {wnid} 1 2 3 4 " for i, wnid in enumerate(classes, 1)]
    return write(file, "ImageId,PredictionString\n" + "\n".join(reversed(rows)) + "\n")


def write_tar(file: Path, labels: dict[str, int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for key, label in labels.items():
            for name, data in ((f"{key}.cls", str(label).encode()), (f"{key}.jpg", encode(label // 4))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def refused(root: Path, split: str, *parts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        open_set(ImageNet, root, split, **options)
    assert_one_sentence(caught.value, *parts)


def assert_one_sentence(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert ". " not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def assert_reads(images: ImageNet, classes: Iterable[str], layout: str) -> None:
    """The pictures are those of their labels, and the names those of the classes."""
    classes = list(classes)
    assert images.describe()["layout"] == layout
    assert images.describe()["images"] == str(len(classes))
    assert images.image_ids == sorted(set(images.image_ids))
    assert images.n_classes == images.n_target_classes("class") == len(images.class_names)
    assert [images.class_ids[i] for i in images.labels("class")] == classes
    assert images.labels("class").dtype == np.int64
    assert images.class_names == tuple(IMAGENET_CLASSNAMES[WNIDS.index(wnid)] for wnid in images.class_ids)
    for i, wnid in enumerate(classes):
        assert abs(int(images.load(i, 8)[0, 0, 0]) - WNIDS.index(wnid) // 4) < 4
    assert images.check_image(0) == {"mode": "RGB", "format": "JPEG"}
    assert images.truths == {Truth.labels}


class TestClassFolders:
    def test_a_subset(self, tmp_path):
        write_folders(tmp_path, "train", FEW)
        write_folders(tmp_path, "val", FEW, 1)
        train, test = open_imagenet(configure("imagenet", tmp_path, subset=True))
        assert_reads(train, np.repeat(FEW, 2).tolist(), "class folders")
        assert_reads(test, FEW, "class folders")
        assert (train.split, test.split) == ("train", "test")
        assert train.class_names == ("tench", "crane bird", "one-piece bathing suit")
        assert train.image_ids[0] == f"{FEW[0]}/{FEW[0]}_0.JPEG"

    def test_all_thousand_in_kaggles_nesting(self, tmp_path):
        base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
        write_folders(base, "train", WNIDS, 1, empty=True)
        write(base / "train" / ".DS_Store")
        write(base / "train" / "notes.txt")
        write(base / "train" / WNIDS[0] / "._x.JPEG")
        train = open_set(ImageNet, tmp_path, "train")
        assert train.labels("class").tolist() == list(range(1000))
        assert train.class_names == tuple(IMAGENET_CLASSNAMES)
        assert train.left_out.counts == {"hidden": 2, ".txt": 1}
        write(base / "train" / "loose.jpg")
        write(base / "train" / WNIDS[0] / "images" / "x.jpg")
        write(base / "train" / WNIDS[0] / "x.heic")
        assert open_set(ImageNet, tmp_path, "train").left_out.first == {
            "hidden": ["train/.DS_Store", f"{WNIDS[0]}/._x.JPEG"],
            ".txt": ["train/notes.txt"],
            "outside of the class folders": ["train/loose.jpg"],
            "subfolders": [f"{WNIDS[0]}/images"],
            ".heic": [f"{WNIDS[0]}/x.heic"],
        }
        assert open_set(ImageNet, base, "train").image_ids == train.image_ids

        for name in (WNIDS[700], WNIDS[701]):
            (base / "train" / name).rename(base / "train" / f".{name}")
        refused(tmp_path, "train", f"998 of 1000 class folders found, first missing: {WNIDS[700]}; data.subset=true")
        assert open_set(ImageNet, tmp_path, "train", subset=True).n_classes == 998

        for name in (WNIDS[700], WNIDS[701]):
            (base / "train" / f".{name}").rename(base / "train" / name)
        write_folders(base, "train", [WNIDS[0]], 1)
        (base / "train" / "n99999999").mkdir()
        refused(tmp_path, "train", "got 1 that are none of them, first 'n99999999'")

    def test_folders_that_are_no_classes(self, tmp_path):
        write_folders(tmp_path, "val", FEW)
        (tmp_path / "val" / "tench").mkdir()
        (tmp_path / "val" / "n00000001").mkdir()
        words = (
            "first 'n00000001': remove what is not ImageNet-1k, or set data=class_folders, which takes classes of any"
        )
        refused(tmp_path, "test", "got 2 that are none of them", words, subset=True)

    def test_classes_of_other_names(self, tmp_path):
        own, alone, flat = (tmp_path / name for name in ("own", "alone", "flat"))
        for name in ("cat", "dog"):
            write(own / name / "1.jpg")
        refused(own, "train", "or data=class_folders if its subfolders are the classes.")
        write(flat / "val" / "1.jpg")
        refused(flat, "train", f"for one folder give data=image_folder data.root={flat / 'val'}.")
        write_folders(alone, "val", FEW)
        refused(alone, "train", f"for one folder give data=class_folders data.root={alone / 'val'}.")

    def test_an_empty_class(self, tmp_path):
        write_folders(tmp_path, "val", FEW)
        (tmp_path / "val" / WNIDS[1]).mkdir()
        refused(tmp_path, "test", f"Expected images in {tmp_path / 'val' / WNIDS[1]}, got none", subset=True)

    def test_splits_of_other_classes(self, tmp_path):
        write_folders(tmp_path, "train", FEW)
        write_folders(tmp_path, "val", (*FEW[:2], WNIDS[5], WNIDS[6]))
        with pytest.raises(InputError) as caught:
            open_imagenet(configure("imagenet", tmp_path, subset=True))
        assert_one_sentence(caught.value, f"got 3 that only one of them has, first {WNIDS[5]} (val has it, train does")

    def test_a_missing_split(self, tmp_path):
        write_folders(tmp_path, "val", FEW)
        refused(tmp_path, "train", f"Expected the folder train or tar files with train in their names in {tmp_path}")
        refused(tmp_path / "val", "test", "Expected the folder val", "data.root")
        refused(tmp_path / "nowhere", "test", "Expected the folder of ImageNet at", "data.root")
        refused(tmp_path, "val", "train or test, got 'val'")
        (tmp_path / "train").mkdir()
        refused(tmp_path, "train", "Expected class folders in", "got none")

    def test_a_folder_that_may_not_be_listed(self, tmp_path, monkeypatch):
        write_folders(tmp_path, "val", FEW)
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith(FEW[1]):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        refused(tmp_path, "test", FEW[1], "Permission denied", subset=True)

    def test_another_target(self, tmp_path):
        write_folders(tmp_path, "val", FEW)
        with pytest.raises(InputError, match=r"Expected a target of ImageNet \(class\), got 'colour'"):
            open_set(ImageNet, tmp_path, "test", subset=True).labels("colour")


ORDER = (FEW[2], FEW[0], FEW[1], FEW[0])


class TestFlat:
    def test_the_devkit(self, tmp_path):
        write_flat(tmp_path, ORDER)
        truth = write_devkit(tmp_path / "devkit" / "data", ORDER, IDS)
        layout = "flat, classes from ILSVRC2012_validation_ground_truth.txt"
        assert_reads(open_set(ImageNet, tmp_path, "test", subset=True), ORDER, layout)
        elsewhere = tmp_path.parent / f"{tmp_path.name}-devkit"
        truth.parent.rename(elsewhere)
        refused(tmp_path, "test", "val is flat: give ground_truth=", subset=True)
        assert_reads(
            open_set(ImageNet, tmp_path, "test", ground_truth=str(elsewhere / truth.name), subset=True), ORDER, layout
        )

    def test_a_text_table_beside_it_and_wnids_in_it(self, tmp_path):
        write_flat(tmp_path, ORDER)
        truth = write_devkit(tmp_path, ORDER, IDS)
        (tmp_path / "meta.mat").unlink()
        refused(tmp_path, "test", f"Expected meta.mat next to {truth}, got none", subset=True)
        write(tmp_path / "map_clsloc.txt", "".join(f"{wnid} {n} some_words\n" for wnid, n in IDS.items()))
        assert_reads(open_set(ImageNet, tmp_path, "test", subset=True), ORDER, f"flat, classes from {truth.name}")
        (tmp_path / "map_clsloc.txt").unlink()
        write(truth, "\r\n".join(ORDER))
        assert_reads(open_set(ImageNet, tmp_path, "test", subset=True), ORDER, f"flat, classes from {truth.name}")

    def test_kaggle(self, tmp_path):
        base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
        write_flat(base, ORDER)
        write_solution(tmp_path / "LOC_val_solution.csv", ORDER)
        assert_reads(
            open_set(ImageNet, tmp_path, "test", subset=True), ORDER, "flat, classes from LOC_val_solution.csv"
        )

    @pytest.mark.long
    def test_all_thousand(self, tmp_path):
        order = WNIDS[::-1]
        write_flat(tmp_path, order, empty=True)
        ids = {wnid: n for n, wnid in enumerate(WNIDS[500:] + WNIDS[:500], 1)}
        write_devkit(tmp_path, order, ids)
        assert open_set(ImageNet, tmp_path, "test").labels("class").tolist() == list(range(999, -1, -1))
        write_solution(tmp_path / "LOC_val_solution.csv", (*order[:-1], order[0]))
        refused(tmp_path, "test", f"999 of 1000 classes found, first missing: {order[-1]}")
        write_solution(tmp_path / "LOC_val_solution.csv", (*order, order[0]))
        refused(tmp_path, "test", "for each of the 1000 images, got 1001")

    def test_another_order_of_the_whole_val(self, tmp_path):
        """The devkit's ids taken for ranks, say: known by the first images, whose classes are published."""
        names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 50_001)]
        positions = np.arange(50_000) % 1000
        positions[:10] = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332)
        _check_order(names, positions, tmp_path)
        positions[6] = 12
        with pytest.raises(InputError) as caught:
            _check_order([f"{WNIDS[65]}/{name}" for name in names], positions, tmp_path)
        assert_one_sentence(caught.value, f"ILSVRC2012_val_00000007 to be of class {WNIDS[334]}", WNIDS[12], "order")

    def test_a_subset_of_the_images(self, tmp_path):
        """The first files of val with the whole ground truth; but no image without a class."""
        write_flat(tmp_path, ORDER[:2])
        write_solution(tmp_path / "LOC_val_solution.csv", ORDER)
        assert len(open_set(ImageNet, tmp_path, "test", subset=True)) == 2
        refused(tmp_path, "test", "for each of the 2 images, got 4")
        write_solution(tmp_path / "LOC_val_solution.csv", ORDER[:1])
        refused(tmp_path, "test", "got none for 1 of 2, first ILSVRC2012_val_00000002.JPEG", subset=True)

    def test_no_ground_truth(self, tmp_path):
        write_flat(tmp_path, ORDER)
        refused(tmp_path, "test", "val is flat: give ground_truth=ILSVRC2012_validation_ground_truth.txt")
        refused(tmp_path, "test", "truth.txt, which is none", ground_truth=str(tmp_path / "truth.txt"))

    def test_a_ground_truth_that_does_not_fit(self, tmp_path):
        write_flat(tmp_path, ORDER)
        truth = write_devkit(tmp_path, ORDER, IDS)
        write(truth, "3\n4\n1\n3\n")  # 4 has subclasses
        refused(tmp_path, "test", "ILSVRC2012_ID from 1 to 3 or a wnid in line 2 of", "got '4'", subset=True)
        write(truth, b"\xff\xfe3")
        refused(tmp_path, "test", "it is no UTF-8 text", subset=True)
        write(truth, "1\n2\n3\n1\n")
        write(tmp_path / "val" / "dog.JPEG")
        refused(tmp_path, "test", "got dog.JPEG", subset=True)
        write(tmp_path / "meta.mat", b"MATLAB 5.0 MAT-file" * 20)
        refused(tmp_path, "test", "the devkit's table of classes in", "got none", subset=True)

    @pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "ImageId,PredictionString\nILSVRC2012_val_00000001\n"])
    def test_a_table_that_is_not_kaggles(self, tmp_path, text):
        write_flat(tmp_path, ORDER)
        write(tmp_path / "LOC_val_solution.csv", text)
        refused(tmp_path, "test", "LOC_val_solution.csv", subset=True)

    def test_an_unknown_wnid(self, tmp_path):
        write_flat(tmp_path, ORDER)
        write_solution(tmp_path / "LOC_val_solution.csv", (*ORDER[:3], "n12345678"))
        refused(tmp_path, "test", "LOC_val_solution.csv, got 1 that are none of them, first 'n12345678'", subset=True)


class TestTars:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        """As timm's: shards of both splits in one folder."""
        for shard in range(3):
            labels = {f"{wnid}_{shard}": p for wnid, p in zip(FEW, POSITIONS, strict=True)}
            write_tar(tmp_path / f"imagenet1k-train-{shard:04d}.tar", labels)
        keys = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 4)]
        write_tar(tmp_path / "imagenet1k-validation-00.tar", dict(zip(keys, POSITIONS, strict=True)))
        return tmp_path

    def test_timms_shards(self, root):
        train, test = open_imagenet(configure("imagenet", root, subset=True))
        assert_reads(train, np.repeat(FEW, 3).tolist(), "WebDataset tars")
        assert_reads(test, FEW, "WebDataset tars")
        assert train.describe()["shards"] == "3"
        copy = pickle.loads(pickle.dumps(train))
        assert_reads(copy, np.repeat(FEW, 3).tolist(), "WebDataset tars")
        assert sum(len(batch.index) for batch in iterate_images(train, 8, 2, n_workers=1)) == 9

    def test_shards_in_folders(self, root):
        for name, split in (("train", "train"), ("validation", "val")):
            (root / split).mkdir()
            for file in root.glob(f"*{name}*.tar"):
                file.rename(root / split / file.name)
        assert [len(images) for images in open_imagenet(configure("imagenet", root, subset=True))] == [9, 3]

    def test_all_thousand(self, tmp_path):
        write_tar(tmp_path / "imagenet1k-validation-00.tar", {f"k{i:04d}": 999 - i for i in range(1000)})
        images = open_set(ImageNet, tmp_path, "test")
        assert images.labels("class").tolist() == list(range(999, -1, -1))
        assert images.class_names == tuple(IMAGENET_CLASSNAMES)

    def test_too_few_and_wrong_classes(self, root):
        refused(root, "train", f"3 of 1000 classes found, first missing: {WNIDS[1]}", "train-{0000..0002}.tar")
        write_tar(root / "imagenet1k-validation-01.tar", {"a": 1000})
        refused(root, "test", "Expected labels 0 to 999", "got 1000 for a:", subset=True)
        write_tar(root / "imagenet1k-validation-00.tar", {"b": 1, "c": 1000})
        refused(root, "test", "and no 0, as if they were counted from 1", subset=True)
        write_tar(root / "imagenet1k-validation-00.tar", dict(zip("bcd", POSITIONS, strict=True)))
        write_tar(root / "imagenet1k-validation-01.tar", {"a": 1})
        with pytest.raises(InputError, match=f"first {WNIDS[1]} "):
            open_imagenet(configure("imagenet", root, subset=True))

    def test_shards_that_are_missing_or_mixed(self, root):
        (root / "imagenet1k-train-0001.tar").unlink()
        refused(root, "train", "Expected the 3 tar files", "imagenet1k-train-0001.tar", subset=True)
        write_tar(root / "other-train-0001.tar", {"a": 1})
        refused(root, "train", "one set of shards", "imagenet1k-train-* and other-train-*", subset=True)

    def test_a_damaged_shard(self, root):
        file = root / "imagenet1k-train-0002.tar"
        with tarfile.open(file) as tar:
            os.truncate(file, tar.getmembers()[-1].offset_data + 3)
        refused(root, "train", "imagenet1k-train-0002.tar ends in the middle", subset=True)
        images = open_set(ImageNet, root, "train", subset=True, on_error=SKIP)
        assert len(images) == 8
        assert "damaged shards" in images.describe()


class TestFingerprint:
    def test_a_moved_set_keeps_it(self, tmp_path):
        write_folders(tmp_path / "a", "val", FEW)
        before = open_set(ImageNet, tmp_path / "a", "test", subset=True).fingerprint
        (tmp_path / "a").rename(tmp_path / "b")
        assert open_set(ImageNet, tmp_path / "b", "test", subset=True).fingerprint == before
        assert str(tmp_path) not in str(before)
        write_folders(tmp_path / "b", "val", [FEW[0]], 3)
        assert open_set(ImageNet, tmp_path / "b", "test", subset=True).fingerprint != before
        assert (
            open_set(ImageNet, tmp_path / "b", "test", subset=True, resize=Resize.crop).fingerprint["resize"] == "crop"
        )

    def test_other_labels_of_the_same_images_change_it(self, tmp_path):
        write_flat(tmp_path, ORDER)
        found = []
        for order in (ORDER, ORDER[::-1]):
            write_solution(tmp_path / "LOC_val_solution.csv", order)
            found.append(open_set(ImageNet, tmp_path, "test", subset=True).fingerprint)
        assert found[0] != found[1]
        assert found[0]["sha256"] == found[1]["sha256"]

    def test_of_tars(self, tmp_path):
        write_tar(tmp_path / "val.tar", {"a": 1, "b": 2})
        found = open_set(ImageNet, tmp_path, "test", subset=True).fingerprint
        assert (found["n_images"], found["n_classes"], found["hashed"]) == (2, 2, "whole files")
        write_tar(tmp_path / "val.tar", {"a": 1, "b": 3})
        assert open_set(ImageNet, tmp_path, "test", subset=True).fingerprint != found


def test_real_photographs():
    samples = os.environ.get("INFOSCOPE_SAMPLES")
    if not samples:
        pytest.skip("INFOSCOPE_SAMPLES is not set")
    images = open_set(ImageNet, Path(samples) / "imagenet", "test", subset=True)
    assert len(images) == images.n_classes == 400
    assert images.labels("class").tolist() == list(range(400))
    # The samples' names hold a word of their class.
    named = [Path(name).stem.split("_", 1)[1].replace("_", " ").lower() for name in images.image_ids]
    agree = [name.split()[-1] in ours.lower() for name, ours in zip(named, images.class_names, strict=True)]
    assert np.mean(agree) > 0.7
    facts = [images.check_image(i) for i in range(0, 400, 10)]
    assert all(fact["format"] == "JPEG" for fact in facts)
    refused(Path(samples) / "imagenet", "test", "400 of 1000 class folders found")
