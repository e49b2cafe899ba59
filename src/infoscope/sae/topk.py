"""The k largest of each row: by torch, and on a GPU by kernels that read the matrix once (see kernels/selection.py)."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infoscope.runtime.errors import InputWarning

MAX_K = 128
"""Largest k for which the kernels are used: above, they hold too much at a time, and take a minute to compile."""
MAX_GROUPS = 2**12
"""Most groups of columns, whose maxima are sorted at a time."""
LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}
"""Options of every kernel: the default, which Triton warns of where it is not said."""


class Largest(NamedTuple):
    """values: the k largest of each row. indices: their columns, all different within a row."""

    values: Float[Tensor, "n k"]
    indices: Int64[Tensor, "n k"]


def find_largest(pre_acts: Float[Tensor, "n d_sae"], k: int, is_sorted: bool = False) -> Largest:
    """Return the k largest values of each row, and where they are; k is in 1..d_sae.

    On CUDA, exact for float32 and bfloat16 as everywhere; which of equal values are taken is the same every time. NaN
    is above everything.

    Args:
        is_sorted: the largest first; else in any order.
    """
    plan = _plan(pre_acts, k) if pre_acts.is_cuda else None
    if plan is None or not _is_exact(pre_acts.device, pre_acts.dtype, plan):
        return Largest(*pre_acts.topk(k, dim=-1, sorted=is_sorted))
    values, indices = run_kernels(pre_acts.detach(), k, plan)
    if is_sorted:
        values, order = values.sort(dim=-1, descending=True, stable=True)
        indices = indices.gather(-1, order)
    if pre_acts.requires_grad and torch.is_grad_enabled():
        values = pre_acts.gather(-1, indices)
    return Largest(values, indices)


def has_triton() -> bool:
    """Whether the language of the kernels is installed."""
    return find_spec("triton") is not None


class Plan(NamedTuple):
    """How the kernels read a row: in groups of columns, of which at most n_groups (a power of 2), for at most k."""

    k: int
    n_groups: int
    group: int


def _plan(matrix: Tensor, k: int) -> Plan | None:
    """Return how the kernels would go about it; None where torch is to do it."""
    if matrix.dtype not in (torch.float32, torch.bfloat16) or matrix.ndim != 2 or 0 in matrix.shape:
        return None
    return plan_groups(matrix.shape[1], k)


def plan_groups(d: int, k: int) -> Plan | None:
    """Return groups such that there are some 24 for each of the k, so that few candidates are left; None: too few."""
    group = 128
    while group > 8 and -(-d // group) < 24 * k:
        group //= 2
    n_groups = -(-d // group)
    if k > MAX_K or not k <= n_groups <= MAX_GROUPS:
        return None
    k = max(2, next_power(k))
    return Plan(k, max(k, next_power(n_groups)), group)


def next_power(n: int) -> int:
    """Return the first power of 2 that is not below n."""
    return 1 << (n - 1).bit_length()


def run_kernels(matrix: Float[Tensor, "n d"], k: int, plan: Plan) -> Largest:
    """Return the k largest of each row (float32 or bfloat16, n and d above 0) by the kernels, in a fixed order."""
    import triton.language as tl

    from infoscope.sae.kernels.selection import find_group_maxima, select_largest

    matrix = matrix if matrix.stride(1) == 1 else matrix.contiguous()
    (n, d), stride, is_half = matrix.shape, matrix.stride(0), matrix.dtype == torch.bfloat16
    n_groups = -(-d // plan.group)
    maxima = matrix.new_empty(n, n_groups, dtype=torch.int16 if is_half else torch.int32)
    values, indices = matrix.new_empty(n, k), matrix.new_empty(n, k, dtype=torch.int64)
    n_rows = 4096 // plan.group
    with torch.cuda.device_of(matrix):
        find_group_maxima[n, -(-n_groups // n_rows)](
            matrix, maxima, stride, d, n_groups, ROWS=n_rows, GROUP=plan.group, IS_HALF=is_half, num_warps=4, **LAUNCH
        )
        select_largest[n,](
            *(matrix, maxima, values, indices, stride, d, n_groups, k),
            K=plan.k,
            N_GROUPS=plan.n_groups,
            GROUP=plan.group,
            IS_HALF=is_half,
            HAS_TOPK=hasattr(tl, "topk"),
            num_warps=4 if max(plan.n_groups, plan.k * plan.group) <= 2048 else 8,
            **LAUNCH,
        )
    return Largest(values, indices)


@cache
def _is_exact(device: torch.device, dtype: torch.dtype, plan: Plan) -> bool:
    """Whether the kernels run here and find what torch finds, on a few rows; says so once where they do not."""
    try:
        agrees = has_triton() and _agrees(device, dtype, plan)
        reason = "they find other values than torch" if has_triton() else "triton is not installed"
    except Exception as error:  # a compiler, a driver and a device can fail in many ways
        agrees, reason = False, f"they failed with {type(error).__name__}: {error}".splitlines()[0]
    if not agrees:
        warnings.warn(
            f"The kernels that select the largest latents are not used, which is slower: {reason}.",
            InputWarning,
            stacklevel=3,
        )
    return agrees


def _agrees(device: torch.device, dtype: torch.dtype, plan: Plan) -> bool:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, plan.n_groups * plan.group - 3, generator=generator)
    rows[1, 5:] = 1.0  # ties
    rows[2] = rows[2].round()  # ties at every value
    rows = rows.to(device, dtype)
    values, indices = run_kernels(rows, plan.k, plan)
    ours = values.sort(dim=-1, descending=True).values
    return (
        torch.equal(ours, rows.topk(plan.k, dim=-1).values)
        and torch.equal(rows.gather(-1, indices), values)
        and bool((indices.sort(dim=-1).values.diff(dim=-1) > 0).all())
    )
