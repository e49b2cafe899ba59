"""What every activation is: the dense and the sparse form of latent activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.sae.config import check_k


class SparseActs(NamedTuple):
    """The latent activations of n tokens as k entries per token; entries of value 0 are padding.

    values: below 0 only where the activation is signed. indices: the latents, all different within a token but for
        padding, in no particular order.
    """

    values: Float[Tensor, "n k"]
    indices: Int64[Tensor, "n k"]


class Entries(NamedTuple):
    """The latent activations of n tokens that are not 0, one after the other.

    tokens: which of the n, ascending. latents: ascending within a token. values: below 0 only where the activation is
        signed.
    """

    tokens: Int64[Tensor, " n_entries"]
    latents: Int64[Tensor, " n_entries"]
    values: Float[Tensor, " n_entries"]


def list_entries(acts: SparseActs) -> Entries:
    """Return sparse activations without their padding, in order."""
    latents, order = acts.indices.sort(dim=-1)
    values = acts.values.gather(-1, order)
    tokens, places = values.nonzero(as_tuple=True)
    return Entries(tokens, latents[tokens, places], values[tokens, places])


def list_dense(acts: Float[Tensor, "n d_sae"], is_on: Bool[Tensor, "n d_sae"] | None = None) -> Entries:
    """Return some of dense activations: those that are not 0, where nothing else is asked for."""
    n, d_sae = acts.shape
    is_on = acts != 0 if is_on is None else is_on
    if acts.device.type == "cpu":  # numpy finds them several times as fast
        places = torch.from_numpy(np.flatnonzero(is_on.numpy()))
    else:
        places = is_on.flatten().nonzero().squeeze(1)
    tokens, values = find_rows(places, n, d_sae), acts.flatten().index_select(0, places)
    return Entries(tokens, places.sub_(tokens * d_sae), values)


def pad_entries(entries: Entries, n: int) -> SparseActs:
    """Return the same activations of `n` tokens, padded with zeros to the number of the token that has most."""
    tokens, latents, values = entries
    ends = torch.searchsorted(tokens, torch.arange(n, device=tokens.device), right=True)
    counts = ends.diff(prepend=ends.new_zeros(1))
    width = max(1, int(counts.amax())) if n else 1
    is_on = torch.arange(width, device=tokens.device) < counts[:, None]
    return SparseActs(*(of.new_zeros(n, width).masked_scatter_(is_on, of) for of in (values, latents)))


def find_rows(places: Int64[Tensor, " n_entries"], n_rows: int, width: int) -> Int64[Tensor, " n_entries"]:
    """Return `places // width` of ascending places in rows of this width, without a division of each."""
    rows = torch.arange(n_rows, device=places.device)
    ends = torch.searchsorted(places, (rows + 1) * width)
    return rows.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), output_size=len(places))


def join_acts(parts: Sequence[SparseActs]) -> SparseActs:
    """Return latents one after the other along the first axis, padded with zeros to the widest part.

    Kinds other than TopK have as many entries as the fullest token of a part.
    """
    widest = max(acts.values.shape[-1] for acts in parts)
    padded = [[F.pad(part, (0, widest - part.shape[-1])) for part in acts] for acts in parts]
    return SparseActs(torch.cat([values for values, _ in padded]), torch.cat([indices for _, indices in padded]))


def join_entries(parts: Sequence[Entries], n_tokens: Iterable[int]) -> Entries:
    """Return the entries of some tokens after those of others.

    Args:
        n_tokens: how many each part is of.
    """
    if len(parts) == 1:
        return parts[0]
    starts = [0, *accumulate(n_tokens)]
    tokens = [part.tokens + start for part, start in zip(parts, starts, strict=False)]
    latents, values = ([part[place] for part in parts] for place in (1, 2))
    return Entries(torch.cat(tokens), torch.cat(latents), torch.cat(values))


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

    @property
    def max_active(self) -> int | None:
        """At most how many latents a token has, where that is fewer than all: so wide is the sparse form."""
        return None

    @property
    def is_pointwise(self) -> bool:
        """Whether a latent's activation depends on its own pre-activation alone, so that `of_latents` has it."""
        return False

    def of_latents(
        self, pre_acts: Float[Tensor, "n n_latents"], latents: Int64[Tensor, " n_latents"]
    ) -> Float[Tensor, "n n_latents"]:
        """Return the activations of some latents from their pre-activations, of a kind that is pointwise."""
        raise AssertionError(f"{self.kind} needs the pre-activations of all latents")

    @abstractmethod
    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Return the latent activations, zeros included."""

    @abstractmethod
    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        """Return the same activations, as many per token as the one with most has."""

    def entries(self, pre_acts: Float[Tensor, "n d_sae"]) -> Entries:
        """Return the same activations but for those that are 0."""
        return list_entries(self.sparse(pre_acts))

    def check(self, d_sae: int) -> None:
        """Raise InputError if an SAE with this many latents cannot have the activation."""

    def settings(self) -> dict[str, Any]:
        """Return what `from_settings` takes, as plain JSON values; a checkpoint keeps them."""
        return {}


class WithK(Activation):
    """k active latents per token; where a `Gate` comes first, on average."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    @property
    def max_active(self) -> int | None:
        return self.k

    def check(self, d_sae: int) -> None:
        check_k(self.k, d_sae)

    def settings(self) -> dict[str, Any]:
        return {"k": self.k}


class Gate(Activation):
    """Some of the positive pre-activations; sparse form: as many entries as the fullest token of the batch has."""

    @property
    def max_active(self) -> int | None:
        return None

    @property
    def is_pointwise(self) -> bool:
        return True

    def of_latents(
        self, pre_acts: Float[Tensor, "n n_latents"], latents: Int64[Tensor, " n_latents"]
    ) -> Float[Tensor, "n n_latents"]:
        return self.dense(pre_acts)  # kinds that keep something of each latent choose from that

    def sparse(self, pre_acts: Float[Tensor, "n d_sae"]) -> SparseActs:
        return pad_entries(self.entries(pre_acts), len(pre_acts))

    def entries(self, pre_acts: Float[Tensor, "n d_sae"]) -> Entries:
        return list_dense(self.dense(pre_acts))


class Bounded(Gate):
    """The pre-activations above a bound, which is not below 0."""

    @property
    @abstractmethod
    def bound(self) -> Float[Tensor, " d_sae"] | Float[Tensor, ""]:
        """The bound of each latent, or of all."""

    def dense(self, pre_acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        return pre_acts.where(pre_acts > self.bound, 0)

    def of_latents(
        self, pre_acts: Float[Tensor, "n n_latents"], latents: Int64[Tensor, " n_latents"]
    ) -> Float[Tensor, "n n_latents"]:
        bound = self.bound
        return pre_acts.where(pre_acts > (bound if bound.ndim == 0 else bound[latents]), 0)

    def entries(self, pre_acts: Float[Tensor, "n d_sae"]) -> Entries:
        return list_dense(pre_acts, pre_acts > self.bound)


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
