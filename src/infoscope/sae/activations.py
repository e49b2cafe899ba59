"""Activations: from pre-activations to latent activations, one class per kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from infoscope.errors import InputError
from infoscope.sae.config import Kind


class SparseActs(NamedTuple):
    """The latent activations of n tokens as k entries per token; entries of value 0 are padding.

    values: never negative. indices: the latents, all different within a token, in no particular order.
    """

    values: Float[Tensor, "n k"]
    indices: Int64[Tensor, "n k"]


class Activation(nn.Module, ABC):
    """Turns pre-activations into latent activations. A kind with a threshold keeps it as a parameter or buffer."""

    kind: ClassVar[Kind]

    @abstractmethod
    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Return the latent activations, zeros included."""

    @abstractmethod
    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        """Return the same activations as entries."""

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain JSON values; a checkpoint keeps them."""
        return {}


class TopK(Activation):
    """The k largest pre-activations of a token, negative ones set to 0 (Gao et al., 2024)."""

    kind = Kind.topk

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        # topk first, ReLU on the k values only: the same result as ReLU first, without a second [n, d_sae] tensor.
        values, indices = pre_acts.topk(self.k, dim=-1, sorted=False)
        return SparseActs(values.relu(), indices)

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        acts = self.sparse(pre_acts)
        return torch.zeros_like(pre_acts).scatter(-1, acts.indices, acts.values)

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


class ReLU(Activation):
    """Every positive pre-activation; sparse form: as many entries as the fullest token of the batch has."""

    kind = Kind.relu

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.relu()

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        fullest = int((pre_acts > 0).sum(-1).amax()) if len(pre_acts) else 0
        values, indices = pre_acts.topk(max(1, fullest), dim=-1, sorted=False)
        return SparseActs(values.relu(), indices)


ACTIVATIONS: dict[Kind, type[Activation]] = {cls.kind: cls for cls in (TopK, ReLU)}


def make_activation(kind: Kind, settings: dict[str, Any]) -> Activation:
    """Return the activation of this kind.

    Raises:
        InputError: if the settings are not those of the kind.
    """
    try:
        return ACTIVATIONS[kind](**settings)
    except TypeError:
        raise InputError(f"Expected the settings of a {kind.name} activation, got {sorted(settings)}.") from None
