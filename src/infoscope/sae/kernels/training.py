"""What a training step does with the entries of a code matrix: decoding, gradients and Adam, without dense codes.

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


@jit
def sum_values(offsets_ptr, values_ptr, value_gradients_ptr, b_enc_gradient_ptr, n_fired_ptr, N: tl.constexpr):
    """Of one latent, whose entries lie together: the sum of its values' gradients, and on how many it is active."""
    latent = tl.program_id(0).to(tl.int64)
    stop = tl.load(offsets_ptr + latent + 1)
    ns = tl.arange(0, N)
    gradients = tl.zeros([N], tl.float32)
    n_fired = tl.zeros([N], tl.float32)
    for start in range(tl.load(offsets_ptr + latent), stop, N):
        is_entry = start + ns < stop
        gradients += tl.load(value_gradients_ptr + start + ns, mask=is_entry, other=0.0)
        n_fired += (tl.load(values_ptr + start + ns, mask=is_entry, other=0.0) > 0).to(tl.float32)
    tl.store(b_enc_gradient_ptr + latent, tl.sum(gradients, 0))
    tl.store(n_fired_ptr + latent, tl.sum(n_fired, 0))


@jit
def _sum_entries(
    start,
    stop,
    tokens_ptr,
    rows_ptr,
    values_ptr,
    value_gradients_ptr,
    gradients_ptr,
    x_ptr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Both weight gradients of these entries of one latent: sums of value * gradient, and of value's gradient * x."""
    d = tl.arange(0, WIDTH)
    us = tl.arange(0, UNROLL)
    W_dec_gradient = tl.zeros([WIDTH], tl.float32)
    W_enc_gradient = tl.zeros([WIDTH], tl.float32)
    for entry in range(start, stop, UNROLL):
        is_entry = entry + us < stop
        tokens = tl.load(tokens_ptr + entry + us, mask=is_entry, other=0).to(tl.int64)
        rows = tl.load(rows_ptr + entry + us, mask=is_entry, other=0).to(tl.int64)
        values = tl.load(values_ptr + entry + us, mask=is_entry, other=0.0)
        value_gradients = tl.load(value_gradients_ptr + entry + us, mask=is_entry, other=0.0)
        mask = is_entry[:, None] & (d < D)[None, :]
        gradients = tl.load(gradients_ptr + rows[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + tokens[:, None] * D + d[None, :], mask=mask, other=0.0).to(tl.float32)
        W_dec_gradient += tl.sum(values[:, None] * gradients, 0)
        W_enc_gradient += tl.sum(value_gradients[:, None] * x, 0)
    return W_dec_gradient, W_enc_gradient


@jit
def sum_chunks(
    offsets_ptr,
    first_chunks_ptr,
    latent_of_chunk_ptr,
    tokens_ptr,
    rows_ptr,
    values_ptr,
    value_gradients_ptr,
    gradients_ptr,
    x_ptr,
    chunks_ptr,
    d_sae,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Sums over CHUNK of the entries of a latent that has more, so that such a latent does not hold up the rest.

    Latent j's chunks are first_chunks[j]..first_chunks[j + 1]; there may be more programs than chunks.
    """
    chunk = tl.program_id(0).to(tl.int64)
    if chunk < tl.load(first_chunks_ptr + d_sae):
        latent = tl.load(latent_of_chunk_ptr + chunk)
        start = tl.load(offsets_ptr + latent) + (chunk - tl.load(first_chunks_ptr + latent)) * CHUNK
        stop = tl.minimum(start + CHUNK, tl.load(offsets_ptr + latent + 1))
        W_dec_gradient, W_enc_gradient = _sum_entries(
            start,
            stop,
            tokens_ptr,
            rows_ptr,
            values_ptr,
            value_gradients_ptr,
            gradients_ptr,
            x_ptr,
            D,
            WIDTH,
            UNROLL,
        )
        d = tl.arange(0, WIDTH)
        tl.store(chunks_ptr + chunk * 2 * D + d, W_dec_gradient, mask=d < D)
        tl.store(chunks_ptr + (chunk * 2 + 1) * D + d, W_enc_gradient, mask=d < D)


@jit
def _adam(at, weights, gradient, m_ptr, v_ptr, mask, rate, eps, beta1, new1, beta2, new2, root_correction2):
    m = beta1 * tl.load(m_ptr + at, mask=mask, other=0.0) + new1 * gradient
    v = beta2 * tl.load(v_ptr + at, mask=mask, other=0.0) + new2 * gradient * gradient
    tl.store(m_ptr + at, m, mask=mask)
    tl.store(v_ptr + at, v, mask=mask)
    return weights - rate * m / (tl.sqrt(v) / root_correction2 + eps)


@jit
def update_latents(
    offsets_ptr,
    first_chunks_ptr,
    tokens_ptr,
    rows_ptr,
    values_ptr,
    value_gradients_ptr,
    gradients_ptr,
    x_ptr,
    chunks_ptr,
    extra_of_latent_ptr,
    extra_W_dec_ptr,
    extra_W_enc_ptr,
    W_dec_ptr,
    W_dec_m_ptr,
    W_dec_v_ptr,
    W_dec_copy_ptr,
    W_enc_ptr,
    W_enc_m_ptr,
    W_enc_v_ptr,
    W_enc_copy_ptr,
    rate,
    eps,
    beta1,
    new1,
    beta2,
    new2,
    root_correction2,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    CHUNK: tl.constexpr,
    IS_APPLIED: tl.constexpr,
    HAS_COPIES: tl.constexpr,
):
    """One latent's rows of both weights: their gradients, and with IS_APPLIED what Adam makes of them.

    The decoder's gradient loses its part along the row, and the row has unit norm afterwards. Rows of the matrices
    extra_* [n_extra, D] come on top where extra_of_latent is not -1. Without IS_APPLIED, the gradients (the decoder's
    whole) are written to W_dec_m and W_enc_m instead. HAS_COPIES: new weights go to the copies of lower precision too.
    rate is lr / (1 - beta1^t), new1 is 1 - beta1 (which float32 would round), root_correction2 is sqrt(1 - beta2^t).
    """
    latent = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(offsets_ptr + latent), tl.load(offsets_ptr + latent + 1)
    d = tl.arange(0, WIDTH)
    is_real = d < D
    W_dec_gradient = tl.zeros([WIDTH], tl.float32)
    W_enc_gradient = tl.zeros([WIDTH], tl.float32)
    if stop - start > CHUNK:
        for chunk in range(tl.load(first_chunks_ptr + latent), tl.load(first_chunks_ptr + latent + 1)):
            W_dec_gradient += tl.load(chunks_ptr + chunk * 2 * D + d, mask=is_real, other=0.0)
            W_enc_gradient += tl.load(chunks_ptr + (chunk * 2 + 1) * D + d, mask=is_real, other=0.0)
    else:
        W_dec_gradient, W_enc_gradient = _sum_entries(
            start,
            stop,
            tokens_ptr,
            rows_ptr,
            values_ptr,
            value_gradients_ptr,
            gradients_ptr,
            x_ptr,
            D,
            WIDTH,
            UNROLL,
        )
    extra = tl.load(extra_of_latent_ptr + latent)
    if extra >= 0:
        W_dec_gradient += tl.load(extra_W_dec_ptr + extra * D + d, mask=is_real, other=0.0).to(tl.float32)
        W_enc_gradient += tl.load(extra_W_enc_ptr + extra * D + d, mask=is_real, other=0.0).to(tl.float32)
    at = latent * D + d
    if IS_APPLIED:
        W_dec = tl.load(W_dec_ptr + at, mask=is_real, other=0.0)
        W_dec_gradient -= tl.sum(W_dec_gradient * W_dec, 0) * W_dec
        W_dec = _adam(
            at,
            W_dec,
            W_dec_gradient,
            W_dec_m_ptr,
            W_dec_v_ptr,
            is_real,
            rate,
            eps,
            beta1,
            new1,
            beta2,
            new2,
            root_correction2,
        )
        W_dec /= tl.maximum(tl.sqrt(tl.sum(tl.where(is_real, W_dec * W_dec, 0.0), 0)), 1e-30)
        tl.store(W_dec_ptr + at, W_dec, mask=is_real)
        W_enc = tl.load(W_enc_ptr + at, mask=is_real, other=0.0)
        W_enc = _adam(
            at,
            W_enc,
            W_enc_gradient,
            W_enc_m_ptr,
            W_enc_v_ptr,
            is_real,
            rate,
            eps,
            beta1,
            new1,
            beta2,
            new2,
            root_correction2,
        )
        tl.store(W_enc_ptr + at, W_enc, mask=is_real)
        if HAS_COPIES:
            tl.store(W_dec_copy_ptr + at, W_dec.to(W_dec_copy_ptr.dtype.element_ty), mask=is_real)
            tl.store(W_enc_copy_ptr + at, W_enc.to(W_enc_copy_ptr.dtype.element_ty), mask=is_real)
    else:
        tl.store(W_dec_m_ptr + at, W_dec_gradient, mask=is_real)
        tl.store(W_enc_m_ptr + at, W_enc_gradient, mask=is_real)
