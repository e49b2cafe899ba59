"""What training minimises, one class per kind of SAE. All in normalised units, all relative to the tokens' energy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk_step import Weights, compute_topk_step


class LossOutput(NamedTuple):
    """loss: what is minimised; fvu: of this batch; x_hat_n: reconstruction; n_fired: tokens each latent fired on."""

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    x_hat_n: Float[Tensor, "n d_in"]
    n_fired: Float[Tensor, " d_sae"]


class Objective(ABC):
    """The loss of one kind; called with normalised tokens and the latents that count as dead."""

    @abstractmethod
    def __call__(
        self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"]
    ) -> LossOutput: ...


class TopKObjective(Objective):
    """FVU + aux_coef * AuxK (Gao et al., 2024), by the sparse step.

    AuxK: the aux_k strongest dead latents of each token reconstruct what the living ones leave, x_n - x_hat_n (held
    fixed); squared error over the squared deviation of that residual from its mean.
    """

    def __init__(self, k: int, aux_k: int, aux_coef: float) -> None:
        self.k, self.aux_k, self.aux_coef = k, aux_k, aux_coef

    def __call__(
        self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"]
    ) -> LossOutput:
        aux_k = self.aux_k if self.aux_coef > 0 else 0
        step = compute_topk_step(x_n, Weights(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), self.k, dead, aux_k)
        error = x_n - step.x_hat_n
        fvu = compute_fvu(error, x_n)
        loss = fvu
        if step.error_hat is not None:
            loss = fvu + self.aux_coef * compute_aux_loss(error.detach(), step.error_hat)
        fired = (step.acts.values > 0).to(x_n.dtype)
        n_fired = torch.zeros_like(sae.b_enc).index_add_(0, step.acts.indices.flatten(), fired.flatten())
        return LossOutput(loss, fvu.detach(), step.x_hat_n.detach(), n_fired)


class ReLUObjective(Objective):
    """FVU + l1 * mean over tokens of sum_j z_j / sqrt(d_in), by plain autograd.

    sqrt(d_in) is the mean norm of a normalised token, so one l1 means about the same at every width. Rows of W_dec
    have unit norm: the sum cannot be lowered by scaling.
    """

    def __init__(self, l1: float) -> None:
        self.l1 = l1

    def __call__(
        self, sae: SparseAutoencoder, x_n: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"]
    ) -> LossOutput:
        latent_acts = torch.addmm(sae.b_enc, x_n - sae.b_dec, sae.W_enc).relu()
        x_hat_n = (latent_acts @ sae.W_dec + sae.b_dec).to(x_n.dtype)
        fvu = compute_fvu(x_n - x_hat_n, x_n)
        loss = fvu + self.l1 * latent_acts.to(x_n.dtype).sum(-1).mean() / sae.d_in**0.5
        n_fired = (latent_acts.detach() > 0).sum(0).to(x_n.dtype)
        return LossOutput(loss, fvu.detach(), x_hat_n.detach(), n_fired)


def compute_fvu(error: Float[Tensor, "n d_in"], x_n: Float[Tensor, "n d_in"]) -> Float[Tensor, ""]:
    """Return squared error over squared deviation from the data-set mean (which normalised tokens have at 0)."""
    return error.square().sum() / x_n.square().sum()


def compute_aux_loss(error: Float[Tensor, "n d_in"], error_hat: Float[Tensor, "n d_in"]) -> Float[Tensor, ""]:
    """Return |error - error_hat|^2 over the residual's squared deviation from its mean; 0 where that is 0."""
    deviation = (error - error.mean(0)).square().sum()
    return (error - error_hat).square().sum() / deviation.clamp_min(torch.finfo(error.dtype).tiny)
