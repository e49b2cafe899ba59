from itertools import combinations

import numpy as np
import pytest
from scipy.sparse import csr_array

from infoscope.analyses import monosemanticity
from infoscope.analyses.monosemanticity import compute_clarity, compute_likeness, compute_ms, normalise
from infoscope.analyses.top_sets import TopSets


def compute_plainly(activations: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The score by its definition: over all pairs."""
    stretched = activations - activations.min(0)
    with np.errstate(invalid="ignore"):
        stretched = stretched / stretched.max(0)
    weighted, weights = np.zeros(activations.shape[1]), np.zeros(activations.shape[1])
    for i, j in combinations(range(len(activations)), 2):
        weights += stretched[i] * stretched[j]
        weighted += stretched[i] * stretched[j] * (vectors[i] @ vectors[j])
    return np.divide(weighted, weights, out=np.full(len(weights), np.nan), where=weights > 0)


@pytest.mark.parametrize("d_judge", [3, 40])
def test_sums_over_images_give_the_sum_over_pairs(monkeypatch: pytest.MonkeyPatch, d_judge: int) -> None:
    monkeypatch.setattr(monosemanticity, "_BLOCK", 5 * d_judge)
    rng = np.random.default_rng(0)
    vectors = normalise(rng.standard_normal((50, d_judge)).astype(np.float32) + 0.5)
    activations = rng.gamma(0.3, 1, (50, 23)) * (rng.random((50, 23)) < rng.random(23))
    activations[:, 4] += 3  # fires in every image
    activations[:, 5] = 1e-3 * (1 + 1e-3 * rng.random(50))  # likewise, and hardly varies
    activations[:, 6:9] = 0  # never fires
    activations[:, 7] = 2  # is constant
    activations[11, 8] = 2  # fires once
    activations[:, 9] = 1
    activations[12, 9] = 2  # is above its least value once
    found = compute_ms(csr_array(np.ascontiguousarray(activations.T)), vectors)
    np.testing.assert_allclose(found, compute_plainly(activations, vectors), atol=1e-9)
    assert np.flatnonzero(np.isnan(found)).tolist() == [6, 7, 8, 9]


def test_alike_images_are_monosemantic() -> None:
    vectors = np.eye(3)[[0, 0, 1, 2]]
    activations = np.array([[1.0, 1, 0, 0], [1, 0, 1, 0], [3, 1, 1, 0]])
    np.testing.assert_allclose(compute_ms(csr_array(activations), vectors), [1, 0, 3 / 7])


def test_clarity_is_the_mean_cosine_of_pairs() -> None:
    rng = np.random.default_rng(1)
    vectors = normalise(rng.standard_normal((9, 4)))
    columns = np.array([[0, 3, 8, 2], [5, 1, -1, -1], [4, -1, -1, -1], [-1, -1, -1, -1]])
    expected = [np.mean([vectors[i] @ vectors[j] for i, j in combinations(row[row >= 0], 2)]) for row in columns[:2]]
    found = compute_clarity(TopSets(columns, np.ones(columns.shape)), vectors)
    np.testing.assert_allclose(found, [*expected, np.nan, np.nan], atol=1e-12)
    everything = TopSets(np.arange(9)[None], np.ones((1, 9)))
    assert compute_likeness(vectors) == pytest.approx(compute_clarity(everything, vectors)[0], abs=1e-12)
    assert np.isnan(compute_likeness(vectors[:1]))
