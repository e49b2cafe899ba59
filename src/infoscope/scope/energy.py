"""Energy of a group of latents: how much the tokens change without it, on a sample of tokens.

E(S) = mean over tokens of |sum over j in S of s z_j W_j|^2, in units of c (x - mu); s is the token's factor, 1 without
a token norm. It is not the sum of what single latents change: rows of the decoder may point the same way or against
each other, and z_j may be below 0 where activations are signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32
from scipy.sparse import csr_array

from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.parts import Part
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, Meter

MAX_VALUES = 2**22
"""Products of decoder rows held at a time (32 MiB)."""
MAX_PAIRS = 2**28
"""Pairs of latents that are kept (4 GiB); of more, which only SAEs of tens of thousands of latents with hundreds on
every token can have, tokens are summed up anew for every order."""

Cumulate = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]
"""Takes latents in some order; returns the energy of the first one, of the first two together, ..., of all."""


@dataclass(frozen=True)
class TokenSample:
    """The activations of some patch tokens, token by token, but for those that are 0.

    Args:
        n_tokens: how many tokens were drawn, those without any activation included.
        tokens: of each entry, which one, ascending.
        latents: ascending within a token.
        values: of the activations, times the token's factor.
    """

    n_tokens: int
    tokens: Int32[np.ndarray, " n_entries"]
    latents: Int32[np.ndarray, " n_entries"]
    values: Float32[np.ndarray, " n_entries"]

    def save(self, folder: Path) -> None:
        """Write it into an existing folder."""
        save_result(folder, "sample", vars(self))

    @classmethod
    def load(cls, folder: Path) -> TokenSample:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "sample")
        return cls(**arrays, **facts)


class SampleMeter(Meter):
    """Keeps the activations of some patch tokens.

    Args:
        chosen: which ones, ascending, counted through the patches of all rows.
    """

    def __init__(self, chosen: Int[np.ndarray, " n_tokens"]) -> None:
        self.chosen = chosen
        self.entries: list[tuple[torch.Tensor, ...]] = []

    def update(self, batch: LatentBatch) -> None:
        numbers = (np.asarray(batch.rows)[:, None] * batch.n_patches + np.arange(batch.n_patches)).ravel()
        places = np.where(np.isin(numbers, self.chosen), np.searchsorted(self.chosen, numbers), -1)
        tokens, latents, values = batch.codes
        of_entries = torch.from_numpy(places).to(tokens.device)[tokens]
        kept = of_entries >= 0
        values = values[kept] if batch.factor is None else values[kept] * batch.factor.flatten()[tokens[kept]]
        self.entries.append((of_entries[kept].int().cpu(), latents[kept].int().cpu(), values.float().cpu()))

    def to_part(self) -> Part:
        found = zip(*self.entries, strict=True)
        return {name: torch.cat(of) for name, of in zip(("tokens", "latents", "values"), found, strict=True)}

    def add(self, part: Part) -> None:
        self.entries.append(tuple(part[name].cpu() for name in ("tokens", "latents", "values")))

    def compute(self) -> TokenSample:
        """Return the sample, in the order of the tokens."""
        tokens, latents, values = (of.numpy() for of in self.to_part().values())
        order = np.lexsort((latents, tokens))
        return TokenSample(len(self.chosen), tokens[order], latents[order], values[order])


def measure_sample(sae: SparseAutoencoder, n_rows: int, n_patches: int, n_tokens: int) -> Measurement[SampleMeter]:
    """Return the measurement of a fixed random sample of tokens: as many as wanted, or all."""
    n_all = n_rows * n_patches
    chosen = np.sort(np.random.default_rng(0).choice(n_all, min(n_tokens, n_all), replace=False))
    return Measurement(sae, lambda device, known: SampleMeter(chosen))


class Energy:
    """The energy of any groups, exact on the sample.

    E(S) is a sum over pairs of S that fire on a token together: of (sum over tokens of z_i z_j) <W_i, W_j>. These
    weights are computed once; then every order of latents takes one addition per pair. Where there are too many pairs,
    an order takes as many additions of decoder rows as there are activations.
    """

    def __init__(self, sample: TokenSample, W_dec: Float[np.ndarray, "d_sae d_in"]) -> None:
        self._n_tokens, at = sample.n_tokens, (sample.tokens, sample.latents)
        self._acts = csr_array((sample.values.astype(np.float64), at), (sample.n_tokens, len(W_dec)))
        self._W_dec = W_dec
        n_pairs = min(int((np.bincount(sample.tokens).astype(np.int64) ** 2).sum()), len(W_dec) ** 2) / 2
        self._pairs = list(self._iterate_pairs()) if n_pairs <= MAX_PAIRS else None

    def cumulate(self, order: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the energy of the first latent of an order, of the first two together, ..., of all; a `Cumulate`."""
        place = np.full(len(self._W_dec), len(order), dtype=np.int32)
        place[order] = np.arange(len(order))
        gains = np.zeros(len(order) + 1)  # the last: pairs that are never complete
        if self._pairs is None:
            for places, energies in self._iterate_tokens(place, len(order)):
                gains[places] += np.diff(energies, prepend=0)  # a token has each latent once
        else:
            for first, second, weights in self._pairs:
                gains += np.bincount(np.maximum(place[first], place[second]), weights, len(gains))
        return np.cumsum(gains[:-1]) / self._n_tokens

    def _iterate_tokens(self, place: Int32[np.ndarray, " d_sae"], n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield of each token (the places below n of its latents, ascending; its energy up to each of them)."""
        for start, stop in pairwise(np.asarray(self._acts.indptr)):
            latents, values = self._acts.indices[start:stop], self._acts.data[start:stop]
            by_place = np.argsort(place[latents])[: (place[latents] < n).sum()]
            latents, values = latents[by_place], values[by_place]
            sums = np.cumsum(values[:, None] * self._W_dec[latents], axis=0)
            yield place[latents], np.einsum("nd,nd->n", sums, sums)

    def _iterate_pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (latents i, latents j, weights) of all pairs i <= j that fire together, some latents i at a time.

        Pairs i > j among these latents come along and weigh 0.
        """
        of_latents, W_dec = self._acts.T.tocsr(), self._W_dec.astype(np.float64)
        n_at_once = max(1, MAX_VALUES // len(W_dec))
        for start in range(0, len(W_dec), n_at_once):
            part = slice(start, start + n_at_once)
            together = (of_latents[part] @ of_latents[start:].T).tocoo()
            i, j = together.row, together.col
            products = (W_dec[part] @ W_dec[start:].T)[i, j]
            weights = together.data * products * ((i <= j) + 1.0 * (i < j))  # i < j stands for j > i too
            yield i + np.int32(start), j + np.int32(start), weights
