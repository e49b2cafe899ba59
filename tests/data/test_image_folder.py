import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from infoscope.data import photographs
from infoscope.data.config import SKIP, Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageError
from infoscope.data.photographs import load_rgb
from infoscope.data.reader import iterate_images
from infoscope.runtime.errors import InputError

RED, BLUE = (200, 30, 40), (20, 60, 220)


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve small files in a tree."""
    for i in range(12):
        folder = tmp_path / "photos" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i, 16), (20 * i, 0, 0)).save(folder / f"{i:02d}.png")
    return tmp_path / "photos"


def whole(root: Path, **options) -> ImageFolder:
    return ImageFolder(root, test_share=0.0, **options)


def assert_one_sentence(error: BaseException, *parts: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message
    for part in parts:
        assert part in message


class TestListing:
    def test_ids_are_sorted_paths_below_the_root(self, tmp_path):
        names = [
            "b/x.JPG",
            "a.jpeg",
            "b/c/y.Png",
            "z.webp",
            "B.bmp",
            "t.Tif",
            "u.TIFF",
            "photo.gif",
            "d.e.01.jp2",
            "j.jfif",
        ]
        others = ["notes.txt", "b/.hidden.jpg", ".cache/k.jpg", "b/._x.jpg", "__MACOSX/b/x.jpg", "b/@eaDir/x.JPG/S.jpg"]
        others += ["a.heic", "b/c.HEIC", "IMG_1", "depth.pfm", "paper.pdf", "p.eps", "Thumbs.db", "photos.tar", "a.npy"]
        for name in [*names, *others]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        os.mkfifo(tmp_path / "pipe.jpg")
        images = whole(tmp_path)
        assert images.image_ids == sorted(names)
        assert images.left_out.counts == {
            "hidden": 2,
            "hidden folders": 3,
            ".heic": 2,
            "without a suffix": 1,
            "pipes, sockets or devices": 1,
            **dict.fromkeys([".txt", ".pfm", ".pdf", ".eps", ".db", ".tar", ".npy"], 1),
        }
        assert "2 .heic (a.heic, b/c.HEIC)" in images.left_out.describe()
        assert images.left_out.total == len(others) + 1

    def test_what_is_left_out_is_of_both_splits_and_the_first_are_named(self, root):
        for i in range(7):
            (root / f"{i}.raw").touch()
        for split in ("train", "test"):
            found = ImageFolder(root, split, test_share=0.4).left_out
            assert found.describe() == "7 of 19 files: 7 .raw (0.raw, 1.raw, 2.raw, ...)"

    def test_links_to_folders_are_followed_once(self, root):
        (root / "class0" / "back").symlink_to(root, target_is_directory=True)
        elsewhere = root.parent / "elsewhere"
        elsewhere.mkdir()
        two_halves().save(elsewhere / "linked.png")
        (root / "more").symlink_to(elsewhere, target_is_directory=True)
        images = whole(root)
        ids = images.image_ids
        assert images.left_out.first == {"folders met before by another path": ["class0/back"]}
        assert len(ids) == 13
        assert "more/linked.png" in ids

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(InputError) as caught:
            ImageFolder(tmp_path / "nowhere")
        assert_one_sentence(caught.value, "nowhere", "no such file or directory", "data.root")

    def test_a_file_as_root(self, root):
        with pytest.raises(InputError) as caught:
            ImageFolder(root / "class0" / "00.png")
        assert_one_sentence(caught.value, "00.png is a file", "set data.root to its folder")
        (root / "paths.csv").write_text("class0/00.png")
        with pytest.raises(InputError, match=r"paths\.csv is a file: set data\.root to .* ends in \.txt"):
            ImageFolder(root / "paths.csv")

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(InputError) as caught:
            ImageFolder(tmp_path)
        assert_one_sentence(caught.value, "but 1 of 1 files: 1 .txt (notes.txt)", "data.root")

    def test_a_folder_that_may_not_be_listed(self, root, monkeypatch):
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("class1"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(InputError) as caught:
            ImageFolder(root)
        assert_one_sentence(caught.value, "class1", "Permission denied")

    def test_an_unknown_split(self, root):
        with pytest.raises(InputError, match="train or test, got 'val'"):
            ImageFolder(root, "val")


class TestSplit:
    def test_the_splits_are_disjoint_and_whole(self, root):
        train, test = (ImageFolder(root, split, test_share=0.4, seed=1) for split in ("train", "test"))
        assert not set(train.image_ids) & set(test.image_ids)
        assert sorted(train.image_ids + test.image_ids) == whole(root).image_ids
        assert train.image_ids == ImageFolder(root, "train", test_share=0.4, seed=1).image_ids

    def test_other_files_do_not_move_a_file(self, root):
        before = ImageFolder(root, "test", test_share=0.4).image_ids
        for i in range(20):
            shutil.copy(root / "class0" / "00.png", root / f"new{i}.png")
        after = ImageFolder(root, "test", test_share=0.4).image_ids
        assert [name for name in after if not name.startswith("new")] == before

    def test_the_share_is_kept_and_the_seed_matters(self):
        names = [f"class{i % 7}/{i}.jpg" for i in range(4000)]
        shares = [np.array([photographs.compute_split_position(seed, name) for name in names]) < 0.1 for seed in (0, 1)]
        for held_out in shares:
            assert 0.08 < held_out.mean() < 0.12
        assert (shares[0] & shares[1]).mean() < 0.03

    def test_an_empty_test_split_is_legal_an_empty_training_split_is_not(self, root):
        assert len(ImageFolder(root, "test", test_share=0.0)) == 0
        with pytest.raises(InputError) as caught:
            ImageFolder(root, "train", test_share=1.0)
        assert_one_sentence(caught.value, "holds out all 12 images", "data.test_share")


class TestFingerprint:
    def test_a_moved_and_touched_folder_keeps_it(self, root, tmp_path):
        before = ImageFolder(root).fingerprint
        moved = tmp_path / "elsewhere" / "copy"
        shutil.copytree(root, moved, copy_function=shutil.copyfile)
        for file in moved.rglob("*.png"):
            os.utime(file, (0, 0))
        assert ImageFolder(moved).fingerprint == before
        assert str(tmp_path) not in str(before)

    @pytest.mark.parametrize("change", ["content", "name", "more", "less"])
    def test_another_content_changes_it(self, root, change):
        before = whole(root).fingerprint["sha256"]
        file = root / "class0" / "00.png"
        if change == "content":
            data = bytearray(file.read_bytes())
            data[-20] ^= 1  # same size
            file.write_bytes(data)
        elif change == "name":
            file.rename(file.with_name("100.png"))
        elif change == "more":
            shutil.copy(file, root / "more.png")
        else:
            file.unlink()
        assert whole(root).fingerprint["sha256"] != before

    def test_split_seed_resize_and_on_error_change_it(self, root):
        sets = [
            ImageFolder(root, test_share=0.4),
            ImageFolder(root, "test", test_share=0.4),
            ImageFolder(root, test_share=0.4, seed=1),
            ImageFolder(root, test_share=0.4, resize=Resize.crop),
            ImageFolder(root, test_share=0.4, on_error=SKIP),
        ]
        assert len({str(image_set.fingerprint) for image_set in sets}) == len(sets)

    def test_a_large_set_is_known_by_sizes_and_beginnings(self, root, monkeypatch):
        monkeypatch.setattr(photographs, "WHOLE_CONTENT_BYTES", 0)
        monkeypatch.setattr(photographs, "HEAD_BYTES", 16)
        before = whole(root).fingerprint
        assert before["hashed"] == "first 16 bytes"
        file = root / "class0" / "00.png"
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert whole(root).fingerprint == before
        file.write_bytes(data + b"\0")
        assert whole(root).fingerprint != before

    def test_a_file_that_is_gone_is_named_or_counted(self, root):
        (root / "gone.png").symlink_to(root / "nowhere.png")
        with pytest.raises(ImageError, match=r"gone.png \(no such file or directory\)"):
            _ = whole(root).fingerprint
        assert whole(root, on_error=SKIP).fingerprint["n_images"] == 13


def close(image: np.ndarray, colour: tuple[int, ...], tolerance: int) -> bool:
    return bool((np.abs(image.reshape(-1, 3).astype(int) - colour) <= tolerance).all())


class TestLoading:
    @pytest.mark.parametrize(
        ("name", "mode", "options", "tolerance"),
        [
            ("a.png", "RGB", {}, 0),
            ("a.bmp", "RGB", {}, 0),
            ("a.webp", "RGB", {"lossless": True}, 0),
            ("a.jpg", "RGB", {"quality": 95, "subsampling": 0}, 12),
            ("a.jpg", "CMYK", {"quality": 95}, 12),
            ("a.png", "P", {}, 0),
            ("a.png", "RGBA", {}, 0),
            ("a.webp", "RGBA", {"lossless": True}, 0),
        ],
    )
    def test_every_colour_mode_becomes_rgb(self, tmp_path, name, mode, options, tolerance):
        image = two_halves()
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        image.save(tmp_path / name, **options)
        loaded = np.asarray(load_rgb(tmp_path / name))
        assert loaded.shape == (20, 40, 3)
        assert close(loaded[:, :16], RED, tolerance)
        assert close(loaded[:, 24:], BLUE, tolerance)

    @pytest.mark.parametrize(("mode", "name"), [("L", "a.png"), ("L", "a.jpg"), ("LA", "a.png"), ("1", "a.png")])
    def test_grey_becomes_rgb(self, tmp_path, mode, name):
        values = np.full((12, 12), 255 if mode == "1" else 90, np.uint8)
        Image.fromarray(values).convert(mode).save(tmp_path / name)
        assert close(np.asarray(load_rgb(tmp_path / name)), (values[0, 0],) * 3, 1)

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        assert np.asarray(load_rgb(tmp_path / "a.png"))[0, :, 1].tolist() == [0, 0, 1, 128, 255]
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})  # 0 is white
        assert np.asarray(load_rgb(tmp_path / "a.tif"))[0, :, 1].tolist() == [255, 255, 254, 127, 0]

    def test_twelve_bits_in_sixteen_are_refused_for_they_would_be_black(self, tmp_path):
        Image.fromarray(np.array([[0, 255, 4095]], np.uint16)).save(tmp_path / "a.png")
        with pytest.raises(ImageError, match=r"hold 12 or fewer, .*: scale them to 0\.\.65535"):
            load_rgb(tmp_path / "a.png")
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
        assert np.asarray(load_rgb(tmp_path / "a.png")).max() == 0

    @pytest.mark.parametrize(
        "name", ["a.tif", "a.tiff", "a.gif", "a.ppm", "a.jp2", "a.tga", "a.avif", "a.dib", "a.jfif"]
    )
    def test_formats_of_pillow(self, tmp_path, name):
        if os.path.splitext(name)[1] not in photographs.find_suffixes():
            pytest.skip(f"this Pillow has no codec of {name}")
        two_halves().save(tmp_path / name)
        loaded = np.asarray(whole(tmp_path).decode(0))
        assert close(loaded[:, :16], RED, 16)
        assert close(loaded[:, 24:], BLUE, 16)

    @pytest.mark.parametrize(
        ("values", "reason"),
        [(np.float32(0.5), "floating-point"), (np.int32(70000), "32 bits"), (np.int32(-1), "32 bits")],
    )
    def test_values_that_are_no_colours(self, tmp_path, values, reason):
        Image.fromarray(np.full((4, 4), values)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match=reason):
            load_rgb(tmp_path / "a.tif")

    @pytest.mark.parametrize(
        ("name", "form"), [("a.gif", "GIF"), ("a.tif", "TIFF"), ("a.png", "PNG"), ("a.jpg", "MPO")]
    )
    def test_of_several_frames_the_first_is_read_and_said(self, tmp_path, name, form):
        first = Image.new("RGB", (8, 8), RED)
        first.save(tmp_path / name, form, save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)])
        assert close(np.asarray(load_rgb(tmp_path / name)), RED, 12)
        facts = whole(tmp_path).check_image(0)
        assert facts["frames"] == "2, the first is read"
        assert facts["format"] == form

    def test_alpha_is_dropped(self, tmp_path):
        Image.new("RGBA", (4, 4), (*RED, 0)).save(tmp_path / "a.png")
        assert close(np.asarray(load_rgb(tmp_path / "a.png")), RED, 0)

    def test_a_palette_with_transparency(self, tmp_path):
        image = two_halves().quantize(4)
        image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
        assert close(np.asarray(load_rgb(tmp_path / "a.png"))[:, :20], RED, 0)

    @pytest.mark.parametrize("name", ["a.png", "a.tif"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_honoured(self, tmp_path, orientation, name):
        upright = np.asarray(two_halves())
        stored = {  # what a camera stores so that this orientation brings it back
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: np.rot90(upright.transpose(1, 0, 2), 2),
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif)
        assert np.array_equal(np.asarray(load_rgb(tmp_path / name)), upright)

    def test_damaged_exif_does_not_cost_the_picture(self, tmp_path):
        two_halves().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"nonsense" * 4, quality=95)
        assert load_rgb(tmp_path / "a.jpg").size == (40, 20)

    def test_the_content_counts_not_the_extension(self, tmp_path):
        two_halves().save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
        assert load_rgb(tmp_path / "a.JPEG").size == (40, 20)

    def test_squash_and_crop(self, tmp_path):
        two_halves().save(tmp_path / "a.png")
        squashed = whole(tmp_path).load(0, 10)
        assert squashed.shape == (10, 10, 3)
        assert close(squashed[:, :3], RED, 1)
        Image.new("RGB", (40, 20), BLUE).save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            image.paste(RED, (0, 0, 8, 20))
            image.save(tmp_path / "a.png")
        assert close(whole(tmp_path, resize=Resize.crop).load(0, 10), BLUE, 4)  # the red is cut off
        assert not close(whole(tmp_path).load(0, 10), BLUE, 4)


@pytest.fixture
def damaged(root) -> Path:
    """The tree with a truncated JPEG, PNG, WebP and BMP, an empty file and a text, all named as images."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.bmp"):
        noise.save(root / name)
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: len(data) // 2])
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.png").write_text("this is not an image")
    return root


