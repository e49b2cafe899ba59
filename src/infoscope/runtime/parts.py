"""Work that resumes after an interruption: passes over many items in parts, loops of many steps from checkpoints.

A pass is cut into parts, and a finished part is a file; who made it, or when, does not matter. So an interrupted pass
goes on with the parts that are missing, several processes share the parts out among them, and since parts are cut in
one way and joined in one order, the result is the same, bit for bit, however often it was interrupted and however many
processes made it. A loop whose steps build on each other cannot be cut: its state is saved at intervals.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from infoscope.runtime import processes
from infoscope.runtime.behind import Behind
from infoscope.runtime.files import atomic_write
from infoscope.runtime.profile import Kind, spent_on

Part = Mapping[str, Tensor]
"""The result of one part: tensors by name."""
Key = TypeVar("Key")

SAVE_EVERY_S = 60.0
"""Seconds between checkpoints of a loop: what an interruption can cost it."""
SHARE_OF_SAVING = 20
"""A loop works at least so many times as long as it writes checkpoints."""


PART_IMAGES = (2**10, 2**14)
"""Images in a part of a pass over images, at least and at most."""
N_PARTS = 64
"""Parts of a pass over images, at least, where their size allows: some for each of many processes."""


def cut_images(n_images: int) -> list[slice]:
    """Return the parts of a pass over images.

    They depend on nothing but the number of images: large enough that it costs little to start their readers, small
    enough that an interruption costs a slow machine minutes.
    """
    least, most = PART_IMAGES
    return cut(n_images, min(max(n_images // N_PARTS // least, 1) * least, most))


def cut(n_items: int, part_items: int) -> list[slice]:
    """Return the slices of `n_items` items in order, `part_items` each but for the last."""
    return [slice(start, min(start + part_items, n_items)) for start in range(0, n_items, part_items)]


def compute_parts(n_parts: int, compute: Callable[[int], Part], folder: Path | None, name: str) -> Iterator[Part]:
    """Return what `compute` returns for parts 0 .. n_parts - 1, in this order; each is computed once, by one process.

    With a folder all parts are computed, and lie there as files, when this returns: what it returns reads them, in
    every process of the job, for those that want to.

    Args:
        compute: a function of the number of a part; its tensors may lie on any device, what is returned is on the CPU.
        folder: where finished parts wait, on a disk that all processes see; whoever made it deletes it after success,
            when every process has read what it wants (`processes.barrier`).
            None: nowhere, and this process computes all of them one by one as they are asked for.
        name: of the pass, different for each pass that shares the folder.
    """
    place = None if folder is None else folder / name
    found = compute_parts_together(n_parts, lambda number, _: {name: compute(number)}, {name: place})
    return (parts[name] for parts in found)


def compute_parts_together(
    n_parts: int, compute: Callable[[int, Sequence[Key]], Mapping[Key, Part]], places: Mapping[Key, Path | None]
) -> Iterator[dict[Key, Part]]:
    """Return the parts of several passes over the same items, made in one; see `compute_parts`.

    Each pass has files of its own, which it finds again in any combination with other passes.

    Args:
        compute: takes the number of a part and the keys of the passes whose part is missing, and returns theirs.
        places: of each pass, by key: <folder>/<name>, see `compute_parts`; None for all of them: nowhere.
    """
    kept = {key: place for key, place in places.items() if place is not None}
    here = processes.current()
    if not kept:
        assert here.size == 1, "processes exchange parts in a folder"
        return (_to_cpu(compute(number, list(places))) for number in range(n_parts))
    assert len(kept) == len(places), "some passes keep their parts, and some do not"
    with closing(Behind("save_parts", len(kept))) as saver:
        for number in range(here.rank, n_parts, here.size):
            missing = [key for key, place in kept.items() if not _name_part(place, number).exists()]
            if missing:
                found = compute(number, missing)
                with spent_on(Kind.disk):
                    saver.finish()  # while the next part is computed this one is written
                for key, part in found.items():
                    saver.submit(save_state, _name_part(kept[key], number), part)
        with spent_on(Kind.disk):
            saver.finish()
    processes.barrier()
    return ({key: load_state(_name_part(place, number)) for key, place in kept.items()} for number in range(n_parts))


def list_missing(n_parts: int, folder: Path | None, name: str) -> list[int]:
    """Return the parts that `compute_parts` will compute in this process, in order."""
    here = processes.current()
    mine = range(here.rank, n_parts, here.size)
    return [number for number in mine if folder is None or not _name_part(folder / name, number).exists()]


def _name_part(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}-{number:05d}.pt")


class Checkpoint:
    """The state of a loop, saved to a file at intervals.

    Args:
        path: of the file; None: nothing is kept. Whoever made its folder deletes it after success, or the file alone.
        key: what determines the loop; a state that was kept under another key is none.
        every_s: seconds between states, at least; a state that takes long to write is written the more rarely.
    """

    def __init__(self, path: Path | None, key: str = "", every_s: float | None = None) -> None:
        self.path, self.key = path, key
        self.every_s = SAVE_EVERY_S if every_s is None else every_s
        self._next = time.monotonic() + self.every_s

    def load(self) -> dict[str, Any] | None:
        """Return the state to go on from, on the CPU; None where there is none, or none that can be read."""
        if self.path is None or not self.path.exists():
            return None
        try:
            kept = load_state(self.path)
        except Exception:  # a damaged file raises errors of many kinds
            return None
        return kept["state"] if kept.get("key") == self.key else None

    def is_due(self) -> bool:
        """Whether it is time for the next state."""
        return self.path is not None and time.monotonic() >= self._next

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state of tensors and plain values, which replaces the one before; whole or not at all."""
        if self.path is not None:
            start = time.monotonic()
            save_state(self.path, {"key": self.key, "state": state})
            end = time.monotonic()
            self._next = end + max(self.every_s, SHARE_OF_SAVING * (end - start))

    def delete(self) -> None:
        """Delete the state, once the loop's result is saved."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all, and durably: a file that is there is a finished one.

    Raises:
        OSError: the disk is full.
    """
    buffer = io.BytesIO()  # a full disk is then an OSError like any other
    torch.save(_to_cpu(state), buffer)
    with atomic_write(path, durable=True) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Return what `save_state` wrote, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _to_cpu(value: Any) -> Any:
    """Return tensors, at any depth, as they are saved: on the CPU, and without the rest of what they are a view of."""
    if isinstance(value, Tensor):
        on_cpu = value.detach().cpu()
        return on_cpu.clone() if on_cpu.untyped_storage().nbytes() > on_cpu.nbytes else on_cpu
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    return [_to_cpu(item) for item in value] if isinstance(value, list | tuple) else value
