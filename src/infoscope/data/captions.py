"""Captions of a text file: texts in the place of images, for SAEs of a CLIP's text embeddings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infoscope.data.images import ImageSet, Truth, check_split
from infoscope.data.left_out import LeftOut
from infoscope.data.photographs import compute_split_position
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import read_text


class Captions(ImageSet):
    """The captions of one split of a text file, one per line; blank lines are left out, and counted.

    The split is by a hash of the texts, so that the same caption never lies in both. Ids are line numbers.

    Args:
        file: UTF-8; a byte order mark and Windows line ends are accepted.
        split: "train" or "test".
        seed: of the split.
        test_share: expected share of the captions that are held out, 0 to below 1; the test split may be empty.

    Raises:
        InputError: if the file cannot be read, holds no caption, or leaves none to train on.
    """

    is_text = True
    truths = frozenset({Truth.captions})

    def __init__(self, file: str | Path, split: str = "train", *, seed: int = 0, test_share: float = 0.1) -> None:
        check_split(split)
        lines, left_out = _read_lines(Path(file))
        is_test = split == "test"
        chosen = [
            (number, text)
            for number, text in lines
            if (test_share > 0 and compute_split_position(seed, text) < test_share) == is_test
        ]
        if not chosen and not is_test:
            raise InputError(
                f"Expected captions to train on, but data.test_share={test_share} holds out all {len(lines)} of {file}:"
                " lower data.test_share or add captions."
            )
        n_digits = len(str(lines[-1][0]))
        super().__init__(split, [f"line {number:0{n_digits}d}" for number, _ in chosen])
        self.texts, self.seed = [text for _, text in chosen], seed
        self.left_out = left_out
        self.left_out.n_read = len(lines)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The captions themselves, in order."""
        digest = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()
        return {"kind": "captions", "split": self.split, "n_images": len(self), "sha256": digest}

    def caption(self, index: int) -> str:
        return self.texts[index]

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        raise InputError("Expected images, but data=captions holds texts: choose data of images.")

    def describe(self) -> dict[str, str]:
        return {"layout": "captions, one per line", "captions": str(len(self))}

    def check_image(self, index: int) -> dict[str, str]:
        return {"words": str(len(self.texts[index].split()))}


def _read_lines(file: Path) -> tuple[list[tuple[int, str]], LeftOut]:
    """Return the captions of a file with their line numbers from 1, and which lines hold none."""
    text = read_text(file, "a text file with one caption per line", "check data.root")
    lines, left_out = [], LeftOut("lines")
    for number, line in enumerate(map(str.strip, text.removesuffix("\n").split("\n")), 1):
        if line:
            lines.append((number, line))
        else:
            left_out.add("blank", f"line {number}")
    if not lines:
        raise InputError(f"Expected captions, but {file} holds none: write one per line.")
    return lines, left_out
