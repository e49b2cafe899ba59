import numpy as np
from scipy.sparse import csr_array

from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.labels import count_strong, rank_class_latents


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
