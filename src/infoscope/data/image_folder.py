"""A folder of photographs: every image below it that Pillow reads, of any size and colour mode."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from infoscope.data.left_out import HIDDEN, LeftOut, is_hidden
from infoscope.data.photographs import PhotographFiles, describe_error, is_image_name, scan_folder
from infoscope.data.recognition import explaining, refuse_maps
from infoscope.runtime.errors import InputError


class ImageFolder(PhotographFiles):
    """The images of one split of a folder tree. Ids are paths relative to the root, with `/`, ascending.

    What is no image is left out, and counted: files with another suffix or none, hidden files and folders, those that
    systems make (__MACOSX). Links to folders are followed, each folder once.

    Args:
        root: the folder.
        split, options: as of `PhotographFiles`.

    Raises:
        InputError: if the root is missing, is no folder, cannot be read, holds no image, or images that are known to be
            maps of labels or depth, or leaves none to train on.
    """

    kind = "image_folder"

    def __init__(self, root: str | Path, split: str = "train", **options: Any) -> None:
        names, left_out = list_images(Path(root))
        refuse_maps(Path(root), names)
        super().__init__(Path(root), names, split, left_out=left_out, **options)


def list_images(root: Path, kind: str = "image_folder") -> tuple[list[str], LeftOut]:
    """Return the images below a folder, ascending, and what else lies there.

    Args:
        kind: the `data=` that was given.

    Raises:
        InputError: if the folder is missing, is none, cannot be read, or holds no image.
    """
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        raise InputError(
            f"Expected a folder of images at {root}, got: {describe_error(error)}; check data.root."
        ) from error
    if not is_folder:
        with explaining(root, kind):
            place = "a folder, or to a list of paths that ends in .txt"
            if kind != "image_folder":
                place = "a folder"
            elif is_image_name(root.name):
                place = "its folder"
            raise InputError(f"Expected a folder of images, but {root} is a file: set data.root to {place}.")

    names: list[str] = []
    left_out = LeftOut()
    seen: set[Path] = set()
    unread = [""]
    while unread:
        folder = unread.pop()
        real = (root / folder).resolve()
        if real in seen:
            left_out.add("folders met before by another path", folder)
            continue
        seen.add(real)
        subfolders: list[str] = []
        for entry in scan_folder(root / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                left_out.add("hidden folders" if entry.is_dir() else HIDDEN, path)
            elif entry.is_dir():
                subfolders.append(path)
            elif not is_image_name(entry.name):
                left_out.add_file(path)
            elif entry.is_file() or entry.is_symlink():  # a link to nowhere is named when it is read
                names.append(path)
            else:
                left_out.add("pipes, sockets or devices", path)
        unread += reversed(subfolders)
    if not names:
        holds = f" but {left_out.describe()}" if left_out else ""
        with explaining(root, kind):
            raise InputError(
                f"Expected images, but {root} holds no file with the suffix of a format that Pillow reads (.jpg, .png,"
                f" ...){holds}: check data.root."
            )
    return sorted(names), left_out
