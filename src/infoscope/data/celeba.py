"""CelebA: faces with 40 attributes each (Liu et al., 2015).

    ROOT/img_align_celeba/*.jpg     the images, or img_align_celeba_png/*.png; also in a folder of the same name in that
    list_attr_celeba.txt or .csv    -1 or 1 for each image and attribute
    list_eval_partition.txt or .csv 0 (train), 1 (validation, left out) or 2 (test) for each image

All lie in ROOT (torchvision, Kaggle, whose lists are .csv and whose images lie one folder deeper, WILDS and group_DRO),
or as its authors give it in ROOT/Img, ROOT/Anno and ROOT/Eval. Images that are in neither list are counted as left out.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from infoscope.data.config import RAISE, DataConfig
from infoscope.data.images import CHOOSE_TARGET, Truth
from infoscope.data.left_out import LeftOut
from infoscope.data.photographs import PhotographFiles, is_image_name, refuse_missing, scan_folder
from infoscope.data.recognition import explaining
from infoscope.runtime.errors import InputError, suggest
from infoscope.runtime.files import read_text

N_ATTRIBUTES = 40
FOLDER, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba", "list_eval_partition"
_WHOLE = "img_celeba"
_SPLITS = {"train": b"\0", "test": b"\2"}
_VALIDATION = b"\1"
_VALUES = {ATTRIBUTES: ("-1", "1"), PARTITION: ("0", "1", "2")}
_SPURIOUS = "Male"
"""What goes with most other attributes; with blond hair as in Sagawa et al. (2020)."""


class _Table(NamedTuple):
    """A list of images: names of the columns (none in a .txt of the partition), and the values of each image.

    A value is a byte, its place among those that it can have: of 8 million attributes strings would take 400 MB.
    """

    file: Path
    columns: list[str]
    rows: dict[str, bytes]


class CelebA(PhotographFiles):
    """One split. Targets: "class" (0: without `data.attribute`, 1: with it) and each of the attributes, likewise.

    Args:
        config: root, attribute, resize, decoder and on_error are read.
        split: "train" or "test".

    Raises:
        InputError: no lists or images, an unknown attribute, other than 40 attributes, values that they cannot have,
            images without attributes or split, or that are missing, a split without images.
    """

    kind = "celeba"
    truths = frozenset({Truth.labels})

    def __init__(self, config: DataConfig, split: str) -> None:
        root = Path(str(config.root))
        with explaining(root, self.kind):
            attributes, partition = _read_table(root, ATTRIBUTES, "Anno"), _read_table(root, PARTITION, "Eval")
            folder, is_png = _find_folder(root)
        _check_attributes(attributes, config.attribute)
        _check_partition(partition, attributes)
        files = {name: f"{os.path.splitext(name)[0]}.png" if is_png else name for name in partition.rows}
        listed = sorted(name for name, of in partition.rows.items() if of == _SPLITS[split])
        if not listed:
            raise InputError(
                f"Expected {split} images ({_SPLITS[split][0]}) in {partition.file}, got none among its"
                f" {len(partition.rows):,}: give the published list."
            )
        names = [files[name] for name in listed]
        if config.on_error is RAISE:
            refuse_missing(folder, names, partition.file)
        left_out, known = LeftOut(), set(files.values())
        for name, of in partition.rows.items():
            if of == _VALIDATION:
                left_out.add("of the validation split", files[name])
        for entry in scan_folder(folder):
            if is_image_name(entry.name) and entry.name not in known:
                left_out.add("in neither list", entry.name)
        super().__init__(folder, names, split, test_share=None, left_out=left_out, **config.reading)
        self.left_out.n_read = sum(of != _VALIDATION for of in partition.rows.values())
        self.attribute, self.attributes = config.attribute, tuple(attributes.columns)
        self.targets, self.class_attribute = ("class", *self.attributes), self.attribute
        word = config.attribute.replace("_", " ").lower()
        self.class_names = (f"no {word}", word)
        self.spurious_target = None if config.attribute == _SPURIOUS or _SPURIOUS not in self.attributes else _SPURIOUS
        has = np.frombuffer(b"".join(attributes.rows[name] for name in listed), dtype=bool)
        self._has = has.reshape(len(listed), N_ATTRIBUTES)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        self.n_target_classes(target)
        return self._get(self.attribute if target == "class" else target).astype(np.int64)

    def _get(self, attribute: str) -> Bool[np.ndarray, " n_images"]:
        return self._has[:, self.attributes.index(attribute)]

    def n_target_classes(self, target: str) -> int:
        if target not in self.targets:
            raise InputError(
                f"Expected a target of CelebA (class, which is {self.attribute}, or an attribute), got"
                f" {target!r}{suggest(target, self.targets)}: {CHOOSE_TARGET}."
            )
        return 2

    def describe(self) -> dict[str, str]:
        return {
            "layout": f"CelebA, {len(self.attributes)} attributes",
            "images": str(len(self)),
            "class": f"{self.attribute}, which {self._get(self.attribute).mean():.1%} have",
        }

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Attributes, names, sizes and contents of the images, see `hash_images`, and which attribute is the class.

        Raises:
            ImageError: if an image cannot be read at all and `on_error` is "raise".
        """
        labels = hashlib.sha256("\0".join(self.attributes).encode() + self._has.tobytes()).hexdigest()
        facts = {"resize": self.resize.name, "attribute": self.attribute, "labels_sha256": labels}
        return self._make_fingerprint(self.kind, **facts, **self.hash_contents())


