"""The TopK step without dense codes: one dense product (the encoder's forward), everything else on n * k entries.

Autograd's own backward of topk would fill a [tokens, d_sae] matrix with zeros and multiply it twice. Here the weight
gradients are the transposed code matrix, sorted by latent, times a dense matrix: each latent sums the few tokens on
which it is active. Both functions know nothing of loss or AuxK, so AuxK's entries get their gradients the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infoscope.sae.activations import SparseActs
from infoscope.sae.model import sum_decoder_rows


class Weights(NamedTuple):
    """The parameters of an SAE, as the step needs them."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]


class TopKStep(NamedTuple):
    """acts: z; x_hat_n: z W_dec + b_dec, normalised units; error_hat: AuxK's z_aux W_dec, None without dead latents."""

    acts: SparseActs
    x_hat_n: Float[Tensor, "n d_in"]
    error_hat: Float[Tensor, "n d_in"] | None


class ByLatent(NamedTuple):
    """Entries of a code matrix [n, d_sae] sorted by latent: the CSR form of its transpose.

    order: positions in the flattened [n, k] entries; tokens: their tokens; latent j has order[offsets[j]:offsets[j+1]].
    """

    order: Int64[Tensor, " n_entries"]
    tokens: Int64[Tensor, " n_entries"]
    offsets: Int64[Tensor, " d_sae+1"]


def sort_by_latent(indices: Int64[Tensor, "n k"], d_sae: int) -> ByLatent:
    """Return the entries in the order of their latents; a stable sort, so that sums are added in a fixed order."""
    flat = indices.flatten()
    order = flat.argsort(stable=True)
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=flat.device)
    torch.cumsum(torch.bincount(flat, minlength=d_sae), 0, out=offsets[1:])
    return ByLatent(order, order // indices.shape[1], offsets)


def transposed_product(
    values: Float[Tensor, "n k"], by_latent: ByLatent, dense: Float[Tensor, "n d"]
) -> Float[Tensor, "d_sae d"]:
    """Return Z^T dense, where Z [n, d_sae] has these entries."""
    return F.embedding_bag(
        by_latent.tokens,
        dense,
        by_latent.offsets,
        mode="sum",
        per_sample_weights=values.flatten()[by_latent.order],
        include_last_offset=True,
    )


class _SelectActs(torch.autograd.Function):
    """relu(pre_acts) at `indices`; the backward goes to W_enc, b_enc and b_dec as if through the encoder's product."""

    @staticmethod
    def forward(
        ctx: Any,
        pre_acts: Tensor,
        indices: Tensor,
        by_latent: ByLatent,
        x_centred: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
    ) -> Tensor:
        values = pre_acts.gather(1, indices).relu_()
        ctx.save_for_backward(values, x_centred, W_enc, *by_latent)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, x_centred, W_enc, *rest = ctx.saved_tensors
        by_latent = ByLatent(*rest)
        values_grad = grads[0] * (values > 0)
        W_enc_grad = transposed_product(values_grad, by_latent, x_centred).T
        b_enc_grad = transposed_product(values_grad, by_latent, x_centred.new_ones(len(x_centred), 1)).squeeze(1)
        # b_dec is subtracted from every token: summing over tokens first leaves one matrix-vector product.
        return None, None, None, None, W_enc_grad, b_enc_grad, -(W_enc @ b_enc_grad)


class _SumDecoderRows(torch.autograd.Function):
    """z W_dec from entries; the backward goes to the values and to W_dec."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, by_latent: ByLatent, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, indices, W_dec, *by_latent)
        return sum_decoder_rows(SparseActs(values, indices), W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, indices, W_dec, *rest = ctx.saved_tensors
        (n, k), grad = indices.shape, grads[0].contiguous()
        starts = torch.arange(0, n * k, k, device=grad.device)
        tokens = torch.arange(n, device=grad.device).repeat_interleave(k)
        # The kernel behind embedding_bag's own backward: one dot product of a token's gradient and a row per entry.
        values_grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, W_dec, indices.flatten(), starts, tokens, 0
        )
        return values_grad.view(n, k), None, None, transposed_product(values, ByLatent(*rest), grad)


def compute_topk_step(
    x_n: Float[Tensor, "n d_in"],
    weights: Weights,
    k: int,
    dead: Bool[Tensor, " d_sae"] | None = None,
    aux_k: int = 0,
) -> TopKStep:
    """Encode and decode normalised tokens; gradients reach all four weights (not x_n).

    Args:
        dead: latents counted as dead. Where there are any, AuxK's part of Gao et al. (2024) is computed: the aux_k
            largest pre-activations among them (ReLU), decoded without b_dec.
    """
    with torch.no_grad():
        x_centred = x_n - weights.b_dec
        # Under autocast the product alone is of low precision.
        pre_acts = (x_centred @ weights.W_enc).to(x_n.dtype).add_(weights.b_enc)
        indices = pre_acts.topk(k, dim=-1, sorted=False).indices
    values, x_hat_n = _encode_decode(pre_acts, indices, x_centred, weights)

    error_hat = None
    candidates = None if dead is None or aux_k == 0 else dead.nonzero().squeeze(1)
    if candidates is not None and len(candidates) > 0:
        with torch.no_grad():
            chosen = pre_acts[:, candidates].topk(min(aux_k, len(candidates)), dim=-1, sorted=False).indices
        _, error_hat = _encode_decode(pre_acts, candidates[chosen], x_centred, weights)
    return TopKStep(SparseActs(values.detach(), indices), x_hat_n + weights.b_dec, error_hat)


def _encode_decode(pre_acts: Tensor, indices: Tensor, x_centred: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    by_latent = sort_by_latent(indices, len(weights.b_enc))
    values = _SelectActs.apply(pre_acts, indices, by_latent, x_centred, weights.W_enc, weights.b_enc, weights.b_dec)
    assert isinstance(values, Tensor)
    decoded = _SumDecoderRows.apply(values, indices, by_latent, weights.W_dec)
    assert isinstance(decoded, Tensor)
    return values, decoded
