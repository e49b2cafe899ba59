"""Pictures that a caller hands over: paths, PIL images, uint8 arrays and tensors, one by one or stacked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from infoscope.data.config import RAISE, OnError, Resize
from infoscope.data.images import ImageError, ImageSet
from infoscope.data.photographs import load_rgb, to_rgb
from infoscope.runtime.calls import name_type
from infoscope.runtime.errors import InputError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""A file, a PIL image of any mode, or uint8 values: grey, RGB or RGBA, the colours first or last."""

N_COLOURS = (1, 3, 4)


class Pictures(ImageSet):
    """Pictures in the order in which they are given; files are read whenever they are asked for, the others are held.

    Ids are the paths of files, and the numbers of the others.

    Args:
        pictures: see `Picture`; alpha is dropped. A stack of pictures is an array or tensor of four dimensions.
        resize: how `load` makes a square.
        on_error: with "skip", files that are missing are met, and skipped, when they are read.

    Raises:
        InputError: if there is none, one is something else, or a file is missing or given twice.
    """

    def __init__(self, pictures: Iterable[Picture], resize: Resize = Resize.squash, on_error: OnError = RAISE) -> None:
        self.pictures = [_take(picture, i) for i, picture in enumerate(_unstack(pictures))]
        if not self.pictures:
            raise InputError("Expected pictures, got none: images= is empty.")
        ids = [str(one) if isinstance(one, Path) else f"{i:09d}" for i, one in enumerate(self.pictures)]
        if len(set(ids)) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise InputError(f"Expected every picture once, but {twice} is given more than once: remove the repeats.")
        if on_error is RAISE:
            _refuse_other_files([one for one in self.pictures if isinstance(one, Path)])
        super().__init__("train", ids)
        self.resize, self.on_error = resize, on_error

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        digest = sha256()
        for index in range(len(self)):
            picture = self.photograph(index)
            digest.update(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
        found = {"kind": "pictures", "n_images": len(self), "sha256": digest.hexdigest()}
        return found if self.resize is Resize.squash else {**found, "resize": self.resize.name}

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        picture = self.pictures[index]
        if isinstance(picture, Path):
            return load_rgb(picture)
        if isinstance(picture, np.ndarray):
            return picture
        try:
            return to_rgb(ImageOps.exif_transpose(picture))
        except Exception as error:  # a file that PIL opened is decoded here, and decoders raise errors of every kind
            raise ImageError(f"at position {index}", str(error) or type(error).__name__) from error

    def describe(self) -> dict[str, str]:
        return {"layout": "pictures given one by one", "images": str(len(self))}


def _unstack(pictures: Any) -> Iterable[Any]:
    """Return pictures one by one."""
    is_stack = isinstance(pictures, Tensor) or (isinstance(pictures, np.ndarray) and pictures.dtype.kind not in "OU")
    if is_stack and pictures.ndim != 4:
        raise InputError(
            "Expected images= as an array or tensor [n, height, width, 3] or [n, 3, height, width], got"
            f" {list(pictures.shape)}: give single pictures as a list."
        )
    if isinstance(pictures, Iterable) and not isinstance(pictures, Mapping | Set | bytes | Image.Image):
        return pictures
    if hasattr(pictures, "__getitem__") and hasattr(pictures, "__len__") and not isinstance(pictures, Iterable):
        return (pictures[i] for i in range(len(pictures)))  # a data set of torch's
    raise InputError(
        "Expected images= to be a folder, a list file (.txt), tars, an ImageSet, or pictures in an order: a list of"
        f" paths, PIL images or uint8 arrays, or one array or tensor; got {name_type(pictures)}."
    )


def _refuse_other_files(files: Sequence[Path]) -> None:
    for file in files:
        if file.name.endswith((".tar", ".txt")):
            raise InputError(f"Expected pictures in the list, got {file}: give it by itself, images={str(file)!r}.")
    missing = [file for file in files if not file.is_file()]
    if missing and missing[0].is_dir():
        raise InputError(
            f"Expected pictures in the list, got the folder {missing[0]}: give it by itself,"
            f" images={str(missing[0])!r}."
        )
    if missing:
        raise InputError(
            f"Expected image files, got {len(missing)} of {len(files)} that are missing, first {missing[0]}: mend the"
            " list, or set data.on_error=skip."
        )


def _take(picture: Any, position: int) -> Path | Image.Image | np.ndarray:
    """Return a picture as it is kept."""
    if isinstance(picture, str | os.PathLike):
        return Path(picture).expanduser()
    if isinstance(picture, Image.Image):
        with suppress(Exception):  # `decode` says what cannot be decoded
            picture.load()  # now: processes that read ahead would share the place in an open file
        return picture
    if isinstance(picture, np.ndarray | Tensor):
        return _arrange(picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture, position)
    hint = ""
    if isinstance(picture, Sequence) and picture and isinstance(picture[0], Image.Image | np.ndarray | Tensor):
        hint = "; leave out what comes with the pictures: [picture for picture, label in data]"
    got = f"{name_type(picture)}{hint}"
    raise InputError(f"Expected a path, a PIL image or a uint8 array at position {position} of images=, got {got}.")


def _arrange(values: np.ndarray, position: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return an array's picture with its three colours last."""
    where = f"at position {position} of images="
    if values.dtype != np.uint8:
        raise InputError(f"Expected uint8 pictures (0..255), got {values.dtype} {where}{_explain_scale(values)}.")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or not values.size:
        raise InputError(
            f"Expected a picture [height, width, 3] or [3, height, width], got {list(values.shape)} {where}."
        )
    first, last = values.shape[0] in N_COLOURS, values.shape[2] in N_COLOURS
    if first == last and not (first and values.shape[2] == 3):
        problem = "either could be its colours" if first else "neither its first nor its last axis is 1, 3 or 4 long"
        raise InputError(
            f"Expected a picture [height, width, 3] or [3, height, width], got {list(values.shape)} {where}: {problem}."
        )
    if not last:
        values = values.transpose(1, 2, 0)
    return values[..., :3] if values.shape[2] > 1 else np.repeat(values, 3, axis=2)


def _explain_scale(values: np.ndarray) -> str:
    """Say what to do about pictures of other numbers, by the range in which they lie."""
    if values.dtype.kind not in "fiu" or not values.size:
        return ""
    low, high = float(values.min()), float(values.max())
    found = f" with values {low:g}..{high:g}"
    if not low >= 0:  # NaN too
        return f"{found}: give the pictures as they were before any normalisation, for the backbone has its own"
    if high > 255:
        return f"{found}: bring them to 0..255, and convert them to uint8"
    if values.dtype.kind == "f" and high <= 1:
        return f"{found}: multiply by 255, round, and convert them to uint8"
    return f"{found}: round them, and convert them to uint8"
