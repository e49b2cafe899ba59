"""Photographs that a text file lists."""

from __future__ import annotations

import itertools
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from infoscope.data.config import RAISE, OnError, Resize
from infoscope.data.images import ImageSet, resize_image
from infoscope.data.photographs import check_photograph, choose_split, describe_error, hash_files, load_rgb
from infoscope.errors import InputError


class ImageList(ImageSet):
    """The images that a text file lists, one path per line, relative to the file's folder or absolute.

    Blank lines and lines that begin with # are left out; a byte order mark and Windows line ends are accepted. Ids are
    paths relative to the file's folder, with `/`; outside of it, as they stand in the file. The split is by hash, as
    that of an image folder.

    Args:
        file: the list, UTF-8.
        split: "train" or "test".
        seed: of the split.
        test_share: expected share of the images that are held out, 0 to below 1; the test split may be empty.
        resize: how `load` makes a square.
        on_error: with "skip", listed files that are missing are met, and skipped, when they are read.

    Raises:
        InputError: if the list cannot be read, is empty, names a file twice or a missing one, or leaves none to train
            on.
    """

    def __init__(
        self,
        file: str | Path,
        split: str = "train",
        *,
        seed: int = 0,
        test_share: float = 0.1,
        resize: Resize = Resize.squash,
        on_error: OnError = RAISE,
    ) -> None:
        self.file, self.seed, self.resize, self.on_error = Path(file), seed, resize, on_error
        self.folder = self.file.absolute().parent
        listed = _read_list(self.file, self.folder)
        if on_error is RAISE:
            self._refuse_missing(listed)
        self.n_listed = len(listed)
        super().__init__(split, [listed[i] for i in choose_split(listed, split, seed, test_share, self.file)])

    def _refuse_missing(self, listed: list[str]) -> None:
        missing = [name for name in listed if not os.path.isfile(self.folder / name)]
        if missing:
            raise InputError(
                f"Expected the files that {self.file} lists, got {len(missing)} of {len(listed)} that are missing,"
                f" first {missing[0]}: mend the list, or set data.on_error=skip."
            )

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        return resize_image(load_rgb(self.folder / self.image_ids[index]), size_px, self.resize)

    def describe(self) -> dict[str, str]:
        return {"layout": "list of files", "images": str(len(self)), "listed": str(self.n_listed)}

    def check_image(self, index: int) -> dict[str, str]:
        return check_photograph(self.folder / self.image_ids[index])

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names, sizes and contents of the listed files of the split, see `hash_images`.

        Raises:
            ImageError: if a file cannot be read at all and `on_error` is "raise".
        """
        return {
            "kind": "image_list",
            "split": self.split,
            "seed": self.seed,
            "resize": self.resize.name,
            "on_error": self.on_error.name,
            "n_images": len(self),
            **hash_files(self.folder, self.image_ids, self.on_error),
        }


def _read_list(file: Path, folder: Path) -> list[str]:
    """Return the ids that a list stands for, ascending."""
    names: list[str] = []
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for line in map(str.strip, stream):
                if line and not line.startswith("#"):
                    path = os.path.normpath(folder / line)
                    inside = path.startswith(f"{folder}{os.sep}")
                    names.append(Path(os.path.relpath(path, folder) if inside else os.path.normpath(line)).as_posix())
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else describe_error(error)
        raise InputError(
            f"Expected a text file with one image per line at {file}, got: {reason}; check data.root."
        ) from error
    if not names:
        raise InputError(f"Expected images, but {file} lists none: write one path per line.")
    names.sort()
    for name, following in itertools.pairwise(names):
        if name == following:
            raise InputError(f"Expected every image once, but {file} lists {name} more than once: remove the repeats.")
    return names
