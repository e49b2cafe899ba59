"""Whether SAEs of other seeds learn the same latents: matched one to one, by their weights and by what they fire on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from scipy.sparse import csc_array, csr_array

from infoscope.analyses.image_codes import ImageCodes
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.agreement import match_latents

MATCHINGS = {
    "decoder": "decoder rows",
    "encoder": "encoder columns",
    "activation": "activation",
    "correlation": "activation, Pearson",
}
"""By the cosine of what two latents are matched, in words: of the rows of W_dec, of the columns of W_enc, of the mean
activations over the same images, and of these less their mean, which is Pearson's correlation."""
MIN_IMAGES = 10
"""Images on which a latent fires at least, to be matched by its activation."""
MAX_VALUES = 2**28
"""Activations of one SAE that are held (1 GiB): where those of all images are more, images evenly spread count."""

MAX_MATCHED, N_SAMPLED = 16384, 2048
"""Latents above which chance, and the matching by correlation, are of so many of them, drawn at random: time grows with
the square of the latents, and would be hours."""

Rows = Float[np.ndarray, "n width"]
Some = Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Alignment:
    """The latents of two SAEs of the same tokens, matched one to one in each way of `MATCHINGS`, see `match_latents`.

    partner: [4, d_sae] the latent of the second SAE to which each of the first belongs; -1: it has none.
    value: [4, d_sae] the cosine, or the correlation, of the two, -1..1; NaN without a partner.
    n_matchable: [4] latents that might have a partner: those of the SAE that has fewer; by activation those that fire
        on `MIN_IMAGES` images. By correlation, where these are more than `MAX_MATCHED`, those that were drawn.
    chance: [4] mean value when the second SAE's components, or images, are permuted, all latents' alike (ours): what
        the assignment finds among latents that have nothing to do with each other.
    n_images: whose activations were compared.
    d_sae_other: latents of the second SAE.
    """

    partner: Int64[np.ndarray, "4 d_sae"]
    value: Float32[np.ndarray, "4 d_sae"]
    n_matchable: Int64[np.ndarray, " 4"]
    chance: Float64[np.ndarray, " 4"]
    n_images: int
    d_sae_other: int

    def n_pairs(self, matching: str) -> int:
        """Return how many pairs there are."""
        return int((self._partner(matching) >= 0).sum())

    def mean(self, matching: str) -> float:
        """Return the mean value over the pairs; NaN without any."""
        return _mean(self.values(matching)[self._partner(matching) >= 0])

    def share_above(self, matching: str, value: float) -> float:
        """Return the share of the latents that might be matched whose pair has a value above this one, 0..1."""
        n = int(self.n_matchable[_place(matching)])
        return int((self.values(matching) > value).sum()) / n if n else np.nan

    def agreement(self, one: str, other: str) -> float:
        """Return the share of latents with the same partner by two ways, of those that have one by both; or NaN."""
        first, second = self._partner(one), self._partner(other)
        both = (first >= 0) & (second >= 0)
        return _mean(first[both] == second[both])

    def values(self, matching: str) -> Float32[np.ndarray, " d_sae"]:
        """Return the value of each latent of the first SAE; NaN without a partner."""
        return self.value[_place(matching)]

    def values_of_other(self, matching: str) -> Float32[np.ndarray, " d_sae_other"]:
        """Return the value of each latent of the second SAE; NaN without a partner."""
        partner, values = self._partner(matching), np.full(self.d_sae_other, np.nan, np.float32)
        values[partner[partner >= 0]] = self.values(matching)[partner >= 0]
        return values

    def _partner(self, matching: str) -> Int64[np.ndarray, " d_sae"]:
        return self.partner[_place(matching)]

    def save(self, folder: Path) -> None:
        """Write `alignment.npz` and `alignment.json` into a folder."""
        save_result(folder, "alignment", vars(self))

    @classmethod
    def load(cls, folder: Path) -> Alignment:
        """Return what `save` wrote."""
        arrays, facts = load_result(folder, "alignment")
        return cls(**arrays, **facts)


