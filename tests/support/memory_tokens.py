"""Tokens in memory, as a pass reads them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from infoscope.vision.backbone import Tokens
from infoscope.vision.tokens.source import TokenRows


class MemoryTokens(TokenRows):
    """Patch tokens of images whose positions are `first`, first - 1, ... or 0, 1, ...; notes the batches that are read.

    Where `stops_in` is set, reading gives up at the end of the rows that begin there.
    """

    def __init__(self, patches: torch.Tensor, first: int | None = None) -> None:
        self.patches, self.first = patches, first
        self.read: list[list[int]] = []
        self.stops_in: int | None = None

    @cached_property
    def image_index(self) -> np.ndarray:
        return np.arange(len(self)) if self.first is None else self.first - np.arange(len(self))

    def __len__(self) -> int:
        return len(self.patches)

    def iterate(self, rows: np.ndarray, batch_images: int) -> Iterator[tuple[np.ndarray, Tokens]]:
        for start in range(0, len(rows), batch_images):
            batch = rows[start : start + batch_images]
            self.read.append(batch.tolist())
            yield batch, Tokens(torch.zeros(0), self.patches[batch])
        if self.stops_in == rows[0]:
            raise KeyboardInterrupt


class PrefixedTokens(MemoryTokens):
    """The same with the tokens of the prefix; rows are not positions."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__(tokens.patches, len(tokens.patches) - 1)
        self.prefix = tokens.prefix

    def iterate(self, rows: np.ndarray, batch_images: int) -> Iterator[tuple[np.ndarray, Tokens]]:
        for batch, tokens in super().iterate(rows, batch_images):
            yield batch, Tokens(self.prefix[batch], tokens.patches)
