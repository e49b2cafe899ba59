"""What training minimises, one class per kind of SAE. All in normalised units, all relative to the tokens' energy.

Where several processes have a part of a batch each, all of one size, everything that a part is related to (energy, the
choice of BatchTopK) is that of the whole batch. Then the mean of the parts' losses, and of their gradients, is the loss
of the batch, and its gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from infoscope.runtime import collective
from infoscope.runtime.precision import tf32_products
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk_step import (
    Selected,
    SparseStep,
    compute_sparse_step,
    select_batch_topk,
    select_nested_topk,
    select_topk,
)


class LossOutput(NamedTuple):
    """loss: what is minimised; fvu: of this batch; x_hat_n: reconstruction, None of the step in kernels (see
    `FusedStep.reconstruct`); n_fired: tokens each latent fired on.

    smallest_act: the smallest positive latent activation, inf if there is none (BatchTopK's threshold follows it). All
    are of this process's part of the batch: the batch's are their means (the smallest one: the least) over processes.
    """

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    x_hat_n: Float[Tensor, "n d_in"] | None
    n_fired: Float[Tensor, " d_sae"]
    smallest_act: Float[Tensor, ""] | None = None


class Objective(ABC):
    """The loss of one kind; called with normalised tokens and the latents that count as dead (None: none does)."""

    @abstractmethod
    def __call__(
        self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"] | None
    ) -> LossOutput: ...


class TopKObjective(Objective):
    """FVU + aux_coef * AuxK (Gao et al., 2024), by the sparse step.

    AuxK: the aux_k strongest dead latents of each token reconstruct what the living ones leave, x_n - x_hat_n (held
    fixed); squared error over the squared deviation of that residual from its mean.
    """

    level_weights: tuple[float, ...] = (1.0,)
    """Of the FVUs of the nested reconstructions, the full one last; sum 1."""

    def __init__(self, k: int, aux_k: int, aux_coef: float) -> None:
        self.k, self.aux_k, self.aux_coef = k, aux_k, aux_coef

    @property
    def entries_per_token(self) -> int | None:
        """How many entries each token has; None if that depends on the batch."""
        return self.k

    @property
    def used_aux_k(self) -> int:
        """aux_k; 0 where AuxK does not count."""
        return self.aux_k if self.aux_coef > 0 else 0

    def select(self, pre_acts: Float[Tensor, "n d_sae"]) -> Selected:
        """Return the active entries of a training batch."""
        return select_topk(pre_acts, self.k)

    def __call__(
        self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"] | None
    ) -> LossOutput:
        return self.of_step(
            sae, x_n, compute_sparse_step(x_n, sae, self.select, len(self.level_weights), dead, self.used_aux_k)
        )

    def of_step(self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], step: SparseStep) -> LossOutput:
        """Return the loss of what a step computed."""
        x_hat_n = step.x_hats_n[-1]
        energy = compute_energy(x_n)
        fvus = [compute_fvu(x_n - level, energy) for level in step.x_hats_n]
        loss = torch.stack([weight * fvu for weight, fvu in zip(self.level_weights, fvus, strict=True)]).sum()
        if step.error_hat is not None:
            loss = loss + self.aux_coef * compute_aux_loss((x_n - x_hat_n).detach(), step.error_hat)
        fired = (step.acts > 0).to(x_n.dtype)
        n_fired = torch.zeros_like(sae.b_enc).index_add_(0, step.latents, fired)
        # A part of a batch may hold none of BatchTopK's entries.
        smallest = F.pad(step.acts.where(step.acts > 0, torch.inf), (0, 1), value=torch.inf).amin()
        return LossOutput(loss, fvus[-1].detach(), x_hat_n.detach(), n_fired, smallest)


class MatryoshkaKObjective(TopKObjective):
    """The mean FVU of nested TopK codes over one dictionary (Zaigrajew et al., 2025) + aux_coef * AuxK of the full one.

    FVU is that of the batch, as elsewhere here; MSAE's code divides token by token, then takes the mean.

    Args:
        k_levels: active latents of each code, ascending.
        level_weights: of the codes' FVUs; their scale does not matter.
    """

    def __init__(self, k_levels: Sequence[int], level_weights: Sequence[float], aux_k: int, aux_coef: float) -> None:
        super().__init__(k_levels[-1], aux_k, aux_coef)
        self.k_levels = k_levels
        self.level_weights = tuple(weight / sum(level_weights) for weight in level_weights)

    def select(self, pre_acts: Float[Tensor, "n d_sae"]) -> Selected:
        return select_nested_topk(pre_acts, self.k_levels)


class BatchTopKObjective(TopKObjective):
    """As TopK's, with the k * n largest activations of a batch of n tokens (Bussmann et al., 2024).

    Args:
        prefix_sizes: the loss is the mean FVU of the reconstructions from the first so many latents (Bussmann et al.,
            2025), ascending up to d_sae; empty: of the full one alone.
    """

    def __init__(self, k: int, aux_k: int, aux_coef: float, prefix_sizes: Sequence[int] = ()) -> None:
        super().__init__(k, aux_k, aux_coef)
        self.prefix_sizes = prefix_sizes
        n_levels = max(1, len(prefix_sizes))
        self.level_weights = (1 / n_levels,) * n_levels

    @property
    def entries_per_token(self) -> int | None:
        return None

    def select(self, pre_acts: Float[Tensor, "n d_sae"]) -> Selected:
        return select_batch_topk(pre_acts, self.k, self.prefix_sizes)


class _Encode(torch.autograd.Function):
    """(x_n - b_dec) W_enc + b_enc; tokens are summed before the backward to b_dec, which spares it a product.

    Under autocast all products are of low precision, but the forward's where it is to be exact: that is TF32 on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, x_n: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, is_exact: bool) -> Tensor:
        device = x_n.device.type
        is_low = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if is_low else x_n.dtype
        x_centred = x_n - b_dec
        ctx.save_for_backward(x_centred, W_enc)
        with torch.autocast(device, enabled=is_low and not is_exact), tf32_products(is_low and is_exact):
            return torch.addmm(b_enc, x_centred, W_enc)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_centred, W_enc = ctx.saved_tensors
        W_enc_grad = (grads[0].to(ctx.dtype).T @ x_centred.to(ctx.dtype)).to(W_enc.dtype).T
        b_enc_grad = grads[0].sum(0, dtype=W_enc.dtype)
        return None, W_enc_grad, b_enc_grad, -(W_enc @ b_enc_grad), None


class _DenseObjective(Objective):
    """FVU + a penalty of the latent activations, by autograd."""

    needs_exact_pre_acts = False
    """Whether bfloat16 is too coarse for the pre-activations."""

    @abstractmethod
    def activate(self, sae: SparseAutoencoder, pre_acts: Float[Tensor, "n d_sae"]) -> tuple[Tensor, Tensor]:
        """Return the latent activations [n, d_sae] and the penalty."""

    def __call__(
        self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"] | None
    ) -> LossOutput:
        pre_acts = _Encode.apply(x_n, sae.W_enc, sae.b_enc, sae.b_dec, self.needs_exact_pre_acts)
        assert isinstance(pre_acts, Tensor)
        latent_acts, penalty = self.activate(sae, pre_acts)
        x_hat_n = (latent_acts @ sae.W_dec + sae.b_dec).to(x_n.dtype)
        fvu = compute_fvu(x_n - x_hat_n, compute_energy(x_n))
        n_fired = (latent_acts.detach() > 0).sum(0).to(x_n.dtype)
        return LossOutput(fvu + penalty, fvu.detach(), x_hat_n.detach(), n_fired)


class ReLUObjective(_DenseObjective):
    """FVU + l1 * mean over tokens of sum_j z_j / sqrt(d_in).

    sqrt(d_in) is the mean norm of a normalised token, so one l1 means about the same at every width. Rows of W_dec
    have unit norm: the sum cannot be lowered by scaling.
    """

    def __init__(self, l1: float) -> None:
        self.l1 = l1

    def activate(self, sae: SparseAutoencoder, pre_acts: Float[Tensor, "n d_sae"]) -> tuple[Tensor, Tensor]:
        latent_acts = pre_acts.relu()
        return latent_acts, self.l1 * latent_acts.to(sae.W_enc.dtype).sum(-1).mean() / sae.d_in**0.5


class JumpReLUObjective(_DenseObjective):
    """FVU + l0_coef * mean number of active latents per token (Rajamanoharan et al., 2024).

    Neither a latent's jump nor its count has a gradient with respect to the threshold: both get the straight-through
    one, by a rectangle of this bandwidth around the threshold.
    """

    needs_exact_pre_acts = True
    """Near 1 the numbers of bfloat16 lie 0.008 apart: few of them are within the bandwidth."""

    def __init__(self, l0_coef: float, bandwidth: float) -> None:
        self.l0_coef, self.bandwidth = l0_coef, bandwidth

    def activate(self, sae: SparseAutoencoder, pre_acts: Float[Tensor, "n d_sae"]) -> tuple[Tensor, Tensor]:
        threshold = sae.activation.threshold
        assert isinstance(threshold, Tensor)
        latent_acts, n_active = compute_jump(pre_acts, threshold, self.bandwidth)
        return latent_acts, self.l0_coef * n_active / len(pre_acts)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre_acts, threshold)
        ctx.bandwidth = bandwidth
        active = pre_acts > threshold
        return pre_acts.where(active, 0), active.sum().to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre_acts, threshold = ctx.saved_tensors
        acts_grad, n_active_grad = grads
        near = (pre_acts - threshold).abs() < ctx.bandwidth / 2
        of_jump = acts_grad.where(near, 0).sum(0) * threshold
        of_count = near.sum(0) * n_active_grad
        return acts_grad.where(pre_acts > threshold, 0), -(of_jump + of_count) / ctx.bandwidth, None


