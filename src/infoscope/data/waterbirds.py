"""Waterbirds: birds of land and of water, pasted on places of land and of water (Sagawa et al., 2020).

    ROOT/metadata.csv    img_id, img_filename, y, split, place, place_filename: a row for each image
    ROOT/<img_filename>  the images

That is waterbird_complete95_forest2water2 as its authors give it, waterbirds_v1.0 of WILDS, and what their script
makes for other places and shares. Images that the table does not list are counted as left out.

In training 95% of the birds are where one expects them, in the other splits half: a model that takes the place for the
bird is wrong in the smallest groups. Split 0 is train, 2 test; 1, validation, is left out.
"""

from __future__ import annotations

import csv
import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from infoscope.data.config import RAISE, DataConfig
from infoscope.data.image_folder import list_images
from infoscope.data.images import CHOOSE_TARGET, Truth
from infoscope.data.left_out import LeftOut
from infoscope.data.photographs import PhotographFiles, refuse_missing
from infoscope.data.recognition import explaining
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import read_text

FILE = "metadata.csv"
_SPLITS = {"train": "0", "test": "2"}
_VALUES = {"y": ("0", "1"), "split": ("0", "1", "2"), "place": ("0", "1")}


class _Row(NamedTuple):
    name: str
    split: str
    y: int
    place: int


class Waterbirds(PhotographFiles):
    """One split. Targets: "class" (of land 0, of water 1), "place" (likewise), "group" (2 class + place).

    Args:
        config: root, resize, decoder and on_error are read.
        split: "train" or "test".

    Raises:
        InputError: no table, one that lacks columns, values that it cannot have, images that are missing or listed
            twice, a split without images.
    """

    kind = "waterbirds"
    truths = frozenset({Truth.labels})
    class_names = ("landbird", "waterbird")
    targets = ("class", "place", "group")
    spurious_target = "place"

    def __init__(self, config: DataConfig, split: str) -> None:
        root = Path(str(config.root))
        with explaining(root, self.kind):
            rows = _read_rows(root)
        chosen = [row for row in rows if row.split == _SPLITS[split]]
        if not chosen:
            raise InputError(
                f"Expected {split} images (split {_SPLITS[split]}) in {root / FILE}, got none in its {len(rows):,}"
                " rows: give the published table."
            )
        names = [row.name for row in chosen]
        if config.on_error is RAISE:
            refuse_missing(root, names, root / FILE)
        left_out, listed = LeftOut(), {row.name for row in rows}
        for row in rows:
            if row.split == "1":
                left_out.add("of the validation split", row.name)
        for name in list_images(root, self.kind)[0]:
            if name not in listed:
                left_out.add("not in the table", name)
        super().__init__(root, names, split, test_share=None, left_out=left_out, **config.reading)
        self.left_out.n_read = sum(row.split != "1" for row in rows)
        self._class = np.array([row.y for row in chosen], dtype=np.int64)
        self._place = np.array([row.place for row in chosen], dtype=np.int64)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        self.n_target_classes(target)
        return {"class": self._class, "place": self._place, "group": 2 * self._class + self._place}[target]

    def n_target_classes(self, target: str) -> int:
        if target not in self.targets:
            raise InputError(
                f"Expected a target of Waterbirds ({', '.join(self.targets)}), got {target!r}: {CHOOSE_TARGET}."
            )
        return 4 if target == "group" else 2

    def describe(self) -> dict[str, str]:
        counts = np.bincount(self.labels("group"), minlength=4)
        groups = [f"{bird} on {place}" for bird in self.class_names for place in ("land", "water")]
        told = ", ".join(f"{name} {n:,}" for name, n in zip(groups, counts, strict=True))
        return {"layout": f"Waterbirds, {FILE}", "images": str(len(self)), "groups": told}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Labels, names, sizes and contents of the images, see `hash_images`.

        Raises:
            ImageError: if an image cannot be read at all and `on_error` is "raise".
        """
        labels = hashlib.sha256(self.labels("group").tobytes()).hexdigest()
        facts = {"resize": self.resize.name, "labels_sha256": labels}
        return self._make_fingerprint(self.kind, **facts, **self.hash_contents())


def _read_rows(root: Path) -> list[_Row]:
    """Return the rows of the table, ascending by name."""
    file = root / FILE
    advice = "set data.root to the folder that holds it and the images"
    text = read_text(file, "the table of Waterbirds", advice)
    reader = csv.DictReader(text.splitlines())
    try:
        columns, table = reader.fieldnames or [], [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise InputError(
            f"Expected a table of comma-separated values in {file}, but line {reader.line_num + 1} is none ({error}):"
            " give the published table."
        ) from error
    if missing := [name for name in ("img_filename", *_VALUES) if name not in columns]:
        raise InputError(
            f"Expected the columns img_filename, y, split and place in {file}, got none of the name"
            f" {', '.join(missing)}: give the published table."
        )
    rows, seen = [], set[str]()
    for number, fields in table:
        for column, allowed in _VALUES.items():
            if (value := (fields[column] or "").strip()) not in allowed:
                raise InputError(
                    f"Expected {column} to be {' or '.join(allowed)} in line {number} of {file}, got {value!r}: mend"
                    " the line."
                )
        name = Path(os.path.normpath((fields["img_filename"] or "").strip())).as_posix()
        if name in seen:
            raise InputError(
                f"Expected every image once, but {file} lists {name} again in line {number}: remove the repeats."
            )
        seen.add(name)
        rows.append(_Row(name, fields["split"].strip(), int(fields["y"]), int(fields["place"])))
    return sorted(rows)
