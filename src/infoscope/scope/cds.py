"""Contextual dependency scores: arithmetic on the matrix of earth mover's distances, one row per latent."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from infoscope.runtime.errors import InputError
from infoscope.scope.crops import check_shift

MIN_CHANCE = 1e-6
"""Below this chance level a ratio to chance means nothing and is NaN."""


class CDS(NamedTuple):
    """Contextual dependency scores.

    values: [d_sae], in 0..1: 0 stays where its evidence is, 1 jumps from corner to corner; NaN where unscored.
    n_valid: [d_sae], pairs of crops that had a distance among the first k ranks.
    """

    values: Float[np.ndarray, " d_sae"]
    n_valid: Int[np.ndarray, " d_sae"]


class ZeroCounts(NamedTuple):
    """Pairs without a distance among the first k ranks, per latent [d_sae].

    one_sided: the latent fires on the shared region of one crop alone.
    two_sided: it fires there in neither crop (where it fired is cut away, or context alone had made it fire).
    """

    one_sided: Int[np.ndarray, " d_sae"]
    two_sided: Int[np.ndarray, " d_sae"]


def compute_d_grid(grid: int, shift_patches: int) -> float:
    """Return the largest distance in the shared region, in patches: between the centres of opposite corner patches.

    Raises:
        InputError: as `infoscope.scope.crops.check_shift`.
    """
    check_shift(grid, shift_patches)
    return math.sqrt(2) * (grid - shift_patches - 1)


def compute_cds(emd: Float[np.ndarray, "d_sae k_max"], k: int) -> CDS:
    """Average normalised distances (EMD / D_grid) over the first `k` ranks; NaN entries are left out.

    A latent with fewer than ceil(k/2) valid pairs is unscored: NaN.

    Raises:
        InputError: if `k` is not in 1..k_max.
    """
    first = _first_ranks(emd, k)
    n_valid = (~np.isnan(first)).sum(axis=1)
    return CDS(np.where(n_valid >= math.ceil(k / 2), mean_of_known(first, axis=1), np.nan), n_valid)


def mean_of_known(values: Float[np.ndarray, "..."], axis: int) -> Float[np.ndarray, "..."]:
    """Return the mean along an axis, NaN left out; NaN where there is nothing else, of which NumPy's own would warn."""
    known = ~np.isnan(values)
    n, total = known.sum(axis=axis), np.where(known, values, 0).sum(axis=axis)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def compute_cds_with_zeros(
    emd: Float[np.ndarray, "d_sae k_max"],
    mass1: Float[np.ndarray, "d_sae k_max"],
    mass2: Float[np.ndarray, "d_sae k_max"],
    k: int,
) -> CDS:
    """Return the sensitivity variant: a pair in which one map alone is all zero counts as the largest distance, 1.

    Raises:
        InputError: if `k` is not in 1..k_max.
    """
    one_sided, _ = _zero_masks(mass1, mass2)
    return compute_cds(np.where(one_sided, 1.0, emd), k)


def count_zero_maps(
    mass1: Float[np.ndarray, "d_sae k_max"], mass2: Float[np.ndarray, "d_sae k_max"], k: int
) -> ZeroCounts:
    """Count the all-zero maps among the first `k` ranks; ranks without an image (mass NaN) are in neither count.

    Raises:
        InputError: if `k` is not in 1..k_max.
    """
    one_sided, two_sided = _zero_masks(_first_ranks(mass1, k), _first_ranks(mass2, k))
    return ZeroCounts(one_sided.sum(axis=1), two_sided.sum(axis=1))


def compute_one_sided_share(
    mass1: Float[np.ndarray, "d_sae k_max"], mass2: Float[np.ndarray, "d_sae k_max"], k: int
) -> Float[np.ndarray, " d_sae"]:
    """Return the share of the pairs among the first `k` ranks in which one map alone is all zero; NaN without pairs.

    Raises:
        InputError: if `k` is not in 1..k_max.
    """
    n_zeros, n_pairs = count_zero_maps(mass1, mass2, k).one_sided, (~np.isnan(mass1[:, :k])).sum(axis=1)
    return np.divide(n_zeros, n_pairs, out=np.full(len(n_pairs), np.nan), where=n_pairs > 0)


def compute_chance_ratio(
    values: Float[np.ndarray, " d_sae"], chance: Float[np.ndarray, " d_sae"]
) -> Float[np.ndarray, " d_sae"]:
    """Divide scores by the chance level of their latent; NaN where that lies below 1e-6."""
    usable = chance >= MIN_CHANCE
    return np.divide(values, chance, out=np.full(len(values), np.nan), where=usable)


def position_locked_score(grid: int, shift_patches: int) -> float:
    """Return the score of a latent that fires at one place of the grid in every picture: s / (p - s - 1).

    Raises:
        InputError: as `infoscope.scope.crops.check_shift`.
    """
    check_shift(grid, shift_patches)
    return shift_patches / (grid - shift_patches - 1)


def uniform_chance_score(side_patches: int) -> float:
    """Return the expected score of two independent one-patch maps, each uniform on side x side shared patches.

    Raises:
        InputError: if the side is below 2 patches.
    """
    if side_patches < 2:
        raise InputError(
            f"Expected a shared region of at least 2 patches per side, got {side_patches}: lower the shift."
        )
    apart = np.arange(side_patches)
    # two positions on a line lie `apart` patches from each other in 2 (n - apart) of n^2 cases, in n cases at 0
    share = np.where(apart > 0, 2.0, 1.0) * (side_patches - apart) / side_patches**2
    expected = float(share @ np.hypot(apart[:, None], apart[None, :]) @ share)
    return expected / (math.sqrt(2) * (side_patches - 1))


def _first_ranks(matrix: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k <= matrix.shape[1]:
        raise InputError(
            f"Expected scope.k_cds in 1..{matrix.shape[1]} (the ranks that were scored), got {k}: lower it, or score"
            " again with a larger scope.k_max."
        )
    return matrix[:, :k]


def _zero_masks(mass1: np.ndarray, mass2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    zero1, zero2 = mass1 == 0, mass2 == 0
    return zero1 != zero2, zero1 & zero2
