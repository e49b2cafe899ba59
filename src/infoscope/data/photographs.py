"""Photographs as files: decoding them, dividing them, and what stands for their contents in a fingerprint.

Every format is read that Pillow itself decodes to pixels; the content says which it is, the suffix only what is looked
at. Of a file with several frames (GIF, TIFF, ...) the first is the picture.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError, features

from infoscope.data.config import RAISE, Decoder, OnError, Resize
from infoscope.data.decoding import decode_jpeg
from infoscope.data.images import ImageError, ImageSet, check_split
from infoscope.data.left_out import LeftOut
from infoscope.runtime.errors import InputError, get_first_line

_NO_PICTURES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS", "FITS"})
"""Formats that Pillow only recognises, or has other programs decode (EPS), or that hold measurements (FITS)."""
_CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Formats that Pillow may have been built without."""
WHOLE_CONTENT_BYTES = 4 * 1024**3
HEAD_BYTES = 64 * 1024
NAMES_AND_SIZES, WHOLE_FILES, HEADS = "names and sizes", "whole files", "first {} bytes"
"""How much of images a fingerprint has."""
_END_OF_12_BITS, _PHOTOMETRIC = 4095, 262
N_READERS = 8  # threads that hash files: enough to hide the latency of a network disk
MAX_HASHED_IMAGES = 100_000
"""Of more images than this, the fingerprint knows names and sizes alone: opening a million files takes too long."""


class PhotographFiles(ImageSet):
    """The photographs of one split of a list of files, divided by a hash of their names.

    An image belongs to the test split if a hash of (seed, its id) falls below `test_share`: adding or removing files
    moves no other file.

    Args:
        folder: what the names are relative to.
        names: the ids of all images, ascending; absolute ones may be among them.
        split: "train" or "test".
        seed: of the split.
        test_share: expected share of the images that are held out, 0 to below 1; the test split may be empty. None: the
            names are those of one split, whichever it is.
        resize, decoder, on_error: as of `ImageSet`.
        left_out: what else lies there, of both splits.

    Raises:
        InputError: if none is left to train on.
    """

    kind = "photographs"
    """In the fingerprint."""

    def __init__(
        self,
        folder: Path,
        names: list[str],
        split: str = "train",
        *,
        seed: int = 0,
        test_share: float | None = 0.1,
        resize: Resize = Resize.squash,
        decoder: Decoder = Decoder.pillow,
        on_error: OnError = RAISE,
        left_out: LeftOut | None = None,
    ) -> None:
        self.folder, self.seed = folder, seed
        self.resize, self.decoder, self.on_error = resize, decoder, on_error
        super().__init__(split, _choose_split(names, split, seed, test_share, folder))
        self.left_out = LeftOut() if left_out is None else left_out
        self.left_out.n_read = len(names)
        self._contents: list[str] = []

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        return load_rgb(self.folder / self.image_ids[index], self.decoder)

    def read_file(self, index: int) -> bytes:
        return read_bytes(self.folder / self.image_ids[index])

    def check_image(self, index: int) -> dict[str, str]:
        return check_photograph(self.folder / self.image_ids[index])

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names, sizes and contents of the images of the split, see `hash_images`.

        Raises:
            ImageError: if an image cannot be read at all and `on_error` is "raise".
        """
        return self._make_fingerprint(self.kind, seed=self.seed, resize=self.resize.name, **self.hash_contents())

    def hash_contents(self, hashed: str | None = None) -> dict[str, str]:
        """Return the part of the fingerprint that stands for names and contents, see `hash_images`."""
        found, self._contents = hash_files(self.folder, self.image_ids, self.on_error, hashed)
        return found

    def list_contents(self, hashed: str | None = None) -> list[str]:
        if hashed is not None or not self._contents:
            self.hash_contents(hashed)
        return self._contents


@cache
def find_formats() -> tuple[str, ...]:
    """Return the formats that the content of an image may have, as Pillow calls them."""
    Image.init()
    return tuple(
        name for name in Image.ID if name not in _NO_PICTURES and (name not in _CODECS or features.check(_CODECS[name]))
    )


@cache
def find_suffixes() -> frozenset[str]:
    """Return the suffixes, in small letters, of the files that are taken for images."""
    formats = {*find_formats(), "MPO"}  # a JPEG with more pictures behind it
    known = (suffix for suffix, name in Image.registered_extensions().items() if name in formats)
    return frozenset(suffix for suffix in known if suffix != ".pfm")  # floating-point maps


def scan_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, ascending.

    Raises:
        InputError: if it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"Cannot list the folder {folder} ({error.strerror}): make it readable or set another data.root."
        ) from error


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image, in capitals or small letters."""
    return os.path.splitext(name)[1].lower() in find_suffixes()


