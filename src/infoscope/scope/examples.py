"""Features to show: which ones, how sure their group is, and whether they are locked to a place of the grid."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from infoscope.scope.cds import CDS
from infoscope.scope.partition import Partition
from infoscope.scope.sparse_maps import SparseMaps

MAX_GROUPS = 3
"""Groups that are shown: of more bands the lowest, the middle and the highest."""
LOCKED_SHARE, LOCKED_MASS = 0.9, 0.5
"""A feature is called position-locked where such a share of its maps have their maximum at one place of the grid, and
such a share of all their activation lies there (ours)."""
CHUNK_VALUES = 2**24
"""Values of maps looked at at a time: 64 MiB."""


def find_locked(maps: SparseMaps | Float[np.ndarray, "d_sae k_max 2 grid grid"], k: int) -> Bool[np.ndarray, " d_sae"]:
    """Return which latents fire at one place of the grid whatever the picture.

    Of the maps of both crops of the first `k` images, those in which the latent fires: nine tenths have their maximum
    at the same place of the grid, and half of all their activation lies there. False where it fires in fewer than half
    of the maps.
    """
    d_sae, n_places = len(maps), maps.shape[-1] * maps.shape[-2]
    locked = np.zeros(d_sae, dtype=bool)
    n_at_once = max(1, CHUNK_VALUES // (2 * k * n_places))
    for start in range(0, d_sae, n_at_once):
        of_latent = maps[start : start + n_at_once, :k].reshape(-1, 2 * k, n_places)
        fires, n = of_latent.max(axis=2) > 0, len(of_latent)
        place = of_latent.argmax(axis=2) + n_places * np.arange(n)[:, None]
        n_at_place = np.bincount(place[fires], minlength=n * n_places).reshape(n, n_places)
        n_fires, total = fires.sum(axis=1), of_latent.sum(axis=1, dtype=np.float64)
        is_compact = total[np.arange(n), n_at_place.argmax(axis=1)] >= LOCKED_MASS * total.sum(axis=1)
        peaks_there = n_at_place.max(axis=1) >= LOCKED_SHARE * n_fires
        locked[start : start + n] = peaks_there & is_compact & (n_fires >= k)
    return locked


def choose_example_latents(
    cds: CDS, partition: Partition, undecided: Bool[np.ndarray, " d_sae"], n_examples: int, k: int
) -> dict[str, list[int]]:
    """Return up to `n_examples` latents by group, equally many of each, spread evenly over its scores, ascending.

    Low scores come first. Where a group has enough latents of which all `k` pairs are valid and whose group is settled,
    they come from those; else from its settled ones, if there are any. Deterministic (equal scores by latent).

    Args:
        undecided: whose group is not settled, see `infoscope.scope.agreement.find_undecided`.
    """
    names = [name for name, members in partition.groups.items() if members.any()]
    names.sort(key=lambda name: float(np.median(cds.values[partition.groups[name]])))
    shown = np.linspace(0, len(names) - 1, min(len(names), MAX_GROUPS)).round().astype(int)
    n_each, chosen = n_examples // max(1, len(shown)), {}
    for name in (names[i] for i in shown):
        settled = partition.groups[name] & ~undecided
        full = settled & (cds.n_valid == k)
        best = full if full.sum() >= n_each else settled if settled.any() else partition.groups[name]
        latents = np.flatnonzero(best)
        latents = latents[np.argsort(cds.values[latents], kind="stable")]
        n = min(n_each, len(latents))
        chosen[name] = latents[((np.arange(n) + 0.5) / n * len(latents)).astype(int)].tolist()
    return chosen
