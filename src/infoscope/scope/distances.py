"""Distances between maps of shifted crops, also while other maps are still made."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from infoscope.runtime import processes
from infoscope.runtime.forks import Helpers
from infoscope.runtime.profile import Kind, spent_on
from infoscope.runtime.progress import Advance, ignore
from infoscope.scope import crops
from infoscope.scope.config import EMDMethod, ScopeConfig
from infoscope.scope.emd import compute_emd
from infoscope.scope.maps import Pairs
from infoscope.scope.sinkhorn import compute_emd_sinkhorn
from infoscope.scope.sparse_maps import CHUNK_PAIRS, SparseMaps

Rows = Int[np.ndarray, " n_pairs"]
"""Pairs of a latent and a rank, counted through all ranks of the first latent, of the second, ..."""


def solve_pairs(
    first: SparseMaps,
    second: SparseMaps,
    config: ScopeConfig,
    n_workers: int,
    progress: Callable[[int], object] = ignore,
) -> Float[np.ndarray, " n_pairs"]:
    """Return the distances in patches between crop 1 of some maps and crop 2 of others, on what both crops show.

    Each pair is solved alone: what else is asked for at the same time changes nothing.
    """
    with spent_on(Kind.emd):
        maps1, maps2 = _cut_out(first, 0, config), _cut_out(second, 1, config)
        if config.emd is EMDMethod.sinkhorn:
            return compute_emd_sinkhorn(maps1, maps2, config.sinkhorn_blur, progress)
        return compute_emd(maps1, maps2, n_workers, progress)


def _cut_out(maps: SparseMaps, side: int, config: ScopeConfig) -> Float[np.ndarray, "n_pairs side side"]:
    """Return the shared region of one crop; never more dense maps than that."""
    n_patches = maps.shape[-1] - config.shift_patches
    shared = np.empty((len(maps), n_patches, n_patches), np.float32)
    for start in range(0, len(maps), CHUNK_PAIRS):
        some = slice(start, start + CHUNK_PAIRS)
        shared[some] = crops.shared_region(maps[some, side], config.shift_patches, side + 1, config.diagonal)
    return shared


def compute_masses(maps: SparseMaps, config: ScopeConfig) -> Float[np.ndarray, "... 2"]:
    """Return the summed activation of crop 1 and crop 2 on what both show, in float64."""
    is_shared = np.zeros(maps.shape[-3:], dtype=bool)
    for side in (0, 1):
        crops.shared_region(is_shared[side], config.shift_patches, side + 1, config.diagonal)[:] = True
    return maps.sum_over(is_shared)


class KnownDistances(NamedTuple):
    """What was computed ahead; NaN: it was not.

    masses: as of `compute_masses`.
    emd, chance_emd: in patches.
    """

    masses: Float[np.ndarray, "d_sae k_max 2"]
    emd: Float[np.ndarray, "d_sae k_max"]
    chance_emd: Float[np.ndarray, "d_sae k_max"]


class DistancesAhead:
    """Distances of pairs whose maps are there, computed by helpers while this process goes on making maps.

    A chance distance is that to the next rank with mass: it can be asked for when all ranks up to that one are known.

    Args:
        ranked: where there is an image at that rank.

    Raises:
        InputError: helpers cannot be started; later, if one was killed.
    """

    def __init__(self, ranked: Bool[np.ndarray, "d_sae k_max"], grid: int, config: ScopeConfig) -> None:
        self._config, self._maps = config, SparseMaps.make_room((*ranked.shape, 2, grid, grid), int(ranked.sum()))
        self._is_known, self._is_valid, self._has_chance = ~ranked, *np.zeros((2, *ranked.shape), dtype=bool)
        self._emd, self._chance_emd, *masses = np.full((4, ranked.size), np.nan)
        self._masses = np.stack(masses, axis=-1)
        self._asked: list[tuple[Float[np.ndarray, " n"], Rows, Future[np.ndarray]]] = []
        n_helpers = _count_helpers(config)
        self._helpers = Helpers([partial(_help, config)] * n_helpers, "set scope.n_workers=1")
        self._threads = ThreadPoolExecutor(n_helpers)  # each waits for a helper
        self._idle: SimpleQueue[int] = SimpleQueue()
        for number in range(n_helpers):
            self._idle.put(number)

    def __enter__(self) -> DistancesAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._helpers.end()

    def add(self, pairs: Pairs, maps: SparseMaps) -> None:
        """Ask for the distances that can be computed now that these maps [n_pairs, 2, grid, grid] are there, too."""
        latents, ranks = pairs
        rows, masses = latents * self._is_known.shape[1] + ranks, compute_masses(maps, self._config)
        is_valid = (masses > 0).all(axis=1)
        self._maps.put(rows, maps)
        self._masses[rows], self._is_known[pairs], self._is_valid[pairs] = masses, True, is_valid
        self._ask(self._emd, rows[is_valid], rows[is_valid])
        self._ask(self._chance_emd, *self._find_chance(np.unique(latents)))

    def finish(self, progress: Advance = ignore) -> KnownDistances:
        """Wait for all that was asked for.

        Args:
            progress: called with (pairs, all pairs).
        """
        n_done, n_all = 0, sum(len(rows) for _, rows, _ in self._asked)
        for into, rows, found in self._asked:
            with spent_on(Kind.waiting):
                into[rows] = found.result()
            n_done += len(rows)
            progress(n_done, n_all)
        shape = self._is_known.shape
        return KnownDistances(
            *(of.reshape(*shape, *of.shape[1:]) for of in (self._masses, self._emd, self._chance_emd))
        )

    def _find_chance(self, latents: Int[np.ndarray, " n"]) -> tuple[Rows, Rows]:
        """Return the valid pairs of some latents whose next valid one is now known, and these; each is found once."""
        k_max, is_valid = self._is_known.shape[1], self._is_valid[latents]
        is_end = is_valid | ~self._is_known[latents]
        searching, following = is_valid & ~self._has_chance[latents], np.full(is_valid.shape, -1)
        for step in range(1, k_max):  # the last goes round to the first
            rank = (np.arange(k_max) + step) % k_max
            ends = searching & is_end[:, rank]
            following = np.where(ends & is_valid[:, rank], rank, following)
            searching &= ~ends
        found, ranks = np.nonzero(following >= 0)
        self._has_chance[latents[found], ranks] = True
        return latents[found] * k_max + ranks, latents[found] * k_max + following[found, ranks]

    def _ask(self, into: Float[np.ndarray, " n"], first: Rows, second: Rows) -> None:
        for start in range(0, len(first), CHUNK_PAIRS):
            some = slice(start, start + CHUNK_PAIRS)
            self._asked.append((into, first[some], self._threads.submit(self._have_solved, first[some], second[some])))

    def _have_solved(self, first: Rows, second: Rows) -> np.ndarray:
        number = self._idle.get()
        try:
            self._helpers.ask(number, (self._maps.take(first), self._maps.take(second)))
            return self._helpers.receive(number)
        finally:
            self._idle.put(number)


def can_solve_ahead(config: ScopeConfig) -> bool:
    """Whether there are helpers to compute distances ahead, and one process that knows all maps."""
    return config.emd is EMDMethod.exact and _count_helpers(config) > 1 and processes.current().size == 1


def _count_helpers(config: ScopeConfig) -> int:
    return config.n_workers or processes.count_cores()


def _help(config: ScopeConfig, pairs: tuple[SparseMaps, SparseMaps]) -> np.ndarray:
    """What a helper does."""
    _give_way()
    return solve_pairs(*pairs, config, 1)


@cache
def _give_way() -> None:
    """Let those who read images, and who feeds the device, go first."""
    if hasattr(os, "nice"):  # Windows has none
        os.nice(10)
