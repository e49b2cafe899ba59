"""The training step of TopK kinds on a GPU: one product, then kernels on the entries (in kernels/), which add
up the gradients of each latent's weights and apply Adam to them at once.

What it computes is defined by the plain step (losses.py, topk_step.py), which CPUs run: the same loss, gradients and
Adam, whose state is that of torch's, so that either goes on from a checkpoint of the other.

Dense objectives (ReLU, JumpReLU) stay plain. An entry costs some 2 ns here (an H200, width 768: it reads a row of three
matrices), and the three products of a dense backward with 49,152 latents some 320 ns a token: below 160 active latents
entries win. But half of all are active when a ReLU's training begins, and a sixth with JumpReLU.

  1 pre_acts = (x_n - b_dec) W_enc + b_enc, in bfloat16 or float32
  2 the largest (topk.py), or the objective's own choice
  3 decoding: error, loss, and the gradients of the reconstruction and of the entries' values
  4 a stable sort of the entries by latent
  5 per latent: both weight gradients, projection, Adam, unit norm, and the weights in bfloat16 for the next step
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from infoscope.runtime import collective, processes
from infoscope.sae.losses import LossOutput, TopKObjective
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk import LAUNCH, find_largest, next_power
from infoscope.sae.topk_step import Selected

CHUNK = 256
"""Entries of a latent that are summed one after the other; those of a latent with more are summed in chunks."""
SHORT = 2**16
"""Dictionaries up to this size number their latents by integers of 16 bits, which sort twice as fast."""
MAX_K = 64
"""Most entries of a token that are decoded in registers."""


class FusedStep:
    """Loss, gradients and Adam of one batch after the other, for one SAE on one device.

    Args:
        sae: float32; its weights are updated in place, by nobody else meanwhile. W_enc is laid out by latents.
        objective: its loss.
        dtype: of the products and of what is read for each entry, bfloat16 or float32.
        is_shared: whether gradients are made for Adam to apply when those of other processes are there, instead of
            being applied at once; None: where there are other processes.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        objective: TopKObjective,
        dtype: torch.dtype,
        is_shared: bool | None = None,
    ) -> None:
        self.sae, self.objective, self.dtype = sae, objective, dtype
        self.is_shared = processes.current().size > 1 if is_shared is None else is_shared
        self.n_levels = len(objective.level_weights)
        if not sae.W_enc.T.is_contiguous():
            sae.W_enc.data = sae.W_enc.detach().T.contiguous().T
        device = sae.W_enc.device
        self.level_weights = torch.tensor(objective.level_weights, device=device)
        self.key_dtype, self.first_key = (torch.int16, -(2**15)) if sae.d_sae <= SHORT else (torch.int32, 0)
        self.keys = (torch.arange(sae.d_sae, device=device) + self.first_key).to(self.key_dtype)
        self.extra_of_latent = torch.full((sae.d_sae,), -1, device=device)
        self.n_updates: int | None = None
        self.state: _State | None = None
        self.W_dec, self.W_enc = self._copy_weights()

    def _copy_weights(self) -> tuple[Tensor, Tensor]:
        """Return W_dec and W_enc^T [d_sae, d_in] as the products read them."""
        return self.sae.W_dec.detach().to(self.dtype), self.sae.W_enc.detach().T.to(self.dtype)

    @torch.no_grad()
    def compute(self, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"] | None) -> LossOutput:
        """Return the loss of normalised tokens, and hold what `update` needs; x_hat_n is left to `reconstruct`.

        Args:
            dead: latents counted as dead; None: none is.
        """
        with torch.autocast(x_n.device.type, enabled=False):
            return self._compute(x_n.contiguous(), dead)

    def _compute(self, x_n: Tensor, dead: Tensor | None) -> LossOutput:
        sae, objective = self.sae, self.objective
        energy = collective.mean(x_n.square().sum())
        x_centred = (x_n - sae.b_dec).to(self.dtype)
        pre_acts = torch.addmm(sae.b_enc.to(self.dtype), x_centred, self.W_enc.T)
        decoded = self._decode(x_n, pre_acts, energy)
        fvus = decoded.squares.view(len(x_n), self.n_levels, -1).sum((0, 2)) / energy
        loss = (self.level_weights * fvus).sum()
        by_latent = self._sort(decoded)
        extra = None
        candidates = None if dead is None or objective.used_aux_k == 0 else dead.nonzero().squeeze(1)
        if candidates is not None and len(candidates) > 0:
            aux_loss, extra = self._compute_aux(x_centred, pre_acts, self._error(decoded, energy), candidates)
            loss = loss + aux_loss
            by_latent.b_enc_gradient[candidates] += extra.b_enc_gradient
        self.state = _State(x_n, x_centred, energy, decoded, by_latent, extra)
        smallest = None
        if objective.entries_per_token is None:
            values = decoded.entries.values
            smallest = F.pad(values.where(values > 0, torch.inf), (0, 1), value=torch.inf).amin()
        return LossOutput(loss, fvus[-1], None, by_latent.n_fired, smallest)

    def reconstruct(self) -> Float[Tensor, "n d_in"]:
        """Return x_hat_n of the last batch, as precise as the gradients are."""
        assert self.state is not None
        return self.state.x_n + self._error(self.state.decoded, self.state.energy)

    def _error(self, decoded: _Decoded, energy: Tensor) -> Tensor:
        """Return x_hat_n - x_n of the full reconstruction, from its gradient."""
        last = decoded.gradients.view(-1, self.n_levels, self.sae.d_in)[:, -1]
        return last.float() * (energy / (2 * self.level_weights[-1]))

    def _decode(self, x_n: Tensor, pre_acts: Tensor, energy: Tensor) -> _Decoded:
        from infoscope.sae.kernels.decoding import decode_levels, decode_topk, multiply_rows

        sae, n, d_in = self.sae, len(x_n), self.sae.d_in
        k = self.objective.entries_per_token
        if k is not None and k <= MAX_K and self.n_levels == 1:
            values, latents = find_largest(pre_acts, k)
            entries = _Values(latents, values.float().relu_())
            gradients, value_gradients = x_n.new_empty(n, d_in, dtype=self.dtype), torch.empty_like(entries.values)
            squares = x_n.new_empty(n)
            width = max(2, next_power(k))
            most = 4096 if self.dtype == torch.bfloat16 and width <= 32 else 2048  # of more, registers spill
            block = min(128, most // width, next_power(d_in))
            decode_topk[n,](
                *(x_n, latents, entries.values, self.W_dec, sae.b_dec.detach(), energy),
                *(gradients, value_gradients, squares, k),
                D=d_in,
                K=width,
                BLOCK=block,
                N_BLOCKS=-(-d_in // block),
                num_warps=1,  # which is 3 times as fast as 4
                **LAUNCH,
            )
            return _Decoded(entries, None, gradients, value_gradients, squares)
        chosen = self.objective.select(pre_acts)
        n_entries, n_rows = len(chosen.rows), n * self.n_levels
        entries = _Values(chosen.latents, pre_acts[chosen.tokens, chosen.latents].float().relu_())
        offsets = torch.searchsorted(chosen.rows, torch.arange(n_rows + 1, device=x_n.device))
        block = min(128, next_power(d_in))
        n_blocks = -(-d_in // block)
        gradients, value_gradients = x_n.new_empty(n_rows, d_in, dtype=self.dtype), torch.empty_like(entries.values)
        squares = x_n.new_empty(n_rows, n_blocks)
        decode_levels[n, n_blocks](
            *(x_n, *entries, offsets, self.level_weights, self.W_dec, sae.b_dec.detach(), energy),
            *(gradients, squares, self.n_levels, n_blocks),
            D=d_in,
            BLOCK=block,
            UNROLL=8,
            num_warps=1,
            **LAUNCH,
        )
        if n_entries:
            multiply_rows[-(-n_entries // 8),](
                *(chosen.rows, *entries, gradients, self.W_dec, value_gradients, n_entries),
                D=d_in,
                BLOCK=block,
                N_BLOCKS=n_blocks,
                N=8,
                num_warps=1,
                **LAUNCH,
            )
        return _Decoded(entries, chosen, gradients, value_gradients, squares)

    def _sort(self, decoded: _Decoded) -> _ByLatent:
        """Return what the sums over each latent's entries read, in their order; a stable sort, so that it is fixed."""
        from infoscope.sae.kernels.updating import sum_values

        latents, device, d_sae = decoded.entries.latents.flatten(), decoded.entries.latents.device, self.sae.d_sae
        keys, order = (latents + self.first_key).to(self.key_dtype).sort(stable=True)
        offsets = torch.full((d_sae + 1,), len(latents), device=device)
        offsets[:-1] = torch.searchsorted(keys, self.keys)
        if decoded.chosen is None:
            tokens = (order // decoded.entries.latents.shape[1]).to(torch.int32)
            rows = tokens
        else:
            tokens, rows = (decoded.chosen.tokens[order].int(), decoded.chosen.rows[order].int())
        values, value_gradients = decoded.entries.values.flatten()[order], decoded.value_gradients.flatten()[order]
        counts = offsets.diff()
        n_chunks = torch.where(counts > CHUNK, (counts + CHUNK - 1) // CHUNK, 0)
        first_chunks = torch.zeros_like(offsets)
        torch.cumsum(n_chunks, 0, out=first_chunks[1:])
        most_chunks = 2 * (len(latents) // CHUNK) + 1  # as a latent with chunks fills all but one of them
        chunks = torch.arange(most_chunks, device=device)
        latent_of_chunk = torch.searchsorted(first_chunks, chunks, right=True) - 1
        b_enc_gradient, n_fired = values.new_empty(d_sae), values.new_empty(d_sae)
        sum_values[d_sae,](offsets, values, value_gradients, b_enc_gradient, n_fired, N=256, num_warps=1, **LAUNCH)
        return _ByLatent(
            *(offsets, first_chunks, latent_of_chunk, tokens, rows, values, value_gradients),
            *(b_enc_gradient, n_fired),
        )

    def _compute_aux(
        self, x_centred: Tensor, pre_acts: Tensor, error: Tensor, candidates: Tensor
    ) -> tuple[Tensor, _Extra]:
        """Return AuxK's loss and gradients, by dense products over the dead latents: far fewer than all.

        Each token has hundreds of these entries: products of so many cost less than reading their rows.

        Args:
            error: x_hat_n - x_n.
        """
        objective, residual = self.objective, -error
        of_dead = pre_acts[:, candidates]
        if len(candidates) > objective.aux_k:
            values, places = find_largest(of_dead, objective.aux_k)
            acts = torch.zeros_like(of_dead).scatter_(1, places, values.relu())
        else:
            acts = of_dead.relu()
        W_dec = self.W_dec[candidates]
        difference = (acts @ W_dec).float() - residual
        deviation = collective.mean((residual - collective.mean(residual.mean(0))).square().sum())
        deviation = deviation.clamp_min(torch.finfo(residual.dtype).tiny)
        gradient = (difference * (2 * objective.aux_coef / deviation)).to(self.dtype)
        act_gradients = (gradient @ W_dec.T).masked_fill_(acts <= 0, 0)
        extra = _Extra(
            candidates, acts.T @ gradient, act_gradients.T @ x_centred, act_gradients.sum(0, dtype=torch.float32)
        )
        return objective.aux_coef * (difference.square().sum() / deviation), extra

    @torch.no_grad()
    def update(self, optimizer: Any) -> None:
        """Take Adam's step by the gradients of the last batch (of all processes), and set the decoder's rows to norm 1.

        Args:
            optimizer: torch's Adam of the SAE's parameters (or Lightning's wrapper), with one group.
        """
        assert self.state is not None
        with torch.autocast(self.sae.W_dec.device.type, enabled=False):
            sae, state = self.sae, self.state
            b_enc_gradient = state.by_latent.b_enc_gradient
            gradients = state.decoded.gradients.view(-1, self.n_levels, sae.d_in)[:, 0]
            b_dec_gradient = gradients.sum(0, dtype=torch.float32) - sae.W_enc.detach() @ b_enc_gradient
            sae.b_enc.grad, sae.b_dec.grad = collective.mean(b_enc_gradient), collective.mean(b_dec_gradient)
            if not self.is_shared:
                # The biases are left to Adam, which finds no gradient of the others.
                optimizer.step(lambda: self._apply(optimizer))
            else:
                W_dec_gradient, W_enc_gradient = torch.empty_like(sae.W_dec), torch.empty_like(sae.W_enc)
                self._run_update(state, W_dec_gradient, None, W_enc_gradient.T, None, (0.0,) * 7)
                # NCCL wants rows that lie one after the other, as W_enc's are only when it is turned round.
                sae.W_dec.grad, sae.W_enc.grad = collective.mean(W_dec_gradient), collective.mean(W_enc_gradient.T).T
                sae.project_decoder_grad()
                optimizer.step()
                sae.normalise_decoder()
                self.W_dec, self.W_enc = self._copy_weights()
            optimizer.zero_grad()
        self.state = None

    def _apply(self, optimizer: Any) -> None:
        assert self.state is not None
        group = optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        of_W_dec, of_W_enc = (_adam_state(optimizer, weight) for weight in (self.sae.W_dec, self.sae.W_enc))
        if self.n_updates is None:
            self.n_updates = int(of_W_dec["step"])
        self.n_updates += 1
        of_W_dec["step"] += 1
        of_W_enc["step"] += 1
        numbers = (
            *(group["lr"] / (1 - beta1**self.n_updates), group["eps"]),
            *(beta1, 1 - beta1, beta2, 1 - beta2, (1 - beta2**self.n_updates) ** 0.5),
        )
        moments = of_W_dec["exp_avg"], of_W_dec["exp_avg_sq"], of_W_enc["exp_avg"].T, of_W_enc["exp_avg_sq"].T
        self._run_update(self.state, *moments, numbers)

    def _run_update(
        self,
        state: _State,
        W_dec_m: Tensor,
        W_dec_v: Tensor | None,
        W_enc_m: Tensor,
        W_enc_v: Tensor | None,
        numbers: tuple[float, ...],
    ) -> None:
        """Run the kernels with rows per latent of both moments; without second ones, the first become the gradients."""
        from infoscope.sae.kernels.updating import sum_chunks, update_latents

        sae, sums, gradients = self.sae, state.by_latent, state.decoded.gradients
        d_in, width = sae.d_in, next_power(sae.d_in)
        sizes: dict[str, Any] = {"D": d_in, "WIDTH": width, "CHUNK": CHUNK, **LAUNCH}
        sizes["num_warps"] = 4 if width <= 2048 else 8
        chunks = sae.b_dec.new_empty(len(sums.latent_of_chunk), 2, d_in)
        read = *sums[3:7], gradients, state.x_centred, chunks
        sum_chunks[len(sums.latent_of_chunk),](*sums[:3], *read, sae.d_sae, UNROLL=4, **sizes)
        W_dec, W_enc = sae.W_dec.detach(), sae.W_enc.detach().T
        assert all(rows.is_contiguous() for rows in (W_dec, W_enc, W_dec_m, W_enc_m))
        extra_of_latent, extra_W_dec, extra_W_enc = self.extra_of_latent, gradients, gradients
        if state.extra is not None:
            candidates, extra_W_dec, extra_W_enc, _ = state.extra
            extra_of_latent = extra_of_latent.clone()
            extra_of_latent[candidates] = torch.arange(len(candidates), device=candidates.device)
        update_latents[sae.d_sae,](
            *(*sums[:2], *read, extra_of_latent, extra_W_dec, extra_W_enc),
            *(W_dec, W_dec_m, W_dec if W_dec_v is None else W_dec_v, self.W_dec),
            *(W_enc, W_enc_m, W_enc if W_enc_v is None else W_enc_v, self.W_enc),
            *numbers,
            UNROLL=2,
            IS_APPLIED=W_dec_v is not None,
            HAS_COPIES=self.dtype != torch.float32,
            **sizes,
        )


class _Values(NamedTuple):
    """The latents of entries and their values, 0 or more: both [n, k], or of any number of entries."""

    latents: Int64[Tensor, "..."]
    values: Float[Tensor, "..."]


class _Decoded(NamedTuple):
    """chosen: which entries they are; None: k of each token. gradients: of the reconstructions, a row for each level of
    each token. squares: of the errors, in the same order."""

    entries: _Values
    chosen: Selected | None
    gradients: Float[Tensor, "n_rows d_in"]
    value_gradients: Float[Tensor, "..."]
    squares: Float[Tensor, "..."]


class _ByLatent(NamedTuple):
    """Entries in the order of their latents, as kernels/updating.py reads them."""

    offsets: Int64[Tensor, " d_sae+1"]
    first_chunks: Int64[Tensor, " d_sae+1"]
    latent_of_chunk: Int64[Tensor, " most_chunks"]
    tokens: Int32[Tensor, " n_entries"]
    rows: Int32[Tensor, " n_entries"]
    values: Float[Tensor, " n_entries"]
    value_gradients: Float[Tensor, " n_entries"]
    b_enc_gradient: Float[Tensor, " d_sae"]
    n_fired: Float[Tensor, " d_sae"]


class _Extra(NamedTuple):
    """AuxK's gradients, which come on top for these latents."""

    latents: Int64[Tensor, " n_dead"]
    W_dec_gradient: Float[Tensor, "n_dead d_in"]
    W_enc_gradient: Float[Tensor, "n_dead d_in"]
    b_enc_gradient: Float[Tensor, " n_dead"]


class _State(NamedTuple):
    """What a batch leaves for the update."""

    x_n: Tensor
    x_centred: Tensor
    energy: Tensor
    decoded: _Decoded
    by_latent: _ByLatent
    extra: _Extra | None


def _adam_state(optimizer: Any, weight: torch.nn.Parameter) -> dict[str, Any]:
    """Return Adam's state of a weight, made as Adam makes it at its first step, its moments laid out as the weight."""
    state = optimizer.state[weight]
    if not state:
        state["step"] = torch.zeros((), device=weight.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    for name in ("exp_avg", "exp_avg_sq"):
        if state[name].stride() != weight.stride():
            state[name] = torch.empty_like(weight, memory_format=torch.preserve_format).copy_(state[name])
    return state
