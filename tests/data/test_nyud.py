"""NYU Depth v2 in its published file and as BTS lays it out, written here and read back; real samples where there."""

import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from infoscope.data import nyud
from infoscope.data.config import SKIP, Resize
from infoscope.data.images import ImageError, Truth
from infoscope.data.nyud import NYUd
from infoscope.data.reader import iterate_images
from infoscope.probes.metrics import DepthMetrics
from infoscope.runtime.errors import InputError
from tests.support.data_sets import open_set

RNG = np.random.default_rng(0)
HEIGHT, WIDTH, N = 480, 640, 5
IMAGES = RNG.integers(0, 256, (N, HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
FILLED = RNG.uniform(0.7, 9.9, (N, HEIGHT // 16, WIDTH // 16)).astype(np.float32).repeat(16, 1).repeat(16, 2)
FILLED += np.linspace(0, 0.01, WIDTH, dtype=np.float32)  # no two columns alike
RAW = np.where(FILLED < 2, np.float32(0), FILLED)
TRAIN, TEST = [2, 5], [1, 3, 4]  # numbers from 1


def write_mat(file: Path, images: np.ndarray = IMAGES, **depths: np.ndarray) -> None:
    """Write arrays as MATLAB v7.3 does: HDF5 behind a header of 512 bytes, axes reversed."""
    with h5py.File(file, "w", userblock_size=512) as stored:
        stored.create_dataset("images", data=images.transpose(0, 3, 2, 1), chunks=(1, 3, *images.shape[2:0:-1]))
        for name, depth in depths.items():
            stored.create_dataset(name, data=depth.transpose(0, 2, 1))
    with file.open("r+b") as stored:
        stored.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Wed Jun  6 14:22:01 2012".ljust(124))


@pytest.fixture(scope="module")
def written_mat(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nyud_mat")
    write_mat(root / "nyu_depth_v2_labeled.mat", depths=FILLED, rawDepths=RAW)
    # columns of numbers, as MATLAB stores them, out of order
    indices = {"trainNdxs": np.array(TRAIN[::-1], np.uint16)[:, None], "testNdxs": np.array(TEST, np.uint16)[:, None]}
    savemat(root / "splits.mat", indices)
    return root


@pytest.fixture
def mat(written_mat, tmp_path) -> Path:
    """A folder with nyu_depth_v2_labeled.mat and splits.mat."""
    return Path(shutil.copytree(written_mat, tmp_path / "mat"))


def write_pair(folder: Path, number: int, depth_m: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[number]).save(folder / f"rgb_{number:05d}.jpg", quality=95)
    Image.fromarray(np.rint(depth_m * 1000).astype(np.uint16)).save(folder / f"sync_depth_{number:05d}.png")


@pytest.fixture(scope="module")
def written_bts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("nyud_bts")
    for scene, number in (("bathroom_0028a", 0), ("bathroom_0028a", 1), ("attic_0001", 2)):
        write_pair(root / "sync" / scene, number, RAW[number])
    for scene, number in (("bathroom", 3), ("kitchen", 4)):
        write_pair(root / "official_splits" / "test" / scene, number, RAW[number])
    return root


@pytest.fixture
def bts(written_bts, tmp_path) -> Path:
    """A folder with sync (3 pairs) and official_splits/test (2 pairs)."""
    return Path(shutil.copytree(written_bts, tmp_path / "bts"))


def crop(depth: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.where((rows >= 45) & (rows < 471) & (columns >= 41) & (columns < 601), depth, 0)


def assert_one_sentence(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    for part in parts:
        assert part in message


def refuse(root: Path, *parts: str, split: str = "test", **options) -> None:
    with pytest.raises(InputError) as caught:
        open_set(NYUd, root, split, **options)
    assert_one_sentence(caught.value, *parts)


def refuse_depth(images: NYUd, *parts: str) -> None:
    for read in (images.depth_m, images.check_image):
        with pytest.raises(InputError) as caught:
            read(0)
        assert_one_sentence(caught.value, *parts)


class TestMat:
    @pytest.mark.parametrize(("split", "numbers"), [("train", TRAIN), ("test", TEST)])
    @pytest.mark.parametrize("raw_depth", [False, True])
    def test_what_was_written(self, mat, split, numbers, raw_depth):
        images = open_set(NYUd, mat, split, raw_depth=raw_depth, eigen_crop=False)
        assert images.image_ids == [f"{number:04d}" for number in numbers]
        assert images.truths == {Truth.depth}
        for i, number in enumerate(numbers):
            depth = images.depth_m(i)
            assert depth.dtype == np.float32
            assert np.array_equal(depth, (RAW if raw_depth else FILLED)[number - 1])
            expected = Image.fromarray(IMAGES[number - 1]).resize((48, 48), Image.Resampling.BICUBIC)
            assert np.array_equal(images.load(i, 48), np.array(expected))
        assert images.check_image(0) == {"size": "640x480", "mode": "RGB"}

    def test_the_eigen_crop_is_of_the_test_split_alone(self, mat):
        assert np.array_equal(open_set(NYUd, mat, "test").depth_m(1), crop(FILLED[2]))
        assert np.array_equal(open_set(NYUd, mat, "train").depth_m(0), FILLED[1])

    def test_other_sizes_have_no_eigen_crop(self, mat):
        write_mat(mat / "nyu_depth_v2_labeled.mat", IMAGES[:, :40, :60], depths=FILLED[:, :40, :60])
        assert np.array_equal(open_set(NYUd, mat, "test", eigen_crop=False).depth_m(0), FILLED[0, :40, :60])
        refuse_depth(open_set(NYUd, mat, "test"), "640x480", "60x40", "data.eigen_crop=false")

    def test_the_file_itself_as_root(self, mat):
        assert open_set(NYUd, mat / "nyu_depth_v2_labeled.mat", "test").image_ids == ["0001", "0003", "0004"]

    def test_describe(self, mat):
        assert open_set(NYUd, mat, "train").describe() == {
            "layout": "nyu_depth_v2_labeled.mat, depth with gaps filled in (depths)",
            "images": "2",
            "classes": "none, but depth",
        }
        assert "as measured (rawDepths)" in open_set(NYUd, mat, "train", raw_depth=True).describe()["layout"]

    def test_pickles_and_workers_open_the_file_anew(self, mat, monkeypatch):
        images = open_set(NYUd, mat, "test")
        alone = list(iterate_images(images, 24, 2))
        copy = pickle.loads(pickle.dumps(images))
        assert copy._source._opened is None
        assert np.array_equal(copy.depth_m(2), images.depth_m(2))
        read_ahead = list(iterate_images(images, 24, 2, n_workers=2))  # forked, the file being open here
        assert all(torch.equal(a.images, b.images) for a, b in zip(alone, read_ahead, strict=True))
        first = images._source._opened
        monkeypatch.setattr(os, "getpid", lambda: first[0] + 1)  # as in a forked worker
        images.depth_m(0)
        assert images._source._opened[1] is not first[1]

    def test_the_fingerprint(self, mat, tmp_path, monkeypatch):
        before = open_set(NYUd, mat, "test").fingerprint
        assert "256 blocks of 65536 bytes" in before["hashed"]
        moved = tmp_path / "moved"
        shutil.copytree(mat, moved, copy_function=shutil.copyfile)
        os.utime(moved / "nyu_depth_v2_labeled.mat", (0, 0))
        assert open_set(NYUd, moved, "test").fingerprint == before
        others = [
            open_set(NYUd, mat, "train"),
            open_set(NYUd, mat, "test", raw_depth=True),
            open_set(NYUd, mat, "test", eigen_crop=False),
            open_set(NYUd, mat, "test", on_error=SKIP),
        ]
        assert len({str(images.fingerprint) for images in others} | {str(before)}) == 5
        assert open_set(NYUd, mat, "train").fingerprint == open_set(NYUd, mat, "train", eigen_crop=False).fingerprint
        with h5py.File(moved / "nyu_depth_v2_labeled.mat", "r+") as stored:
            stored["depths"][3, 300, 200] += 1
        assert open_set(NYUd, moved, "test").fingerprint != before

    @pytest.mark.parametrize(
        ("value", "parts"), [(np.nan, ("NaN",)), (-0.5, ("negative",)), (np.inf, ("NaN",)), (2500, ("2500.0 m",))]
    )
    def test_impossible_depth(self, mat, value, parts):
        with h5py.File(mat / "nyu_depth_v2_labeled.mat", "r+") as stored:
            stored["depths"][0, 100, 100] = value
        refuse_depth(open_set(NYUd, mat, "test"), "0001", "metres", *parts)

    def test_an_older_mat_file(self, mat):
        file = mat / "nyu_depth_v2_labeled.mat"
        savemat(file, {"images": np.zeros((2, 2)), "depths": np.zeros((2, 2))})
        refuse(mat, file.name, "v7.3", "MATLAB 5.0 MAT-file", "download")
        file.write_text("<!DOCTYPE html> not found")
        refuse(file, file.name, "v7.3", "<!DOCTYPE html>", "download")

    def test_half_a_mat_file(self, mat):
        file = mat / "nyu_depth_v2_labeled.mat"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refuse(mat, "nyu_depth_v2_labeled.mat", "truncated", "download it again")

    def test_damage_within_the_file(self, mat):
        file = mat / "nyu_depth_v2_labeled.mat"
        with h5py.File(file, "w") as stored:
            stored.create_dataset("images", data=IMAGES.transpose(0, 3, 2, 1), chunks=(1, 3, 640, 480), fletcher32=True)
            stored.create_dataset("depths", data=FILLED.transpose(0, 2, 1), chunks=(1, 640, 480), fletcher32=True)
            places = [stored[name].id.get_chunk_info(0).byte_offset for name in ("images", "depths")]
        with file.open("r+b") as stored:
            for place in places:
                stored.seek(place)
                stored.write(b"damage")
        images = open_set(NYUd, mat, "test", on_error=SKIP)
        with pytest.raises(ImageError, match="0001 of"):
            images.load(0, 24)
        with pytest.raises(InputError, match="depth of 0001 of"):
            images.depth_m(0)
        assert [batch.index.tolist() for batch in iterate_images(images, 24, 3, on_error=SKIP)] == [[1, 2]]

    def test_another_content(self, mat):
        file = mat / "nyu_depth_v2_labeled.mat"
        write_mat(file, depths=FILLED)
        refuse(mat, "rawDepths", "found depths, images", raw_depth=True)
        with h5py.File(file, "w") as stored:  # axes as in numpy
            stored["images"], stored["depths"] = IMAGES[:, ::16, ::16], FILLED[:, ::16, ::16]
        refuse(mat, "[n, 3, width, height]", "[5, 30, 40, 3]")
        with h5py.File(file, "w") as stored:  # and turned: every picture would lie on its side
            stored["images"], stored["depths"] = IMAGES[:, ::16, ::16].transpose(0, 3, 1, 2), FILLED[:, ::16, ::16]
        refuse(mat, "[n, 3, width, height]", "[5, 3, 30, 40]", split="train")

    def test_splits(self, mat):
        savemat(mat / "splits.mat", {"testNdxs": np.array([[1], [1449]])})
        refuse(mat, "testNdxs", "1 to 5", "got 1 to 1449")
        refuse(mat, "trainNdxs", "got none", split="train")
        savemat(mat / "splits.mat", {"testNdxs": np.array([[0], [1]])})
        refuse(mat, "got 0 to 1")
        (mat / "splits.mat").write_text("nothing")
        refuse(mat, "Cannot read", "splits.mat")
        (mat / "splits.mat").unlink()
        refuse(mat, "splits.mat next to nyu_depth_v2_labeled.mat", "download")


LINE = "{0}/rgb_{1:05d}.jpg {0}/sync_depth_{1:05d}.png 518.8579\n"


class TestBts:
    def test_what_was_written(self, bts):
        train, test = (open_set(NYUd, bts, split) for split in ("train", "test"))
        assert train.image_ids == [
            "attic_0001/rgb_00002.jpg",
            "bathroom_0028a/rgb_00000.jpg",
            "bathroom_0028a/rgb_00001.jpg",
        ]
        assert test.image_ids == ["bathroom/rgb_00003.jpg", "kitchen/rgb_00004.jpg"]
        for images, numbers, cut in ((train, (2, 0, 1), lambda depth: depth), (test, (3, 4), crop)):
            for i, number in enumerate(numbers):
                depth = images.depth_m(i)
                assert depth.dtype == np.float32
                assert np.abs(depth - cut(RAW[number])).max() <= 0.00051  # millimetres
                assert np.array_equal(depth == 0, cut(RAW[number]) == 0)
                assert images.check_image(i) == {"size": "640x480", "mode": "RGB"}
        assert np.abs(open_set(NYUd, bts, "test", eigen_crop=False).depth_m(0) - RAW[3]).max() <= 0.00051
        with Image.open(bts / "sync" / train.image_ids[0]) as image:
            expected = np.array(image.resize((60, 60), Image.Resampling.BICUBIC))
        assert np.array_equal(train.load(0, 60), expected)

    def test_train_from_the_official_splits(self, bts):
        (bts / "sync").rename(bts / "official_splits" / "train")
        images = open_set(NYUd, bts, "train")
        assert len(images) == 3
        assert images.describe()["layout"] == "BTS, official_splits/train"

    def test_lists(self, bts):
        """Train paths begin with a slash; a depth may be None; what is not listed is left out."""
        (bts / "nyudepthv2_train_files_with_gt.txt").write_text(
            "/bathroom_0028a/rgb_00001.jpg /bathroom_0028a/sync_depth_00001.png 518.8579\n"
            "/attic_0001/rgb_00002.jpg None 518.8579\n"
        )
        (bts / "nyudepthv2_test_files_with_gt.txt").write_text(LINE.format("kitchen", 4))
        train, test = (open_set(NYUd, bts, split) for split in ("train", "test"))
        assert train.image_ids == ["bathroom_0028a/rgb_00001.jpg"]
        assert test.image_ids == ["kitchen/rgb_00004.jpg"]
        assert np.abs(train.depth_m(0) - RAW[1]).max() <= 0.00051
        assert train.describe() == {
            "layout": "BTS, sync, listed in nyudepthv2_train_files_with_gt.txt",
            "images": "1",
            "classes": "none, but depth",
        }
        assert train.left_out.counts == {"without depth in nyudepthv2_train_files_with_gt.txt": 1, "not in the list": 4}
        assert test.left_out.first == {"not in the list": ["bathroom/rgb_00003.jpg", "bathroom/sync_depth_00003.png"]}

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            (LINE.format("kitchen", 4) + LINE.format("attic", 7), ("2 of 4", "first: attic/rgb_00007.jpg")),
            ("../sync/a.jpg ../sync/b.png 518.8579\n", ("'..'", "../sync/a.jpg")),
            ("/kitchen/rgb_00004.jpg /kitchen/../../x.png 518.8579\n", ("'..'",)),
            ("kitchen/rgb_00004.jpg\n", ("lines of image, depth",)),
            ("kitchen/rgb_00004.jpg None 518.8579\n\n", ("lists none",)),
        ],
    )
    def test_lists_that_are_refused(self, bts, text, parts):
        (bts / "nyudepthv2_test_files_with_gt.txt").write_text(text)
        refuse(bts, "nyudepthv2_test_files_with_gt.txt", *parts)

    def test_what_is_in_no_pair(self, bts):
        for name in ("index.html", "kitchen/depth_00004.bmp", "kitchen/._rgb_00004.jpg", "kitchen/intrinsics"):
            (bts / "official_splits" / "test" / name).touch()
        assert open_set(NYUd, bts, "test").left_out.first == {
            ".html": ["index.html"],
            "hidden": ["kitchen/._rgb_00004.jpg"],
            "without a suffix": ["kitchen/intrinsics"],
            "in no pair": ["kitchen/depth_00004.bmp"],
        }

    def test_pictures_of_another_format(self, bts):
        file = bts / "official_splits" / "test" / "kitchen" / "rgb_00004.jpg"
        before = open_set(NYUd, bts, "test").load(1, 16)
        with Image.open(file) as image:
            image.save(file.with_suffix(".png"))
        refuse(bts, "one image for each depth map")
        file.unlink()
        images = open_set(NYUd, bts, "test")
        assert images.image_ids[1] == "kitchen/rgb_00004.png"
        assert np.array_equal(images.load(1, 16), before)

    def test_unpaired_files(self, bts):
        (bts / "sync" / "attic_0001" / "sync_depth_00002.png").unlink()
        refuse(bts, "a depth map", "1 have none", "attic_0001/rgb_00002.jpg", split="train")
        (bts / "official_splits" / "test" / "kitchen" / "rgb_00004.jpg").unlink()
        refuse(bts, "an image", "1 have none", "kitchen/sync_depth_00004.png")

    @pytest.mark.parametrize("mode", ["L", "P", "RGB"])
    def test_8_bits(self, bts, mode):
        file = bts / "official_splits" / "test" / "bathroom" / "sync_depth_00003.png"
        Image.fromarray(np.full((HEIGHT, WIDTH), 90, np.uint8)).convert(mode).save(file)
        refuse_depth(open_set(NYUd, bts, "test"), "16 bits", "RGB" if mode == "RGB" else "has 8 bits", file.name)

    def test_another_size_a_wrong_unit_and_damage(self, bts):
        file = bts / "official_splits" / "test" / "bathroom" / "sync_depth_00003.png"
        whole = file.read_bytes()
        Image.fromarray(np.full((240, 320), 900, np.uint16)).save(file)
        refuse_depth(open_set(NYUd, bts, "test"), "640x480, got 320x240", file.name)
        Image.fromarray(np.full((HEIGHT, WIDTH), 65535, np.uint16)).save(file)
        refuse_depth(open_set(NYUd, bts, "test"), "at most 20 m", "65.5 m", "millimetres")
        file.write_bytes(whole[:500])
        refuse_depth(open_set(NYUd, bts, "test"), "Cannot read", file.name)

    def test_the_fingerprint(self, bts, tmp_path):
        before = open_set(NYUd, bts, "test").fingerprint
        moved = shutil.copytree(bts, tmp_path / "moved", copy_function=shutil.copyfile)
        assert open_set(NYUd, moved, "test").fingerprint == before
        image = moved / "official_splits" / "test" / "kitchen" / "rgb_00004.jpg"
        Image.fromarray(IMAGES[0]).save(image)
        with_other_image = open_set(NYUd, moved, "test").fingerprint
        write_pair(image.parent, 4, RAW[0])
        shutil.copy(bts / "official_splits" / "test" / "kitchen" / image.name, image)
        assert len({str(found) for found in (before, with_other_image, open_set(NYUd, moved, "test").fingerprint)}) == 3
        assert pickle.loads(pickle.dumps(open_set(NYUd, bts, "test"))).fingerprint == before

    def test_both_layouts_in_one_folder(self, bts, mat):
        for file in mat.iterdir():
            shutil.copy(file, bts)
        assert open_set(NYUd, bts, "test").describe()["layout"] == "BTS, official_splits/test"
        assert open_set(NYUd, bts / "nyu_depth_v2_labeled.mat", "test").image_ids[0] == "0001"


class TestRefusals:
    def test_roots(self, tmp_path, bts):
        refuse(tmp_path / "nowhere", "no such file or directory", "data.root")
        (tmp_path / "empty").mkdir()
        refuse(tmp_path / "empty", "nyu_depth_v2_labeled.mat", "sync and official_splits", "data.root")
        shutil.rmtree(bts / "sync")
        refuse(bts, "train images", "sync or official_splits/train", split="train")
        shutil.rmtree(bts / "official_splits" / "test")
        (bts / "official_splits" / "test").mkdir()
        refuse(bts, "rgb_*.jpg", "there are none")

    def test_options(self, bts):
        refuse(bts, "train or test, got 'val'", split="val")
        refuse(bts, "data.resize=squash", resize=Resize.crop)
        refuse(bts, "data.raw_depth", "BTS", raw_depth=True)


class TestRealSamples:
    """Two pairs in the layout of BTS, and splits.mat as published."""

    @pytest.fixture
    def root(self) -> Path:
        samples = os.environ.get("INFOSCOPE_SAMPLES")
        if not samples:
            pytest.skip("INFOSCOPE_SAMPLES is not set")
        return Path(samples) / "nyu"

    def test_they_are_read(self, root):
        images = open_set(NYUd, root, "test")
        assert images.image_ids == ["sample/rgb_00000.jpg", "sample/rgb_00050.jpg"]
        for i in range(2):
            assert images.check_image(i) == {"size": "640x480", "mode": "RGB"}
            measured = images.depth_m(i)[nyud.EIGEN_CROP]
            assert 0.9 < (measured > 0).mean() < 1
            assert 0.5 < measured[measured > 0].min() < measured.max() < 10
        with pytest.raises(InputError, match="sync or official_splits/train"):
            open_set(NYUd, root, "train")

    def test_the_published_splits(self, root):
        train, test = (set(nyud._read_split(root / "splits.mat", split, 1449)) for split in ("train", "test"))
        assert (len(train), len(test), train | test) == (795, 654, set(range(1, 1450)))

    def test_depth_metrics_by_numpy(self, root):
        """The truth itself has no error; shifted by 5 columns, it has what plain numpy says."""
        images = open_set(NYUd, root, "test")
        metrics = DepthMetrics(2, max_depth_m=10)
        by_image, squares = [], []
        for i in range(2):
            truth = images.depth_m(i)
            shifted = np.roll(open_set(NYUd, root, "test", eigen_crop=False).depth_m(i), 5, axis=1) + np.float32(0.01)
            metrics.update(torch.from_numpy(np.stack([truth, shifted])), torch.from_numpy(truth))
            valid = (truth > 1e-3) & (truth < 10)
            t, p = truth[valid].astype(np.float64), shifted[valid].astype(np.float64)
            by_image.append(
                [
                    np.sqrt(np.mean((p - t) ** 2)),
                    np.mean(np.abs(p - t) / t),
                    np.mean(np.maximum(p / t, t / p) < 1.25),
                ]
            )
            squares.append((p - t) ** 2)
        found = metrics.compute()
        expected = dict(zip(("rmse_m", "abs_rel", "delta1"), np.mean(by_image, axis=0), strict=True))
        expected["rmse_pooled_m"] = np.sqrt(np.concatenate(squares).mean())
        for name, value in expected.items():
            assert found[name][0].item() == (1 if name == "delta1" else 0)
            assert found[name][1].item() == pytest.approx(value, rel=1e-5)
        assert expected["rmse_m"] > 0.1
