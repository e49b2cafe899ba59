"""CKNNA: whether the nearest neighbours of a token are those of its latent activations too, and equally near.

Source: Huh et al. (2024), "The Platonic representation hypothesis", in the form of their code, which MSAE (Zaigrajew
et al., 2025) uses on SAEs. Kernels K = X X^T and L = Z Z^T; of row i of both only those j != i count that are among
the k largest of row i in K and in L. CKNNA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), with the unbiased HSIC
of Song et al. (2012) and the mask of each pair of kernels. It is 1 for a kernel and itself, and near 0 for rows that
have nothing to do with each other. (Their code adds 1e-6 to the denominator, which is left out here.)

A masked kernel has at most n k entries: all that follows the search for neighbours takes time and memory linear in n.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from scipy.sparse import csr_array
from torch import Tensor

from infoscope.runtime.errors import InputError

MAX_KERNEL_VALUES = 2**24
"""Values of a kernel that are held at a time (64 MiB in float32)."""
MAX_DENSE_VALUES, DENSE_SHARE = 2**26, 1 / 64
"""Sparse rows are multiplied as dense ones where they have so many values at most and more than this share is not 0."""

Rows = Float[Tensor, "n d"] | csr_array
"""n vectors, as a matrix or as a sparse one."""


class Neighbours(NamedTuple):
    """The k rows with the largest inner products with each row, itself left out, in any order; and these products."""

    indices: Int64[np.ndarray, "n k"]
    values: Float64[np.ndarray, "n k"]


def compute_cknna(one: Rows, other: Rows, n_neighbours: int = 10) -> float:
    """Return the CKNNA of the same n things seen in two ways, at most about 1.

    Args:
        one, other: a row for each thing. They are taken as they are: centre them, or scale them to unit norm
            (`scale_rows`), before, if that is wanted. MSAE's code does neither when it evaluates an SAE: its embeddings
            have their mean; that of Huh et al. scales to unit norm.
        n_neighbours: k.

    Returns:
        NaN where a kernel has no spread of its own, such as latents that are all silent.

    Raises:
        InputError: as `find_neighbours`, or other numbers of rows.
    """
    (n, _), (n_other, _) = _find_shape(one), _find_shape(other)
    if n != n_other:
        raise InputError(f"Expected as many rows of both, got {n} and {n_other}.")
    kernels = [find_neighbours(rows, n_neighbours) for rows in (one, other)]
    (mask, values), (other_mask, other_values) = (_make_matrices(neighbours) for neighbours in kernels)
    both = mask.multiply(other_mask)
    own, others = _compute_hsic(values, values, n), _compute_hsic(other_values, other_values, n)
    if not (own > 0 and others > 0):
        return np.nan
    return _compute_hsic(both.multiply(values), both.multiply(other_values), n) / np.sqrt(own * others)


def find_neighbours(rows: Rows, k: int) -> Neighbours:
    """Return the nearest rows of each row by inner product, in blocks of the kernel.

    Of rows that are equally near the first ones count, so that the result is the same every time.

    Raises:
        InputError: no more rows than k, or fewer than 4.
    """
    n, _ = _find_shape(rows)
    if n <= max(k, 3):
        raise InputError(
            f"Expected more than {max(k, 3)} rows for the {k} nearest neighbours of each, got {n}: give more, or fewer"
            " neighbours."
        )
    found = [_take_largest(kernel, start, k) for start, kernel in _iterate_kernel(rows)]
    indices, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Neighbours(indices, values.astype(np.float64))


def scale_rows(rows: Rows) -> Rows:
    """Return the rows scaled to unit norm; rows of zeros stay as they are."""
    if isinstance(rows, Tensor):
        return F.normalize(rows, dim=1)
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1), dtype=np.float64))
    scaled = rows.copy()
    scaled.data = scaled.data / np.repeat(np.where(norms > 0, norms, 1), np.diff(rows.indptr)).astype(rows.dtype)
    return scaled


def _iterate_kernel(rows: Rows) -> Iterator[tuple[int, Float[Tensor, "n_some n"]]]:
    """Yield (first row, inner products of some rows with all), in the precision of the rows."""
    n, d = _find_shape(rows)
    if not isinstance(rows, Tensor) and n * d <= MAX_DENSE_VALUES and rows.nnz > DENSE_SHARE * n * d:
        rows = torch.from_numpy(rows.toarray())
    columns = rows.T if isinstance(rows, Tensor) else rows.T.tocsr()
    size = max(1, MAX_KERNEL_VALUES // n)
    for start in range(0, n, size):
        kernel = rows[start : start + size] @ columns
        yield start, kernel if isinstance(kernel, Tensor) else torch.from_numpy(kernel.toarray())


def _take_largest(
    kernel: Float[Tensor, "n_some n"], start: int, k: int
) -> tuple[Int64[np.ndarray, "n_some k"], Float[np.ndarray, "n_some k"]]:
    """Return where the k largest values of each row are, and these; the row's own place is left out.

    Args:
        kernel: is changed.
        start: the place of the first row.
    """
    own = torch.arange(len(kernel), device=kernel.device)
    kernel[own, start + own] = -torch.inf
    values, indices = kernel.topk(k, dim=1)
    least = values[:, -1:]
    is_tied = ((kernel == least).sum(1) > (values == least).sum(1)).nonzero()[:, 0]
    if len(is_tied):  # topk takes any of equal values
        tied, least = kernel[is_tied], least[is_tied]
        is_above, is_equal = tied > least, tied == least
        n_wanted = k - is_above.sum(1, keepdim=True)
        chosen = is_above | (is_equal & (is_equal.cumsum(1) <= n_wanted))
        indices[is_tied] = chosen.nonzero()[:, 1].view(-1, k)
        values[is_tied] = tied.gather(1, indices[is_tied])
    return indices.cpu().numpy(), values.cpu().numpy()


def _make_matrices(neighbours: Neighbours) -> tuple[csr_array, csr_array]:
    """Return the mask of a kernel, 1 where a row has a neighbour, and the masked kernel."""
    n, k = neighbours.indices.shape
    order = np.argsort(neighbours.indices, axis=1)
    columns, starts = np.take_along_axis(neighbours.indices, order, 1).ravel(), np.arange(n + 1) * k
    values = np.take_along_axis(neighbours.values, order, 1).ravel()
    mask, masked = (csr_array((of, columns, starts), shape=(n, n)) for of in (np.ones(n * k), values))
    return mask, masked


def _find_shape(rows: Rows) -> tuple[int, int]:
    n, d = rows.shape  # pyright: ignore[reportGeneralTypeIssues] # scipy's stubs know no shape
    return n, d


def _compute_hsic(one: csr_array, other: csr_array, n: int) -> float:
    """Return the unbiased HSIC of two n x n kernels, nothing on the diagonal (Song et al., 2012, equation 5)."""
    together = one.multiply(other.T.tocsr()).sum()
    apart = one.sum() * other.sum() / ((n - 1) * (n - 2))
    across = 2 * (one.sum(axis=0) @ other.sum(axis=1)) / (n - 2)
    return float((together + apart - across) / (n * (n - 3)))
