"""Images as they were when their tokens were made: what they were called, what was known of them, and what stood for
the content of each. Those whose files are still the same can be read; the others are gone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt8
from pyarrow import parquet

from infoscope.data.images import ImageError, ImageSet, Truth
from infoscope.runtime.errors import InputError

FILE = "images.parquet"
_FACTS = (
    *("class_names", "class_ids", "label_names", "targets", "global_factors", "attributes"),
    *("spurious_target", "class_attribute"),
)
"""What is known of a set as a whole."""
_LABEL = "label_"
"""Before the name of a target: the column of its labels."""
_META = b"infoscope"


def save_images(folder: Path, images: ImageSet) -> None:
    """Write images.parquet into an existing folder: a row per image, in the order of the set.

    `id` (bytes, as the disk has it), `content` (see `ImageSet.list_contents`; null: not known), `label_<target>`.

    Raises:
        ImageError: as of the fingerprint.
    """
    contents = images.list_contents() or [None] * len(images)
    columns = {
        "id": pa.array([os.fsencode(name) for name in images.image_ids], pa.binary()),
        "content": pa.array(contents, pa.string()),
        **{f"{_LABEL}{target}": pa.array(images.labels(target)) for target in images.targets},
    }
    about = {
        "split": images.split,
        "truths": sorted(truth.name for truth in images.truths),
        "n_target_classes": {target: images.n_target_classes(target) for target in images.targets},
        **{name: getattr(images, name) for name in _FACTS},
    }
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(about).encode()})
    parquet.write_table(table, folder / FILE, compression="zstd")


class RecalledImages(ImageSet):
    """A split as it was. Its positions and its fingerprint are those of then, whatever lies on the disk now.

    Args:
        folder: where `save_images` wrote; tokens of earlier versions lack its file: then nothing is known but how many
            images there were, and all are gone.
        fingerprint: of then.
        now: the whole set as it lies on the disk now, nothing drawn of it; None: it cannot be opened.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, folder: Path, split: str, fingerprint: Mapping[str, Any], now: ImageSet | None) -> None:
        self._fingerprint, self._now = dict(fingerprint), now
        n_images = self._fingerprint["n_images"]
        table = _read_table(folder / FILE, n_images)
        ids = [str(i) for i in range(n_images)] if table is None else list(map(os.fsdecode, table["id"].to_pylist()))
        super().__init__(split, ids)
        self.is_named, self._table = table is not None, table
        self._n_target_classes: Mapping[str, int] = {}
        if table is not None:
            about = json.loads(table.schema.metadata[_META])
            self.truths = frozenset(Truth[name] for name in about["truths"])
            self._n_target_classes = about["n_target_classes"]
            for name in _FACTS:
                value = about[name]
                setattr(self, name, tuple(value) if isinstance(value, list) else value)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._fingerprint

    @cached_property
    def places(self) -> Int64[np.ndarray, " n_images"]:
        """Where each image is in the set of now; -1: it is gone, or its file has another content than then.

        Raises:
            ImageError: as of the fingerprint.
        """
        found = np.full(len(self), -1, dtype=np.int64)
        if self._table is None or self._now is None:
            return found
        hashed = self._fingerprint.get("sample_of", self._fingerprint).get("hashed")
        contents = self._now.list_contents(hashed)
        known = dict(zip(self._now.image_ids, enumerate(contents), strict=True)) if contents else {}
        for i, (name, then) in enumerate(zip(self.image_ids, self._table["content"].to_pylist(), strict=True)):
            place, content = known.get(name, (-1, None))
            if then is not None and content == then:
                found[i] = place
        return found

    @property
    def gone(self) -> Int64[np.ndarray, " n_gone"]:
        """Positions of the images that cannot be read any more."""
        return np.flatnonzero(self.places < 0)

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        now, place = self._now, int(self.places[index])
        if now is None or place < 0:
            raise ImageError(self.image_ids[index], "it is not there any more, or it has another content than then")
        return now.load(place, size_px)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        self.n_target_classes(target)
        assert self._table is not None
        return self._table[f"{_LABEL}{target}"].to_numpy().astype(np.int64)

    def n_target_classes(self, target: str) -> int:
        if target not in self._n_target_classes:
            raise InputError(
                f"Expected a target of these images ({', '.join(self.targets) or 'none'}), got {target!r}."
            )
        return self._n_target_classes[target]


def _read_table(file: Path, n_rows: int) -> pa.Table | None:
    damaged = InputError(f"{file} is damaged: without it nobody knows which image is which.")
    try:
        table = parquet.ParquetFile(file).read()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise damaged from error
    if len(table) != n_rows or _META not in (table.schema.metadata or {}):
        raise damaged
    return table
