"""ADE20K as the scene parsing benchmark gives it (ADEChallengeData2016): photographs with 150 classes of pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image

from infoscope.data.config import DataConfig, Resize
from infoscope.data.images import CHECK_PX, ImageError, ImageSet, Truth, check_split
from infoscope.data.left_out import HIDDEN, LeftOut, is_hidden
from infoscope.data.photographs import describe_error, hash_files, is_image_name, load_rgb, read_bytes
from infoscope.data.recognition import explaining
from infoscope.runtime.errors import InputError

N_LABELS = 150
_FOLDER = "ADEChallengeData2016"
_NAMES = "objectInfo150.txt"
_SPLITS = {"train": "training", "test": "validation"}
_N_PUBLISHED = {"train": 20_210, "test": 2_000}


class ADE20K(ImageSet):
    """One split of ADEChallengeData2016. Ids are file names without their extension, ascending.

    An annotation holds 0 (other) and the classes 1..150 of objectInfo150.txt; a label map 255 (ignored) and 0..149.

    Args:
        config: whose root is ADEChallengeData2016, or the folder it lies in.
        split: "train" (its training) or "test" (its validation).

    Raises:
        InputError: if the folder is another data set or lacks something, such as the annotation of an image, or a crop
            is asked for, which would not fit the label maps.
    """

    truths = frozenset({Truth.label_maps})

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split(split)
        refuse_crop(config.resize)
        root = Path(str(config.root))
        with explaining(root, "ade20k"):
            self.root, self.decoder, self.on_error = _find_folder(root), config.decoder, config.on_error
        self._images, self._annotations = (self.root / kind / _SPLITS[split] for kind in ("images", "annotations"))
        missing = [folder for folder in (self._images, self._annotations) if not folder.is_dir()]
        if missing:
            with explaining(self.root, "ade20k"):
                raise InputError(
                    f"Expected the {split} images of {_FOLDER} in {missing[0]}, but there is no such folder: unpack"
                    f" {_FOLDER}.zip in full."
                )
        self._names, left_out = _pair(self._images, self._annotations)
        super().__init__(split, sorted(self._names))
        self.left_out, left_out.n_read = left_out, 2 * len(self._names)
        self._contents: list[str] = []
        self.n_published = _N_PUBLISHED[split]
        self.label_names, self._named = _read_names(self.root / _NAMES)

    def describe(self) -> dict[str, str]:
        return {
            "layout": f"{_FOLDER}, {_SPLITS[self.split]}",
            "images": str(len(self)),
            "classes": f"{N_LABELS}, " + (f"named by {_NAMES}" if self._named else f"numbered ({_NAMES} is missing)"),
        }

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        return load_rgb(self._image_file(index), self.decoder)

    def read_file(self, index: int) -> bytes:
        return read_bytes(self._image_file(index))

    def label_map(self, index: int) -> UInt8[np.ndarray, "height width"]:
        file = self._annotations / f"{self.image_ids[index]}.png"
        mode, values = read_png(file)
        if mode.startswith("RGB"):
            raise _full_data_set(f"{file} has colours")
        if mode not in ("L", "P"):
            found = "16 bits" if mode.startswith("I") else f"Pillow's mode {mode}"
            raise InputError(
                f"Expected annotations of 8 bits with values 0 to {N_LABELS}, but {file} has {found}: take those of"
                f" {_FOLDER}."
            )
        height, width = values.shape
        refuse_other_size(file, (width, height), self._image_file(index))
        if values.max() > N_LABELS:
            was_reduced = values.max() == 255 and values[values < 255].max(initial=0) < N_LABELS
            why = ", as if the classes had been counted from 0 and the rest set to 255" if was_reduced else ""
            raise InputError(
                f"Expected annotations with values 0 to {N_LABELS}, but {file} holds {values.max()}{why}: take those of"
                f" {_FOLDER}, unchanged."
            )
        return values - np.uint8(1)  # 0 becomes 255

    def check_image(self, index: int) -> dict[str, str]:
        self.load(index, CHECK_PX)
        self.label_map(index)
        return read_facts(self._image_file(index))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names, sizes and contents of images and annotations (beyond 4 GiB in all, the first 64 KiB of each).

        Raises:
            ImageError: if a file cannot be read at all and `on_error` is "raise".
        """
        return self._make_fingerprint("ade20k", **self._hash_contents())

    def _hash_contents(self, hashed: str | None = None) -> dict[str, str]:
        images, annotations = (folder.relative_to(self.root).as_posix() for folder in (self._images, self._annotations))
        names = [f"{images}/{self._names[name]}" for name in self.image_ids]
        names += [f"{annotations}/{name}.png" for name in self.image_ids]
        found, each = hash_files(self.root, names, self.on_error, hashed)
        self._contents = each[: len(self)]
        return found

    def list_contents(self, hashed: str | None = None) -> list[str]:
        if hashed is not None or not self._contents:
            self._hash_contents(hashed)
        return self._contents

    def _image_file(self, index: int) -> Path:
        return self._images / self._names[self.image_ids[index]]


