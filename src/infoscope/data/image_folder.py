"""A folder of photographs: every JPEG, PNG, WebP and BMP file below it, whatever its size and colour mode."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from infoscope.data.photographs import EXTENSIONS, PhotographFiles, describe_error
from infoscope.errors import InputError


class ImageFolder(PhotographFiles):
    """The images of one split of a folder tree. Ids are paths relative to the root, with `/`, ascending.

    Hidden files and folders are left out; links to folders are followed, each folder once.

    Args:
        root: the folder.
        split, options: as of `PhotographFiles`.

    Raises:
        InputError: if the root is missing, is no folder, cannot be read, holds no image, or leaves none to train on.
    """

    kind = "image_folder"

    def __init__(self, root: str | Path, split: str = "train", **options: Any) -> None:
        super().__init__(Path(root), _list_images(Path(root)), split, **options)


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