def read_bytes(file: Path) -> bytes:
    """Return an image file as it is stored.

    Raises:
        ImageError: if it cannot be read, with the reason.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise ImageError(str(file), describe_error(error)) from error


def load_rgb(
    file: Path | BinaryIO, decoder: Decoder = Decoder.pillow
) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
    """Return an image file upright (its EXIF orientation applied) as 8-bit RGB: its first frame.

    Alpha is dropped, as CLIP's own preprocessing does, of palettes too; 16 bits keep their high byte; CMYK is converted
    without a colour profile. Floating-point and 32-bit values, and 12 bits stored in 16, which have no known white, are
    refused. JPEGs are
    decoded in full: decoding at a fraction of the size where that stays close to the truth (factor 2 or more left for
    the resize) saves a tenth of the time on photographs of 500 x 375 px and moves single pixels by up to 55 of 255
    levels.

    Args:
        decoder: others than Pillow decode JPEGs in colour or grey alone, to the same picture.

    Raises:
        ImageError: if it cannot be read, with the reason.
    """
    source = file
    if decoder is not Decoder.pillow:
        data = read_bytes(file) if isinstance(file, Path) else file.read()
        pixels = decode_jpeg(data)
        if pixels is not None:
            return pixels
        source = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags; what matters raises
            with Image.open(source, formats=find_formats()) as image:
                image.load()
                with suppress(Exception):  # damaged EXIF tags do not make the picture unreadable
                    ImageOps.exif_transpose(image, in_place=True)
                return to_rgb(image)
    except Exception as error:  # a damaged file leads decoders to errors of every kind
        raise ImageError(str(file), describe_error(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB, see `load_rgb`."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise ValueError("it has values of 32 bits, which are no colours")
        if 0 < values.max(initial=0) <= _END_OF_12_BITS:
            raise ValueError("its 16 bits hold 12 or fewer, so that it would be black: scale them to 0..65535")
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # a TIFF whose 0 is white: Pillow leaves it so
            values = 0xFFFF - values
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode.startswith("F"):
        raise ValueError("it has floating-point values, which are no colours")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _choose_split(names: Sequence[str], split: str, seed: int, test_share: float | None, source: Path) -> list[str]:
    """Return the images of a split."""
    check_split(split)
    if test_share is None:
        return list(names)
    is_test = split == "test"
    chosen = [name for name in names if (test_share > 0 and compute_split_position(seed, name) < test_share) == is_test]
    if not chosen and not is_test:
        raise InputError(
            f"Expected images to train on, but data.test_share={test_share} holds out all {len(names)} images of"
            f" {source}: lower data.test_share or add images."
        )
    return chosen


def check_photograph(file: Path | BinaryIO) -> dict[str, str]:
    """Decode an image in full and return its colour mode, its format by its content, and frames beyond one.

    Raises:
        ImageError: if it cannot be read.
    """
    load_rgb(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file, formats=find_formats()) as image:
            n_frames = getattr(image, "n_frames", 1)
            frames = {"frames": f"{n_frames}, the first is read"} if n_frames > 1 else {}
            return {"mode": image.mode, "format": image.format or "?", **frames}


def hash_files(
    folder: Path, names: Sequence[str], on_error: OnError, hashed: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """`hash_images` of files below a folder, or with absolute names.

    Raises:
        ImageError: if a file cannot be read at all and `on_error` is "raise".
    """

    def digest(i: int, n_bytes: int | None) -> str:
        file = folder / names[i]
        try:
            with file.open("rb") as stream:
                if n_bytes is None:
                    return hashlib.file_digest(stream, "sha256").hexdigest()
                return hashlib.sha256(stream.read(n_bytes)).hexdigest()
        except OSError as error:
            if on_error is RAISE:
                raise ImageError(str(file), describe_error(error)) from error
            return "unreadable"

    return hash_images(names, _measure_files(folder, names), digest, hashed)


def hash_images(
    names: Sequence[str], sizes: Sequence[int], digest: Callable[[int, int | None], str], hashed: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Return what stands for images in a fingerprint: how much of them was "hashed", and the "sha256" of it.

    That is names, sizes and whole contents up to 4 GiB in all, beyond that the first 64 KiB of each, and of more than
    `MAX_HASHED_IMAGES` images names and sizes alone.

    Args:
        sizes: in bytes.
        digest: (index, n_bytes) -> SHA-256 of the first n_bytes of an image, of all of it for None; called by threads.
        hashed: how much of them, as an earlier fingerprint says it; None: as above.

    Returns:
        also what of this stands for each image: "SIZE" or "SIZE DIGEST", the digest's first 16 digits.
    """
    if hashed is None:
        is_whole = sum(sizes) <= WHOLE_CONTENT_BYTES
        hashed = WHOLE_FILES if is_whole else HEADS.format(HEAD_BYTES)
        hashed = NAMES_AND_SIZES if len(names) > MAX_HASHED_IMAGES else hashed
    total = hashlib.sha256()

    def update(i: int, content: str) -> None:
        total.update(f"{len(names[i])}:{names[i]} {sizes[i]} {content}\n".encode(errors="surrogateescape"))

    each = list(map(str, sizes))
    if hashed == NAMES_AND_SIZES:
        for i in range(len(names)):
            update(i, "")
    else:
        n_bytes = None if hashed == WHOLE_FILES else int(hashed.split()[1])
        with ThreadPoolExecutor(N_READERS) as pool:
            for part in _chunks(len(names)):
                for i, content in zip(part, pool.map(lambda i: digest(i, n_bytes), part), strict=True):
                    update(i, content)
                    each[i] += f" {content[:16]}"
    return {"hashed": hashed, "sha256": total.hexdigest()}, each


