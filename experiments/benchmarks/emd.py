"""Pairs per second of exact and entropic earth mover's distances, all on the same maps, in turns in one run.

    python experiments/benchmarks/emd.py --save                                # made-up maps, 15 x 15
    python experiments/benchmarks/emd.py --side 11
    python experiments/benchmarks/emd.py --score outputs/artifacts/score/...   # the maps of features

Of the made-up pairs half are local (one to three blobs that shift by about a patch), half scattered (a few heavy points
that stay, jump or vanish); one in ten of the local ones is left dense. Of an artifact of stage=score, pairs of the
first --ranks images per feature are drawn: half of them as they are, half the chance pairs.

Limit: POT's solver alone, for each pair that needs it, with everything prepared.

Is scoring bound by this? No (results/emd-real-*.json; DINOv2 S/14 on 400 photographs). With 12,288 latents a map has 10
of 225 patches active on average, 24 in a feature's strongest image: 49,864 and 21,009 pairs/s on one core. The 2.1
million pairs of ViT-L/14 with 65,536 latents then take 42 to 100 s of one core, so 3 to 6 s of 16 and 5 to 13 s of 8,
while a GPU encodes for 55 s, and 21 to 50 s of two cores, whose forwards take hours. Were maps as full as the strongest
of 3,072 latents (52 patches), they took 236 s of one core: 30 s of 8, still hidden. So a network simplex compiled by
numba (--beside), 2.1 to 3.3 times as fast, is not worth its 240 lines and a dependency.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import ot
import torch
from harness import make_parser, make_rows, print_rows, save, take_turns
from ot.lp.emd_wrap import emd_c

from infoscope.scope.crops import shared_region
from infoscope.scope.emd import MAX_ITERATIONS, ROUNDING, compute_emd, normalise_maps, patch_distances
from infoscope.scope.scores import Scores
from infoscope.scope.sinkhorn import compute_emd_sinkhorn

Solve = Callable[[np.ndarray, np.ndarray], np.ndarray]
FULL_PAIRS = 2 * 65_536 * 16
"""Of ViT-L/14 with 65,536 latents and 16 images each: their own and the chance pairs."""
BLURS = (0.2, 0.1, 0.05)


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


def draw_pairs(scores: Scores, n_pairs: int, n_ranks: int, seed: int) -> np.ndarray:
    """Return maps [2, n_pairs, side, side] of a score artifact: its own pairs, then chance pairs."""
    rng, valid = np.random.default_rng(seed), np.isfinite(scores.emd)
    maps1, maps2 = [], []
    for distances in (scores.emd, scores.chance_emd):
        pairs = np.argwhere(np.isfinite(distances[:, :n_ranks]))
        for latent, rank in rng.permutation(pairs)[: n_pairs // 2]:
            ranks = np.flatnonzero(valid[latent])
            following = ranks[(np.searchsorted(ranks, rank) + 1) % len(ranks)]
            second = rank if distances is scores.emd else following
            for maps, of, crop in ((maps1, rank, 1), (maps2, second, 2)):
                one = np.asarray(scores.maps[latent, of])[crop - 1]
                maps.append(shared_region(one, scores.shift_patches, crop, scores.diagonal))
    return np.stack([np.stack(maps1), np.stack(maps2)])


def solve_with_pot(maps1: np.ndarray, maps2: np.ndarray, on_supports: bool) -> np.ndarray:
    """ot.emd2 pair by pair, on the whole grid or on the patches with mass; nothing is cancelled."""
    cost = np.array(patch_distances(maps1.shape[-1]))
    distances = []
    for a, b in zip(normalise_maps(maps1), normalise_maps(maps2), strict=True):
        rows, columns = (np.flatnonzero(w) if on_supports else np.arange(len(w)) for w in (a, b))
        distances.append(ot.emd2(a[rows], b[columns], cost[np.ix_(rows, columns)]))
    return np.array(distances)


def make_limit(maps: np.ndarray) -> Callable[[], object]:
    """Return what solves the problems that are left when common mass is cancelled, all prepared."""
    cost, problems = np.array(patch_distances(maps.shape[-1])), []
    for rest in normalise_maps(maps[0]) - normalise_maps(maps[1]):
        sources, sinks = np.flatnonzero(rest > ROUNDING), np.flatnonzero(rest < -ROUNDING)
        if min(len(sources), len(sinks)) > 1:
            supply, demand = rest[sources], -rest[sinks]
            problems.append((supply / supply.sum(), demand / demand.sum(), cost[np.ix_(sources, sinks)]))
    return lambda: [emd_c(*problem, MAX_ITERATIONS, 1) for problem in problems]


def make_other(name: str, side: int) -> Solve:
    """Return a solver of somebody else's, in our units: MODULE:CLASS, made with the side, called with flat maps."""
    module, _, attribute = name.partition(":")
    solver = getattr(import_module(module), attribute)(side)

    def solve(maps1: np.ndarray, maps2: np.ndarray) -> np.ndarray:
        flat1, flat2 = (maps.reshape(len(maps), -1).astype(np.float64) for maps in (maps1, maps2))
        return solver(flat1, flat2) * np.sqrt(2) * (side - 1)

    return solve


