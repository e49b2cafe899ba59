"""Where every later stage reads tokens from: kept on disk, or encoded anew whenever they are asked for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.runtime.profile import Kind, spent_on
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.checks import LaterChecks

META_FILE, NORMS_FILE, INDEX_FILE, MEAN_FILE = "tokens.json", "norms.npy", "image_index.npy", "mean.npy"
ReadImages = Callable[[Int[np.ndarray, " n"], int], Iterator[tuple[Tensor, Tensor]]]
"""(positions in the image set, images at a time) -> (positions, uint8 images [b, 3, image_px, image_px]), in order."""

BATCH_IMAGES, CUDA_BATCH_IMAGES = 64, 256
"""Images encoded at a time on CPUs, where more would not be faster, and on GPUs."""


def choose_batch_images(device_type: str) -> int:
    """Return how many images to encode at a time on a device, "cpu" or "cuda"."""
    return CUDA_BATCH_IMAGES if device_type == "cuda" else BATCH_IMAGES


@dataclass(frozen=True)
class TokenFacts:
    """What is kept of the tokens of an image set after one block, wherever the tokens themselves are.

    Rows are images in the order they were read; images that could not be read have no row. Files: `norms.npy`
    [n_images, grid * grid] (raw norm of each patch token), `image_index.npy`, `mean.npy`, `tokens.json`.
    """

    folder: Path

    @cached_property
    def meta(self) -> dict:
        """n_images, grid, patch_px, d_in, n_prefix, layer, backbone (fingerprint), dtype (null: not stored), mean_norm,
        scale."""
        return json.loads((self.folder / META_FILE).read_text(encoding="utf-8"))

    @cached_property
    def norms(self) -> np.ndarray:
        """Raw norm of each patch token, float32 [n_images, grid * grid]."""
        return np.load(self.folder / NORMS_FILE)

    @cached_property
    def image_index(self) -> Int[np.ndarray, " n_images"]:
        """Position of each row's image in its image set."""
        return np.load(self.folder / INDEX_FILE)

    @cached_property
    def mean(self) -> Float[np.ndarray, " d_in"]:
        """Mean patch token (mu of DESIGN)."""
        return np.load(self.folder / MEAN_FILE)

    @property
    def scale(self) -> float:
        """c such that the mean norm of c (x - mu) over patch tokens is sqrt(d_in)."""
        return self.meta["scale"]

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.meta["grid"]

    def __len__(self) -> int:
        return self.meta["n_images"]


class TokenRows(ABC):
    """Tokens that are read in passes, row by row; a row is an image."""

    @property
    @abstractmethod
    def image_index(self) -> Int[np.ndarray, " n_images"]:
        """Position of each row's image in its image set."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows."""

    @abstractmethod
    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        """Yield (rows, their tokens as float32) in the order of `rows`; the last batch may be smaller."""

    def iterate_patches(
        self, rows: Int[np.ndarray, " n"], batch_images: int, device: torch.device
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Float[Tensor, "batch n_patches d_in"]]]:
        """Yield (rows, their patch tokens on a device, as float32 or as they are stored) as `iterate` does."""
        for batch, tokens in self.iterate(rows, batch_images):
            with spent_on(Kind.copying):
                patches = tokens.patches.to(device)
            yield batch, patches

    def batches(
        self, batch_images: int, rows: slice = slice(None)
    ) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch n_patches d_in"]]]:
        """Yield (image index, patch tokens as float32) of some rows, by default all; the last may be smaller."""
        for batch, tokens in self.iterate(np.arange(len(self))[rows], batch_images):
            yield torch.from_numpy(self.image_index[batch]), tokens.patches


class TokenSource(TokenFacts, TokenRows):
    """The tokens of an image set after one block, row by row.

    Reading in passes (`iterate`, `batches`) is what every source is good at; single rows (`tokens`) may cost a forward.
    """

    @abstractmethod
    def tokens(self, rows: Sequence[int] | Int[np.ndarray, " n"] | slice) -> Tokens:
        """Return the tokens of some rows as float32 tensors on the CPU or where the backbone lies."""

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        for start in range(0, len(rows), batch_images):
            batch = rows[start : start + batch_images]
            yield batch, self.tokens(batch)


@dataclass(frozen=True)
class LiveTokens(TokenSource):
    """The tokens of an image set, by a forward of the backbone for every image that is asked for.

    Args:
        folder: the facts of these tokens, as `extract_tokens` wrote them without storing the tokens.
        backbone: of the same model; its tokens stay on its device.
        read: the images.
    """

    backbone: Backbone
    read: ReadImages

    def tokens(self, rows: Sequence[int] | Int[np.ndarray, " n"] | slice) -> Tokens:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        n_at_once = choose_batch_images(self.backbone.mean.device.type)
        parts = [tokens for _, tokens in self.iterate(np.asarray(rows, dtype=np.int64), n_at_once)]
        return Tokens(torch.cat([part.prefix for part in parts]), torch.cat([part.patches for part in parts]))

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        n_done, checks, n_at_once = 0, LaterChecks(), batch_images
        if self.backbone.mean.device.type == "cuda":  # encoded in large batches, whichever are asked for
            n_at_once = batch_images * max(1, CUDA_BATCH_IMAGES // batch_images)
        for positions, images in self.read(self.image_index[rows], n_at_once):
            encoded = rows[n_done : n_done + len(positions)]
            assert np.array_equal(self.image_index[encoded], positions.numpy()), "images came in another order"
            with spent_on(Kind.forward):
                tokens = self.backbone.tokens(images, self.meta["layer"], checks)
            for start in range(0, len(encoded), batch_images):
                part = slice(start, start + batch_images)
                # a clone leaves inference mode behind, so that whoever trains on tokens may
                yield encoded[part], Tokens(tokens.prefix[part].clone(), tokens.patches[part].clone())
            n_done += len(positions)
        checks.ask()
