"""The earth mover's distance between pairs of small maps, exactly and for many pairs at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import ot
from jaxtyping import Float

from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.forks import map_ahead
from infoscope.runtime.progress import ignore

CHUNK_PAIRS = 2048
"""Pairs per unit of work. Each pair is solved alone, so neither this nor the number of workers changes a result."""

MIN_PAIRS_PER_WORKER = 4096
"""Below this many pairs each (a quarter of a second of work), fewer workers are started."""

ROUNDING = 1e-15
"""Differences of normalised maps up to this are rounding, not mass; at most 1e-15 * n_patches of mass is lost."""

MAX_ITERATIONS = 1_000_000


def compute_emd(
    maps1: Float[np.ndarray, "n_pairs side side"],
    maps2: Float[np.ndarray, "n_pairs side side"],
    n_workers: int = 1,
    progress: Callable[[int], object] = ignore,
) -> Float[np.ndarray, " n_pairs"]:
    """Return exact earth mover's distances in patches (float64), each map divided by its sum first.

    The ground distance is Euclidean between patch centres. NaN where either map is all zero.

    Args:
        maps1, maps2: non-negative and finite, of any dtype; normalised in float64.
        n_workers: processes at most (POT's solver holds the interpreter lock, so threads do not help); 0 for one per
            core. The result does not depend on it.
        progress: called with the number of pairs done.

    Raises:
        InputError: if shapes differ, a map is not square, or a value is negative or not finite.
    """
    chunks, n_workers = list(_chunks(maps1, maps2)), count_workers(len(maps1), n_workers)
    emd = [np.empty(0)]
    # A helper runs NumPy and POT's solver on one thread; a fresh interpreter would first import torch and all that.
    for solved in map_ahead(_emd_of_chunk, chunks, n_workers if n_workers > 1 else 0, "set scope.n_workers=1"):
        emd.append(solved)
        progress(sum(map(len, emd)))
    return np.concatenate(emd)


def count_workers(n_pairs: int, n_workers: int) -> int:
    """Return how many of `n_workers` (0: one per core) are worth starting for `n_pairs` pairs; at least 1."""
    n_workers = n_workers or processes.count_cores()
    return max(1, min(n_workers, n_pairs // MIN_PAIRS_PER_WORKER))


def normalise_maps(maps: np.ndarray) -> Float[np.ndarray, "n_pairs n_patches"]:
    """Flatten maps and divide each by its sum, in float64; all-zero maps stay zero."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    total = flat.sum(axis=1, keepdims=True)
    return np.divide(flat, total, out=np.zeros_like(flat), where=total > 0)


@cache
def patch_distances(side: int) -> Float[np.ndarray, "n_patches n_patches"]:
    """Return the distances between the centres of all patches of a side x side grid, in patches; read-only."""
    row, column = np.divmod(np.arange(side * side), side)
    distances = np.hypot(row[:, None] - row[None, :], column[:, None] - column[None, :])
    distances.flags.writeable = False
    return distances


def check_pairs(maps1: np.ndarray, maps2: np.ndarray) -> None:
    """Refuse maps that are not pairs of one square shape [n_pairs, side, side].

    Raises:
        InputError: such maps.
    """
    if maps1.shape != maps2.shape or maps1.ndim != 3 or maps1.shape[1] != maps1.shape[2]:
        raise InputError(
            f"Expected two arrays of maps of one shape [n_pairs, side, side], got {list(maps1.shape)} and"
            f" {list(maps2.shape)}: cut both crops' maps to the shared region."
        )


def _chunks(maps1: np.ndarray, maps2: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    check_pairs(maps1, maps2)
    for start in range(0, len(maps1), CHUNK_PAIRS):
        part1, part2 = maps1[start : start + CHUNK_PAIRS], maps2[start : start + CHUNK_PAIRS]
        for part in (part1, part2):
            if not (np.isfinite(part).all() and (part >= 0).all()):
                raise InputError(
                    "Expected maps of finite values of at least 0, got a negative value, NaN or Inf: check the SAE."
                )
        yield part1, part2


def _emd_of_chunk(chunk: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Solve a chunk: what is left after cancelling common mass has a closed form, or goes to the solver."""
    maps1, maps2 = chunk
    cost = patch_distances(maps1.shape[-1])
    weights1, weights2 = normalise_maps(maps1), normalise_maps(maps2)
    # mass that both maps have in a patch need not move: for a metric, cancelling min(a, b) is exact
    rest = weights1 - weights2
    rest[np.abs(rest) <= ROUNDING] = 0
    n_sources, n_sinks = (rest > 0).sum(axis=1), (rest < 0).sum(axis=1)
    has_mass = weights1.any(axis=1) & weights2.any(axis=1)
    open_pairs = has_mass & (n_sources > 0) & (n_sinks > 0)

    emd = np.where(has_mass, 0.0, np.nan)  # 0 for identical maps, whose rest is empty
    one_source = open_pairs & (n_sources == 1)
    emd[one_source] = _move_all(-rest[one_source], cost[rest[one_source].argmax(axis=1)])
    one_sink = open_pairs & (n_sinks == 1) & ~one_source
    emd[one_sink] = _move_all(rest[one_sink], cost[rest[one_sink].argmin(axis=1)])
    for pair in np.flatnonzero(open_pairs & ~one_source & ~one_sink):
        emd[pair] = _solve(rest[pair], cost)
    return emd


def _move_all(rest: np.ndarray, to_point: np.ndarray) -> np.ndarray:
    """Return the cost of moving all positive mass of each row to (or from) one point."""
    return np.einsum("np,np->n", rest.clip(min=0), to_point)


def _solve(rest: np.ndarray, cost: np.ndarray) -> float:
    """Move the positive part of `rest` onto its negative part by POT's network simplex, on the supports alone."""
    sources, sinks = np.flatnonzero(rest > 0), np.flatnonzero(rest < 0)
    supply, demand = rest[sources], -rest[sinks]
    mass = supply.sum()
    # unit mass: the solver's tolerances are absolute, and nearly equal maps leave very little
    solve = _find_kernel() or _solve_publicly
    return float(mass * solve(supply / mass, demand / demand.sum(), cost[sources[:, None], sinks]))


def _solve_publicly(supply: np.ndarray, demand: np.ndarray, cost: np.ndarray) -> float:
    _, log = ot.emd(
        supply,
        demand,
        cost,
        numItermax=MAX_ITERATIONS,
        log=True,
        center_dual=False,  # the duals are not used, and centring them costs more than small problems take
        check_marginals=False,
    )
    assert log["warning"] is None, log["warning"]
    return log["cost"]


@cache
def _find_kernel() -> Callable[[np.ndarray, np.ndarray, np.ndarray], float] | None:
    """Return what `ot.emd` calls, to the same bits: what it does around that takes half of the time of small problems.

    None where this POT has it under another name or with other arguments.
    """
    try:
        from ot.lp.emd_wrap import emd_c

        def solve(supply: np.ndarray, demand: np.ndarray, cost: np.ndarray) -> float:
            _, found, _, _, code = emd_c(supply, demand * supply.sum() / demand.sum(), cost, MAX_ITERATIONS, 1)
            assert code == 1, f"POT's solver ended with code {code}"  # 1: optimal
            return found

        half = np.full(2, 0.5)
        return solve if abs(solve(half, half, np.array([[3.0, 1.0], [2.0, 3.0]])) - 1.5) < 1e-12 else None
    except (ImportError, TypeError, ValueError, AssertionError):
        return None