def _measure_files(folder: Path, names: Sequence[str]) -> list[int]:
    def measure(i: int) -> int:
        try:
            return os.stat(os.path.join(folder, names[i])).st_size  # a Path for each would take twice the time
        except OSError:  # reading it reports that
            return 0

    def measure_all(part: range) -> list[int]:
        return [measure(i) for i in part]

    with ThreadPoolExecutor(N_READERS) as pool:  # chunks as tasks: a task costs more than a look at a local disk
        return [size for sizes in pool.map(measure_all, _chunks(len(names))) for size in sizes]


def _chunks(n: int) -> Iterator[range]:
    return (range(start, min(start + 1024, n)) for start in range(0, n, 1024))


def compute_split_position(seed: int, name: str) -> float:
    """Place of a file in 0..1, uniform over names: below `test_share` it belongs to the test split."""
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def refuse_missing(folder: Path, names: Sequence[str], file: Path, advice: str = "complete them") -> None:
    """Refuse images that a file lists and that are not below a folder.

    Args:
        advice: what to do, for the error.

    Raises:
        InputError: some are missing.
    """
    if missing := [name for name in names if not os.path.isfile(folder / name)]:
        raise InputError(
            f"Expected the files that {file} lists in {folder}, got {len(missing):,} of {len(names):,} that are"
            f" missing, first {missing[0]}: {advice}, or set data.on_error=skip."
        )


def describe_error(error: Exception) -> str:
    """Say in a few words, without the path, why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no JPEG, PNG or other image that Pillow reads"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return get_first_line(error)
