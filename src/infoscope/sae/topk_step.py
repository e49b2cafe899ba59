"""The training step without dense codes: one dense product (the encoder's forward), everything else on the entries.

Autograd's own backward of topk would fill a [tokens, d_sae] matrix with zeros and multiply it twice. Here the weight
gradients are the transposed code matrix, sorted by latent, times a dense matrix: each latent sums the few tokens on
which it is active. A kind says which entries it selects and to which level of a nested reconstruction each belongs;
the functions know nothing of loss or AuxK, so AuxK's entries get their gradients the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infoscope.runtime import collective, processes
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk import find_largest

_SAMPLE_TOKENS = 256
"""Tokens on which the bound of `_find_largest` is guessed."""


class Selected(NamedTuple):
    """The places of a code matrix [n, d_sae] that a training step selects, all different; z is 0 elsewhere.

    tokens, latents: of each place. rows: token * n_levels + level, ascending. Level l of a nested reconstruction adds
    the entries of level l to those of the levels before.
    """

    tokens: Int64[Tensor, " n_entries"]
    latents: Int64[Tensor, " n_entries"]
    rows: Int64[Tensor, " n_entries"]


Select = Callable[[Float[Tensor, "n d_sae"]], Selected]


class SparseStep(NamedTuple):
    """What one step computes; all in normalised units.

    latents, acts: the selected entries (without gradient; acts are 0 or more). x_hats_n: z W_dec + b_dec per level, the
    last with all entries. error_hat: AuxK's z_aux W_dec, None without dead latents.
    """

    latents: Int64[Tensor, " n_entries"]
    acts: Float[Tensor, " n_entries"]
    x_hats_n: list[Float[Tensor, "n d_in"]]
    error_hat: Float[Tensor, "n d_in"] | None


def select_topk(pre_acts: Float[Tensor, "n d_sae"], k: int) -> Selected:
    """Return the k largest places of each token."""
    return make_selected(find_largest(pre_acts, k).indices)


def select_nested_topk(pre_acts: Float[Tensor, "n d_sae"], k_levels: Sequence[int]) -> Selected:
    """Return the k_levels[-1] largest places of each token; up to level l, they are its k_levels[l] largest."""
    indices = find_largest(pre_acts, k_levels[-1], is_sorted=True).indices
    entries = make_selected(indices)
    bounds = torch.tensor(k_levels, device=indices.device)
    level_of_rank = torch.bucketize(torch.arange(k_levels[-1], device=indices.device), bounds, right=True)
    return entries._replace(rows=entries.tokens * len(k_levels) + level_of_rank.repeat(len(indices)))


def select_batch_topk(pre_acts: Float[Tensor, "n d_sae"], k: int, prefix_sizes: Sequence[int] = ()) -> Selected:
    """Return the k * n largest places of the batch (Bussmann et al., 2024): k per token on average.

    Where several processes have a part of the batch each, those of the whole batch that lie in this part.

    Args:
        prefix_sizes: numbers of latents; level l holds what the first prefix_sizes[l] latents add. Empty: one level.
    """
    d_sae = pre_acts.shape[1]
    # Sorted by token, then latent: the levels of a token ascend too.
    places = _find_largest_of_all(pre_acts, k * len(pre_acts)).sort().values
    tokens, latents = places // d_sae, places % d_sae
    if not prefix_sizes:
        return Selected(tokens, latents, tokens)
    levels = torch.bucketize(latents, torch.tensor(prefix_sizes, device=latents.device), right=True)
    return Selected(tokens, latents, tokens * len(prefix_sizes) + levels)


def make_selected(indices: Int64[Tensor, "n k"]) -> Selected:
    """Return the entries of n tokens that have k each, in one level."""
    n, k = indices.shape
    tokens = torch.arange(n, device=indices.device).repeat_interleave(k)
    return Selected(tokens, indices.flatten(), tokens)


def _find_largest_of_all(part: Float[Tensor, "n d"], n_per_part: int) -> Int64[Tensor, " n_mine"]:
    """Return which places of this process's part are among the n_per_part * n_processes largest of all parts.

    Each process proposes its own largest, as many as all together may have: so none is missed, however they lie.
    """
    here = processes.current()
    if here.size == 1:
        return _find_largest(part, n_per_part)
    places = _find_largest(part, min(n_per_part * here.size, part.numel()))
    proposed = collective.gather_tensor(part.flatten()[places]).flatten()
    chosen = proposed.topk(n_per_part * here.size, sorted=False).indices - here.rank * len(places)
    return places[chosen[(chosen >= 0) & (chosen < len(places))]]


def _find_largest(matrix: Float[Tensor, "n d"], n_largest: int) -> Int64[Tensor, " n_largest"]:
    """Return the places of the largest values of the whole matrix, in the flattened one.

    A topk over everything costs as much as the encoder. A lower bound, guessed from some tokens, leaves few candidates;
    where the guess was too high, everything is a candidate.
    """
    flat = matrix.flatten()
    if len(matrix) > 2 * _SAMPLE_TOKENS:
        sample = matrix[:: len(matrix) // _SAMPLE_TOKENS].flatten()
        n_above = min(len(sample), math.ceil(1.2 * n_largest / flat.numel() * len(sample)))
        bound = sample.topk(n_above, sorted=False).values.amin()
        # Most groups of neighbours have none; and CUDA's nonzero takes no more than 2^31 values.
        groups = flat.view(-1, math.gcd(len(flat), 64))
        some = (groups.amax(1) > bound).nonzero().squeeze(1)
        group, place = (groups[some] > bound).nonzero().unbind(1)
        candidates = some[group] * groups.shape[1] + place
        if len(candidates) >= n_largest:
            return candidates[flat[candidates].topk(n_largest, sorted=False).indices]
    return flat.topk(n_largest, sorted=False).indices


class ByLatent(NamedTuple):
    """Entries of a code matrix sorted by latent: the CSR form of its transpose.

    order: positions in the entries; latent j has order[offsets[j]:offsets[j+1]].
    """

    order: Int64[Tensor, " n_entries"]
    offsets: Int64[Tensor, " d_sae+1"]


def sort_by_latent(latents: Int64[Tensor, " n_entries"], d_sae: int) -> ByLatent:
    """Return the entries in the order of their latents; a stable sort, so that sums are added in a fixed order."""
    return ByLatent(latents.argsort(stable=True), _count_offsets(latents, d_sae))


def transposed_product(
    values: Float[Tensor, " n_entries"],
    rows: Int64[Tensor, " n_entries"],
    by_latent: ByLatent,
    dense: Float[Tensor, "n d"],
) -> Float[Tensor, "d_sae d"]:
    """Return Z^T dense, where Z [n, d_sae] has these values in these rows."""
    return F.embedding_bag(
        rows[by_latent.order],
        dense,
        by_latent.offsets,
        mode="sum",
        per_sample_weights=values[by_latent.order],
        include_last_offset=True,
    )


def _count_offsets(sorted_or_not: Int64[Tensor, " n_entries"], n: int) -> Int64[Tensor, " n+1"]:
    """Return where each of the values 0..n-1 begins, once the entries are sorted, and their number."""
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=sorted_or_not.device)
    torch.cumsum(torch.bincount(sorted_or_not, minlength=n), 0, out=offsets[1:])
    return offsets


class _SelectActs(torch.autograd.Function):
    """relu(pre_acts) at the entries; the backward goes to W_enc, b_enc, b_dec as if through the encoder's product."""

    @staticmethod
    def forward(
        ctx: Any,
        pre_acts: Tensor,
        entries: Selected,
        by_latent: ByLatent,
        x_centred: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
    ) -> Tensor:
        values = pre_acts[entries.tokens, entries.latents].to(x_centred.dtype).relu_()
        ctx.save_for_backward(values, entries.tokens, x_centred, W_enc, *by_latent)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, tokens, x_centred, W_enc, *rest = ctx.saved_tensors
        by_latent = ByLatent(*rest)
        values_grad = grads[0] * (values > 0)
        W_enc_grad = transposed_product(values_grad, tokens, by_latent, x_centred).T
        ones = x_centred.new_ones(len(x_centred), 1)
        b_enc_grad = transposed_product(values_grad, tokens, by_latent, ones).squeeze(1)
        # b_dec is subtracted from every token: summing over tokens first leaves one matrix-vector product.
        return None, None, None, None, W_enc_grad, b_enc_grad, -(W_enc @ b_enc_grad)


