"""Writing tokens to the disk shard by shard, with the facts of each shard until all are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.runtime.behind import Behind
from infoscope.runtime.copies import Leaver, Leaving
from infoscope.runtime.files import atomic_write
from infoscope.runtime.parts import compute_parts
from infoscope.runtime.profile import Kind, spent_on
from infoscope.vision.backbone import Tokens
from infoscope.vision.checks import LaterChecks, is_finite, raise_unmet

N_SAMPLE_IMAGES, N_SAMPLE_TOKENS = 2048, 32
"""A sample of tokens: at most so many images, so many tokens of each."""
N_BEHIND = 4
"""Batches that may have left the backbone and not have reached the disk; large ones of a GPU are fewer, see
`Leaving.count_behind`."""

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

    Whoever gives it batches waits neither for the device nor for the disk: copies leave the device on a stream of their
    own, a thread writes them, and another one forces a shard that is over to the disk while the next one is written. At
    most `N_BEHIND` batches of stored tokens wait meanwhile. What fails behind is raised with the next batch.

    Args:
        dtype: float32 or float16 on disk; None: nothing is stored but what is known.
        sample_every: of how many images one is in the sample of tokens; None: there is no sample.
        numbers: the shards to write, ascending.
        shard_images: images of the set that belong to each.
    """

    def __init__(
        self, folder: Path, dtype: str | None, sample_every: int | None, numbers: Sequence[int], shard_images: int
    ) -> None:
        self.folder, self.dtype, self.sample_every = folder, dtype, sample_every
        self.left, self.shard_images = list(numbers), shard_images
        self.checks = LaterChecks()
        """What must hold of the tokens of the shard in hand."""
        self.known: dict[str, list[Tensor]] = {}
        self._leaver = Leaver()
        self._writing, self._closing = Behind("write_tokens", N_BEHIND), Behind("close_shards", 2)
        self._files: dict[str, RowWriter] = {}  # of the shard that is written now: the writing thread's own
        self._opened: list[RowWriter] = []

    def write(self, index: Tensor, tokens: Tokens) -> None:
        """Add a batch; the shards before it are over.

        Raises:
            InputError: in this shard or one before, a value was not finite or does not fit the type.
            OSError: the disk is full.
        """
        number = int(index[0]) // self.shard_images
        assert number == int(index[-1]) // self.shard_images, "a batch lies in one shard"
        while self.left[0] != number:
            self._finish_shard()
        self._note(index, tokens.patches)
        self._closing.check()
        if self.dtype is not None:
            with spent_on(Kind.copying):
                parts = {name: to_disk_type(getattr(tokens, name), self.dtype, self.checks) for name in _PARTS}
                leaving = self._leaver.start(parts)
            with spent_on(Kind.waiting):
                self._writing.n_waiting = leaving.count_behind(N_BEHIND)
                self._writing.submit(self._append, number, leaving)
        if (int(index[-1]) + 1) % self.shard_images == 0:
            self._finish_shard()

    def finish(self) -> None:
        """Finish every shard that is left, and wait until all are on the disk.

        Raises:
            InputError, OSError: as `write`.
        """
        while self.left:
            self._finish_shard()
        with spent_on(Kind.disk):
            self._writing.finish()
            self._closing.finish()

    def close(self) -> None:
        """End the threads, when what they were given is done, and give up the shard in hand."""
        self._writing.close()
        self._closing.close()
        for writer in self._opened:
            with suppress(OSError):  # a full disk, which was said
                writer.file.close()

    def _note(self, index: Tensor, patches: Float[Tensor, "batch n_patches d_in"]) -> None:
        """Keep what is known of a batch, on its device."""
        found = {
            "norms": patches.norm(dim=-1),
            "image_index": index,
            "total": patches.sum((0, 1), dtype=torch.float64)[None],
        }
        if self.sample_every is not None:
            chosen = (index % self.sample_every == 0).nonzero()
            places = _choose_places(index[chosen] // self.sample_every, patches.shape[1])
            chosen, places = (one.to(patches.device, non_blocking=True) for one in (chosen, places))
            found["sample"] = patches[chosen, places].flatten(0, 1)
        for name, values in found.items():
            self.known.setdefault(name, []).append(values)

    def _finish_shard(self) -> None:
        """Let the threads close the shard in hand, which may be empty."""
        known = {name: torch.cat(values) for name, values in self.known.items()}
        self.known = {}
        messages, known["met"] = self.checks.take()
        number, leaving = self.left.pop(0), self._leaver.start(known)
        with spent_on(Kind.waiting):
            files = self._writing.submit(self._take_files)
            self._closing.submit(self._close_shard, number, files, leaving, messages)

    def _append(self, number: int, leaving: Leaving) -> None:
        """Write a batch (the writing thread)."""
        for name, block in leaving.wait().items():
            if name not in self._files:
                self._files[name] = RowWriter(self._name(name, number), tuple(block.shape[1:]), str(self.dtype))
                self._opened.append(self._files[name])
            self._files[name].append(block.numpy())
        leaving.release()

    def _take_files(self) -> dict[str, RowWriter]:
        """Give away the files of the shard in hand, which is written (the writing thread)."""
        files, self._files = self._files, {}
        return files

    def _close_shard(
        self, number: int, files: Future[dict[str, RowWriter]], leaving: Leaving, messages: list[str]
    ) -> None:
        """Close a shard's files; its metadata file is written last and marks it complete (the closing thread)."""
        for file in files.result().values():
            file.close()
        known = {name: values.numpy() for name, values in leaving.wait().items()}
        raise_unmet(messages, torch.from_numpy(known.pop("met")))
        if known:
            known["total"] = known["total"].sum(0)
        else:
            known["image_index"] = np.empty(0, np.int64)
            for name in _PARTS:  # begun before an interruption, and now there is nothing left to read
                self._name(name, number).unlink(missing_ok=True)
        with atomic_write(name_facts(self.folder, number), durable=True) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **known)  # pyright: ignore[reportArgumentType]
        leaving.release()

    def _name(self, part: str, number: int) -> Path:
        return self.folder / f"{part}-{number:05d}.npy"


