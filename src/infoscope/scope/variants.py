"""Other ways to make a score of the same pairs of crops, or of other pairs.

A variant is a function of chosen images: all of them give its score, random halves of them its reliability. Halves are
of images, so that two diagonals of one image are never on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infoscope.scope.cds import MIN_CHANCE, mean_of_known
from infoscope.scope.scores import Scores

TRIMMED = 0.2
"""Share of the pairs that a trimmed mean leaves out at either end, rounded down."""

Pairs = Float[np.ndarray, "d_sae n_images"]
Summary = Callable[[Pairs], Float[np.ndarray, " d_sae"]]
"""From distances, NaN where there is none or it is not chosen, to a number for each latent, NaN without any."""


class Variant(NamedTuple):
    """A way to score latents.

    n_pairs: distances for each latent (chance distances aside), of n_images images.
    is_drawn: whether the images are drawn from all on which a latent fires, instead of its top ones.
    valid: which images have a distance.
    summarise: the score from a choice of valid images.
    """

    name: str
    n_images: int
    n_pairs: int
    is_drawn: bool
    valid: Bool[np.ndarray, "d_sae n_images"]
    summarise: Callable[[Bool[np.ndarray, "d_sae n_images"]], Float[np.ndarray, " d_sae"]]

    @property
    def scores(self) -> Float[np.ndarray, " d_sae"]:
        """The scores from all valid images; NaN where fewer than half are valid, as for the CDS."""
        enough = self.valid.sum(axis=1) >= math.ceil(self.n_images / 2)
        return np.where(enough, self.summarise(self.valid), np.nan)


def mean_of_pairs(pairs: Pairs) -> Float[np.ndarray, " d_sae"]:
    """Return the mean of each row, NaN left out."""
    return mean_of_known(pairs, axis=1)


def median_of_pairs(pairs: Pairs) -> Float[np.ndarray, " d_sae"]:
    """Return the median of each row, NaN left out."""
    return trimmed_mean_of_pairs(pairs, 0.5)


def trimmed_mean_of_pairs(pairs: Pairs, share: float = TRIMMED) -> Float[np.ndarray, " d_sae"]:
    """Return the mean of each row without this share of the smallest and of the largest; half of them: the median."""
    n = np.isfinite(pairs).sum(axis=1)
    n_cut = np.minimum((share * n).astype(int), np.maximum(n - 1, 0) // 2)
    place = np.arange(pairs.shape[1])
    kept = (place >= n_cut[:, None]) & (place < (n - n_cut)[:, None])
    return mean_of_known(np.where(kept, np.sort(pairs, axis=1), np.nan), axis=1)  # NaN last


def count_vanished(scores: Scores) -> Float[np.ndarray, "d_sae k_max"]:
    """Return distances in which mass that is missing in one of the crops counts as the largest distance, 1.

    With the smaller mass a share r of the larger one, r EMD + (1 - r): the EMD itself where the masses are equal, 1
    where one map is all zero, NaN where both are. Partial transport with the largest distance as the price of a loss.
    """
    smaller, larger = np.minimum(scores.mass1, scores.mass2), np.maximum(scores.mass1, scores.mass2)
    share = np.divide(smaller, larger, out=np.full(scores.emd.shape, np.nan), where=larger > 0)
    return np.where(share > 0, share * np.nan_to_num(scores.emd) + 1 - share, np.where(share == 0, 1.0, np.nan))


def list_variants(top: Scores, top_anti: Scores, drawn: Scores, drawn_anti: Scores, k: int) -> Iterator[Variant]:
    """Yield the variants, the paper's first, then those of as many pairs, then those that cost more.

    Args:
        top, top_anti: on the images that excite each latent most, along either diagonal.
        drawn, drawn_anti: on images drawn from all on which it fires.
        k: pairs of the paper's score.
    """
    emd, half = top.emd, max(1, k // 2)
    both = mean_of_known(np.stack([top.emd, top_anti.emd]), axis=0)  # where one has no distance, the other's
    drawn_both = mean_of_known(np.stack([drawn.emd, drawn_anti.emd]), axis=0)
    one_sided = (top.mass1 == 0) != (top.mass2 == 0)
    yield _make(f"mean of {k} (the paper's)", emd[:, :k])
    yield _make(f"median of {k}", emd[:, :k], median_of_pairs)
    yield _make(f"trimmed mean of {k}", emd[:, :k], trimmed_mean_of_pairs)
    yield _make(f"{k}, a one-sided zero is 1", np.where(one_sided, 1.0, emd)[:, :k])
    yield _make(f"{k}, vanished mass is 1", count_vanished(top)[:, :k])
    yield _make(f"{k}, minus chance", (emd - top.chance_emd)[:, :k])
    yield _make_ratio(f"{k}, over chance", emd[:, :k], top.chance_emd[:, :k])
    yield _make(f"{half} images, both diagonals", both[:, :half], n_diagonals=2)
    yield _make(f"{k} drawn images", drawn.emd[:, :k], is_drawn=True)
    for n in (2 * k, 4 * k):
        if n <= top.k_max:
            yield _make(f"{n} images", emd[:, :n])
            yield _make(f"{n // 2} images, both diagonals", both[:, : n // 2], n_diagonals=2)
            yield _make(f"{n} drawn images", drawn.emd[:, :n], is_drawn=True)
            of_half = drawn_both[:, : n // 2]
            yield _make(f"{n // 2} drawn images, both diagonals", of_half, n_diagonals=2, is_drawn=True)


def _make(
    name: str, pairs: Pairs, summary: Summary = mean_of_pairs, n_diagonals: int = 1, is_drawn: bool = False
) -> Variant:
    n = pairs.shape[1]

    def summarise(chosen: Bool[np.ndarray, "d_sae n_images"]) -> Float[np.ndarray, " d_sae"]:
        return summary(np.where(chosen, pairs, np.nan))

    return Variant(name, n, n * n_diagonals, is_drawn, np.isfinite(pairs), summarise)


def _make_ratio(name: str, pairs: Pairs, chance: Pairs) -> Variant:
    def summarise(chosen: Bool[np.ndarray, "d_sae n_images"]) -> Float[np.ndarray, " d_sae"]:
        ours, others = (mean_of_pairs(np.where(chosen, of, np.nan)) for of in (pairs, chance))
        return np.divide(ours, others, out=np.full(len(ours), np.nan), where=others >= MIN_CHANCE)

    n = pairs.shape[1]
    return Variant(name, n, n, False, np.isfinite(pairs) & np.isfinite(chance), summarise)
