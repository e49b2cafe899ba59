import numpy as np
import pytest
from scipy.sparse import csr_array

from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.labels import (
    compute_entropy,
    compute_largest_entropy,
    compute_top_entropy,
    count_held,
    count_strong,
    find_top_classes,
    rank_class_latents,
)
from infoscope.analyses.top_sets import find_top


def make_codes(n_strong: np.ndarray, means: np.ndarray | None = None, n_patches: int = 16) -> ImageCodes:
    """Return codes with some counts [n_images, d_sae], and mean activations that fire where the counts do."""
    means = n_strong / n_patches if means is None else means
    table = csr_array(means)
    images, latents = means.nonzero()
    counts = n_strong[images, latents]
    return ImageCodes(
        starts=table.indptr.astype(np.int64),
        latents=table.indices.astype(np.int32),
        means=table.data.astype(np.float32),
        peaks=table.data.astype(np.float32),
        n_on=np.maximum(counts, 1).astype(np.uint16),
        n_strong=counts.astype(np.uint16),
        image_index=np.arange(len(means)),
        d_sae=means.shape[1],
        n_patches=n_patches,
        strong_above=0.2,
    )


def test_latents_of_a_class_are_those_that_fire_strongly_on_most_of_its_patches() -> None:
    n_strong = np.array([[1, 0, 5, 0], [3, 4, 0, 0], [0, 9, 0, 0], [0, 0, 2, 0]])
    codes = make_codes(n_strong, means=n_strong + np.array([0, 0, 0, 0.01]))  # the last one fires, never strongly
    labels = np.array([0, 0, 2, 2])
    found = rank_class_latents(codes, labels, n_classes=3, k=3)
    assert found.tolist() == [[2, 0, 1], [-1, -1, -1], [1, 2, -1]]  # 0 and 1 tie: the lower one comes first


def test_counts_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    n_strong = rng.poisson(0.5, (60, 20))
    labels = rng.integers(0, 5, 60)
    expected = np.array([n_strong[labels == label].sum(0) for label in range(6)])
    codes = make_codes(n_strong)
    np.testing.assert_array_equal(count_strong(codes, labels, 6).toarray(), expected)
    order = np.lexsort((np.broadcast_to(np.arange(20), expected.shape), -expected))
    k = 4
    best = np.where(np.take_along_axis(expected, order, 1) > 0, order, -1)[:, :k]
    np.testing.assert_array_equal(rank_class_latents(codes, labels, 6, k), best)


def test_the_class_of_a_latent_has_most_strong_patches_per_image() -> None:
    n_strong = np.array([[4, 0, 6, 0], [4, 0, 0, 1], [5, 2, 3, 0]])
    labels = np.array([0, 0, 2])
    strong = count_strong(make_codes(n_strong, means=n_strong + 0.5), labels, 3)
    found = find_top_classes(strong, np.bincount(labels, minlength=3))
    assert found.of.tolist() == [2, 2, 0, 0]  # 5 per image against 4, and of equal ones the lower class
    np.testing.assert_allclose(found.share, [5 / 13, 1, 6 / 9, 1])
    none = find_top_classes(count_strong(make_codes(np.zeros((3, 2), int), np.ones((3, 2))), labels, 3), np.ones(3))
    assert none.of.tolist() == [-1, -1]
    assert np.isnan(none.share).all()


def test_latents_are_held_by_classes() -> None:
    assert count_held(np.array([[1, 0], [1, -1], [-1, -1]]), 4).tolist() == [1, 2, 0, 0]


def test_entropy_of_labels_is_weighted_by_activation() -> None:
    labels = np.array([0, 0, 1, 2, 2])
    by_latent = csr_array(np.array([[1.0, 3, 0, 0, 0], [1, 1, 2, 0, 0], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]]))
    log = np.log
    expected = [0, log(2), 0.25 * log(4) + 0.25 * log(4) + 0.5 * log(2), np.nan]
    np.testing.assert_allclose(compute_entropy(by_latent, labels, 4), expected, atol=1e-12)
    np.testing.assert_allclose(compute_top_entropy(find_top(by_latent, 5), labels, 4), expected, atol=1e-12)
    two = compute_top_entropy(find_top(by_latent, 2), labels, 4)  # of the second latent: 2 in class 1, 1 in class 0
    np.testing.assert_allclose(two[:3], [0, -(2 / 3) * log(2 / 3) - (1 / 3) * log(1 / 3), log(2)], atol=1e-12)


def test_the_largest_entropy_is_of_classes_with_images() -> None:
    assert compute_largest_entropy(np.array([500, 500, 500, 500, 0])) == pytest.approx(np.log(4))
    assert np.isnan(compute_largest_entropy(np.array([7, 0])))
