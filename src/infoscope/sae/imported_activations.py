"""Activations that only imported SAEs have: infoscope uses them, and trains none."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activation import Activation, Bounded, Gate, SparseActs, WithK, check_length, scatter


class Threshold(Bounded):
    """The positive pre-activations above a fixed threshold: of an SAE that was trained elsewhere.

    Args:
        threshold: one for all latents, or one each, as its file has it: 0 and below is plain ReLU.
    """

    kind = "threshold"
    threshold: Tensor

    def __init__(self, threshold: Float[Tensor, " d_sae"] | Float[Tensor, ""]) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Activation:
        return cls(torch.zeros((settings["d_sae"],) if settings else ()))

    def settings(self) -> dict[str, Any]:
        return {} if self.threshold.ndim == 0 else {"d_sae": len(self.threshold)}

    def check(self, d_sae: int) -> None:
        check_length(self.threshold, d_sae, "thresholds", or_one=True)

    @property
    def bound(self) -> Float[Tensor, " d_sae"] | Float[Tensor, ""]:
        return self.threshold.clamp_min(0)


class Gated(Gate):
    """1[a + gate_bias > 0] ReLU(a mag_scale + mag_bias) of pre-activations a (Rajamanoharan et al., 2024).

    Args:
        gate_bias, mag_bias, mag_scale: of each latent; the last is above 0, the exponential of what training learns.
    """

    kind = "gated"
    gate_bias: Tensor
    mag_bias: Tensor
    mag_scale: Tensor

    def __init__(
        self,
        gate_bias: Float[Tensor, " d_sae"],
        mag_bias: Float[Tensor, " d_sae"],
        mag_scale: Float[Tensor, " d_sae"],
    ) -> None:
        super().__init__()
        self.register_buffer("gate_bias", gate_bias)
        self.register_buffer("mag_bias", mag_bias)
        self.register_buffer("mag_scale", mag_scale)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Activation:
        return cls(*torch.zeros(3, settings["d_sae"]))

    def settings(self) -> dict[str, Any]:
        return {"d_sae": len(self.gate_bias)}

    def check(self, d_sae: int) -> None:
        for name, values in self.named_buffers():
            check_length(values, d_sae, f"values of {name}")

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return _gate(pre_acts, self.gate_bias, self.mag_bias, self.mag_scale)

    def of_latents(
        self, pre_acts: Float[Tensor, "n n_latents"], latents: Int64[Tensor, " n_latents"]
    ) -> Float[Tensor, "n n_latents"]:
        return _gate(pre_acts, self.gate_bias[latents], self.mag_bias[latents], self.mag_scale[latents])


def _gate(pre_acts: Tensor, gate_bias: Tensor, mag_bias: Tensor, mag_scale: Tensor) -> Tensor:
    magnitudes = torch.addcmul(mag_bias, pre_acts, mag_scale).relu_()
    return magnitudes.where(pre_acts + gate_bias > 0, 0)


class GroupMax(WithK):
    """The largest pre-activation of each of k runs of d_sae / k neighbours, negative ones set to 0 (sparsify)."""

    kind = "groupmax"

    def check(self, d_sae: int) -> None:
        super().check(d_sae)
        if d_sae % self.k:
            raise InputError(f"Expected latents that fall into {self.k} groups of one size, got {d_sae}.")

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        values, places = pre_acts.unflatten(-1, (self.k, -1)).max(dim=-1)
        starts = torch.arange(0, pre_acts.shape[-1], pre_acts.shape[-1] // self.k, device=pre_acts.device)
        return SparseActs(values.relu(), starts + places)

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return scatter(self.sparse(pre_acts), pre_acts)


class TanhReLU(Gate):
    """tanh of every positive pre-activation (Prisma)."""

    kind = "tanh_relu"

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.relu().tanh_()
