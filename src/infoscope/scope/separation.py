"""Does a score tell two groups of latents apart, and does it still where they fire equally often?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from infoscope.runtime.errors import InputError
from infoscope.scope.confounds import ConfoundResult

BINS_PER_OCTAVE = 2
"""Matched latents differ in firing rate by a factor of sqrt(2) at most."""
SUBSETS = {
    "all": "all",
    "compact": "compact",
    "diffuse": "diffuse",
    "matched": "matched frequency",
}
"""Latents within which known-global and known-local ones are told apart: key and name."""
BROAD = {"broad": "all", "broad_compact": "compact", "broad_diffuse": "diffuse"}
"""Latents within which known-broad and known-local ones are, where the data have broad facts."""
SCORES = ("cds", "firing_rate", "support", "peak")
"""The score, and the properties that should not do its work."""

_MAX_DRAWN_COUNTS = 2**22


@dataclass(frozen=True)
class Auroc:
    """The chance that a random positive scores above a random negative one, ties counting half.

    value: 0..1, 0.5 where nothing is separated; NaN if a group is empty.
    draws: [n_bootstrap] the same with both groups drawn anew, with replacement; NaN where value is.
    n_positive, n_negative: members with a score.
    """

    value: float
    draws: Float[np.ndarray, " n_bootstrap"]
    n_positive: int
    n_negative: int

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the draws; NaN if a group is empty."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return float(low), float(high)


def compute_auroc(
    scores: Float[np.ndarray, " d_sae"],
    positive: Bool[np.ndarray, " d_sae"],
    negative: Bool[np.ndarray, " d_sae"],
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Auroc:
    """Return how well scores separate two groups of latents; latents without a score (NaN) are left out.

    Raises:
        InputError: if `n_bootstrap` is below 1.
    """
    if n_bootstrap < 1:
        raise InputError(f"Expected at least one bootstrap draw, got {n_bootstrap}.")
    scores = np.asarray(scores, dtype=np.float64)
    above, below = (scores[group & np.isfinite(scores)] for group in (positive, negative))
    if not len(above) or not len(below):
        return Auroc(np.nan, np.full(n_bootstrap, np.nan), len(above), len(below))
    levels, codes = np.unique(np.concatenate([above, below]), return_inverse=True)
    parts = codes[: len(above)], codes[len(above) :]
    n_above, n_below = (np.bincount(part, minlength=len(levels)) for part in parts)
    rng = np.random.default_rng(seed)
    draws = []
    while (n_left := n_bootstrap - sum(map(len, draws))) > 0:
        n_at_once = min(n_left, max(1, _MAX_DRAWN_COUNTS // len(levels)))
        drawn = (rng.multinomial(n.sum(), n / n.sum(), size=n_at_once) for n in (n_above, n_below))
        draws.append(_count_wins(*drawn))
    return Auroc(float(_count_wins(n_above, n_below)), np.concatenate(draws), len(above), len(below))


def _count_wins(n_above: Int[np.ndarray, "*draws n_levels"], n_below: Int[np.ndarray, "*draws n_levels"]) -> np.ndarray:
    """Share of pairs in which the first lies higher, equal ones counting half, from counts at ascending levels."""
    wins = (n_above * (np.cumsum(n_below, axis=-1) - n_below / 2)).sum(axis=-1)
    return wins / (n_above.sum(axis=-1) * n_below.sum(axis=-1))


class Cut(NamedTuple):
    """How well a cut tells two groups apart: positives should score above it, negatives up to it.

    value: of the score; NaN where there is none, or a group is empty.
    above: share of the positives above it; below: share of the negatives up to it; NaN for an empty group.
    """

    value: float
    above: float
    below: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the two shares: 0.5 tells nothing apart."""
        return (self.above + self.below) / 2


def judge_cut(
    scores: Float[np.ndarray, " d_sae"],
    positive: Bool[np.ndarray, " d_sae"],
    negative: Bool[np.ndarray, " d_sae"],
    value: float,
) -> Cut:
    """Return how well a cut tells two groups apart; latents without a score (NaN) are left out."""
    above, below = (scores[group & np.isfinite(scores)] for group in (positive, negative))
    shares = [float(right.mean()) if len(right) else np.nan for right in (above > value, below <= value)]
    return Cut(value, *shares) if np.isfinite(value) else Cut(np.nan, np.nan, np.nan)


