"""Activations: from pre-activations to latent activations, one class per kind."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.sae.activation import Activation, Bounded, Entries, SparseActs, WithK, check_length, scatter
from infoscope.sae.imported_activations import Gated, GroupMax, TanhReLU, Threshold
from infoscope.sae.topk import find_largest


class TopK(WithK):
    """The k largest pre-activations of a token, negative ones set to 0 (Gao et al., 2024).

    Args:
        signed: negative ones among them stay as they are, as some SAEs of others have it.
    """

    kind = "topk"

    def __init__(self, k: int, signed: bool = False) -> None:
        super().__init__(k)
        self.signed = signed

    @property
    def is_signed(self) -> bool:
        return self.signed

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({"signed": True} if self.signed else {})

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        # topk first, ReLU on the k values only: the same result as ReLU first, without a second [n, d_sae] tensor.
        values, indices = find_largest(pre_acts, self.k)
        return SparseActs(values if self.signed else values.relu(), indices)

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return scatter(self.sparse(pre_acts), pre_acts)


class MatryoshkaK(TopK):
    """TopK, trained so that fewer of the k entries reconstruct too (Zaigrajew et al., 2025, MSAE)."""

    kind = "matryoshka_k"


class ReLU(Bounded):
    """Every positive pre-activation."""

    kind = "relu"

    @property
    def bound(self) -> Float[Tensor, ""]:
        return torch.zeros(())  # on the CPU: one number is compared with values anywhere

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.relu()


class BatchTopK(Bounded, WithK):
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

    @property
    def bound(self) -> Float[Tensor, ""]:
        return self.threshold

    @torch.no_grad()
    def track(self, smallest: Float[Tensor, ""]) -> None:
        """Take the smallest positive activation of a training batch into the threshold; inf where there was none."""
        first = self.threshold == 0
        mean = torch.where(first, smallest, smallest.lerp(self.threshold, self.THRESHOLD_DECAY))
        self.threshold.copy_(torch.where(smallest.isfinite(), mean, self.threshold))


class MatryoshkaPrefix(BatchTopK):
    """BatchTopK, trained so that the first latents reconstruct without the rest (Bussmann et al., 2025)."""

    kind = "matryoshka_prefix"


class JumpReLU(Bounded):
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

    @property
    def bound(self) -> Float[Tensor, " d_sae"]:
        return self.threshold

    def check(self, d_sae: int) -> None:
        check_length(self.log_threshold, d_sae, "thresholds")

    def settings(self) -> dict[str, Any]:
        return {"d_sae": len(self.log_threshold)}


class Capped(Activation):
    """cap tanh(z / cap) of another activation's z: nearly z while it is small, never beyond the cap (MSAE).

    Args:
        inner: the other activation.
        cap: above 0, in units of z.
    """

    kind = "capped"

    def __init__(self, inner: Activation, cap: float) -> None:
        super().__init__()
        if not torch.finfo(torch.float32).tiny <= cap <= torch.finfo(torch.float32).max:
            raise InputError(f"Expected a soft cap above 0, in float32, got {cap:g}.")
        self.inner, self.cap = inner, cap

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Activation:
        return cls(make_activation(settings["inner"], settings["inner_settings"]), settings["cap"])

    @property
    def is_signed(self) -> bool:
        return self.inner.is_signed

    @property
    def max_active(self) -> int | None:
        return self.inner.max_active

    def settings(self) -> dict[str, Any]:
        return {"inner": self.inner.kind, "inner_settings": self.inner.settings(), "cap": self.cap}

    def check(self, d_sae: int) -> None:
        self.inner.check(d_sae)

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return self._bound(self.inner.dense(pre_acts))

    @property
    def is_pointwise(self) -> bool:
        return self.inner.is_pointwise

    def of_latents(
        self, pre_acts: Float[Tensor, "n n_latents"], latents: Int64[Tensor, " n_latents"]
    ) -> Float[Tensor, "n n_latents"]:
        return self._bound(self.inner.of_latents(pre_acts, latents))

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        values, indices = self.inner.sparse(pre_acts)
        return SparseActs(self._bound(values), indices)

    def entries(self, pre_acts: Float[Tensor, "n d_sae"]) -> Entries:
        tokens, latents, values = self.inner.entries(pre_acts)
        values = self._bound(values)
        kept = values != 0  # the smallest numbers may end as 0
        return Entries(tokens[kept], latents[kept], values[kept])

    def _bound(self, values: Tensor) -> Tensor:
        return self.cap * (values / self.cap).tanh_()


ACTIVATIONS: dict[str, type[Activation]] = {
    activation.kind: activation
    for activation in (
        *(TopK, ReLU, BatchTopK, JumpReLU, MatryoshkaK, MatryoshkaPrefix),
        *(Threshold, Gated, GroupMax, TanhReLU, Capped),
    )
}
"""The activation of each kind: first those that infoscope trains, made with the settings that `sae/config.py` gives,
then those that only imported SAEs have."""


def make_activation(kind: str, settings: dict[str, Any]) -> Activation:
    """Return the activation of this kind; what it keeps in tensors is to be filled.

    Raises:
        InputError: if the settings are not those of the kind.
    """
    try:
        return ACTIVATIONS[kind].from_settings(settings)
    except (TypeError, KeyError):
        raise InputError(f"Expected the settings of a {kind} activation, got {sorted(settings)}.") from None
