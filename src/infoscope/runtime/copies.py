"""Copies to and from a GPU, while it goes on with its work: their streams, and tensors on their way to the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from infoscope.runtime.errors import get_first_line

Spare = dict[str, list[Tensor]]
"""Page-locked memory that is not in use, by the name of what was copied into it: uint8, of one dimension."""
LOCKED_BYTES = 2**30
"""Of page-locked memory, for copies to the CPU of one kind: it cannot be swapped out, containers often allow little of
it, and tokens of large pictures add up (ViT-L/14 at 518 px, in float16: 0.7 GB a batch)."""


def make_locked(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return memory on the CPU, not filled, that a GPU copies from or to: page-locked, so that nobody waits for it.

    Where that cannot be had (no CUDA, a container that may lock little), a warning says so once, and it is memory as
    any other: copies give the same values, and take longer.
    """
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        _warn_once(get_first_line(error))
    return torch.empty(shape, dtype=dtype)


def lock(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU in memory of `make_locked`."""
    return make_locked(tensor.shape, tensor.dtype).copy_(tensor)


def count_behind(n_bytes: Iterable[int], most: int) -> int:
    """Return how many copies may wait to be used while another one is made: within `LOCKED_BYTES`, but one at least.

    Args:
        n_bytes: of each tensor that is copied at a time; torch rounds them up to powers of two.
        most: no more than that.
    """
    n_locked = sum(1 << (n - 1).bit_length() for n in n_bytes if n)
    return max(1, min(most, LOCKED_BYTES // max(1, n_locked) - 1))


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"Copies to and from the GPU are slow, for want of page-locked memory ({reason}).", stacklevel=3)


@cache
def copy_stream(device: torch.device, *, to_device: bool) -> torch.cuda.Stream:
    """Return the stream on which a GPU gets copies, or gives them away: one each, as memory is kept by stream."""
    return torch.cuda.Stream(device)


@dataclass(frozen=True)
class Leaving:
    """Copies that were asked for, and perhaps are not there yet. Any thread may wait for them.

    Args:
        there: by name, on the CPU: what will hold them.
        here: what is copied; it lives as long as the copying may take.
        arrived: happens when all are there; None: they are.
        held: the page-locked memory that holds them, by name, for `spare`.
    """

    there: dict[str, Tensor]
    here: Mapping[str, Tensor]
    arrived: torch.cuda.Event | None = None
    held: Mapping[str, Tensor] = field(default_factory=dict)
    spare: Spare = field(default_factory=dict)

    def wait(self) -> dict[str, Tensor]:
        """Return them, complete."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.there

    def release(self) -> None:
        """Let the next copies take their memory: nobody reads them any more."""
        for name, memory in self.held.items():
            self.spare[name].append(memory)

    def count_behind(self, most: int) -> int:
        """Return `count_behind` of such copies; `most` of those that hold no page-locked memory, as on the CPU."""
        return count_behind([memory.nbytes for memory in self.held.values()], most) if self.held else most


class Leaver:
    """Starts copies to the CPU: from a GPU on a stream of their own, into page-locked memory; from the CPU, none.

    As much memory is page-locked as copies were under way at a time, each rounded up to a power of two by torch. Where
    a GPU's stream cannot be had, a warning says so, and copies are made at once.
    """

    def __init__(self) -> None:
        self._spare: Spare = {}
        self._is_plain = False

    def start(self, tensors: Mapping[str, Tensor]) -> Leaving:
        """Copy tensors of one device; who writes to one of them afterwards must wait for the copies first."""
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        if device is not None and not self._is_plain:
            try:
                return self._start(tensors, device)
            except RuntimeError as error:
                self._is_plain = True
                reason = get_first_line(error)
                warnings.warn(
                    f"Copies leave the GPU slowly, for want of a stream of their own ({reason}).", stacklevel=2
                )
        return Leaving({name: tensor.cpu() for name, tensor in tensors.items()}, tensors)

    def _start(self, tensors: Mapping[str, Tensor], device: torch.device) -> Leaving:
        held = {name: self._take_memory(name, tensor.nbytes) for name, tensor in tensors.items() if tensor.is_cuda}
        there = dict(tensors)
        for name, memory in held.items():
            there[name] = memory[: tensors[name].nbytes].view(tensors[name].dtype).view(tensors[name].shape)
        stream = copy_stream(device, to_device=False)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for name in held:
                there[name].copy_(tensors[name], non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        return Leaving(there, tensors, arrived, held, self._spare)

    def _take_memory(self, name: str, n_bytes: int) -> Tensor:
        spare = self._spare.setdefault(name, [])
        while spare:
            memory = spare.pop()
            if memory.nbytes >= n_bytes:
                return memory
        return make_locked([n_bytes], torch.uint8)
