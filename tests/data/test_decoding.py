"""What other decoders than Pillow make of files: the same pictures, within rounding."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infoscope.data import decoding, photographs, reader
from infoscope.data.config import SKIP, DataConfig, DataKind, Decoder, Resize
from infoscope.data.decoding import decode_jpeg, is_plain
from infoscope.data.image_folder import ImageFolder
from infoscope.data.imagenet import ImageNet
from infoscope.data.images import ImageError, resize_image
from infoscope.data.photographs import load_rgb
from infoscope.data.reader import iterate_images
from infoscope.data.sets import make_image_sets
from infoscope.data.tar_images import TarImages
from infoscope.runtime.errors import InputError

MAX_LEVELS, MEAN_LEVELS = 16, 0.08
"""By how much of 255 levels pictures may differ: one pixel, and on average. Seen: 12 and .026."""


def picture(width: int = 61, height: int = 47, seed: int = 0) -> Image.Image:
    """Large patches of colour with soft borders: what a turn or wrong colours move by many levels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"></rdf:Description></x:xmpmeta>'
MASKED = picture().convert("RGBA")
MASKED.putalpha(Image.linear_gradient("L").resize(MASKED.size))
FILES: dict[str, Callable[[], bytes]] = {
    "colour": lambda: encode(picture(), quality=92),
    "whole colours": lambda: encode(picture(), subsampling=0),
    "progressive": lambda: encode(picture(), progressive=True),
    "restarts": lambda: encode(picture(), restart_marker_rows=1),
    "rubbish behind": lambda: encode(picture()) + b"rubbish",
    "grey": lambda: encode(picture().convert("L")),
    "RGB as it is": lambda: encode(picture(), keep_rgb=True),
    "CMYK": lambda: encode(picture().convert("CMYK")),
    "XMP": lambda: encode(picture(), xmp=XMP),
    "damaged tags": lambda: encode(picture(), exif=b"Exif\0\0rubbish"),
    "two pictures": lambda: encode(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]),
    **{f"turned {n}": lambda n=n: encode(picture(), exif=turned(n)) for n in range(1, 10)},
    "grey, turned": lambda: encode(picture().convert("L"), exif=turned(8)),
    "PNG": lambda: encode(picture(), "PNG"),
    "alpha": lambda: encode(MASKED, "PNG"),
    "palette": lambda: encode(picture().quantize(16), "PNG"),
    "16 bits": lambda: encode(Image.fromarray(np.arange(0, 61 * 47 * 20, 20, dtype=np.uint16).reshape(47, 61)), "PNG"),
    "GIF": lambda: encode(picture(), "GIF"),
    "WebP": lambda: encode(picture(), "WEBP", quality=90),
    "very long": lambda: encode(picture(400, 31)),
    "as it is": lambda: encode(picture(24, 24)),
}
PLAIN = {"colour", "whole colours", "progressive", "restarts", "turned 1", "damaged tags", "as it is"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for name, make in FILES.items():
        (folder / f"{name}.jpg").write_bytes(make())  # the content says which format it is
    return folder


def open_folder(folder: Path, decoder: Decoder, resize: Resize = Resize.squash) -> ImageFolder:
    return ImageFolder(folder, test_share=0.0, resize=resize, decoder=decoder, on_error=SKIP)


def assert_close(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert found.shape == expected.shape, name
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= MAX_LEVELS, (name, difference.max())
    assert difference.mean() <= 0.5, (name, difference.mean())  # small pictures, enlarged or not: many edges


@pytest.mark.parametrize("resize", list(Resize))
def test_torchvision_makes_the_pictures_of_pillow(folder: Path, resize: Resize):
    theirs, ours = (open_folder(folder, decoder, resize) for decoder in (Decoder.pillow, Decoder.torchvision))
    for i, name in enumerate(theirs.image_ids):
        photograph = theirs.photograph(i)
        assert np.array_equal(ours.photograph(i), photograph), name  # both have libjpeg-turbo
        for size_px in (24, 80):
            assert_close(ours.load(i, size_px), theirs.load(i, size_px), name)
        assert np.array_equal(theirs.load(i, 24), resize_image(photograph, 24, resize)), name
    assert decode_jpeg(FILES["colour"]()) is not None  # and not left to Pillow


def test_plain_files_are_those_that_leave_no_choice():
    assert {name for name, make in FILES.items() if is_plain(make())} == PLAIN


def test_damaged_files_are_what_pillow_says():
    whole = encode(picture())
    outcomes = set()
    for n_bytes in [*range(0, len(whole) - 40, 37), *range(len(whole) - 40, len(whole) + 1)]:
        found: list[str | np.ndarray] = []
        for decoder in (Decoder.pillow, Decoder.torchvision):
            try:
                found.append(np.array(load_rgb(io.BytesIO(whole[:n_bytes]), decoder)))
            except ImageError as error:
                found.append(error.reason)
        assert np.array_equal(found[0], found[1]), (n_bytes, found)
        outcomes.add(type(found[0]))
        assert is_plain(whole[:n_bytes]) == (n_bytes == len(whole))
    assert outcomes == {str, np.ndarray}


@pytest.mark.parametrize("resize", list(Resize))
def test_images_in_tars_are_those_of_the_files(
    folder: Path, tmp_path: Path, resize: Resize, monkeypatch: pytest.MonkeyPatch
):
    broken, tar = {"cut off": encode(picture())[:400], "nothing": b"nothing"}, tmp_path / "train-0.tar"
    with tarfile.open(tar, "w") as file:
        for name, data in ({name: make() for name, make in FILES.items()} | broken).items():
            for suffix, content in (("cls", b"0"), ("jpg", data)):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    by_pillow, files = TarImages(tar, test_share=0.0), open_folder(folder, Decoder.torchvision, resize)
    config = DataConfig(DataKind.imagenet, str(tmp_path), resize=resize, decoder=Decoder.torchvision, subset=True)
    unpacked = {name.removesuffix(".jpg"): files.load(i, 24) for i, name in enumerate(files.image_ids)}
    asked: list[bytes] = []
    monkeypatch.setattr(photographs, "decode_jpeg", lambda data: asked.append(data) or decode_jpeg(data))
    in_tar = TarImages(tar, test_share=0.0, resize=resize, decoder=Decoder.torchvision)
    for images in (in_tar, ImageNet(config, "train")):
        assert images.image_ids == sorted({*FILES, *broken})
        for i, name in enumerate(images.image_ids):
            if name in FILES:
                assert np.array_equal(images.load(i, 24), unpacked[name]), name
                continue
            said = []
            for of in (images, by_pillow):
                with pytest.raises(ImageError) as caught:
                    of.load(i, 24)
                said.append(str(caught.value))
            assert said[0] == said[1]
            assert said[0].startswith(f"Cannot read the image {name} in {tar} (")
    assert len(asked) == 2 * len(in_tar)  # torchvision was


def test_a_missing_file_is_named_as_ever(tmp_path: Path):
    for decoder in Decoder:
        with pytest.raises(ImageError, match=r"gone\.jpg \(no such file or directory\)"):
            load_rgb(tmp_path / "gone.jpg", decoder)


def test_the_decoder_is_in_the_fingerprint_unless_it_is_pillow(folder: Path):
    def read(**options):
        config = DataConfig(DataKind.image_folder, root=str(folder), on_error=SKIP, **options)
        return [images.fingerprint for images in make_image_sets(config)]

    for options in ({}, {"max_train": 3, "max_test": 1}):
        by_pillow, by_torchvision, by_nvjpeg = (read(decoder=decoder, **options) for decoder in Decoder)
        assert by_pillow == read(**options)
        assert "decoder" not in str(by_pillow)
        assert "'decoder': 'torchvision'" in str(by_torchvision[0])
        for split in range(2):
            assert by_pillow[split] != by_torchvision[split] != by_nvjpeg[split]


def read_all(images: ImageFolder, n_workers: int, size_px: int = 24) -> tuple[list[int], torch.Tensor]:
    batches = list(iterate_images(images, size_px, 7, on_error=SKIP, n_workers=n_workers))
    return torch.cat([batch.index for batch in batches]).tolist(), torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("n_workers", [0, 2])
class TestReading:
    """With nvJPEG's way tried on a CPU: torchvision decodes the same list of files there."""

    @pytest.fixture(autouse=True)
    def _without_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def decode_plain(files, device):
            assert all(map(is_plain, files))
            return decoding.decode_plain(files, torch.device("cpu"))

        monkeypatch.setattr(reader, "decode_plain", decode_plain)
        monkeypatch.setattr(reader, "check_decoder", lambda *_: None)

    @pytest.mark.parametrize("resize", list(Resize))
    def test_every_decoder_reads_the_same(self, folder: Path, n_workers: int, resize: Resize):
        index, expected = read_all(open_folder(folder, Decoder.pillow, resize), n_workers)
        assert index == list(range(len(FILES)))
        for decoder in (Decoder.torchvision, Decoder.nvjpeg):
            images = open_folder(folder, decoder, resize)
            found_index, found = read_all(images, n_workers)
            assert found_index == index
            for name, one, other in zip(images.image_ids, found, expected, strict=True):
                assert_close(one.numpy(), other.numpy(), name)

    def test_what_the_gpu_refuses_is_read_as_ever(
        self, tmp_path: Path, n_workers: int, monkeypatch: pytest.MonkeyPatch
    ):
        for i in range(20):
            (tmp_path / f"{i:02d}.jpg").write_bytes(b"nothing" if i in (5, 19) else encode(picture(seed=i)))
        images = open_folder(tmp_path, Decoder.nvjpeg)
        refused = [images.read_file(i) for i in (2, 11)]

        def decode_plain(files, device):
            for file, pixels in zip(files, decoding.decode_plain(files, torch.device("cpu")), strict=True):
                yield None if file in refused else pixels

        def load(index, size_px):
            if index == 11:
                raise ImageError("11.jpg", "nobody can")
            return load_it(index, size_px)

        index, expected = read_all(open_folder(tmp_path, Decoder.torchvision), n_workers)
        load_it = images.load
        monkeypatch.setattr(images, "load", load)
        monkeypatch.setattr(reader, "decode_plain", decode_plain)
        found_index, found = read_all(images, n_workers)
        assert found_index == [i for i in index if i != 11]
        assert torch.equal(found, expected[[i != 11 for i in index]])
        assert sorted(images.skipped) == ["05.jpg", "11.jpg", "19.jpg"]


def test_nvjpeg_without_a_gpu_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = r"^Expected .* on a GPU for data\.decoder=nvjpeg, got: no GPU; set data\.decoder=torchvision\.$"
    with pytest.raises(InputError, match=sentence):
        next(iterate_images(open_folder(folder, Decoder.nvjpeg), 24, 2, n_workers=2))


def test_a_torchvision_that_decodes_nothing_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    sentence = (
        r"^Expected a torchvision that decodes JPEGs for data\.decoder=torchvision, got: cannot import .*=pillow\.$"
    )
    with pytest.raises(InputError, match=sentence):
        next(iterate_images(open_folder(folder, Decoder.torchvision), 24, 2, n_workers=2))


@pytest.mark.skipif("INFOSCOPE_SAMPLES" not in os.environ, reason="INFOSCOPE_SAMPLES is not set")
@pytest.mark.parametrize("resize", list(Resize))
def test_photographs_differ_by_rounding(resize: Resize):
    root = Path(os.environ["INFOSCOPE_SAMPLES"]) / "imagenet" / "val"
    theirs, ours = (open_folder(root, decoder, resize) for decoder in (Decoder.pillow, Decoder.torchvision))
    differences = [np.abs(ours.load(i, 224).astype(int) - theirs.load(i, 224)) for i in range(0, len(ours), 10)]
    assert max(map(np.max, differences)) <= MAX_LEVELS
    assert 0 < np.mean(differences) <= MEAN_LEVELS  # 0: Pillow has resized both


@pytest.mark.gpu
@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_gpu_decodes_to_nearly_the_same(folder: Path, n_workers: int):
    theirs, ours = (open_folder(folder, decoder) for decoder in (Decoder.pillow, Decoder.nvjpeg))
    device = torch.device("cuda")
    for at in (device, None):
        read = list(iterate_images(ours, 24, 7, n_workers=n_workers, device=at))
        found = torch.cat([batch.images for batch in read]).permute(0, 2, 3, 1).cpu().numpy()
        for i, name in enumerate(theirs.image_ids):
            difference = np.abs(found[i].astype(int) - theirs.load(i, 24))
            assert difference.mean() < 3, name  # colours at half the resolution are enlarged in other ways
