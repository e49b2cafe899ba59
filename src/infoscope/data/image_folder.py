"""A folder of photographs: every JPEG, PNG, WebP and BMP file below it, whatever its size and colour mode."""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from infoscope.data.config import RAISE, OnError, Resize
from infoscope.data.images import ImageSet, resize_image
from infoscope.data.photographs import (
    EXTENSIONS,
    check_photograph,
    choose_split,
    describe_error,
    hash_files,
    load_rgb,
)
from infoscope.errors import InputError


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
        self.root, self.seed, self.resize, self.on_error = Path(root), seed, resize, on_error
        found = _list_images(self.root)
        super().__init__(split, [found[i] for i in choose_split(found, split, seed, test_share, self.root)])

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        return resize_image(load_rgb(self.root / self.image_ids[index]), size_px, self.resize)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names, sizes and contents of the files of the split, see `hash_files`.

        Raises:
            ImageError: if a file cannot be read at all and `on_error` is "raise".
        """
        return {
            "kind": "image_folder",
            "split": self.split,
            "seed": self.seed,
            "resize": self.resize.name,
            "on_error": self.on_error.name,
            "n_images": len(self),
            **hash_files(self.root, self.image_ids, self.on_error),
        }

    def check_image(self, index: int) -> dict[str, str]:
        return check_photograph(self.root / self.image_ids[index])


def _list_images(root: Path) -> list[str]:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        raise InputError(
            f"Expected a folder of images at {root}, got: {describe_error(error)}; check data.root."
        ) from error
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
