"""The k largest of each row of a matrix, exactly: a row is read once, then only k groups of its columns.

Only the k groups of columns whose maxima are largest can hold one of the k largest. Among their columns, the k-th
largest value is found by bisection over its bits. Values are compared as integers that have their order, with NaN
above infinity, as torch has it: so exactly k places are chosen whatever the row holds.
"""

from typing import Any

import triton
import triton.language as tl

jit: Any = triton.jit  # whose types know nothing of num_warps
_topk = getattr(tl, "topk", tl.sort)  # Triton before 3.4 has none, and looks for it in code that it leaves out, too


@jit
def _as_keys(values, IS_HALF: tl.constexpr):
    """Integers in the order of these values, bfloat16 (IS_HALF) or float32; all above the lowest of 16 or 32 bits."""
    if IS_HALF:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32)
        keys = tl.where(bits < 0, bits ^ 0x7FFF, bits)
        keys = tl.where((bits & 0x7FFF) > 0x7F80, 0x7FFF, keys)
    else:
        bits = values.to(tl.int32, bitcast=True)
        keys = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        keys = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, keys)
    return keys


@jit
def find_group_maxima(
    matrix_ptr, maxima_ptr, row_stride, d, n_groups, ROWS: tl.constexpr, GROUP: tl.constexpr, IS_HALF: tl.constexpr
):
    """Write the largest key of each GROUP columns [n, n_groups]: ROWS groups of one row."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    values = tl.load(matrix_ptr + row * row_stride + columns, mask=columns < d, other=0.0)
    lowest = -0x8000 if IS_HALF else -0x80000000
    keys = tl.where(columns < d, _as_keys(values, IS_HALF), lowest)
    maxima = tl.max(keys, 1)
    tl.store(maxima_ptr + row * n_groups + groups, maxima.to(maxima_ptr.dtype.element_ty), mask=groups < n_groups)


@jit
def select_largest(
    matrix_ptr,
    maxima_ptr,
    values_ptr,
    places_ptr,
    row_stride,
    d,
    n_groups,
    k,
    K: tl.constexpr,
    N_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    IS_HALF: tl.constexpr,
    HAS_TOPK: tl.constexpr,
):
    """Write the k largest values of one row and their columns [n, k], all different; of equal ones always the same."""
    row = tl.program_id(0).to(tl.int64)
    lowest = -0x8000 if IS_HALF else -0x80000000
    # A group's largest key and, as groups of equal keys must differ, its number: the first of them is the largest.
    groups = tl.arange(0, N_GROUPS)
    maxima = tl.load(maxima_ptr + row * n_groups + groups, mask=groups < n_groups, other=lowest)
    if IS_HALF:
        ranked = (maxima.to(tl.int32) << 16) | (0xFFFF - groups)
    else:
        ranked = (maxima.to(tl.int64) << 32) | (0x7FFFFFFF - groups).to(tl.int64)
    if HAS_TOPK:
        first = _topk(ranked, K)
    else:
        ranked = tl.reshape(tl.sort(ranked, descending=True), [N_GROUPS // K, K])
        first = tl.sum(tl.where(tl.arange(0, N_GROUPS // K)[:, None] == 0, ranked, 0), 0)
    if IS_HALF:
        first_maxima = first >> 16
        first_groups = 0xFFFF - (first & 0xFFFF)
    else:
        first_maxima = (first >> 32).to(tl.int32)
        first_groups = 0x7FFFFFFF - (first & 0x7FFFFFFF).to(tl.int32)
    ranks = tl.arange(0, K)
    at_least = tl.min(tl.where(ranks < k, first_maxima, 0x7FFFFFFF), 0)  # k values reach it
    at_most = tl.max(first_maxima, 0)

    columns = first_groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_real = (columns < d) & (ranks < k)[:, None]
    values = tl.load(matrix_ptr + row * row_stride + columns, mask=is_real, other=0.0)
    keys = tl.reshape(tl.where(is_real, _as_keys(values, IS_HALF), lowest), [K * GROUP])
    while at_least < at_most:
        # Their mean, rounded up, without the sum that could overflow.
        middle = (at_least | at_most) - ((at_least ^ at_most) >> 1)
        is_reached = tl.sum((keys >= middle).to(tl.int32), 0) >= k
        at_least = tl.where(is_reached, middle, at_least)
        at_most = tl.where(is_reached, at_most, middle - 1)
    is_above = (keys > at_least).to(tl.int32)
    is_tied = (keys == at_least).to(tl.int32)
    n_above = tl.sum(is_above, 0)
    # One scan counts both: values above in the high half, equal ones in the low half.
    counts = tl.cumsum((is_above << 16) | is_tied, 0)
    tie_rank = (counts & 0xFFFF) - 1
    is_chosen = (is_above > 0) | ((is_tied > 0) & (tie_rank < k - n_above))
    place = tl.where(is_above > 0, (counts >> 16) - 1, n_above + tie_rank)
    tl.store(places_ptr + row * k + place, tl.reshape(columns, [K * GROUP]).to(tl.int64), mask=is_chosen)
    tl.store(values_ptr + row * k + place, tl.reshape(values, [K * GROUP]), mask=is_chosen)
