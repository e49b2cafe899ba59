"""What processes of a job tell each other in tensors: fast enough for every step of a loop.

Collective calls: every process must make each of them. Tensors on GPUs go over NCCL, others over gloo.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from infoscope.runtime import processes


def any_of(*said: bool) -> list[bool]:
    """Return of each statement whether any process makes it; cheap enough for every step of a loop."""
    if processes.current().size == 1:
        return list(said)
    flags = torch.tensor(said, dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags]


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of every process's tensor, without gradient: the same bits in every process."""
    size = processes.current().size
    if size == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / size


def least(tensor: Tensor) -> Tensor:
    """Return the least of every process's tensor, element by element, without gradient."""
    least = tensor.detach().clone()
    if processes.current().size > 1:
        dist.all_reduce(least, dist.ReduceOp.MIN)
    return least


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return every process's tensor, all of one shape, one after the other: [size, ...]; it stays on its device."""
    size = processes.current().size
    gathered = tensor.new_empty(size, *tensor.shape)
    if size == 1:
        return gathered.copy_(tensor.detach()[None])
    dist.all_gather(list(gathered.unbind()), tensor.detach().contiguous())
    return gathered


def exchange_rows(rows: Sequence[Tensor], n_received: Sequence[int]) -> list[Tensor]:
    """Give each process its rows [n, d], and return those that each process has for this one.

    Args:
        rows: for each process, by rank.
        n_received: how many rows come from each process; all know that beforehand.
    """
    size = processes.current().size
    assert len(rows) == len(n_received) == size
    if size == 1:
        return [rows[0]]
    sent = torch.cat(list(rows))
    received = sent.new_empty(sum(n_received), *sent.shape[1:])
    dist.all_to_all_single(received, sent, list(n_received), [len(part) for part in rows])
    return list(received.split(list(n_received)))