def _find_folder(root: Path) -> Path:
    try:
        os.listdir(root)
    except OSError as error:
        raise InputError(
            f"Expected the folder {_FOLDER} at {root}, got: {describe_error(error)}; check data.root."
        ) from error
    for folder in (root / _FOLDER, root):
        if (folder / "images").is_dir() and (folder / "annotations").is_dir():
            return folder
    raise InputError(
        f"Expected {_FOLDER} with its folders images and annotations, but {root} lacks them: check data.root."
    )


def _full_data_set(sign: str) -> InputError:
    return InputError(
        f"Expected the ADE20K of the scene parsing benchmark, but {sign}, as in the full ADE20K: download {_FOLDER}.zip"
        " and set data.root to its folder."
    )


def _pair(images: Path, annotations: Path) -> tuple[dict[str, str], LeftOut]:
    """Return {name without suffix: name} of the images, and what else lies there; refuse one without the other half."""
    left_out = LeftOut()
    photographs = _list_files(images, is_image_name, left_out)
    maps = _list_files(annotations, lambda name: name.endswith(".png"), left_out)
    for name in sorted(maps):
        if name.endswith("_seg"):
            raise _full_data_set(f"{annotations} holds {name}.png")
    refuse_unpaired(images, [name for stem, name in photographs.items() if stem not in maps], "an annotation")
    refuse_unpaired(annotations, [name for stem, name in maps.items() if stem not in photographs], "an image")
    if not photographs:
        raise InputError(f"Expected images ADE_*.jpg in {images}, but there is none: unpack {_FOLDER}.zip in full.")
    return photographs, left_out


def _list_files(folder: Path, is_wanted: Callable[[str], bool], left_out: LeftOut) -> dict[str, str]:
    """Return {name without suffix: name} of the wanted files of a folder, and count the rest."""
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem = os.path.splitext(name)[0]
        if is_hidden(name):
            left_out.add(HIDDEN, f"{folder.parent.name}/{name}")
        elif not is_wanted(name):
            left_out.add_file(f"{folder.parent.name}/{name}")
        elif stem in found:
            raise InputError(f"Expected one file {stem}.* in {folder}, got {found[stem]} and {name}: remove one.")
        else:
            found[stem] = name
    return found


def _read_names(file: Path) -> tuple[tuple[str, ...], bool]:
    """Return a name for each label, and whether they come from the file: its last column up to the first comma."""
    if not file.is_file():
        return tuple(str(i) for i in range(1, N_LABELS + 1)), False
    rows = [line.split("\t") for line in file.read_text("utf-8", "replace").strip().splitlines()[1:]]
    if [row[0].strip() for row in rows] != [str(i) for i in range(1, N_LABELS + 1)]:
        raise InputError(
            f"Expected a header and the classes 1 to {N_LABELS}, one a line, in {file}, got something else: take the"
            f" {_NAMES} of {_FOLDER} or remove it."
        )
    return tuple(row[-1].split(",")[0].strip() for row in rows), True


def refuse_crop(resize: Resize) -> None:
    """Refuse to crop images whose maps are read whole."""
    if resize is not Resize.squash:
        raise InputError(
            f"Expected data.resize=squash for images with a map of their pixels, got {resize.name}: the maps would not"
            " fit the images."
        )


def refuse_unpaired(folder: Path, names: Iterable[str], lacking: str) -> None:
    """Refuse files that lack their other half, if there are any."""
    if unpaired := sorted(names):
        raise InputError(
            f"Expected {lacking} for every file in {folder}, but {len(unpaired)} have none (the first:"
            f" {unpaired[0]}): complete the data set or remove them."
        )


def refuse_other_size(file: Path, size: tuple[int, int], image: Path) -> None:
    """Refuse a map (of that width and height) whose image has another size."""
    if (expected := _read_header(image)[0]) != size:
        raise InputError(
            f"Expected {file} at the size of its image, {expected[0]}x{expected[1]}, got {size[0]}x{size[1]}: take the"
            " data set's own images and maps, unscaled."
        )


def read_png(file: Path) -> tuple[str, Shaped[np.ndarray, "height width ..."]]:
    """Return Pillow's mode of a PNG file, and its values as they are stored: of a palette, the indices."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return image.mode, np.array(image)
    except Exception as error:  # a damaged file leads decoders to errors of every kind
        raise InputError(
            f"Cannot read {file} as PNG ({describe_error(error)}): replace it by the data set's own."
        ) from error


def read_facts(file: Path) -> dict[str, str]:
    """Return the size (upright) and the mode in which an image is stored."""
    (width, height), mode = _read_header(file)
    return {"size": f"{width}x{height}", "mode": mode}


def _read_header(file: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(file) as image:
            width, height = image.size
            with suppress(Exception):  # damaged EXIF tags, as in `load_rgb`
                if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
                    width, height = height, width
            return (width, height), image.mode
    except Exception as error:
        raise ImageError(str(file), describe_error(error)) from error
