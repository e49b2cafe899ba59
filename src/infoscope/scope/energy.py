"""Energy of a group of latents: how much the tokens change without it, on a sample of tokens.

E(S) = mean over tokens of |sum over j in S of z_j W_j|^2, in the SAE's units. It is not the sum of what single latents
change: rows of the decoder may point the same way or against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32

from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.parts import Part
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, Meter

MAX_VALUES = 2**22
"""Numbers of decoder rows held at a time (32 MiB)."""

Cumulate = Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, " n"]]
"""Takes latents in some order; returns the energy of the first one, of the first two together, ..., of all."""


@dataclass(frozen=True)
class TokenSample:
    """The activations above 0 of some patch tokens, token by token.

    Args:
        n_tokens: how many tokens were drawn, those without any activation included.
        tokens: of each entry, which one, ascending.
        latents: ascending within a token.
        values: of the activations.
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
        here = np.flatnonzero(np.isin(numbers, self.chosen))
        dense = batch.dense.flatten(0, 1)[torch.from_numpy(here).to(batch.dense.device)].cpu()
        rows, latents = (dense > 0).nonzero(as_tuple=True)
        tokens = torch.from_numpy(np.searchsorted(self.chosen, numbers[here]))[rows]
        self.entries.append((tokens.int(), latents.int(), dense[rows, latents].float()))

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


def cumulate_energy(
    sample: TokenSample, W_dec: Float[np.ndarray, "d_sae d_in"], order: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return the energy of the first latent of an order, of the first two together, ..., of all; a `Cumulate`.

    Exact on the sample. Takes d_in multiplications per activation, and no matrix of d_sae x d_sae.
    """
    place = np.full(len(W_dec), -1)
    place[order] = np.arange(len(order))
    at = place[sample.latents]
    kept = np.flatnonzero(at >= 0)
    kept = kept[np.lexsort((at[kept], sample.tokens[kept]))]
    starts = np.flatnonzero(np.diff(sample.tokens[kept], prepend=-1))  # where a token's entries begin
    gains, n_at_once = np.zeros(len(order)), max(1, MAX_VALUES // W_dec.shape[1])
    first = 0
    while first < len(starts):
        begin = starts[first]
        last = max(first + 1, int(np.searchsorted(starts, begin + n_at_once)))  # whole tokens, one at least
        part = kept[begin : starts[last] if last < len(starts) else None]
        rows = W_dec[sample.latents[part]].astype(np.float64) * sample.values[part, None].astype(np.float64)
        new = starts[first:last] - begin
        gains += np.bincount(at[part], _grow_squares(rows, new), len(order))
        first = last
    return np.cumsum(gains) / sample.n_tokens


def _grow_squares(rows: Float[np.ndarray, "n d_in"], starts: Int[np.ndarray, " n_tokens"]) -> Float[np.ndarray, " n"]:
    """Return by how much each row lets the squared norm of its token's sum of rows grow.

    Args:
        starts: where the rows of each token begin.
    """
    sums = np.cumsum(rows, axis=0)
    before = np.zeros_like(rows[starts])
    before[1:] = sums[starts[1:] - 1]
    sums -= np.repeat(before, np.diff(starts, append=len(rows)), axis=0)
    squares = np.einsum("ij,ij->i", sums, sums)
    previous = np.roll(squares, 1)
    previous[starts] = 0
    return squares - previous