def measure(maps: np.ndarray, options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Return how fast each side is, and its errors, in units of D_grid, against POT on the whole grid."""
    side, few = maps.shape[-1], maps[:, :: max(1, maps.shape[1] // options.few)]
    exact: dict[str, Solve] = {
        "ours": partial(compute_emd, n_workers=1),
        "POT emd2, supports": partial(solve_with_pot, on_supports=True),
    }
    if options.beside:
        exact[options.beside] = make_other(options.beside, side)
    slow: dict[str, Solve] = {
        "POT emd2, whole grid": partial(solve_with_pot, on_supports=False),
        **{f"geomloss, blur {blur}": partial(compute_emd_sinkhorn, blur=blur) for blur in BLURS},
    }
    sides = {name: (partial(solve, *maps), maps) for name, solve in exact.items()}
    sides |= {name: (partial(solve, *few), few) for name, solve in slow.items()}
    limit = "limit: POT's solver alone"
    seconds = take_turns({name: run for name, (run, _) in sides.items()} | {limit: make_limit(maps)}, options.repeats)
    rows = []
    for name, times in seconds.items():
        n_pairs = sides[name][1].shape[1] if name in sides else maps.shape[1]
        rows += [{"n_pairs": n_pairs, **row} for row in make_rows({name: times}, n_pairs, "pairs")]
    errors = []
    for name, (solve, on) in sides.items():
        error = (solve() - solve_with_pot(*on, on_supports=False)) / (np.sqrt(2) * (side - 1))
        errors.append({"side": name, "mean_error": float(error.mean()), "max_abs_error": float(np.abs(error).max())})
    return rows, errors


def describe_maps(maps: np.ndarray) -> dict[str, float]:
    """Return how full maps are, and how many pairs need a solver."""
    active = (maps > 0).sum(axis=(2, 3))
    rest = normalise_maps(maps[0]) - normalise_maps(maps[1])
    least = np.minimum((rest > ROUNDING).sum(axis=1), (rest < -ROUNDING).sum(axis=1))
    return {
        "patches": int(maps.shape[-1] ** 2),
        "mean_active_patches": float(active.mean()),
        "median_active_patches": float(np.median(active)),
        "share_with_closed_form": float((least <= 1).mean()),
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--few", type=int, default=100, help="pairs for what is much slower")
    parser.add_argument("--side", type=int, default=15, help="patches per side of the shared region")
    parser.add_argument("--score", type=Path, help="the folder of an artifact of stage=score, whose maps are taken")
    parser.add_argument("--ranks", type=int, default=16, help="of its images per feature, the first so many")
    parser.add_argument("--beside", help="another exact solver, MODULE:CLASS, see make_other")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, which geomloss runs on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(pairs=8, few=2, side=5, repeats=1)
    torch.set_num_threads(options.threads)
    name = f"emd-{options.side}x{options.side}"
    if options.score is None:
        maps = make_pairs(options.pairs, options.side, options.seed)
    else:
        scores = Scores.load(options.score)
        maps = draw_pairs(scores, options.pairs, options.ranks, options.seed)
        options.score, options.side = f"{options.score.name}, {len(scores.emd)} latents", maps.shape[-1]
        name = f"emd-real-{len(scores.emd)}-latents-{options.ranks}-ranks"
    facts = describe_maps(maps)
    print(" ".join(f"{name}={value:.3g}" for name, value in facts.items()))
    rows, errors = measure(maps, options)
    print_rows(rows, f"Distances between {options.side} x {options.side} maps")
    print_rows(errors, "Errors, in units of D_grid")
    core_s = FULL_PAIRS / rows[0]["pairs_per_s"]
    print(f"{FULL_PAIRS:,} pairs (ViT-L/14, 65,536 latents): {core_s:.0f} s of one core, {core_s / 16:.1f} s of 16")
    if options.save:
        full_size = {"pairs": FULL_PAIRS, "core_s": core_s}
        save(name, options, maps=facts, rows=rows, errors=errors, full_size=full_size)


if __name__ == "__main__":
    main()
