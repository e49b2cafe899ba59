"""The images on which each latent fires most, and how far those of different latents are the same."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csr_array
from scipy.stats import hypergeom

_LATENTS_AT_ONCE = 256
N_STEPS = 10
"""Overlaps are counted above 0, 0.1, ... 0.9, as sae-for-vlm counts them."""


class TopSets(NamedTuple):
    """The largest entries of the rows of a table, the largest first.

    columns: -1 where a row has fewer. values: 0 there.
    """

    columns: Int64[np.ndarray, "n_rows n"]
    values: Float[np.ndarray, "n_rows n"]

    def first(self, n: int) -> TopSets:
        """Return the n largest of each row."""
        return TopSets(self.columns[:, :n], self.values[:, :n])

    def indicate(self, n_columns: int) -> csr_array:
        """Return 1 where a column is in the set of a row: [n_rows, n_columns]."""
        return TopSets(self.columns, np.ones(self.columns.shape)).weigh(n_columns)

    def weigh(self, n_columns: int) -> csr_array:
        """Return the value of a column in the set of a row: [n_rows, n_columns]."""
        rows, places = np.nonzero(self.columns >= 0)
        shape = (len(self.columns), n_columns)
        return csr_array((self.values[rows, places], (rows, self.columns[rows, places])), shape=shape)


def find_top(table: csr_array, n: int) -> TopSets:
    """Return the n largest entries above 0 of each row; equal ones by column.

    Args:
        table: without negative entries, columns ascending within a row.
    """
    starts, indices = np.asarray(table.indptr), np.asarray(table.indices)
    data = np.asarray(table.data, dtype=np.float64)
    n_rows = len(starts) - 1
    found = TopSets(np.full((n_rows, n), -1, dtype=np.int64), np.zeros((n_rows, n)))
    if n == 0:
        return found
    for row, (start, end) in enumerate(pairwise(starts)):
        values = data[start:end]
        least = np.partition(values, len(values) - n)[len(values) - n] if len(values) > n else 0
        places = np.flatnonzero((values >= least) & (values > 0))
        places = places[np.argsort(-values[places], kind="stable")[:n]]
        found.columns[row, : len(places)] = indices[start:end][places]
        found.values[row, : len(places)] = values[places]
    return found


class Overlaps(NamedTuple):
    """How far the sets of an SAE's latents are the same, by the Jaccard index of each pair of sets.

    of_latent: mean index of a latent's set with every other set; NaN for an empty set, or where there is no other.
    shares: of all pairs, those with an index above 0, 0.1, ... 0.9; NaN without pairs.
    """

    of_latent: Float[np.ndarray, " d_sae"]
    shares: Float[np.ndarray, " n_steps"]


def compute_overlaps(sets: TopSets, n_images: int) -> Overlaps:
    """Return the overlaps of sets of images; those that share none cost nothing.

    Args:
        sets: of images 0..n_images - 1; rows of -1 alone are no sets and take no part.
    """
    members = sets.indicate(n_images)
    by_image, sizes = csr_array(members.T), np.asarray(members.sum(axis=1))
    n_sets, sums = int((sizes > 0).sum()), np.zeros(len(sizes))
    counts = np.zeros(N_STEPS, dtype=np.int64)
    for start in range(0, len(sizes), _LATENTS_AT_ONCE):
        shared = (members[start : start + _LATENTS_AT_ONCE] @ by_image).tocoo()
        one, other = start + shared.row, shared.col
        is_pair = one != other
        one, other, common = one[is_pair], other[is_pair], shared.data[is_pair]
        index = common / (sizes[one] + sizes[other] - common)
        sums += np.bincount(one, index, len(sizes))
        counts += [int((index > step / N_STEPS).sum()) for step in range(N_STEPS)]
    if n_sets < 2:
        return Overlaps(np.full(len(sizes), np.nan), np.full(N_STEPS, np.nan))
    return Overlaps(np.where(sizes > 0, sums / (n_sets - 1), np.nan), counts / (n_sets * (n_sets - 1)))


def expect_overlap(n: int, n_images: int) -> float:
    """Return the expected Jaccard index of two sets of n images each, drawn at random from all."""
    n = min(n, n_images)
    common = np.arange(n + 1)
    return float((hypergeom.pmf(common, n_images, n, n) * common / (2 * n - common)).sum())
