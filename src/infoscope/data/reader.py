"""Reading the images of a set in batches, ahead of who wants them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from infoscope.data.config import RAISE, SKIP, OnError
from infoscope.data.images import ImageBatch, ImageError, ImageSet
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.runtime.ring import Ring, count_pieces

Index = Int64[np.ndarray, " n"]
Pixels = UInt8[np.ndarray, "n 3 size size"]
Errors = dict[int, ImageError]
"""Place in a chunk -> why this image cannot be read."""


def iterate_images(
    image_set: ImageSet,
    size_px: int,
    batch_size: int,
    indices: Sequence[int] | Index | None = None,
    on_error: OnError = RAISE,
    n_workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[ImageBatch]:
    """Yield images in the order of `indices` (by default all, ascending), the last incomplete batch included.

    Args:
        on_error, n_workers, device: as of `open_images`.

    Raises:
        ImageError, InputError: as of `ImageReader.read`.
    """
    with open_images(image_set, size_px, on_error, n_workers, device) as reader:
        yield from reader.read(np.arange(len(image_set)) if indices is None else indices, batch_size)


@contextmanager
def open_images(
    image_set: ImageSet,
    size_px: int,
    on_error: OnError = RAISE,
    n_workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[ImageReader]:
    """Open a set for readings of its images, again and again, by helpers that stay until the end of the context.

    Args:
        on_error: with "skip", an image that cannot be read is left out (its batch is shorter, an empty batch is not
            given) and recorded in `image_set.skipped`.
        n_workers: processes that read ahead; 0 reads in this one. The batches are the same.
        device: where images are wanted. CUDA: they come there, copied a batch ahead; otherwise they come to the CPU.
    """
    reader = ImageReader(image_set, size_px, on_error, n_workers, device)
    try:
        yield reader
    finally:
        reader.close()


class ImageReader:
    """See `open_images`. It gives one reading at a time; one that is broken off ends the helpers, too.

    Helpers hold `Ring.n_slots` batches of 3 * size_px^2 bytes per image in all: with 14 of them, 4 batches of 256
    images, or 9 of 64.
    """

    def __init__(
        self, image_set: ImageSet, size_px: int, on_error: OnError, n_workers: int, device: torch.device | None
    ) -> None:
        self.image_set, self.size_px, self.on_error, self.n_workers = image_set, size_px, on_error, n_workers
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._ring: Ring | None = None

    def read(self, indices: Sequence[int] | Index, batch_size: int) -> Generator[ImageBatch, None, None]:
        """Yield images in the order of `indices`, the last incomplete batch included. They are the caller's own.

        Raises:
            ImageError: if an image cannot be read and `on_error` is "raise".
            InputError: if all images were asked for and none can be read; if helpers cannot be started, or are killed.
        """
        index, image_set = np.asarray(indices, dtype=np.int64), self.image_set
        assert batch_size >= 1, batch_size
        assert index.size == 0 or (index.min() >= 0 and index.max() < len(image_set)), "index out of range"
        n_read = 0
        with closing(self._read_chunks(index, batch_size)) as chunks:
            for chunk in chunks:
                if chunk.errors and self.on_error is not SKIP:
                    raise next(iter(chunk.errors.values()))
                names = ((image_set.image_ids[i], error) for i, error in chunk.errors.items())
                image_set.skipped.update({name: error.reason for name, error in names})
                n_read += len(chunk.index)
                if len(chunk.index):
                    yield ImageBatch(torch.from_numpy(chunk.index), chunk.images)
        if len(index) == len(image_set) > 0 and not n_read:
            name, reason = next(iter(image_set.skipped.items()))
            raise InputError(
                f"Expected images, but none of the {len(index)} asked for can be read (the first, {name}: {reason}):"
                " check data.root."
            )

    def close(self) -> None:
        """End the helpers and free their memory."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()

    def _read_chunks(self, index: Index, batch_size: int) -> Generator[_Chunk, None, None]:
        if not self.n_workers:
            for start in range(0, len(index), batch_size):
                yield self._read_here(index[start : start + batch_size])
            return
        batch_size = min(batch_size, max(1, len(index)))
        with spent_on(Kind.reading):
            ring, is_done = self._start_ring(len(index), batch_size), False
        try:
            in_slots = counted(Kind.reading, _read_slots(ring, index, batch_size))
            yield from _take(in_slots, ring) if self._cuda is None else _take_ahead(in_slots, ring, self._cuda)
            is_done = True
        finally:
            if not is_done:  # nobody wants what the helpers still do
                self.close()

    def _read_here(self, index: Index) -> _Chunk:
        with spent_on(Kind.reading):
            pixels = np.empty((len(index), 3, self.size_px, self.size_px), np.uint8)
            chunk = _drop_unread(index, pixels, _fill(self.image_set, self.size_px, index, pixels))
        if self._cuda is None:
            return chunk
        with spent_on(Kind.copying):
            return chunk._replace(images=chunk.images.to(self._cuda))

    def _start_ring(self, n_images: int, batch_size: int) -> Ring:
        """Return the helpers of the last reading, if they are enough for this one, or others."""
        n_helpers = max(1, min(self.n_workers, count_pieces(batch_size) * ceil(n_images / batch_size)))
        ring = self._ring
        if ring is None or ring.batch_size < batch_size or len(ring.helpers) < n_helpers:
            self.close()
            fill = partial(_fill, self.image_set, self.size_px)
            ring = self._ring = Ring(fill, (3, self.size_px, self.size_px), batch_size, n_helpers)
            if self._cuda is not None:
                ring.pin()
        return ring


