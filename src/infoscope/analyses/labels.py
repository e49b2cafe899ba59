"""What the labels of images say of latents: which latents a class has, of which label a latent is, how surely."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array

from infoscope.analyses.image_codes import ImageCodes


def count_strong(codes: ImageCodes, labels: Int64[np.ndarray, " n_images"], n_classes: int) -> csr_array:
    """Return on how many patches of each class's images each latent fires strongly: [n_classes, d_sae], sparse.

    Args:
        labels: of the rows of `codes`, 0..n_classes - 1.
    """
    found = csr_array(_select(labels, n_classes) @ codes.matrix("n_strong"))
    found.eliminate_zeros()
    found.sort_indices()
    return found


def rank_class_latents(
    codes: ImageCodes, labels: Int64[np.ndarray, " n_images"], n_classes: int, k: int
) -> Int64[np.ndarray, "n_classes k"]:
    """Return the latents that fire strongly on most patches of each class's images, most first (PatchSAE's).

    Ties go to the lower latent. -1 where fewer fire strongly, which is everywhere for a class without images.

    Args:
        labels: of the rows of `codes`, 0..n_classes - 1.
        k: latents of a class.
    """
    return _rank_rows(count_strong(codes, labels, n_classes), k)


def _rank_rows(counts: csr_array, k: int) -> Int64[np.ndarray, "n_rows k"]:
    """Return the columns of the k largest entries of each row, the largest first, -1 where there are fewer."""
    starts = np.asarray(counts.indptr)
    found = np.full((len(starts) - 1, k), -1, dtype=np.int64)
    for row, (start, end) in enumerate(pairwise(starts)):
        columns, values = np.asarray(counts.indices)[start:end], np.asarray(counts.data)[start:end]
        best = columns[np.argsort(-values, kind="stable")[:k]]  # columns ascend, so that ties go to the lower one
        found[row, : len(best)] = best
    return found


def _select(labels: Int64[np.ndarray, " n_images"], n_classes: int) -> csr_array:
    """Return 1 where an image is of a class: [n_classes, n_images]."""
    n = len(labels)
    return csr_array((np.ones(n), (labels, np.arange(n))), shape=(n_classes, n))
