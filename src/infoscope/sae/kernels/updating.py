"""What a training step adds up for each latent from its entries (see decoding.py): gradients, applied by Adam.

Sums have a fixed order. Arguments are spelled out, one by one: Triton before 3.3 knows no starred ones in a kernel.
"""

from typing import Any

import triton
import triton.language as tl

jit: Any = triton.jit  # whose types know nothing of num_warps


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
            start, stop, tokens_ptr, rows_ptr, values_ptr, value_gradients_ptr, gradients_ptr, x_ptr, D, WIDTH, UNROLL
        )
        d = tl.arange(0, WIDTH)
        tl.store(chunks_ptr + chunk * 2 * D + d, W_dec_gradient, mask=d < D)
        tl.store(chunks_ptr + (chunk * 2 + 1) * D + d, W_enc_gradient, mask=d < D)


@jit
def _update_row(
    at,
    gradient,
    weight_ptr,
    m_ptr,
    v_ptr,
    copy_ptr,
    is_real,
    rate,
    eps,
    beta1,
    new1,
    beta2,
    new2,
    root2,
    IS_UNIT: tl.constexpr,
    HAS_COPIES: tl.constexpr,
):
    """Adam's step of one row, and its copy of lower precision.

    IS_UNIT: the gradient loses its part along the row, which has unit norm afterwards.
    """
    weight = tl.load(weight_ptr + at, mask=is_real, other=0.0)
    if IS_UNIT:
        gradient -= tl.sum(gradient * weight, 0) * weight
    m = beta1 * tl.load(m_ptr + at, mask=is_real, other=0.0) + new1 * gradient
    v = beta2 * tl.load(v_ptr + at, mask=is_real, other=0.0) + new2 * gradient * gradient
    tl.store(m_ptr + at, m, mask=is_real)
    tl.store(v_ptr + at, v, mask=is_real)
    weight -= rate * m / (tl.sqrt(v) / root2 + eps)
    if IS_UNIT:
        weight /= tl.maximum(tl.sqrt(tl.sum(tl.where(is_real, weight * weight, 0.0), 0)), 1e-30)
    tl.store(weight_ptr + at, weight, mask=is_real)
    if HAS_COPIES:
        tl.store(copy_ptr + at, weight.to(copy_ptr.dtype.element_ty), mask=is_real)


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
    root2,
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
    rate is lr / (1 - beta1^t), new1 is 1 - beta1 (which float32 would round), root2 is sqrt(1 - beta2^t).
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
            start, stop, tokens_ptr, rows_ptr, values_ptr, value_gradients_ptr, gradients_ptr, x_ptr, D, WIDTH, UNROLL
        )
    extra = tl.load(extra_of_latent_ptr + latent)
    if extra >= 0:
        W_dec_gradient += tl.load(extra_W_dec_ptr + extra * D + d, mask=is_real, other=0.0).to(tl.float32)
        W_enc_gradient += tl.load(extra_W_enc_ptr + extra * D + d, mask=is_real, other=0.0).to(tl.float32)
    at = latent * D + d
    if IS_APPLIED:
        _update_row(
            at,
            W_dec_gradient,
            W_dec_ptr,
            W_dec_m_ptr,
            W_dec_v_ptr,
            W_dec_copy_ptr,
            is_real,
            rate,
            eps,
            beta1,
            new1,
            beta2,
            new2,
            root2,
            True,
            HAS_COPIES,
        )
        _update_row(
            at,
            W_enc_gradient,
            W_enc_ptr,
            W_enc_m_ptr,
            W_enc_v_ptr,
            W_enc_copy_ptr,
            is_real,
            rate,
            eps,
            beta1,
            new1,
            beta2,
            new2,
            root2,
            False,
            HAS_COPIES,
        )
    else:
        tl.store(W_dec_m_ptr + at, W_dec_gradient, mask=is_real)
        tl.store(W_enc_m_ptr + at, W_enc_gradient, mask=is_real)
