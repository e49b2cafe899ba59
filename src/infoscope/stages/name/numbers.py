"""What is said of names, as numbers over SAE seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infoscope.analyses.name_result import NameResult
from infoscope.report.tables import Stat, compute_stat


class Found(NamedTuple):
    """What was found of an SAE seed.

    groups: by score; none where nothing is scored. level_ends: of a Matryoshka SAE, as shares of all
    latents. target: whose classes the swept classifier tells apart.
    """

    result: NameResult
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]]
    level_ends: tuple[float, ...]
    target: str

    @property
    def levels(self) -> dict[str, Bool[np.ndarray, " d_sae"]]:
        """The Matryoshka levels; none where there are none."""
        d_sae = len(self.result.n_firing)
        ends = [round(end * d_sae) for end in self.level_ends]
        latents = np.arange(d_sae)
        return {
            f"level {i}": (latents >= start) & (latents < end)
            for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        }


def summarise(result: NameResult) -> dict[str, dict[str, float]]:
    """Return the numbers of each reading, by its name and then by column."""
    return {reading: _summarise_reading(result, place) for place, reading in enumerate(result.readings)}


def _summarise_reading(result: NameResult, place: int) -> dict[str, float]:
    valid, named = result.valid[place], result.best[place, :, 0] >= 0
    return {
        "n_named": int(named.sum()),
        "n_valid": int(valid.sum()),
        "n_distinct": len(result.find_distinct(place)),
        "median_cosine": float(np.median(result.cosines[place, named, 0])) if named.any() else math.nan,
        "median_ratio": float(np.nanmedian(np.r_[result.ratio[place, named], np.nan])) if named.any() else math.nan,
        "n_permuted": float(result.by_chance[place, 0].mean()),
        "n_random": float(result.by_chance[place, 1].mean()),
        "is_best": mean_of(result.is_best[place, valid]),
        "is_best_random": mean_of(result.by_random[place, 0]),
        "is_best_others": mean_of(result.is_best[place, named & ~valid]),
        "is_beyond": mean_of(result.is_beyond[place, valid]),
        "is_beyond_random": mean_of(result.by_random[place, 1]),
        "best_beyond": float(result.best_beyond[place]),
    }


def mean_of(values: Float[np.ndarray, " n"]) -> float:
    """Return the mean of what is finite; NaN of nothing."""
    return compute_stat(values.tolist()).mean


def join(found: Sequence[Found], read: Callable[[NameResult], float]) -> Stat:
    """Return a number of each seed's result, over SAE seeds."""
    return compute_stat(read(one.result) for one in found)


class Bias(NamedTuple):
    """What sweeping says of all pairs of a named concept and a class; without concepts that are classes themselves.

    correlation: of slope and association, over pairs of which both are known; NaN of fewer than three.
    n_concepts: how many there are.
    n_coupled: of these, in whose training images one class has over twice its share in all.
    top: share of the coupled ones in whose sweep that class rises most. by_chance: of a class at random.
    slope_coupled, slope_other: mean slope of such pairs, and of all others. slope_random: of such pairs, with as many
        random latents in the place of the concept's.
    """

    correlation: float
    n_concepts: int
    n_coupled: int
    top: float
    by_chance: float
    slope_coupled: float
    slope_other: float
    slope_random: float


def measure_bias(result: NameResult) -> Bias:
    """Return how far slopes follow the couplings in the data."""
    n_classes = max(len(result.class_names), 1)
    known = np.isfinite(result.slopes).all(axis=1) & np.isfinite(result.association).all(axis=1) & ~result.is_own
    slopes, association = result.slopes[known], result.association[known]
    if slopes.size < 3 or slopes.std() == 0 or association.std() == 0:
        return Bias(math.nan, len(slopes) if slopes.size else 0, 0, math.nan, 1 / n_classes, *3 * [math.nan])
    pairs = find_coupled(result)[known]
    is_coupled = pairs.any(axis=1)
    return Bias(
        float(np.corrcoef(slopes.ravel(), association.ravel())[0, 1]),
        len(slopes),
        int(is_coupled.sum()),
        mean_of((slopes.argmax(axis=1) == pairs.argmax(axis=1))[is_coupled].astype(np.float64)),
        1 / n_classes,
        mean_of(slopes[pairs]),
        mean_of(slopes[~pairs]),
        mean_of(result.slopes_random[known][pairs]),
    )


def find_coupled(result: NameResult) -> Bool[np.ndarray, "n_concepts n_classes"]:
    """Return the class of each concept that has over twice its share in the training images that have the concept.

    Of several that which gains most; none for a concept that is such a class itself.
    """
    found = np.zeros(result.association.shape, dtype=bool)
    rows = np.flatnonzero(np.isfinite(result.association).all(axis=1) & ~result.is_own)
    if found.size:
        first = result.association[rows].argmax(axis=1)
        found[rows, first] = result.association[rows, first] > result.class_shares[first]
    return found


class Misled(NamedTuple):
    """What concepts that go with a class in the data change of its probability in test images of other classes.

    n_pairs: coupled concepts and classes, see `find_coupled`, with enough such images and a class that is a valid name.
    whole: mean change of these. without: without the latents that are called by the class; without_random: without as
    many random ones. lower: share of the pairs that change less without the class's. others: mean change of all other
    pairs of such a class.
    """

    n_pairs: int
    whole: float
    without: float
    without_random: float
    lower: float
    others: float


def measure_misled(result: NameResult) -> Misled:
    """Return how far what goes with a class misleads, and how much of that goes through the class's own latents."""
    known = np.isfinite(result.misled).all(axis=0) & ~result.is_own[:, None]
    coupled = known & find_coupled(result)
    whole, without, random = result.misled[:, coupled]
    lower = mean_of((without < whole).astype(np.float64))
    others = mean_of(result.misled[0, known & ~coupled])
    return Misled(int(coupled.sum()), mean_of(whole), mean_of(without), mean_of(random), lower, others)


def compare_signs(found: Sequence[Found], of: str = "slopes") -> tuple[float, int]:
    """Return the share of pairs of a concept and a class whose slopes have one sign in all seeds, and of how many.

    Without concepts that are classes themselves.

    Args:
        of: the slopes of `NameResult`.
    """
    slopes = np.stack([getattr(one.result, of) for one in found])
    known = np.isfinite(slopes).all(axis=0) & ~found[0].result.is_own[:, None]
    signs = np.sign(slopes[:, known])
    return (float((np.abs(signs.sum(axis=0)) == len(found)).mean()) if known.any() else math.nan), int(known.sum())
