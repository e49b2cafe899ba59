"""What the labels of images say of latents: which latents a class has, of which class a latent is, how surely."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csr_array
from scipy.stats import entropy

from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.top_sets import TopSets, find_top

_LATENTS_AT_ONCE = 1024


def count_strong(codes: ImageCodes, labels: Int64[np.ndarray, " n_images"], n_classes: int) -> csr_array:
    """Return on how many patches of each class's images each latent fires strongly: [n_classes, d_sae], sparse.

    Args:
        labels: of the rows of `codes`, 0..n_classes - 1.
    """
    found = csr_array(csr_array(select(labels, n_classes).T) @ codes.matrix("n_strong"))
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
    return find_top(count_strong(codes, labels, n_classes), k).columns


class TopClass(NamedTuple):
    """The class on whose images a latent fires strongly on most patches per image.

    of: the class, the lower one of equal ones; -1: it never fires strongly.
    share: of the patches on which it fires strongly, those in images of that class; NaN without any.
    """

    of: Int64[np.ndarray, " d_sae"]
    share: Float[np.ndarray, " d_sae"]


def find_top_classes(strong: csr_array, n_images: Int64[np.ndarray, " n_classes"]) -> TopClass:
    """Return the class of each latent.

    Args:
        strong: of `count_strong`.
        n_images: of each class.
    """
    by_latent = csr_array(strong.T)
    total = np.asarray(by_latent.sum(axis=1))
    per_image = by_latent.copy()
    per_image.data = by_latent.data / n_images[by_latent.indices]
    top = find_top(per_image, 1)
    of, n_strong = top.columns[:, 0], top.values[:, 0] * n_images[top.columns[:, 0]]
    return TopClass(of, np.divide(n_strong, total, out=np.full(len(of), np.nan), where=of >= 0))


def count_held(class_latents: Int64[np.ndarray, "n_classes k"], d_sae: int) -> Int64[np.ndarray, " d_sae"]:
    """Return among the latents of how many classes each latent is.

    Args:
        class_latents: of `rank_class_latents`.
    """
    return np.bincount(class_latents[class_latents >= 0], minlength=d_sae)


def compute_top_entropy(
    top: TopSets, labels: Int64[np.ndarray, " n_images"], n_classes: int
) -> Float[np.ndarray, " d_sae"]:
    """Return the entropy of the labels of each latent's top images in nats, 0..ln(size), weighted by what it has there.

    PatchSAE's label entropy where the sets have its ten images. NaN for an empty set.
    """
    return compute_entropy(top.weigh(len(labels)), labels, n_classes)


def compute_entropy(
    by_latent: csr_array, labels: Int64[np.ndarray, " n_images"], n_classes: int
) -> Float[np.ndarray, " d_sae"]:
    """Return the entropy of the labels of all images in nats, weighted by each latent's activation; NaN without any.

    Args:
        by_latent: [d_sae, n_images], not negative.
    """
    n_latents, of_images = len(np.asarray(by_latent.indptr)) - 1, select(labels, n_classes)
    found = np.full(n_latents, np.nan)
    for start in range(0, n_latents, _LATENTS_AT_ONCE):
        block = slice(start, start + _LATENTS_AT_ONCE)
        weights = (by_latent[block] @ of_images).toarray()
        total = weights.sum(axis=1)
        found[block] = np.where(total > 0, entropy(weights, axis=1), np.nan)
    return found


def compute_largest_entropy(n_images: Int64[np.ndarray, " n_classes"]) -> float:
    """Return the entropy in nats of labels that are all as frequent; NaN with fewer than two classes with images."""
    n = int((n_images > 0).sum())
    return math.log(n) if n > 1 else math.nan


def select(labels: Int64[np.ndarray, " n_images"], n_classes: int) -> csr_array:
    """Return 1 where an image is of a class: [n_images, n_classes], sparse."""
    n = len(labels)
    return csr_array((np.ones(n), labels, np.arange(n + 1)), shape=(n, n_classes))
