"""Writing tokens to the disk shard by shard, with the facts of each shard until all are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.files import atomic_write
from infoscope.runtime.parts import compute_parts
from infoscope.vision.backbone import Tokens

N_SAMPLE_IMAGES, N_SAMPLE_TOKENS = 2048, 32
"""Of tokens that are not stored, the scale is measured on a sample: at most so many images, so many tokens of each."""

_PARTS = ("patches", "prefix")
_NORMS = "norms"


def name_facts(folder: Path, number: int) -> Path:
    """Return the file that makes a shard a finished one: the last that it gets."""
    return folder / f"facts-{number:05d}.npz"


def find_facts(folder: Path) -> list[Path]:
    """Return what is kept of each finished shard until all are there."""
    return sorted(folder.glob("facts-*.npz"))


def move_shards(shards: Path, folder: Path) -> None:
    """Bring all shards, which may be there already, into their folder, and forget what was known of each."""
    for path in [*find_facts(shards), *shards.glob(f"{_NORMS}-*.pt")]:  # first: without the shards nobody could go on
        path.unlink()
    for path in sorted(path for name in _PARTS for path in shards.glob(f"{name}-*.npy")):
        os.replace(path, folder / path.name)


def compute_mean_norm(shards: Path, progress: Path | None, mean: Tensor) -> float:
    """Mean norm of x - mu over all tokens, where `mean` lies: block by block, and shard by shard."""
    files = sorted(shards.glob("patches-*.npy"))

    def compute(number: int) -> dict[str, Tensor]:
        patches, total = np.load(files[number], mmap_mode="r"), 0.0
        for start in range(0, len(patches), 256):
            block = torch.from_numpy(np.array(patches[start : start + 256])).to(mean.device).float()
            total += (block - mean).norm(dim=-1).sum(dtype=torch.float64).item()
        return {"total": torch.tensor([total, len(patches) * patches.shape[1]], dtype=torch.float64)}

    parts = compute_parts(len(files), compute, progress, _NORMS)
    total, n_tokens = torch.stack([part["total"] for part in parts]).sum(0).tolist()
    return total / n_tokens


class ShardWriter:
    """Writes shard after shard: the tokens as they come, and when a shard is over what is known of its tokens.

    Args:
        numbers: the shards to write, ascending.
        shard_images: images of the set that belong to each.
    """

    def __init__(
        self, folder: Path, dtype: str | None, sample_every: int, numbers: Sequence[int], shard_images: int
    ) -> None:
        self.folder, self.dtype, self.sample_every = folder, dtype, sample_every
        self.left, self.shard_images = list(numbers), shard_images
        self.files: dict[str, RowWriter] = {}
        self.known: dict[str, list[np.ndarray]] = {}

    def write(self, index: Tensor, tokens: Tokens) -> None:
        """Add a batch; the shards before it are over."""
        number = int(index[0]) // self.shard_images
        assert number == int(index[-1]) // self.shard_images, "a batch lies in one shard"
        while self.left[0] != number:
            self._finish_shard()
        if self.dtype is not None:
            for name in _PARTS:
                part = getattr(tokens, name)
                if name not in self.files:
                    self.files[name] = RowWriter(self._name(name), tuple(part.shape[1:]), self.dtype)
                self.files[name].write(part)
        patches = tokens.patches
        self._note("norms", patches.norm(dim=-1))
        self._note("image_index", index)
        self._note("total", patches.sum((0, 1), dtype=torch.float64)[None])
        if self.dtype is None:
            step = -(-patches.shape[1] // N_SAMPLE_TOKENS)
            chosen = (index % self.sample_every == 0).to(patches.device)
            self._note("sample", patches[chosen, ::step].flatten(0, 1))
        if (int(index[-1]) + 1) % self.shard_images == 0:
            self._finish_shard()

    def finish(self) -> None:
        """Finish every shard that is left."""
        while self.left:
            self._finish_shard()

    def close(self) -> None:
        """Close the files of the shard in hand, finished or not."""
        files, self.files = self.files, {}
        for file in files.values():
            file.close()

    def _finish_shard(self) -> None:
        """Close the shard in hand, which may be empty; its metadata file is written last and marks it complete."""
        if not self.known:
            for name in _PARTS:  # begun before an interruption, and now there is nothing left to read
                self._name(name).unlink(missing_ok=True)
        self.close()
        known = {name: np.concatenate(values) for name, values in self.known.items()}
        known = {**known, "total": known["total"].sum(0)} if known else {"image_index": np.empty(0, np.int64)}
        facts = name_facts(self.folder, self.left[0])
        with atomic_write(facts, durable=True) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **known)  # pyright: ignore[reportArgumentType]
        self.left.pop(0)
        self.known = {}

    def _name(self, part: str) -> Path:
        return self.folder / f"{part}-{self.left[0]:05d}.npy"

    def _note(self, name: str, values: Tensor) -> None:
        self.known.setdefault(name, []).append(values.cpu().numpy())


def join_facts(shards: Path) -> dict[str, Any]:
    """Join what is known of the shards' tokens, in their order; empty where there is no token."""
    parts = [part for part in (dict(np.load(path)) for path in find_facts(shards)) if len(part["image_index"])]
    if not parts:
        return {}
    known: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "total"
    }
    known["mean"] = torch.from_numpy(sum(part["total"] for part in parts) / known["norms"].size).float()
    return known


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
        """Write how many rows came, durably, and close the file; it is closed even if a full disk makes it raise."""
        with self.file:
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