def compute_jump(
    pre_acts: Float[Tensor, "n d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> tuple[Float[Tensor, "n d_sae"], Float[Tensor, ""]]:
    """Return JumpReLU's latent activations and how many are active in all.

    Gradients: to pre_acts through the active ones; to each threshold, with K = 1 where |pre_act - threshold| <
    bandwidth / 2, -threshold / bandwidth * K times an activation's gradient, -K / bandwidth times the count's.
    """
    jumped = _Jump.apply(pre_acts, threshold, bandwidth)
    assert isinstance(jumped, tuple)
    return jumped


def compute_energy(x_n: Float[Tensor, "n d_in"]) -> Float[Tensor, ""]:
    """Return the squared deviation of tokens from the data-set mean (which normalised tokens have at 0)."""
    return collective.mean(x_n.square().sum())


def compute_fvu(error: Float[Tensor, "n d_in"], energy: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return squared error over squared deviation from the data-set mean, see `compute_energy`."""
    return error.square().sum() / energy


def compute_aux_loss(error: Float[Tensor, "n d_in"], error_hat: Float[Tensor, "n d_in"]) -> Float[Tensor, ""]:
    """Return |error - error_hat|^2 over the residual's squared deviation from its mean; 0 where that is 0."""
    deviation = collective.mean((error - collective.mean(error.mean(0))).square().sum())
    return (error - error_hat).square().sum() / deviation.clamp_min(torch.finfo(error.dtype).tiny)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "topk": TopKObjective,
    "relu": ReLUObjective,
    "batchtopk": BatchTopKObjective,
    "jumprelu": JumpReLUObjective,
    "matryoshka_k": MatryoshkaKObjective,
    "matryoshka_prefix": BatchTopKObjective,
}
"""The loss of each kind, made with its `loss_settings`."""