def _choose_places(number: Int[Tensor, "n 1"], n_patches: int) -> Int[Tensor, "n n_places"]:
    """Return the places of an image's tokens in the sample: a grid's columns and rows all get their turns.

    Args:
        number: of each image in the sample, counted through it.
    """
    step = -(-n_patches // N_SAMPLE_TOKENS)
    n_places = n_patches // step
    return number % (n_patches - step * (n_places - 1)) + step * torch.arange(n_places)


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


def to_disk_type(rows: Float[Tensor, "n_rows ..."], dtype: str, checks: LaterChecks) -> Float[Tensor, "n_rows ..."]:
    """Return rows as they lie on the disk, still on their device: half of a copy to the CPU is saved with float16.

    Args:
        dtype: float32 or float16.
        checks: where it is noted that every value must fit the type.

    Raises:
        InputError: on the CPU, a value that does not.
    """
    block = rows.to(getattr(torch, dtype)).contiguous()
    checks.require(is_finite(block), f"Tokens are too large for {dtype}: set data.cache_dtype=float32.")
    return block


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
        """Append rows of any type and device.

        Raises:
            InputError: if a value does not fit the type.
            OSError: on a full disk.
        """
        checks = LaterChecks()
        block = to_disk_type(rows, self.dtype.name, checks).cpu()
        checks.ask()
        self.append(block.numpy())

    def append(self, rows: Float[np.ndarray, "n_rows ..."]) -> None:
        """Append rows of the type on disk.

        Raises:
            OSError: on a full disk.
        """
        self.file.write(rows.data)
        self.n_rows += len(rows)

    def close(self) -> None:
        """Write how many rows came, durably, and close the file; it is closed even if a full disk makes it raise."""
        with self.file:
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
