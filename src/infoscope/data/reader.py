"""Reading the images of a set in batches, ahead of who wants them."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from infoscope.data.config import RAISE, SKIP, Decoder, OnError
from infoscope.data.decoding import check_decoder, decode_plain, is_plain, resize_pixels
from infoscope.data.images import ImageBatch, ImageError, ImageSet
from infoscope.runtime.copies import copy_stream
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.runtime.ring import Ring, count_pieces

Index = Int64[np.ndarray, " n"]
Pixels = UInt8[np.ndarray, "n 3 size size"]


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

    Raises:
        InputError: the set's decoder cannot be had here, see `check_decoder`.
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
        self._is_reading = False
        self._gpu = self._cuda or torch.device("cuda")
        check_decoder(image_set.decoder, self._gpu)

    def read(self, indices: Sequence[int] | Index, batch_size: int) -> Generator[ImageBatch, None, None]:
        """Yield images in the order of `indices`, the last incomplete batch included. They are the caller's own.

        Of captions (`ImageSet.is_text`) their numbers stand in the place of images.

        Raises:
            ImageError: if an image cannot be read and `on_error` is "raise".
            InputError: if all images were asked for and none can be read; if helpers cannot be started, or are killed.
        """
        index, image_set = np.asarray(indices, dtype=np.int64), self.image_set
        assert batch_size >= 1, batch_size
        assert index.size == 0 or (index.min() >= 0 and index.max() < len(image_set)), "index out of range"
        if image_set.is_text:
            for number in range(0, len(index), batch_size):
                part = torch.from_numpy(index[number : number + batch_size])
                yield ImageBatch(part, part)
            return
        n_read = 0
        with closing(self._read_chunks(index, batch_size)) as chunks:
            for chunk in chunks:
                if chunk.errors and self.on_error is not SKIP:
                    raise image_set.advise(next(iter(chunk.errors.values())))
                image_set.skipped.update({name: error.reason for name, error in chunk.errors.items()})
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
        if not len(index):
            return
        assert not self._is_reading, "a reader gives one reading at a time"
        batch_size, self._is_reading, is_done = min(batch_size, len(index)), True, False
        try:
            with spent_on(Kind.reading):
                ring = self._start_ring(len(index), batch_size)
            in_slots = counted(Kind.reading, self._read_slots(ring, index, batch_size))
            yield from self._take(in_slots, ring) if self._cuda is None else self._take_ahead(in_slots, ring)
            is_done = True
        finally:
            self._is_reading = False
            if not is_done:  # nobody wants what the helpers still do
                self.close()

    def _read_here(self, index: Index) -> _Chunk:
        with spent_on(Kind.reading):
            pixels = np.empty((len(index), 3, self.size_px, self.size_px), np.uint8)
            said = _fill(self.image_set, self.size_px, index, pixels)
            chunk = self._make_chunk(index, pixels, said.errors, said.files)
        if self._cuda is not None:
            with spent_on(Kind.copying):
                chunk = chunk._replace(images=chunk.images.to(self._cuda))
        return self._decode(chunk)

    def _read_slots(self, ring: Ring, index: Index, batch_size: int) -> Iterator[_Chunk]:
        """Yield chunks whose images lie in the ring, until they are released."""
        start = 0
        for pixels, said in ring.fill(index, batch_size):
            errors, files = {}, {}
            for first, of in zip(itertools.count(0, ring.piece), said, strict=False):
                errors |= {first + place: error for place, error in of.errors.items()}
                files |= {first + place: file for place, file in of.files.items()}
            yield self._make_chunk(index[start : start + len(pixels)], pixels, errors, files)
            start += batch_size

    def _make_chunk(
        self, index: Index, pixels: Pixels, errors: dict[int, ImageError], files: dict[int, bytes]
    ) -> _Chunk:
        return _drop(_Chunk(index, torch.from_numpy(pixels), {}, files), errors, self.image_set.image_ids)

    def _take(self, in_slots: Iterator[_Chunk], ring: Ring) -> Iterator[_Chunk]:
        """Yield chunks of their own memory."""
        for chunk in in_slots:
            with spent_on(Kind.copying):
                images = chunk.images.clone()
            ring.release()
            yield self._decode(chunk._replace(images=images))

    def _take_ahead(self, in_slots: Iterator[_Chunk], ring: Ring) -> Iterator[_Chunk]:
        """Yield chunks on the device; the next one is on its way there meanwhile."""
        stream = copy_stream(self._cuda, to_device=True)

        def take(chunk: _Chunk, copied: torch.cuda.Event) -> _Chunk:
            with spent_on(Kind.copying):
                copied.synchronize()
            ring.release()
            chunk.images.record_stream(torch.cuda.current_stream(self._cuda))  # it was made for another one
            return chunk

        ahead = None
        try:
            for chunk in in_slots:
                with torch.cuda.stream(stream):
                    with spent_on(Kind.copying):
                        chunk = chunk._replace(images=chunk.images.to(self._cuda, non_blocking=True, copy=True))
                    following = self._decode(chunk), torch.cuda.Event()
                    following[1].record(stream)
                if ahead is not None:
                    yield take(*ahead)
                ahead = following
            if ahead is not None:
                yield take(*ahead)
        finally:
            stream.synchronize()  # before the memory goes from which it copies

    def _decode(self, chunk: _Chunk) -> _Chunk:
        """Return a chunk whose files are decoded by the GPU; those that it refuses are read as ever."""
        if not chunk.files:
            return chunk
        errors = {}
        with spent_on(Kind.reading):
            decoded = decode_plain(list(chunk.files.values()), self._gpu)
            for place, pixels in zip(chunk.files, decoded, strict=True):
                if pixels is not None:
                    chunk.images[place].copy_(resize_pixels(pixels, self.size_px, self.image_set.resize))
                    continue
                try:
                    pixels = self.image_set.load(int(chunk.index[place]), self.size_px)
                    chunk.images[place].copy_(torch.from_numpy(pixels).permute(2, 0, 1))
                except ImageError as error:
                    errors[place] = error
        return _drop(chunk._replace(files={}), errors, self.image_set.image_ids)

    def _start_ring(self, n_images: int, batch_size: int) -> Ring:
        """Return the helpers of the last reading, if they are enough for this one, or others."""
        n_helpers = min(self.n_workers, count_pieces(batch_size) * ceil(n_images / batch_size))
        ring = self._ring
        if ring is None or ring.batch_size < batch_size or len(ring.helpers) < n_helpers:
            self.close()
            fill = partial(_fill, self.image_set, self.size_px)
            ring = self._ring = Ring(fill, (3, self.size_px, self.size_px), batch_size, n_helpers)
            if self._cuda is not None:
                ring.pin(self._cuda)
        return ring


class _Said(NamedTuple):
    """What a helper says of images, by their places: why they cannot be read, or the JPEGs that a GPU is to decode."""

    errors: dict[int, ImageError]
    files: dict[int, bytes]


class _Chunk(NamedTuple):
    """Images that were read; those at the places of `files` are still to be decoded, others are in `errors`, by id."""

    index: Index
    images: UInt8[Tensor, "n 3 size size"]
    errors: dict[str, ImageError]
    files: dict[int, bytes]


def _fill(image_set: ImageSet, size_px: int, index: Index, out: Pixels) -> _Said:
    """Write images where they belong in `out`."""
    said = _Said({}, {})
    for place, i in enumerate(index.tolist()):
        try:
            file = image_set.read_file(i) if image_set.decoder is Decoder.nvjpeg else None
            if file is not None and is_plain(file):
                said.files[place] = file
            else:
                out[place] = image_set.load(i, size_px).transpose(2, 0, 1)
        except ImageError as error:
            said.errors[place] = error
    return said


def _drop(chunk: _Chunk, errors: dict[int, ImageError], ids: Sequence[str]) -> _Chunk:
    """Return a chunk without the images that cannot be read, the others moved together within their memory."""
    if not errors:
        return chunk
    kept = [place for place in range(len(chunk.index)) if place not in errors]
    chunk.images[: len(kept)] = chunk.images[kept]
    named = {ids[int(chunk.index[place])]: error for place, error in errors.items()}
    files = {new: chunk.files[place] for new, place in enumerate(kept) if place in chunk.files}
    return _Chunk(chunk.index[kept], chunk.images[: len(kept)], chunk.errors | named, files)
