"""Tokens of a whole image set, encoded once and kept on disk as a memory-mapped cache."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens

_META = "tokens.json"


@dataclass(frozen=True)
class TokenCache:
    """The cached tokens of an image set after one block.

    Rows are images in the order they were read; images that could not be read have no row. Files: `patches.npy`
    [n_images, grid * grid, d_in] and `prefix.npy` [n_images, n_prefix, d_in] (float32 or float16), `norms.npy`
    [n_images, grid * grid] (raw norm of each patch token), `image_index.npy`, `mean.npy`, `tokens.json`.
    """

    folder: Path

    @cached_property
    def meta(self) -> dict:
        """n_images, grid, patch_px, d_in, n_prefix, layer, dtype, scale, mean_norm."""
        return json.loads((self.folder / _META).read_text())

    @cached_property
    def patches(self) -> np.ndarray:
        """Patch tokens, memory-mapped [n_images, grid * grid, d_in]."""
        return np.load(self.folder / "patches.npy", mmap_mode="r")

    @cached_property
    def prefix(self) -> np.ndarray:
        """Prefix tokens, memory-mapped [n_images, n_prefix, d_in]."""
        return np.load(self.folder / "prefix.npy", mmap_mode="r")

    @cached_property
    def norms(self) -> np.ndarray:
        """Raw norm of each patch token, float32 [n_images, grid * grid]."""
        return np.load(self.folder / "norms.npy")

    @cached_property
    def image_index(self) -> Int[np.ndarray, " n_images"]:
        """Position of each row's image in its image set."""
        return np.load(self.folder / "image_index.npy")

    @cached_property
    def mean(self) -> Float[np.ndarray, " d_in"]:
        """Mean patch token (mu of DESIGN)."""
        return np.load(self.folder / "mean.npy")

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

    def tokens(self, rows: Sequence[int] | np.ndarray | slice) -> Tokens:
        """Return the tokens of some rows as float32 tensors."""
        return Tokens(
            torch.from_numpy(np.array(self.prefix[rows], dtype=np.float32)),  # a copy: the file is read-only
            torch.from_numpy(np.array(self.patches[rows], dtype=np.float32)),
        )

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        """Yield (rows, their tokens as float32) in the order of `rows`; the last batch may be smaller."""
        for start in range(0, len(rows), batch_images):
            batch = rows[start : start + batch_images]
            yield batch, self.tokens(batch)

    def batches(
        self, batch_images: int
    ) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch n_patches d_in"]]]:
        """Yield (image index, patch tokens as float32) over all rows; the last batch may be smaller."""
        for start in range(0, len(self), batch_images):
            rows = slice(start, start + batch_images)
            yield torch.from_numpy(self.image_index[rows]), self.tokens(rows).patches


def compute_cache_bytes(backbone: Backbone, n_images: int, dtype: str) -> int:
    """Return the size of a cache in bytes."""
    n_tokens = backbone.grid**2 + backbone.n_prefix_tokens
    return n_images * n_tokens * backbone.d_in * np.dtype(dtype).itemsize


def extract_tokens(
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Tensor]],
    n_images: int,
    layer: int,
    folder: Path,
    dtype: str = "float32",
) -> TokenCache:
    """Encode images once and write their tokens into `folder`.

    Args:
        batches: (position of each image in its set int64 [b], uint8 images [b, 3, image_px, image_px]); images that
            could not be read are simply not there.
        n_images: upper bound of the number of images.
        layer: block whose output is kept; negative from the end.
        dtype: float32 or float16 on disk; norms, mean and scale are computed in float64 from the float32 tokens.

    Raises:
        InputError: no image at all, NaN or Inf in tokens, tokens too large for float16.
    """
    layer = backbone.check_layer(layer)
    n_patches, d_in = backbone.grid**2, backbone.d_in
    norms = np.zeros((n_images, n_patches), np.float32)
    image_index = np.zeros(n_images, np.int64)
    total = torch.zeros(d_in, dtype=torch.float64)
    n_rows, device = 0, torch.device("cpu")
    with (
        _RowWriter(folder / "patches.npy", (n_images, n_patches, d_in), dtype) as patches_file,
        _RowWriter(folder / "prefix.npy", (n_images, backbone.n_prefix_tokens, d_in), dtype) as prefix_file,
    ):
        for index, images in batches:
            tokens = backbone.tokens(images, layer)
            patches_file.write(tokens.patches)
            prefix_file.write(tokens.prefix)
            rows = slice(n_rows, n_rows + len(index))
            norms[rows] = tokens.patches.norm(dim=-1).cpu().numpy()
            image_index[rows] = index.numpy()
            total += tokens.patches.sum((0, 1), dtype=torch.float64).cpu()
            device = tokens.patches.device
            n_rows += len(index)
    if n_rows == 0:
        raise InputError("Expected at least one readable image, got none: see the list of skipped files.")
    mean = (total / (n_rows * n_patches)).float()
    mean_norm = _compute_mean_norm(np.load(folder / "patches.npy", mmap_mode="r"), mean.to(device))
    np.save(folder / "norms.npy", norms[:n_rows])
    np.save(folder / "image_index.npy", image_index[:n_rows])
    np.save(folder / "mean.npy", mean.numpy())
    meta = {
        "n_images": n_rows,
        "grid": backbone.grid,
        "d_in": d_in,
        "patch_px": backbone.patch_px,
        "n_prefix": backbone.n_prefix_tokens,
        "layer": layer,
        "dtype": dtype,
        "mean_norm": mean_norm,
        "scale": math.sqrt(d_in) / mean_norm if mean_norm > 0 else 1.0,
    }
    (folder / _META).write_text(json.dumps(meta, indent=2))
    return TokenCache(folder)


def _compute_mean_norm(patches: np.ndarray, mean: Tensor) -> float:
    """Mean norm of x - mu over all tokens, block by block, where `mean` lies."""
    total = 0.0
    for start in range(0, len(patches), 256):
        block = torch.from_numpy(np.array(patches[start : start + 256])).to(mean.device).float()
        total += (block - mean).norm(dim=-1).sum(dtype=torch.float64).item()
    return total / (patches.shape[0] * patches.shape[1])


class _RowWriter:
    """Writes a .npy file row block by row block through plain writes, so that a full disk is an OSError.

    (Writing through a memory map would end in a bus error.) The header is corrected on closing if fewer rows came.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype, self.n_rows = path, shape, np.dtype(dtype), 0

    def __enter__(self) -> _RowWriter:
        self.file = self.path.open("wb")
        self._write_header(self.shape[0])
        return self

    def _write_header(self, n_rows: int) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (n_rows, *self.shape[1:])}
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, rows: Tensor) -> None:
        block = rows.to(getattr(torch, self.dtype.name)).contiguous()  # before it leaves a GPU: half the way is saved
        if not torch.isfinite(block).all():
            raise InputError(f"Tokens are too large for {self.dtype}: set data.cache_dtype=float32.")
        self.file.write(block.cpu().numpy().data)
        self.n_rows += len(block)

    def __exit__(self, *_: object) -> None:
        with self.file:  # on a full disk it raises, and is closed all the same
            if self.n_rows != self.shape[0]:
                self.file.seek(0)
                self._write_header(self.n_rows)  # padded by numpy to the same length
