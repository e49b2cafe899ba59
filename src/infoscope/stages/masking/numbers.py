"""Means and spreads of masks over SAE seeds and draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infoscope.analyses.masking import MaskingResult
from infoscope.report.tables import Stat, compute_stat


@dataclass(frozen=True)
class Point:
    """A mask without its draw, see `Mask`."""

    curve: str
    n_latents: int
    keeps: bool
    error_kept: bool


@dataclass(frozen=True)
class PointStats:
    """What a mask gives, over SAE seeds (and draws).

    top1_by_seed: the mean over draws of each seed.
    """

    top1: Stat
    true_prob: Stat
    n_chosen: Stat
    n_distinct: Stat
    top1_by_seed: Mapping[int, float]


Points = Mapping[Point, PointStats]


def join_masks(results: Mapping[int, MaskingResult]) -> Points:
    """Return what each mask gives over SAE seeds and draws, in the order of the curves and of the numbers.

    Args:
        results: by SAE seed.
    """
    found: dict[Point, list[tuple[int, float, float, float, float]]] = {}
    for seed, result in results.items():
        for place, mask in enumerate(result.masks):
            point = Point(mask.curve, mask.n_latents, mask.keeps, mask.error_kept)
            numbers = (seed, result.top1(place), result.true_prob(place), mask.n_chosen, mask.n_distinct)
            found.setdefault(point, []).append(numbers)
    return {point: _join(runs) for point, runs in found.items()}


def _join(runs: list[tuple[int, float, float, float, float]]) -> PointStats:
    seeds, top1, true_prob, n_chosen, n_distinct = zip(*runs, strict=True)
    by_seed = {
        seed: compute_stat(one for of, one in zip(seeds, top1, strict=True) if of == seed).mean
        for seed in dict.fromkeys(seeds)
    }
    return PointStats(
        compute_stat(top1), compute_stat(true_prob), compute_stat(n_chosen), compute_stat(n_distinct), by_seed
    )
