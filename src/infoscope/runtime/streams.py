"""Streams of a GPU on which copies run beside the work."""

from __future__ import annotations

from functools import cache

import torch


@cache
def copy_stream(device: torch.device, *, to_device: bool) -> torch.cuda.Stream:
    """Return the stream on which a GPU gets copies, or gives them away: one each, as memory is kept by stream."""
    return torch.cuda.Stream(device)
