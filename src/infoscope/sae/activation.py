"""What every activation is: the dense and the sparse form of latent activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.sae.config import check_k


class SparseActs(NamedTuple):
    """The latent activations of n tokens as k entries per token; entries of value 0 are padding.

    values: below 0 only where the activation is signed. indices: the latents, all different within a token, in no
        particular order.
    """

    values: Float[Tensor, "n k"]
    indices: Int64[Tensor, "n k"]


def join_acts(parts: Sequence[SparseActs]) -> SparseActs:
    """Return latents one after the other along the first axis, padded with zeros to the widest part.

    Kinds other than TopK have as many entries as the fullest token of a part.
    """
    widest = max(acts.values.shape[-1] for acts in parts)
    padded = [[F.pad(part, (0, widest - part.shape[-1])) for part in acts] for acts in parts]
    return SparseActs(torch.cat([values for values, _ in padded]), torch.cat([indices for _, indices in padded]))


class Activation(nn.Module, ABC):
    """Turns pre-activations into latent activations. A kind with a threshold keeps it as a parameter or buffer.

    What an SAE does when it is used; BatchTopK selects otherwise in training (see losses.py).
    """

    kind: ClassVar[str]
    """As in `sae/config.py`, whose `activation_settings` are the constructor's arguments; or of imported SAEs alone."""

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Activation:
        """Return an activation of these `settings`; what it keeps in tensors is to be filled."""
        return cls(**settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings().items())

    @property
    def is_signed(self) -> bool:
        """Whether latent activations may be below 0: such a latent writes into the token, but does not fire."""
        return False

    @abstractmethod
    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Return the latent activations, zeros included."""

    @abstractmethod
    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        """Return the same activations as entries."""

    def check(self, d_sae: int) -> None:
        """Raise InputError if an SAE with this many latents cannot have the activation."""

    def settings(self) -> dict[str, Any]:
        """Return what `from_settings` takes, as plain JSON values; a checkpoint keeps them."""
        return {}


class WithK(Activation):
    """k active latents per token, or on average."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def check(self, d_sae: int) -> None:
        check_k(self.k, d_sae)

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


class Gate(Activation):
    """Some of the positive pre-activations; sparse form: as many entries as the fullest token of the batch has."""

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        acts = self.dense(pre_acts)
        # Some tokens at a time: torch makes 8 bytes of each value to count them.
        counts = [int((part > 0).sum(-1).amax()) for part in acts.split(256) if len(part)]
        return SparseActs(*acts.topk(max([1, *counts]), dim=-1, sorted=False))


def check_length(values: Tensor, d_sae: int, what: str, or_one: bool = False) -> None:
    """Refuse what is not one value per latent.

    Args:
        or_one: one for all latents is fine too.

    Raises:
        InputError: another number of values.
    """
    if tuple(values.shape) != (d_sae,) and not (or_one and values.ndim == 0):
        got = " x ".join(map(str, values.shape)) or "one"
        raise InputError(f"Expected {d_sae} {what}, one per latent, got {got}.")


def scatter(acts: SparseActs, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
    """Return entries among zeros."""
    return torch.zeros_like(pre_acts).scatter_(-1, acts.indices, acts.values)
