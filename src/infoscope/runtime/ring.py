"""Helpers that fill one block of memory: what they make is not sent, it is there.

What comes through a pipe is copied into it, out of it, and out of its pickle, into fresh memory each time. Here the
memory is made once, an anonymous mapping that helpers share because they are copies of this process, and it is used in
turns; only words about what is in it go through pipes. Where processes cannot be copied, rows come through the pipes.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from infoscope.runtime.forks import CAN_FORK, Helpers

Rows = UInt8[np.ndarray, "n ..."]
Fill = Callable[[Int64[np.ndarray, " n"], Rows], Any]

MIN_PIECE, MAX_PIECES = 16, 16
"""A batch is divided among helpers: into pieces of no fewer rows, and no more pieces."""
_PORTABLE = 1  # cudaHostRegisterPortable: for every device


class Ring:
    """A block of slots, each of a batch of rows, and the helpers that fill them, one slot after the other.

    The block is `n_slots` batches: two, and as many as give every helper two pieces to do.

    Args:
        fill: (which [n], out) fills the rows `out` with what is at `which`, and returns what there is to say.
        row_shape: of a row, uint8.
        batch_size: rows in a slot.
        n_helpers: 1 or more.
        is_shared: whether helpers see the block; otherwise they send their rows.

    Raises:
        InputError: helpers cannot be started.
    """

    def __init__(
        self, fill: Fill, row_shape: tuple[int, ...], batch_size: int, n_helpers: int, is_shared: bool = CAN_FORK
    ) -> None:
        n_pieces = count_pieces(batch_size)
        self.batch_size, self.piece = batch_size, ceil(batch_size / n_pieces)
        self.n_slots = 2 + ceil(2 * n_helpers / n_pieces)
        shape = (self.n_slots, batch_size, *row_shape)
        self.block: Rows = np.frombuffer(mmap.mmap(-1, max(1, prod(shape))), np.uint8)[: prod(shape)].reshape(shape)
        filler = _Filler(fill, self.block if is_shared else None, row_shape)
        self.helpers = Helpers([filler] * n_helpers)
        self._is_pinned = False
        self._pieces: Iterator[list[tuple[int, ...]]] = iter(())
        self._n_asked = 0

    def pin(self, device: torch.device) -> None:
        """Register the block with CUDA, for fast copies that wait for nothing; without a word where that fails."""
        with torch.cuda.device(device):
            cudart: Any = torch.cuda.cudart()
            code = cudart.cudaHostRegister(self.block.ctypes.data, self.block.nbytes, _PORTABLE)
            self._is_pinned = int(code) == 0
            if not self._is_pinned:
                with suppress(RuntimeError):  # the next kernel that is launched is told of the failure: this one
                    torch.zeros(1, device=device)

    def fill(self, index: Int64[np.ndarray, " n"], batch_size: int) -> Iterator[tuple[Rows, list[Any]]]:
        """Yield the rows of `index` in batches, each with what was said of its pieces of `self.piece` rows.

        Rows stay as they are until `release` is called, once for each batch and in order. Who does not take all batches
        must close the ring.

        Raises:
            InputError: a helper was killed. What `fill` raises is raised here, in its turn.
        """
        assert 0 < batch_size <= self.batch_size, batch_size
        for number in range(len(self.helpers)):
            self.helpers.ask(number, index)
        for number in range(len(self.helpers)):
            self.helpers.receive(number)
        batches = self._divide(len(index), batch_size)
        self._pieces, self._n_asked = iter(batches), 0
        for _ in range(self.n_slots):
            self.release()
        numbers = itertools.count()
        for pieces in batches:
            said = []
            for slot, place, start, stop in pieces:
                words, rows = self.helpers.receive(next(numbers))
                if rows is not None:
                    self.block[slot, place : place + stop - start] = rows
                said.append(words)
            slot, place, start, stop = pieces[-1]
            yield self.block[slot, : place + stop - start], said

    def release(self) -> None:
        """Say that the rows of the oldest batch are not needed any more, so that their slot may be filled again."""
        for piece in next(self._pieces, []):
            self.helpers.ask(self._n_asked, piece)
            self._n_asked += 1

    def close(self) -> None:
        """End the helpers; the memory goes with the last who holds rows of it."""
        self.helpers.end()
        if self._is_pinned:
            cudart: Any = torch.cuda.cudart()
            cudart.cudaHostUnregister(self.block.ctypes.data)
            self._is_pinned = False

    def _divide(self, n: int, batch_size: int) -> list[list[tuple[int, ...]]]:
        """Return the pieces of every batch: slot, place in it, and which numbers, from and to."""
        return [
            [
                (batch % self.n_slots, place, start + place, min(start + place + self.piece, start + batch_size, n))
                for place in range(0, min(batch_size, n - start), self.piece)
            ]
            for batch, start in enumerate(range(0, n, batch_size))
        ]


def count_pieces(batch_size: int) -> int:
    """Return into how many pieces a batch is divided: more helpers than that work on several batches."""
    return min(MAX_PIECES, ceil(batch_size / MIN_PIECE))


class _Filler:
    """What a helper computes: first it is told which numbers there are, from then on it fills pieces."""

    def __init__(self, fill: Fill, block: Rows | None, row_shape: tuple[int, ...]) -> None:
        self.fill, self.block, self.row_shape = fill, block, row_shape
        self.index = np.empty(0, np.int64)

    def __call__(self, asked: np.ndarray | tuple[int, ...]) -> tuple[Any, Rows | None]:
        if isinstance(asked, np.ndarray):
            self.index = asked
            return None, None
        slot, place, start, stop = asked
        if self.block is not None:
            return self.fill(self.index[start:stop], self.block[slot, place : place + stop - start]), None
        rows = np.empty((stop - start, *self.row_shape), np.uint8)
        return self.fill(self.index[start:stop], rows), rows
