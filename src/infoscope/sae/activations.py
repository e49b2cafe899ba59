"""Activations: from pre-activations to latent activations, one class per kind."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.sae.config import check_k


class SparseActs(NamedTuple):
    """The latent activations of n tokens as k entries per token; entries of value 0 are padding.

    values: never negative. indices: the latents, all different within a token, in no particular order.
    """

    values: Float[Tensor, "n k"]
    indices: Int64[Tensor, "n k"]


class Activation(nn.Module, ABC):
    """Turns pre-activations into latent activations. A kind with a threshold keeps it as a parameter or buffer.

    What an SAE does when it is used; BatchTopK selects otherwise in training (see losses.py).
    """

    kind: ClassVar[str]
    """As in `sae/config.py`, whose `activation_settings` are the constructor's arguments."""

    @abstractmethod
    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Return the latent activations, zeros included."""

    @abstractmethod
    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        """Return the same activations as entries."""

    def check(self, d_sae: int) -> None:
        """Raise InputError if an SAE with this many latents cannot have the activation."""

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain JSON values; a checkpoint keeps them."""
        return {}


class _WithK(Activation):
    """k active latents per token, or on average."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def check(self, d_sae: int) -> None:
        check_k(self.k, d_sae)

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


class TopK(_WithK):
    """The k largest pre-activations of a token, negative ones set to 0 (Gao et al., 2024)."""

    kind = "topk"

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        # topk first, ReLU on the k values only: the same result as ReLU first, without a second [n, d_sae] tensor.
        values, indices = pre_acts.topk(self.k, dim=-1, sorted=False)
        return SparseActs(values.relu(), indices)

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        acts = self.sparse(pre_acts)
        return torch.zeros_like(pre_acts).scatter(-1, acts.indices, acts.values)


class MatryoshkaK(TopK):
    """TopK, trained so that fewer of the k entries reconstruct too (Zaigrajew et al., 2025, MSAE)."""

    kind = "matryoshka_k"


class _Gate(Activation):
    """Some of the positive pre-activations; sparse form: as many entries as the fullest token of the batch has."""

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        acts = self.dense(pre_acts)
        fullest = int((acts > 0).sum(-1).amax()) if len(acts) else 0
        return SparseActs(*acts.topk(max(1, fullest), dim=-1, sorted=False))


class ReLU(_Gate):
    """Every positive pre-activation."""

    kind = "relu"

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.relu()


class BatchTopK(_WithK, _Gate):
    """The pre-activations above one threshold, which k per token on average exceed (Bussmann et al., 2024).

    In training the k * n largest of a batch of n tokens are active. The threshold, which makes a token's latents
    independent of its batch, is the running mean of the smallest of them; 0 before training, which is ReLU.
    """

    kind = "batchtopk"
    threshold: Tensor

    THRESHOLD_DECAY: ClassVar[float] = 0.95
    """Share of the running mean that a step keeps (ours): short, since the code goes on changing in training."""

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.register_buffer("threshold", torch.tensor(0.0))

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.where(pre_acts > self.threshold, 0)

    @torch.no_grad()
    def track(self, smallest: Float[Tensor, ""]) -> None:
        """Take the smallest positive activation of a training batch into the threshold; inf where there was none."""
        first = self.threshold == 0
        mean = torch.where(first, smallest, smallest.lerp(self.threshold, self.THRESHOLD_DECAY))
        self.threshold.copy_(torch.where(smallest.isfinite(), mean, self.threshold))


class MatryoshkaPrefix(BatchTopK):
    """BatchTopK, trained so that the first latents reconstruct without the rest (Bussmann et al., 2025)."""

    kind = "matryoshka_prefix"


class JumpReLU(_Gate):
    """The pre-activations above a threshold that each latent learns (Rajamanoharan et al., 2024).

    Args:
        d_sae: the number of latents.
        threshold: what all thresholds start at; in the units of normalised tokens, above 0.
    """

    kind = "jumprelu"

    def __init__(self, d_sae: int, threshold: float = 1.0) -> None:
        super().__init__()
        # The logarithm is learnt: thresholds stay positive.
        self.log_threshold = nn.Parameter(torch.full((d_sae,), math.log(threshold)))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """Each latent's threshold."""
        return self.log_threshold.exp()

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.where(pre_acts > self.threshold, 0)

    def check(self, d_sae: int) -> None:
        if len(self.log_threshold) != d_sae:
            raise InputError(f"Expected {d_sae} thresholds, one per latent, got {len(self.log_threshold)}.")

    def settings(self) -> dict[str, Any]:
        return {"d_sae": len(self.log_threshold)}


ACTIVATIONS: dict[str, type[Activation]] = {
    activation.kind: activation for activation in (TopK, ReLU, BatchTopK, JumpReLU, MatryoshkaK, MatryoshkaPrefix)
}
"""The activation of each kind, which is made with the settings that `sae/config.py` gives."""


def make_activation(kind: str, settings: dict[str, Any]) -> Activation:
    """Return the activation of this kind.

    Raises:
        InputError: if the settings are not those of the kind.
    """
    try:
        return ACTIVATIONS[kind](**settings)
    except TypeError:
        raise InputError(f"Expected the settings of a {kind} activation, got {sorted(settings)}.") from None
