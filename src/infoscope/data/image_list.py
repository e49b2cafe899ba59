"""Photographs that a text file lists."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

from infoscope.data.config import RAISE, OnError
from infoscope.data.left_out import LeftOut
from infoscope.data.photographs import PhotographFiles, refuse_missing
from infoscope.data.recognition import refuse_maps
from infoscope.runtime.bounds import expand_path
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import read_text


class ImageList(PhotographFiles):
    """The images that a text file lists, one path per line, relative to the file's folder or absolute.

    Blank lines and lines that begin with # are left out; a byte order mark and Windows line ends are accepted. Ids are
    paths relative to the file's folder, with `/`; outside of it, as they stand in the file.

    Args:
        file: the list, UTF-8.
        split, options: as of `PhotographFiles`.
        on_error: with "skip", listed files that are missing are met, and skipped, when they are read.

    Raises:
        InputError: if the list cannot be read, is empty, names a file twice, a missing one or a known map of
            labels or depth, or leaves none to train on.
    """

    kind = "image_list"

    def __init__(self, file: str | Path, split: str = "train", *, on_error: OnError = RAISE, **options: Any) -> None:
        self.file = Path(file)
        folder = self.file.absolute().parent
        listed, left_out = _read_list(self.file, folder)
        refuse_maps(folder, listed)
        if on_error is RAISE:
            advice = "a line is one path, relative to the list's folder; mend the list"
            refuse_missing(folder, listed, self.file, advice)
        self.n_listed = len(listed)
        super().__init__(folder, listed, split, on_error=on_error, left_out=left_out, **options)

    def describe(self) -> dict[str, str]:
        return {"layout": "list of files", "images": str(len(self)), "listed": str(self.n_listed)}


def _read_list(file: Path, folder: Path) -> tuple[list[str], LeftOut]:
    """Return the ids that a list stands for, ascending, and which lines stand for none."""
    names: list[str] = []
    left_out = LeftOut("lines")
    text = read_text(file, "a text file with one image per line", "check data.root")
    for number, line in enumerate(map(str.strip, text.removesuffix("\n").split("\n")), 1):
        if not line:
            left_out.add("blank", f"line {number}")
        elif line.startswith("#"):
            left_out.add("of comment", f"line {number}")
        else:
            if line.startswith("~") or ("$" in line and not os.path.lexists(folder / line)):
                line = expand_path(line, f"{file}, a line of it")
            path = os.path.normpath(folder / line)
            inside = path.startswith(f"{folder}{os.sep}")
            names.append(Path(os.path.relpath(path, folder) if inside else os.path.normpath(line)).as_posix())
    if not names:
        raise InputError(f"Expected images, but {file} lists none: write one path per line.")
    names.sort()
    for name, following in itertools.pairwise(names):
        if name == following:
            raise InputError(f"Expected every image once, but {file} lists {name} more than once: remove the repeats.")
    return names, left_out
