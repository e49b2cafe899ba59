"""What a training step decodes: the errors of reconstructions, and their gradients, without dense codes.

An entry is a value of a latent on a token; its row is that of the matrix [n_rows, D] of gradients of the loss with
respect to what the entry adds to the reconstruction (a token has one row for each level of a nested reconstruction).
Weights have one row of width D per latent; pointers are multiplied out in 64 bits. Sums have a fixed order. Arguments
are spelled out, one by one: Triton before 3.3 knows no starred ones in a kernel.
"""

from typing import Any

import triton
import triton.language as tl

jit: Any = triton.jit  # whose types know nothing of num_warps


@jit
def _decode_block(
    block,
    token,
    latents,
    values,
    squares,
    value_gradients,
    scale,
    x_ptr,
    W_dec_ptr,
    b_dec_ptr,
    gradients_ptr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    d = block * BLOCK + tl.arange(0, BLOCK)
    is_real = d < D
    rows = tl.load(W_dec_ptr + latents[:, None] * D + d[None, :], mask=is_real[None, :], other=0.0).to(tl.float32)
    error = tl.sum(values[:, None] * rows, 0) + tl.load(b_dec_ptr + d, mask=is_real, other=0.0)
    error -= tl.load(x_ptr + token * D + d, mask=is_real, other=0.0)
    squares += tl.sum(error * error, 0)
    error *= scale
    tl.store(gradients_ptr + token * D + d, error.to(gradients_ptr.dtype.element_ty), mask=is_real)
    value_gradients += tl.sum(rows * error[None, :], 1)
    return squares, value_gradients


@jit
def decode_topk(
    x_ptr,
    latents_ptr,
    values_ptr,
    W_dec_ptr,
    b_dec_ptr,
    energy_ptr,
    gradients_ptr,
    value_gradients_ptr,
    squares_ptr,
    k,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    N_BLOCKS: tl.constexpr,
):
    """One token with k entries, whose decoder rows are read once: of its error e = x_hat - x, the sum of squares, the
    gradient 2 e / energy, and the gradients of the entries' values (0 where a value is 0)."""
    token = tl.program_id(0).to(tl.int64)
    ks = tl.arange(0, K)
    latents = tl.load(latents_ptr + token * k + ks, mask=ks < k, other=0)
    values = tl.load(values_ptr + token * k + ks, mask=ks < k, other=0.0)
    scale = 2.0 / tl.load(energy_ptr)
    sums = tl.zeros([K], tl.float32)
    squares = 0.0
    if N_BLOCKS <= 8:  # the loads of a block are not waited for before the next; of more, that takes too many registers
        for block in tl.static_range(N_BLOCKS):
            squares, sums = _decode_block(
                block,
                token,
                latents,
                values,
                squares,
                sums,
                scale,
                x_ptr,
                W_dec_ptr,
                b_dec_ptr,
                gradients_ptr,
                D,
                BLOCK,
            )
    else:
        for block in range(N_BLOCKS):
            squares, sums = _decode_block(
                block,
                token,
                latents,
                values,
                squares,
                sums,
                scale,
                x_ptr,
                W_dec_ptr,
                b_dec_ptr,
                gradients_ptr,
                D,
                BLOCK,
            )
    tl.store(value_gradients_ptr + token * k + ks, tl.where(values > 0, sums, 0.0), mask=ks < k)
    tl.store(squares_ptr + token, squares)


@jit
def decode_levels(
    x_ptr,
    latents_ptr,
    values_ptr,
    offsets_ptr,
    weights_ptr,
    W_dec_ptr,
    b_dec_ptr,
    energy_ptr,
    gradients_ptr,
    squares_ptr,
    n_levels,
    n_blocks,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Some columns of one token, whose entries lie at offsets[row]..offsets[row + 1] of its rows, one for each level.

    Of each level's error e_l, the sum of squares [n_rows, n_blocks], and the gradient: that of level l's entries, which
    later levels have too, is the sum over m >= l of 2 weight_m e_m / energy.
    """
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = block * BLOCK + tl.arange(0, BLOCK)
    is_real = d < D
    us = tl.arange(0, UNROLL)
    scale = 2.0 / tl.load(energy_ptr)
    error = tl.load(b_dec_ptr + d, mask=is_real, other=0.0) - tl.load(x_ptr + token * D + d, mask=is_real, other=0.0)
    gradient = tl.zeros([BLOCK], tl.float32)
    for level in range(n_levels):
        row = token * n_levels + level
        stop = tl.load(offsets_ptr + row + 1)
        for start in range(tl.load(offsets_ptr + row), stop, UNROLL):
            is_entry = start + us < stop
            latents = tl.load(latents_ptr + start + us, mask=is_entry, other=0)
            values = tl.load(values_ptr + start + us, mask=is_entry, other=0.0)
            mask = is_entry[:, None] & is_real[None, :]
            rows = tl.load(W_dec_ptr + latents[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
            error += tl.sum(values[:, None] * rows, 0)
        tl.store(squares_ptr + row * n_blocks + block, tl.sum(error * error, 0))
        gradient = error * tl.load(weights_ptr + level) * scale
        tl.store(gradients_ptr + row * D + d, gradient.to(gradients_ptr.dtype.element_ty), mask=is_real)
    tl.debug_barrier()  # the rows are read again
    for back in range(1, n_levels):
        at = gradients_ptr + (token * n_levels + n_levels - 1 - back) * D + d
        gradient += tl.load(at, mask=is_real, other=0.0).to(tl.float32)
        tl.store(at, gradient.to(gradients_ptr.dtype.element_ty), mask=is_real)


@jit
def multiply_rows(
    rows_ptr,
    latents_ptr,
    values_ptr,
    gradients_ptr,
    W_dec_ptr,
    value_gradients_ptr,
    n_entries,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    N_BLOCKS: tl.constexpr,
    N: tl.constexpr,
):
    """The gradients of N entries' values: their decoder rows times their rows of gradients; 0 where a value is 0."""
    entries = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    is_entry = entries < n_entries
    rows = tl.load(rows_ptr + entries, mask=is_entry, other=0).to(tl.int64)
    latents = tl.load(latents_ptr + entries, mask=is_entry, other=0)
    values = tl.load(values_ptr + entries, mask=is_entry, other=0.0)
    sums = tl.zeros([N], tl.float32)
    for block in range(N_BLOCKS):
        d = block * BLOCK + tl.arange(0, BLOCK)
        mask = is_entry[:, None] & (d < D)[None, :]
        weights = tl.load(W_dec_ptr + latents[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        gradients = tl.load(gradients_ptr + rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        sums += tl.sum(weights * gradients, 1)
    tl.store(value_gradients_ptr + entries, tl.where(values > 0, sums, 0.0), mask=is_entry)
