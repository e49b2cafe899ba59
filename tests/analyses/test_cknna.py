"""CKNNA: against plain loops over dense kernels, and by what it must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from infoscope.analyses import cknna
from infoscope.analyses.cknna import compute_cknna, find_neighbours, scale_rows
from infoscope.runtime.errors import InputError

N, K = 60, 5


def make_rows(seed: int, d: int = 7, n: int = N) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_sparse(seed: int, d: int = 30, n: int = N) -> torch.Tensor:
    rows = make_rows(seed, d, n)
    return rows.where(rows > 1.2, 0)


def compute_by_loops(one: np.ndarray, other: np.ndarray, k: int) -> float:
    """The definition, term by term."""

    def nearest(rows: np.ndarray) -> list[set[int]]:
        products = rows @ rows.T
        return [
            set(sorted((j for j in range(len(rows)) if j != i), key=lambda j, i=i: (-products[i, j], j))[:k])
            for i in range(len(rows))
        ]

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        masked_a, masked_b = np.zeros((n, n)), np.zeros((n, n))
        for i in range(n):
            for j in near[id(a)][i] & near[id(b)][i]:
                masked_a[i, j], masked_b[i, j] = a[i] @ a[j], b[i] @ b[j]
        together = np.trace(masked_a @ masked_b)
        apart = masked_a.sum() * masked_b.sum() / ((n - 1) * (n - 2))
        across = 2 * (np.ones(n) @ masked_a @ masked_b @ np.ones(n)) / (n - 2)
        return (together + apart - across) / (n * (n - 3))

    near = {id(rows): nearest(rows) for rows in (one, other)}
    return hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))


@pytest.mark.parametrize("block", [2**24, 3 * N])
def test_it_is_what_loops_over_the_definition_give(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cknna, "MAX_KERNEL_VALUES", block)
    one = make_rows(0)
    for other in (make_rows(1), one + 0.5 * make_rows(2), make_sparse(3)):
        expected = compute_by_loops(one.numpy(), other.numpy(), K)
        assert compute_cknna(one, other, K) == pytest.approx(expected, abs=1e-6)
        assert compute_cknna(one, csr_array(other.numpy()), K) == pytest.approx(expected, abs=1e-6)


def test_sparse_products_are_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = make_rows(0), csr_array(make_sparse(3).numpy())
    dense = compute_cknna(one, other, K)
    monkeypatch.setattr(cknna, "MAX_DENSE_VALUES", 0)
    assert compute_cknna(one, other, K) == pytest.approx(dense, abs=1e-12)


def test_of_a_thing_and_itself_it_is_1_however_it_is_turned_and_scaled() -> None:
    rows = make_rows(0, n=300)
    turn = torch.linalg.qr(make_rows(1, 7, 7)).Q
    assert compute_cknna(rows, rows) == pytest.approx(1, abs=1e-12)
    assert compute_cknna(rows, 3 * rows @ turn) == pytest.approx(1, abs=1e-9)
    assert compute_cknna(csr_array(make_sparse(2).numpy()), make_sparse(2)) == pytest.approx(1, abs=1e-12)


def test_it_falls_with_noise_and_is_near_0_of_what_has_nothing_in_common() -> None:
    rows = make_rows(0, n=500)
    found = [compute_cknna(rows, rows + noise * make_rows(1, n=500)) for noise in (0.1, 1.0)]
    assert 1 > found[0] > found[1] > 0.1
    assert abs(compute_cknna(rows, make_rows(2, n=500))) < 0.02
    shuffled = rows[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    assert abs(compute_cknna(rows, shuffled)) < 0.02


def test_rows_are_scaled_to_unit_norm_whether_sparse_or_not() -> None:
    rows = make_sparse(0)
    rows[3] = 0
    dense, sparse = scale_rows(rows), scale_rows(csr_array(rows.numpy()))
    assert isinstance(dense, torch.Tensor)
    assert isinstance(sparse, csr_array)
    np.testing.assert_allclose(sparse.toarray(), dense.numpy())
    assert np.allclose(np.linalg.norm(dense.numpy(), axis=1), np.where(rows.any(1), 1, 0))


def test_of_equally_near_rows_the_first_count() -> None:
    rows = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 0], [1, 0], [0, 0]])
    indices = np.sort(find_neighbours(rows, 3).indices, axis=1)
    np.testing.assert_array_equal(indices, [[1, 2, 4], [0, 2, 3], [0, 1, 4], [0, 1, 2], [0, 1, 2], [0, 1, 2]])


def test_silent_latents_have_no_neighbours_to_compare() -> None:
    assert np.isnan(compute_cknna(make_rows(0), torch.zeros(N, 4, dtype=torch.float64)))


def test_more_neighbours_than_rows_are_refused() -> None:
    with pytest.raises(InputError, match="more than 10 rows for the 10 nearest neighbours of each, got 10"):
        compute_cknna(make_rows(0, n=10), make_rows(1, n=10))
    with pytest.raises(InputError, match="as many rows of both, got 60 and 20"):
        compute_cknna(make_rows(0), make_rows(1, n=20))