class _SumDecoderRows(torch.autograd.Function):
    """Decoder rows summed into the entries' rows, weighted by z; the backward goes to the values and to W_dec."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, entries: Selected, by_latent: ByLatent, W_dec: Tensor, n_rows: int) -> Tensor:
        offsets = _count_offsets(entries.rows, n_rows)
        ctx.save_for_backward(values, entries.latents, entries.rows, offsets, W_dec, *by_latent)
        return F.embedding_bag(
            entries.latents, W_dec, offsets, per_sample_weights=values, mode="sum", include_last_offset=True
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, latents, rows, offsets, W_dec, *rest = ctx.saved_tensors
        grad = grads[0].contiguous()
        # The kernel behind embedding_bag's own backward: one dot product of a row's gradient and a latent's per entry.
        values_grad = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad, W_dec, latents, offsets[:-1], rows, 0
        )
        return values_grad, None, None, transposed_product(values, rows, ByLatent(*rest), grad), None


def compute_sparse_step(
    x_n: Float[Tensor, "n d_in"],
    sae: SparseAutoencoder,
    select: Select,
    n_levels: int = 1,
    dead: Bool[Tensor, " d_sae"] | None = None,
    aux_k: int = 0,
) -> SparseStep:
    """Encode and decode normalised tokens; gradients reach all four weights (not x_n).

    Under autocast the encoder's product is of low precision, and its result too; all else is as precise as the weights.

    Args:
        select: the kind's choice of entries by their pre-activations; negative ones count as 0.
        n_levels: how many levels its entries have. All together cost one decoding.
        dead: latents counted as dead. Where there are any, AuxK's part of Gao et al. (2024) is computed: the aux_k
            largest pre-activations among them (ReLU), decoded without b_dec.
    """
    with torch.no_grad():
        x_centred = x_n - sae.b_dec
        # Under autocast they are bfloat16, and stay so: a float32 copy would cost half as much as the product.
        pre_acts = x_centred @ sae.W_enc
        pre_acts.add_(sae.b_enc.to(pre_acts.dtype))
        entries = select(pre_acts)
    values, increments = _encode_decode(pre_acts, entries, x_centred, sae, n_levels)
    x_hats_n = [level + sae.b_dec for level in accumulate(increments.unflatten(0, (-1, n_levels)).unbind(1))]

    error_hat = None
    candidates = None if dead is None or aux_k == 0 else dead.nonzero().squeeze(1)
    if candidates is not None and len(candidates) > 0:
        with torch.no_grad():
            chosen = pre_acts[:, candidates].topk(min(aux_k, len(candidates)), dim=-1, sorted=False).indices
        _, error_hat = _encode_decode(pre_acts, make_selected(candidates[chosen]), x_centred, sae, 1)
    return SparseStep(entries.latents, values.detach(), x_hats_n, error_hat)


def _encode_decode(
    pre_acts: Tensor, entries: Selected, x_centred: Tensor, sae: SparseAutoencoder, n_levels: int
) -> tuple[Tensor, Tensor]:
    by_latent = sort_by_latent(entries.latents, len(sae.b_enc))
    values = _SelectActs.apply(pre_acts, entries, by_latent, x_centred, sae.W_enc, sae.b_enc, sae.b_dec)
    assert isinstance(values, Tensor)
    decoded = _SumDecoderRows.apply(values, entries, by_latent, sae.W_dec, len(pre_acts) * n_levels)
    assert isinstance(decoded, Tensor)
    return values, decoded
