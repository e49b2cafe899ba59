"""A folder of photographs: every JPEG, PNG, WebP and BMP file below it, whatever its size and colour mode."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from infoscope.data.config import RAISE, OnError, Resize
from infoscope.data.images import ImageError, ImageSet, resize_image
from infoscope.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # what the content may be, whatever the extension says
_WHOLE_CONTENT_BYTES = 4 * 1024**3
_HEAD_BYTES = 64 * 1024
_READERS = 8  # threads that hash files: enough to hide the latency of a network disk


class ImageFolder(ImageSet):
    """The images of one split of a folder tree. Ids are paths relative to the root, with `/`, ascending.

    Hidden files and folders are left out; links to folders are followed, each folder once. An image belongs to the test
    split if a hash of (seed, its id) falls below `test_share`: adding or removing files moves no other file.

    Args:
        root: the folder.
        split: "train" or "test".
        seed: of the split.
        test_share: expected share of the images that are held out, 0 to below 1; the test split may be empty.
        resize: how `load` makes a square.
        on_error: part of the fingerprint, because skipping leaves other images.

    Raises:
        InputError: if the root is missing, is no folder, cannot be read, holds no image, or leaves none to train on.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        seed: int = 0,
        test_share: float = 0.1,
        resize: Resize = Resize.squash,
        on_error: OnError = RAISE,
    ) -> None:
        if split not in ("train", "test"):
            raise InputError(f"Expected split to be train or test, got {split!r}.")
        self.root, self.seed, self.resize, self.on_error = Path(root), seed, resize, on_error
        found = _list_images(self.root)
        is_test = split == "test"
        ids = [name for name in found if (_split_position(seed, name) < test_share) == is_test]
        if not ids and not is_test:
            raise InputError(
                f"Expected images to train on, but data.test_share={test_share} holds out all {len(found)} images of"
                f" {self.root}: lower data.test_share or add images."
            )
        super().__init__(split, ids)

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        return resize_image(load_rgb(self.root / self.image_ids[index]), size_px, self.resize)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names, sizes and contents of the files of the split (beyond 4 GiB in all, the first 64 KiB of each).

        Raises:
            ImageError: if a file cannot be read at all and `on_error` is "raise".
        """
        files = [self.root / name for name in self.image_ids]
        sizes = [_file_size(file) for file in files]
        whole = sum(sizes) <= _WHOLE_CONTENT_BYTES
        total = hashlib.sha256()
        for name, size, digest in zip(self.image_ids, sizes, self._hash_files(files, whole), strict=True):
            total.update(f"{len(name)}:{name} {size} {digest}\n".encode(errors="surrogateescape"))
        return {
            "kind": "image_folder",
            "split": self.split,
            "seed": self.seed,
            "resize": self.resize.name,
            "on_error": self.on_error.name,
            "n_images": len(files),
            "hashed": "whole files" if whole else f"first {_HEAD_BYTES} bytes",
            "sha256": total.hexdigest(),
        }

    def _hash_files(self, files: list[Path], whole: bool) -> Iterator[str]:
        def digest(file: Path) -> str:
            try:
                with file.open("rb") as stream:
                    if whole:
                        return hashlib.file_digest(stream, "sha256").hexdigest()
                    return hashlib.sha256(stream.read(_HEAD_BYTES)).hexdigest()
            except OSError as error:
                if self.on_error is RAISE:
                    raise ImageError(str(file), _reason(error)) from error
                return "unreadable"

        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(files), 1024):  # a few tasks at a time: a data set may have millions of files
                yield from pool.map(digest, files[start : start + 1024])


def load_rgb(file: Path) -> Image.Image:
    """Return an image file upright (its EXIF orientation applied) as 8-bit RGB.

    Alpha is dropped, as CLIP's own preprocessing does; 16-bit grey keeps its high byte. JPEGs are decoded in full:
    decoding at a fraction of the size where that stays close to the truth (factor 2 or more left for the resize)
    saves a tenth of the time on photographs of 500 x 375 px and moves single pixels by up to 55 of 255 levels.

    Raises:
        ImageError: if it cannot be read, with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags; what matters raises
            with Image.open(file, formats=_FORMATS) as image:
                image.load()
                with suppress(Exception):  # damaged EXIF tags do not make the picture unreadable
                    ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ImageError(str(file), _reason(error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _list_images(root: Path) -> list[str]:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        raise InputError(f"Expected a folder of images at {root}, got: {_reason(error)}; check data.root.") from error
    if not is_folder:
        raise InputError(f"Expected a folder of images, but {root} is a file: set data.root to the folder it lies in.")

    def refuse(error: OSError) -> None:
        raise InputError(
            f"Cannot list the folder {error.filename} ({error.strerror}): make it readable or set another data.root."
        ) from error

    names: list[str] = []
    seen: set[Path] = set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = Path(folder).resolve()
        if real in seen:  # a link back to where we have been
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        names += [
            (relative / name).as_posix()
            for name in files
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    if not names:
        raise InputError(
            f"Expected images, but {root} holds no file that ends in {', '.join(EXTENSIONS)}: check data.root."
        )
    return sorted(names)


def _split_position(seed: int, name: str) -> float:
    """Place of a file in 0..1, uniform over names: below `test_share` it belongs to the test split."""
    digest = hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _file_size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a link that leads nowhere; hashing it reports it
        return 0


def _reason(error: Exception) -> str:
    """Say in a few words, without the path, why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no JPEG, PNG, WebP or BMP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