class _Chunk(NamedTuple):
    """Images that were read, and number -> error of those that could not be."""

    index: Index
    images: UInt8[Tensor, "n 3 size size"]
    errors: Errors


def _fill(image_set: ImageSet, size_px: int, index: Index, out: Pixels) -> Errors:
    """Write images where they belong in `out`, and return place -> error of those that cannot be read."""
    errors = {}
    for place, i in enumerate(index.tolist()):
        try:
            out[place] = image_set.load(i, size_px).transpose(2, 0, 1)
        except ImageError as error:
            errors[place] = error
    return errors


def _drop_unread(index: Index, pixels: Pixels, errors: Errors) -> _Chunk:
    """Return the images that could be read, moved together within `pixels`."""
    if errors:
        read = np.delete(np.arange(len(index)), list(errors))
        pixels[: len(read)] = pixels[read]
        index, pixels, errors = index[read], pixels[: len(read)], {int(index[i]): errors[i] for i in errors}
    return _Chunk(index, torch.from_numpy(pixels), errors)


def _read_slots(ring: Ring, index: Index, batch_size: int) -> Iterator[_Chunk]:
    """Yield chunks whose images lie in the ring, until they are released."""
    start = 0
    for pixels, said in ring.fill(index, batch_size):
        errors = {n * ring.piece + place: error for n, of in enumerate(said) for place, error in of.items()}
        yield _drop_unread(index[start : start + len(pixels)], pixels, errors)
        start += batch_size


def _take(in_slots: Iterator[_Chunk], ring: Ring) -> Iterator[_Chunk]:
    """Yield chunks of their own memory."""
    for chunk in in_slots:
        with spent_on(Kind.copying):
            images = chunk.images.clone()
        ring.release()
        yield chunk._replace(images=images)


def _take_ahead(in_slots: Iterator[_Chunk], ring: Ring, cuda: torch.device) -> Iterator[_Chunk]:
    """Yield chunks on a device; the next one is on its way there meanwhile."""
    stream = torch.cuda.Stream(cuda)

    def take(chunk: _Chunk, copied: torch.cuda.Event) -> _Chunk:
        with spent_on(Kind.copying):
            copied.synchronize()
        ring.release()
        chunk.images.record_stream(torch.cuda.current_stream(cuda))  # it was made for another one
        return chunk

    ahead = None
    for chunk in in_slots:
        with spent_on(Kind.copying), torch.cuda.stream(stream):
            copied = torch.cuda.Event()
            following = chunk._replace(images=chunk.images.to(cuda, non_blocking=True)), copied
            copied.record(stream)
        if ahead is not None:
            yield take(*ahead)
        ahead = following
    if ahead is not None:
        yield take(*ahead)
