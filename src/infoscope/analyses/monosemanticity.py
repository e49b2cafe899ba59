"""How alike the images of a latent are to a judge: monosemanticity over all of them, clarity of the top ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from infoscope.analyses.top_sets import TopSets

_BLOCK = 2**22
"""Numbers of a block of latents' sums of vectors."""
_NOTHING = 1e-12
"""A sum over pairs, as a share of the square of the sum, that is rounding alone."""


def normalise(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return vectors at unit norm in float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compute_ms(by_latent: csr_array, vectors: Float[np.ndarray, "n_images d_judge"]) -> Float[np.ndarray, " n_latents"]:
    """Return the monosemanticity score of each latent (sae-for-vlm): the mean likeness of two images, weighted.

    The weight of a pair of images is the product of the latent's activations in them, each stretched to 0..1 over all
    images; likeness is the cosine of the judge's vectors. Sums over images stand for the sum over pairs, so that time
    grows with the number of entries. NaN where no two images have a weight: for a latent that is constant, or is above
    its least value in one image alone.

    Args:
        by_latent: [n_latents, n_images], not negative, 0 where a latent does not fire.
        vectors: of unit norm, see `normalise`.
    """
    n_images, d_judge = vectors.shape
    n_latents = len(np.asarray(by_latent.indptr)) - 1
    sums, squares, lengths = np.zeros((3, n_latents))
    for block, rows in _cut(by_latent, n_latents, d_judge):
        weights = _subtract_least(rows, n_images)
        sums[block], squares[block] = weights.sum(axis=1), (weights * weights).sum(axis=1)
        lengths[block] = ((weights @ vectors) ** 2).sum(axis=1)
    pairs = sums**2 - squares
    has_pairs = pairs > _NOTHING * sums**2
    return np.divide(lengths - squares, pairs, out=np.full(n_latents, np.nan), where=has_pairs)


def compute_clarity(sets: TopSets, vectors: Float[np.ndarray, "n_images d_judge"]) -> Float[np.ndarray, " n_latents"]:
    """Return the clarity of each latent (Attributing CLIP): the mean cosine of two different images of its set.

    NaN for sets of fewer than two images.

    Args:
        sets: of images 0..n_images - 1.
        vectors: of unit norm, see `normalise`.
    """
    n = (sets.columns >= 0).sum(axis=1)
    lengths = np.zeros(len(n))
    n_images, d_judge = vectors.shape
    for block, rows in _cut(sets.indicate(n_images), len(n), d_judge):
        lengths[block] = ((rows @ vectors) ** 2).sum(axis=1)
    return np.divide(lengths - n, n * (n - 1), out=np.full(len(n), np.nan), where=n > 1)


def compute_likeness(vectors: Float[np.ndarray, "n d_judge"]) -> float:
    """Return the mean cosine of two different images: what both scores are for images at random; NaN of one image.

    Args:
        vectors: of unit norm, see `normalise`.
    """
    n = len(vectors)
    return float(((vectors.sum(axis=0) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")


def _cut(table: csr_array, n_rows: int, d_judge: int) -> Iterator[tuple[slice, csr_array]]:
    """Yield blocks of rows whose sums of vectors fit into memory."""
    n = max(1, _BLOCK // d_judge)
    for start in range(0, n_rows, n):
        yield slice(start, start + n), table[start : start + n]


def _subtract_least(rows: csr_array, n_images: int) -> csr_array:
    """Return activations minus the least of each latent; that is 0 unless it fires in every image."""
    starts = np.asarray(rows.indptr)
    values = np.array(rows.data, dtype=np.float64)
    for row in np.flatnonzero(np.diff(starts) == n_images):
        values[starts[row] : starts[row + 1]] -= values[starts[row] : starts[row + 1]].min()
    return csr_array((values, rows.indices, rows.indptr), shape=(len(starts) - 1, n_images))