def _read_table(root: Path, name: str, beside: str) -> _Table:
    """Return a list of the images, as published (.txt) or as Kaggle gives it (.csv).

    Raises:
        InputError: there is none, it cannot be read, has rows of another length, values that they cannot have, or an
            image twice.
    """
    places = [root / below / f"{name}{suffix}" for below in ("", beside) for suffix in (".txt", ".csv")]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"Expected {name}.txt or {name}.csv of CelebA in {root} or {root / beside}, got neither: set data.root to"
            f" the folder that holds it and {FOLDER}."
        )
    lines = read_text(file, "a list of CelebA", "get it anew").splitlines()
    is_csv = file.suffix == ".csv"
    spaced = (line.replace(",", " ") if is_csv else line for line in lines)
    rows = [(number, line) for number, line in enumerate(spaced, 1) if line.strip()]
    columns, n_stated = [], None
    if is_csv:
        columns, rows = (rows[0][1].split()[1:], rows[1:]) if rows else ([], [])
    elif name == ATTRIBUTES:
        n_stated = int(rows[0][1]) if rows and rows[0][1].strip().isdecimal() else None
        columns, rows = (rows[1][1].split(), rows[2:]) if n_stated is not None and len(rows) > 1 else ([], [])
    n_fields, place = len(columns) if name == ATTRIBUTES else 1, {of: i for i, of in enumerate(_VALUES[name])}
    found: dict[str, bytes] = {}
    for number, line in rows:
        image, *fields = line.split()
        if len(fields) != n_fields:
            raise InputError(
                f"Expected an image and {n_fields} value{'s' * (n_fields != 1)} in line {number} of {file}, got"
                f" {len(fields)} values: mend the line."
            )
        if image in found:
            raise InputError(
                f"Expected every image once, but {file} lists {image} again in line {number}: remove the repeats."
            )
        try:
            found[image] = bytes(map(place.__getitem__, fields))
        except KeyError as error:
            of = columns[fields.index(error.args[0])] if name == ATTRIBUTES else "the split"
            raise InputError(
                f"Expected {of} of {image} to be {' or '.join(place)} in line {number} of {file}, got"
                f" {error.args[0]!r}: mend the line."
            ) from error
    if n_stated not in (None, len(found)):
        raise InputError(
            f"Expected {n_stated:,} images in {file}, as its first line says, got {len(found):,}: get the whole list."
        )
    return _Table(file, columns, found)


def _find_folder(root: Path) -> tuple[Path, bool]:
    """Return where the images lie, and whether they are PNGs under the names of JPEGs.

    Raises:
        InputError: there is no such folder, or one of the pictures that the faces were cut from.
    """
    for name, is_png in ((FOLDER, False), (f"{FOLDER}_png", True)):
        for above in (root / "Img", root):
            for folder in (above / name / name, above / name):
                if folder.is_dir():
                    return folder, is_png
    whole = next((place for place in (root / _WHOLE, root / "Img" / _WHOLE) if place.is_dir()), None)
    found = "no such folder" if whole is None else f"{whole}, the pictures that the faces were cut from"
    raise InputError(f"Expected the images of CelebA in {root / FOLDER}, got {found}: unpack {FOLDER}.zip there.")


def _check_attributes(table: _Table, attribute: str) -> None:
    """Refuse other attributes than CelebA's.

    Raises:
        InputError: such a list.
    """
    if len(table.columns) != N_ATTRIBUTES or len(set(table.columns)) != N_ATTRIBUTES:
        raise InputError(
            f"Expected the {N_ATTRIBUTES} attributes of CelebA in {table.file}, got {len(set(table.columns))} names of"
            " columns: give the published list (.txt: their number, their names, then a line for each image)."
        )
    if attribute not in table.columns:
        raise InputError(
            f"Expected data.attribute to be one of the attributes of CelebA ({', '.join(table.columns[:5])}, ...), got"
            f" {attribute!r}{suggest(attribute, table.columns)}."
        )


def _check_partition(partition: _Table, attributes: _Table) -> None:
    """Refuse a partition that does not fit the attributes.

    Raises:
        InputError: images in one list alone.
    """
    for one, other, lacks in ((partition, attributes, "attributes"), (attributes, partition, "a split")):
        if without := [image for image in one.rows if image not in other.rows]:
            raise InputError(
                f"Expected {lacks} of every image, but {len(without):,} of {len(one.rows):,} images in {one.file} have"
                f" none in {other.file}, first {without[0]}: complete it, or remove them."
            )