def align_seeds(
    one: SparseAutoencoder,
    other: SparseAutoencoder,
    codes: ImageCodes,
    codes_of_other: ImageCodes,
    device: torch.device | str = "cpu",
    progress: Advance = ignore,
) -> Alignment:
    """Match the latents of two SAEs in each way of `MATCHINGS`.

    Args:
        codes, codes_of_other: what fires in the same images.
        device: where nearest latents are found, of SAEs that are too large for the best assignment.
        progress: called with (matchings done, all of them).

    Raises:
        InputError: SAEs of tokens of other widths, or codes of other images.
    """
    if not np.array_equal(codes.image_index, codes_of_other.image_index):
        raise InputError(
            f"Expected two SAEs' activations on the same images, got {codes.n_images:,} and"
            f" {codes_of_other.n_images:,} that differ: measure both on one split."
        )
    images = _choose_images(codes.n_images, max(one.d_sae, other.d_sae))
    ways: dict[str, Callable[[SparseAutoencoder, ImageCodes], tuple[Some, Rows]]] = {
        "decoder": lambda sae, _: (np.arange(sae.d_sae), _to_numpy(sae.W_dec)),
        "encoder": lambda sae, _: (np.arange(sae.d_sae), _to_numpy(sae.W_enc.T)),
        "activation": lambda _, of: _read_codes(of, images),
        "correlation": lambda _, of: _centre(*_read_codes(of, images)),
    }
    partner, value = np.full((4, one.d_sae), -1), np.full((4, one.d_sae), np.nan, np.float32)
    n_matchable, chance = np.zeros(4, np.int64), np.zeros(4)
    for place, way in enumerate(MATCHINGS):
        (latents, rows), (latents_of_other, rows_of_other) = (
            ways[way](sae, of) for sae, of in ((one, codes), (other, codes_of_other))
        )
        some = _draw_latents(len(rows), len(rows_of_other))
        tried = some if way == "correlation" else None
        found = match_latents(rows, rows_of_other, device, tried)
        partner[place, latents[found.a]], value[place, latents[found.a]] = latents_of_other[found.b], found.cosine
        n_matchable[place] = min(len(rows) if tried is None else len(tried), len(rows_of_other))
        order = np.random.default_rng(place).permutation(rows.shape[1])
        chance[place] = _mean(match_latents(rows, rows_of_other[:, order], device, some).cosine)
        progress(place + 1, len(MATCHINGS))
    return Alignment(partner, value, n_matchable, chance, len(images), other.d_sae)


def _choose_images(n_images: int, d_sae: int) -> Some:
    """Return which images count, evenly spread."""
    n = min(n_images, max(1, MAX_VALUES // d_sae))
    return np.arange(n) * n_images // n


def _draw_latents(n: int, n_of_other: int) -> Some | None:
    """Return which latents of the first SAE chance is of; None: all."""
    if max(n, n_of_other) <= MAX_MATCHED:
        return None
    return np.sort(np.random.default_rng(0).choice(n, min(n, N_SAMPLED), replace=False))


def _read_codes(codes: ImageCodes, images: Some) -> tuple[Some, Rows]:
    """Return which latents fire on enough of some images, and the mean activation of each on each of the images."""
    some = csc_array(csr_array(codes.matrix("means"), dtype=np.float32)[images])
    latents = np.flatnonzero(np.diff(some.indptr) >= MIN_IMAGES)
    return latents, some[:, latents].T.toarray()


def _centre(latents: Some, rows: Rows) -> tuple[Some, Rows]:
    """Return the latents that vary, and the deviations of each from its mean."""
    varies = rows.max(axis=1, initial=-np.inf) > rows.min(axis=1, initial=np.inf)
    rows = rows[varies]
    rows -= rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return latents[varies], rows


def _to_numpy(weights: torch.Tensor) -> Rows:
    return weights.detach().float().cpu().numpy()


def _place(matching: str) -> int:
    return list(MATCHINGS).index(matching)


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else np.nan
