"""Encoding a whole image set once: its tokens on disk as a memory-mapped cache in shards, or what is known of them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.token_source import INDEX_FILE, MEAN_FILE, META_FILE, NORMS_FILE, TokenSource

SHARD_BYTES = 2**30
"""A shard is closed when it holds this many bytes of tokens, stored or not: what an interruption can cost."""

N_SAMPLE_IMAGES, N_SAMPLE_TOKENS = 2048, 32
"""Of tokens that are not stored, the scale is measured on a sample: at most so many images, so many tokens of each."""

_PARTS = ("patches", "prefix")


@dataclass(frozen=True)
class TokenCache(TokenSource):
    """Tokens on disk, memory-mapped.

    Beside the facts: shards `patches-00000.npy` [n, grid * grid, d_in] and `prefix-00000.npy` [n, n_prefix, d_in]
    (float32 or float16), rows in order over the shards.
    """

    @cached_property
    def patches(self) -> ShardedRows:
        """Patch tokens [n_images, grid * grid, d_in]."""
        return ShardedRows.open(self.folder, "patches")

    @cached_property
    def prefix(self) -> ShardedRows:
        """Prefix tokens [n_images, n_prefix, d_in]."""
        return ShardedRows.open(self.folder, "prefix")

    def tokens(self, rows: Sequence[int] | Int[np.ndarray, " n"] | slice) -> Tokens:
        prefix, patches = (part[rows].astype(np.float32, copy=False) for part in (self.prefix, self.patches))
        return Tokens(torch.from_numpy(prefix), torch.from_numpy(patches))


class ShardedRows:
    """One array [n_rows, n_places, d] whose rows lie in several arrays, one after the other.

    Args:
        shards: arrays that differ in nothing but their number of rows, memory-mapped or not.
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self.shards = list(shards)
        self.starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self.shape: tuple[int, int, int] = (int(self.starts[-1]), *shards[0].shape[1:])
        self.dtype = shards[0].dtype

    @classmethod
    def open(cls, folder: Path, name: str) -> ShardedRows:
        """Map the shards `<name>-*.npy` of a folder."""
        return cls([np.load(path, mmap_mode="r") for path in sorted(folder.glob(f"{name}-*.npy"))])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Sequence[int] | Int[np.ndarray, " n"] | slice) -> np.ndarray:
        """Return a copy of some rows, in the order asked for."""
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows, dtype=np.int64)
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for mine, shard, within in self._split(rows):
            # neighbours by a slice: one copy of a block instead of one per row
            is_run = len(within) > 0 and bool(np.all(np.diff(within) == 1))
            out[mine] = shard[within[0] : within[-1] + 1] if is_run else shard[within]
        return out

    def take(self, rows: Int[np.ndarray, " n"], places: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        """Return the token at a place of each row, as float32; by one index into rows, faster than two."""
        n_places, d = self.shape[1:]
        if len(self.shards) == 1:
            return self.shards[0].reshape(-1, d)[rows * n_places + places].astype(np.float32, copy=False)
        out = np.empty((len(rows), d), np.float32)
        for mine, shard, within in self._split(rows):
            out[mine] = shard.reshape(-1, d)[within * n_places + places[mine]]
        return out

    def _split(self, rows: Int[np.ndarray, " n"]) -> list[tuple[slice | np.ndarray, np.ndarray, np.ndarray]]:
        """Return (which of the rows, their shard, rows within it) for each shard in use."""
        if len(self.shards) == 1:
            return [(slice(None), self.shards[0], rows)]
        number = np.searchsorted(self.starts, rows, side="right") - 1
        chosen = ((i, np.flatnonzero(number == i)) for i in np.unique(number))
        return [(mine, self.shards[i], rows[mine] - self.starts[i]) for i, mine in chosen]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


def compute_cache_bytes(backbone: Backbone, n_images: int, dtype: str) -> int:
    """Return the size of a cache in bytes."""
    n_tokens = backbone.grid**2 + backbone.n_prefix_tokens
    return n_images * n_tokens * backbone.d_in * np.dtype(dtype).itemsize


def find_finished_images(progress: Path) -> Int[np.ndarray, " n"]:
    """Return the positions of the images that an interrupted `extract_tokens` has finished, ascending."""
    finished = [np.load(path)["image_index"] for path in _find_facts(progress)]
    return np.concatenate([np.empty(0, np.int64), *finished])


def extract_tokens(
    backbone: Backbone,
    batches: Iterable[tuple[Tensor, Tensor]],
    n_images: int,
    layer: int,
    folder: Path,
    dtype: str | None = "float32",
    progress: Path | None = None,
) -> TokenCache:
    """Encode images once, write their tokens, or only what is known of them, into `folder`, and return the cache.

    Args:
        batches: (position of each image in its set int64 [b], uint8 images [b, 3, image_px, image_px]); images that
            could not be read are simply not there. None of `find_finished_images` is among them.
        n_images: upper bound of the number of images.
        layer: block whose output is kept; negative from the end.
        dtype: float32 or float16 on disk; norms, mean and scale are computed in float64 from the float32 tokens. None:
            no token is stored, and the scale is measured on an evenly spread sample of them.
        progress: where finished shards wait, so that an interruption costs one at most; None: nothing is kept.

    Raises:
        InputError: no image at all, NaN or Inf in tokens, tokens too large for float16.
    """
    layer = backbone.check_layer(layer)
    shards = progress or folder
    with closing(_ShardWriter(shards, dtype, -(-n_images // N_SAMPLE_IMAGES))) as writer:
        for index, images in batches:
            writer.write(index, backbone.tokens(images, layer))
        writer.finish_shard()
    parts = [dict(np.load(path)) for path in _find_facts(shards)]
    if not parts:
        raise InputError("Expected at least one readable image, got none: see the list of skipped files.")
    for path in _find_shards(shards):
        if int(path.stem[-5:]) >= len(parts):
            path.unlink()  # begun before an interruption, and then there was nothing left to read
    _save_facts(backbone, layer, dtype, parts, shards, folder)
    for path in _find_facts(shards):  # before the shards leave: without them nobody could go on
        path.unlink()
    if progress:
        for path in _find_shards(progress):
            os.replace(path, folder / path.name)
    return TokenCache(folder)


def _save_facts(
    backbone: Backbone, layer: int, dtype: str | None, parts: list[dict[str, np.ndarray]], shards: Path, folder: Path
) -> None:
    """Join what is known of the shards' tokens into the files of `TokenFacts`.

    Args:
        parts: of each shard.
        shards: where the shards lie by now.
    """
    norms = np.concatenate([part["norms"] for part in parts])
    mean = torch.from_numpy(sum(part["total"] for part in parts) / norms.size).float()
    if dtype is None:
        sample = torch.from_numpy(np.concatenate([part["sample"] for part in parts]))
        mean_norm = (sample - mean).norm(dim=-1).mean(dtype=torch.float64).item()
    else:
        mean_norm = _compute_mean_norm(ShardedRows.open(shards, "patches"), mean.to(backbone.mean.device))
    np.save(folder / NORMS_FILE, norms)
    np.save(folder / INDEX_FILE, np.concatenate([part["image_index"] for part in parts]))
    np.save(folder / MEAN_FILE, mean.numpy())
    meta = {
        "n_images": len(norms),
        "grid": backbone.grid,
        "d_in": backbone.d_in,
        "patch_px": backbone.patch_px,
        "n_prefix": backbone.n_prefix_tokens,
        "layer": layer,
        "dtype": dtype,
        "mean_norm": mean_norm,
        "scale": math.sqrt(backbone.d_in) / mean_norm if mean_norm > 0 else 1.0,
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=2))


def _find_facts(folder: Path) -> list[Path]:
    """What is kept of each finished shard until all are there; the last file that a shard gets."""
    return sorted(folder.glob("facts-*.npz"))


def _find_shards(folder: Path) -> list[Path]:
    return sorted(path for name in _PARTS for path in folder.glob(f"{name}-*.npy"))


def _compute_mean_norm(patches: ShardedRows, mean: Tensor) -> float:
    """Mean norm of x - mu over all tokens, block by block, where `mean` lies."""
    total = 0.0
    for start in range(0, len(patches), 256):
        block = torch.from_numpy(patches[start : start + 256]).to(mean.device).float()
        total += (block - mean).norm(dim=-1).sum(dtype=torch.float64).item()
    return total / (patches.shape[0] * patches.shape[1])


class _ShardWriter:
    """Writes shard after shard: the tokens as they come, and when a shard is full what is known of its tokens."""

    def __init__(self, folder: Path, dtype: str | None, sample_every: int) -> None:
        self.folder, self.dtype, self.sample_every = folder, dtype, sample_every
        self.number = len(_find_facts(folder))
        self.files: dict[str, RowWriter] = {}
        self._begin()

    def _begin(self) -> None:
        self.known: dict[str, list[np.ndarray]] = {"norms": [], "image_index": [], "total": [], "sample": []}
        self.n_bytes = 0

    def write(self, index: Tensor, tokens: Tokens) -> None:
        if self.dtype is not None:
            for name in _PARTS:
                part = getattr(tokens, name)
                if name not in self.files:
                    path = self.folder / f"{name}-{self.number:05d}.npy"
                    self.files[name] = RowWriter(path, tuple(part.shape[1:]), self.dtype)
                self.files[name].write(part)
        patches = tokens.patches
        self.known["norms"].append(patches.norm(dim=-1).cpu().numpy())
        self.known["image_index"].append(index.numpy())
        self.known["total"].append(patches.sum((0, 1), dtype=torch.float64).cpu().numpy()[None])
        if self.dtype is None:
            step = -(-patches.shape[1] // N_SAMPLE_TOKENS)
            chosen = (index % self.sample_every == 0).to(patches.device)
            self.known["sample"].append(patches[chosen, ::step].flatten(0, 1).cpu().numpy())
        self.n_bytes += sum(part.numel() * part.element_size() for part in tokens)
        if self.n_bytes >= SHARD_BYTES:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Close the shard in hand, if there is one; what is known of it is written last, and makes it count."""
        if not self.n_bytes:
            return
        self.close()
        unfinished = self.folder / f"unfinished-{self.number:05d}.npz"
        known = {name: np.concatenate(values) for name, values in self.known.items() if values}
        np.savez(unfinished, **{**known, "total": known["total"].sum(0)})  # pyright: ignore[reportArgumentType]
        os.replace(unfinished, self.folder / f"facts-{self.number:05d}.npz")
        self.number += 1
        self._begin()

    def close(self) -> None:
        """Close the files of the shard in hand, finished or not."""
        files, self.files = self.files, {}
        for file in files.values():
            file.close()


class RowWriter:
    """Writes a .npy file row block by row block through plain writes, so that a full disk is an OSError.

    (Writing through a memory map would end in a bus error.) The header is corrected on closing.

    Args:
        row_shape: of one row.
        dtype: on disk, float32 or float16.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: str) -> None:
        self.row_shape, self.dtype, self.n_rows = row_shape, np.dtype(dtype), 0
        self.file = path.open("wb")
        self._write_header()

    def _write_header(self) -> None:
        self.file.seek(0)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.n_rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self.file, header)  # numpy leaves room for a row count that grows

    def write(self, rows: Float[Tensor, "n_rows ..."]) -> None:
        """Append rows.

        Raises:
            InputError: if a value does not fit the type.
            OSError: on a full disk.
        """
        block = rows.to(getattr(torch, self.dtype.name)).contiguous()  # before it leaves a GPU: half the way is saved
        if not torch.isfinite(block).all():
            raise InputError(f"Tokens are too large for {self.dtype}: set data.cache_dtype=float32.")
        self.file.write(block.cpu().numpy().data)
        self.n_rows += len(block)

    def close(self) -> None:
        """Write how many rows came, and close the file; on a full disk it raises, and is closed all the same."""
        with self.file:
            self._write_header()
