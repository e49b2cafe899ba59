"""Tensors on their way from a GPU to the CPU, while the GPU goes on with the next batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from infoscope.runtime.errors import get_first_line


@dataclass(frozen=True)
class Leaving:
    """Copies that were asked for, and perhaps are not there yet.

    Args:
        there: by name, on the CPU: what will hold them.
        here: what is copied; it lives as long as the copying may take.
        arrived: happens when all are there; None: they are.
    """

    there: dict[str, Tensor]
    here: Mapping[str, Tensor]
    arrived: torch.cuda.Event | None = None

    def wait(self) -> dict[str, Tensor]:
        """Return them, complete. Any thread may ask."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.there


class Leaver:
    """Starts copies to the CPU: from a GPU on a stream of their own, into page-locked memory; from the CPU, none.

    Where a GPU's stream or page-locked memory cannot be had, a warning says so, and copies are made at once. torch
    keeps page-locked memory for the next copies, rounded up to powers of two.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
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
                warnings.warn(f"Tokens leave the GPU slowly, for want of page-locked memory ({reason}).", stacklevel=2)
        return Leaving({name: tensor.cpu() for name, tensor in tensors.items()}, tensors)

    def _start(self, tensors: Mapping[str, Tensor], device: torch.device) -> Leaving:
        there = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) if tensor.is_cuda else tensor
            for name, tensor in tensors.items()
        }
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for name, tensor in tensors.items():
                if tensor.is_cuda:
                    there[name].copy_(tensor, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Leaving(there, tensors, arrived)