def find_best_cut(
    scores: Float[np.ndarray, " d_sae"], positive: Bool[np.ndarray, " d_sae"], negative: Bool[np.ndarray, " d_sae"]
) -> Cut:
    """Return the cut of the largest balanced accuracy (Youden, 1950), halfway between two scores that occur.

    The lowest of several equally good ones. It is found on what it is judged on, so its accuracy is an upper bound.
    """
    both = (positive | negative) & np.isfinite(scores)
    levels, codes = np.unique(scores[both], return_inverse=True)
    parts = [np.bincount(codes[group[both]], minlength=len(levels)) for group in (positive, negative)]
    if not all(part.sum() for part in parts) or len(levels) < 2:
        return judge_cut(scores, positive, negative, np.nan)
    n_above, n_below = parts
    accuracy = np.cumsum(n_below) / n_below.sum() - np.cumsum(n_above) / n_above.sum()  # of a cut above each level
    best = int(accuracy[:-1].argmax())
    middle = (levels[best] + levels[best + 1]) / 2
    return judge_cut(scores, positive, negative, float(middle if middle < levels[best + 1] else levels[best]))


def compute_separation(
    cds: Float[np.ndarray, " d_sae"], confounds: ConfoundResult, n_bootstrap: int = 1000, seed: int = 0
) -> Mapping[str, Mapping[str, Auroc]]:
    """Return {subset: {score: AUROC}} of the CDS and of the other `SCORES`, see `compute_aurocs`."""
    scores = {"cds": cds, **{name: getattr(confounds.properties, name) for name in SCORES[1:]}}
    return compute_aurocs(scores, confounds, n_bootstrap, seed)


def compute_aurocs(
    scores: Mapping[str, Float[np.ndarray, " d_sae"]],
    confounds: ConfoundResult,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Mapping[str, Mapping[str, Auroc]]:
    """Return {subset: {score: AUROC}}, known-global latents being the positive ones, in `BROAD` known-broad ones.

    Only latents that have every score (none is NaN) take part, so that all scores are compared on the same ones. The
    matched subset is one seeded draw of equally many from both groups in each bin of firing rate.
    """
    known = np.logical_and.reduce([np.isfinite(values) for values in scores.values()])
    known_global, known_local = confounds.known_global & known, confounds.known_local & known
    known_broad, compact, diffuse = confounds.known_broad & known, confounds.compact, confounds.diffuse
    subsets = {
        "all": (known_global, known_local),
        "compact": (known_global & compact, known_local & compact),
        "diffuse": (known_global & diffuse, known_local & diffuse),
        "matched": match_frequency(known_global, known_local, confounds.properties.firing_rate, seed),
    }
    if confounds.fact_effects:
        subsets |= {
            "broad": (known_broad, known_local),
            "broad_compact": (known_broad & compact, known_local & compact),
            "broad_diffuse": (known_broad & diffuse, known_local & diffuse),
        }
    return {
        subset: {name: compute_auroc(values, positive, negative, n_bootstrap, seed) for name, values in scores.items()}
        for subset, (positive, negative) in subsets.items()
    }


def match_frequency(
    high: Bool[np.ndarray, " d_sae"],
    low: Bool[np.ndarray, " d_sae"],
    firing_rate: Float[np.ndarray, " d_sae"],
    seed: int = 0,
    bins_per_octave: int = BINS_PER_OCTAVE,
) -> tuple[Bool[np.ndarray, " d_sae"], Bool[np.ndarray, " d_sae"]]:
    """Return subgroups of two groups with equally many latents in every bin of log firing rate.

    From each bin as many are drawn from both groups as the smaller one has there. Latents that never fire are in no
    bin. Both subgroups are empty where the groups share no bin.

    Raises:
        InputError: if `bins_per_octave` is below 1.
    """
    if bins_per_octave < 1:
        raise InputError(f"Expected at least one bin per octave of firing rate, got {bins_per_octave}.")
    rate = np.asarray(firing_rate, dtype=np.float64)
    fires = rate > 0
    bins = np.floor(bins_per_octave * np.log2(np.where(fires, rate, 1))).astype(np.int64)
    rng = np.random.default_rng(seed)
    chosen = np.zeros_like(fires), np.zeros_like(fires)
    for number in np.unique(bins[fires & (high | low)]):
        members = [np.flatnonzero(group & fires & (bins == number)) for group in (high, low)]
        n_each = min(map(len, members))
        for subgroup, there in zip(chosen, members, strict=True):
            subgroup[rng.permutation(there)[:n_each]] = True
    return chosen
