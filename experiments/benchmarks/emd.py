"""Pairs per second of exact and entropic earth mover's distances, all on the same maps in one run.

    python experiments/benchmarks/emd.py --pairs 1000 --side 13 --save outputs/emd_benchmark.json

Half of the pairs are local (one to three blobs that shift by about a patch), half scattered (a few heavy points that
stay, jump or vanish); one in ten of the local ones is left dense.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ot
import torch
from rich.console import Console
from rich.table import Table

from infoscope.scope.emd import compute_emd, patch_distances
from infoscope.scope.sinkhorn import compute_emd_sinkhorn


def make_local_pair(side: int, rng: np.random.Generator) -> np.ndarray:
    """Blobs, cut off at 12% of the maximum (one pair in ten is not); in the second map moved by about half a patch."""
    row, column = np.mgrid[:side, :side]
    maps = np.zeros((2, side, side))
    for _ in range(rng.integers(1, 4)):
        centre, spread, weight = rng.uniform(0, side - 1, 2), rng.uniform(0.5, 2.2), rng.lognormal(0, 0.5)
        for one, shift in zip(maps, (0.0, rng.normal(0, 0.6, 2)), strict=True):
            y, x = centre + shift
            one += weight * np.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * spread**2))
    maps *= rng.lognormal(0, 0.25, maps.shape)
    if rng.random() > 0.1:
        maps[maps < 0.12 * maps.max(axis=(1, 2), keepdims=True)] = 0
    return maps


def make_scattered_pair(side: int, rng: np.random.Generator) -> np.ndarray:
    """1 to 60 points of heavy-tailed mass; each stays or jumps to a random place, one in ten vanishes."""
    n = min(int(np.exp(rng.uniform(0, np.log(60)))), side * side)
    places, mass = rng.choice(side * side, n, replace=False), rng.lognormal(0, 1, n)
    moved = np.where(rng.random(n) < rng.uniform(0.2, 0.8), places, rng.integers(side * side, size=n))
    left = rng.random(n) < 0.9
    left[0] = True
    maps = np.zeros((2, side * side))
    maps[0, places] = mass
    np.add.at(maps[1], moved[left], (mass * rng.lognormal(0, 0.3, n))[left])
    return maps.reshape(2, side, side)


def make_pairs(n_pairs: int, side: int, seed: int) -> np.ndarray:
    """Return maps [2, n_pairs, side, side], float32."""
    rng = np.random.default_rng(seed)
    makers = (make_local_pair, make_scattered_pair)
    pairs = [makers[i % 2](side, rng) for i in range(n_pairs)]
    return np.stack(pairs, axis=1).astype(np.float32)


def solve_with_pot(maps1: np.ndarray, maps2: np.ndarray, on_supports: bool) -> np.ndarray:
    """ot.emd2 pair by pair, on the whole grid or on the patches with mass; nothing is cancelled."""
    cost = np.array(patch_distances(maps1.shape[-1]))
    distances = []
    for first, second in zip(maps1, maps2, strict=True):
        a, b = (one.ravel().astype(np.float64) / one.sum(dtype=np.float64) for one in (first, second))
        rows, columns = (np.flatnonzero(w) if on_supports else np.arange(len(w)) for w in (a, b))
        distances.append(ot.emd2(a[rows], b[columns], cost[np.ix_(rows, columns)]))
    return np.array(distances)


def measure(maps: np.ndarray, repeats: int, n_sinkhorn: int) -> list[dict[str, float | str | int]]:
    """Time every method, the best of `repeats`; errors in units of D_grid against POT on the whole grid."""
    n_pairs, side = len(maps[0]), maps.shape[-1]
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    methods: list[tuple[str, int, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = [
        ("POT emd2, whole grid", n_pairs, lambda a, b: solve_with_pot(a, b, on_supports=False)),
        ("POT emd2, supports", n_pairs, lambda a, b: solve_with_pot(a, b, on_supports=True)),
        ("infoscope exact, 1 process", n_pairs, lambda a, b: compute_emd(a, b, 1)),
        (f"infoscope exact, {n_cores} processes at most", n_pairs, lambda a, b: compute_emd(a, b, n_cores)),
    ]
    for blur in (0.2, 0.1, 0.05):
        methods.append((f"geomloss, blur {blur}", n_sinkhorn, lambda a, b, x=blur: compute_emd_sinkhorn(a, b, x)))
    rows, reference = [], np.empty(0)
    for name, n, solve in methods:
        seconds = []
        found = reference
        for _ in range(repeats):
            start = time.perf_counter()
            found = solve(maps[0][:n], maps[1][:n])
            seconds.append(time.perf_counter() - start)
        reference = found if len(reference) == 0 else reference
        error = (found - reference[:n]) / (np.sqrt(2) * (side - 1))
        rows.append(
            {
                "method": name,
                "n_pairs": n,
                "pairs_per_s": n / min(seconds),
                "mean_error": float(error.mean()),
                "max_abs_error": float(np.abs(error).max()),
            }
        )
    return rows


def print_table(rows: list[dict], title: str) -> None:
    """Print one line per method."""
    table = Table("method", "pairs", "pairs/s", "mean error", "largest error", title=title)
    for row in rows:
        errors = (f"{row['mean_error']:+.1e}", f"{row['max_abs_error']:.1e}")
        table.add_row(row["method"], str(row["n_pairs"]), f"{row['pairs_per_s']:.0f}", *errors)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--sinkhorn-pairs", type=int, default=100, help="pairs for geomloss, which is much slower")
    parser.add_argument("--side", type=int, default=13, help="patches per side of the shared region")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, which geomloss runs on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--tiny", action="store_true", help="take a second, and tell no more than that it runs")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(pairs=8, sinkhorn_pairs=2, side=5, repeats=1)
    torch.set_num_threads(options.threads)
    maps = make_pairs(options.pairs, options.side, options.seed)
    rows = measure(maps, options.repeats, min(options.sinkhorn_pairs, options.pairs))
    print_table(rows, f"Distances between {options.side} x {options.side} maps; errors in units of D_grid")
    if options.save:
        facts = {key: str(value) for key, value in vars(options).items() if key != "save"}
        facts |= {"machine": platform.machine(), "python": platform.python_version(), "pot": ot.__version__}
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(json.dumps({"settings": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