DAMAGED = ["cut.bmp", "cut.jpg", "cut.png", "cut.webp", "empty.jpg", "text.png"]


class TestDamage:
    @pytest.mark.parametrize("name", DAMAGED)
    def test_raise_names_the_file(self, damaged, name):
        images = whole(damaged)
        with pytest.raises(ImageError) as caught:
            list(iterate_images(images, 16, 4, indices=[images.image_ids.index(name)]))
        assert_one_sentence(caught.value, str(damaged / name), "data.on_error=skip")
        assert str(damaged) not in caught.value.reason

    @pytest.mark.parametrize("n_workers", [0, 1])
    def test_skip_lists_them_and_goes_on(self, damaged, n_workers):
        images = whole(damaged, on_error=SKIP)
        batches = list(iterate_images(images, 16, 4, on_error=SKIP, n_workers=n_workers))
        assert sum(len(batch.index) for batch in batches) == 12
        assert sorted(images.skipped) == DAMAGED
        assert images.skipped["text.png"] == "it is no JPEG, PNG or other image that Pillow reads"
        assert "truncated" in images.skipped["cut.jpg"]

    def test_a_gigantic_image_is_refused(self, root, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ImageError, match="exceeds limit"):
            whole(root).load(0, 16)


class TestRealPhotographs:
    @pytest.fixture
    def photographs(self) -> ImageFolder:
        samples = os.environ.get("INFOSCOPE_SAMPLES")
        if not samples:
            pytest.skip("INFOSCOPE_SAMPLES is not set")
        return whole(Path(samples) / "imagenet" / "val")

    def test_all_of_them_load(self, photographs):
        batches = list(iterate_images(photographs, 48, 64))
        assert sum(len(batch.index) for batch in batches) == len(photographs) > 0
        assert not photographs.skipped
        assert all(batch.images.float().std((1, 2, 3)).min() > 1 for batch in batches)  # no blank picture

    def test_they_look_as_torchvision_sees_them(self, photographs):
        from torchvision.transforms import InterpolationMode, v2

        oracle = v2.Resize([56, 56], InterpolationMode.BICUBIC)
        for i in range(0, len(photographs), 40):
            with Image.open(photographs.folder / photographs.image_ids[i]) as image:
                expected = np.array(oracle(ImageOps.exif_transpose(image).convert("RGB")))
            assert np.array_equal(photographs.load(i, 56), expected)
