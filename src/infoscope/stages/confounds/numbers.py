"""The numbers of the section on confounds, over SAE seeds: correlations, AUROCs, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from infoscope.report.tables import Stat, compute_stat
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.cds import mean_of_known
from infoscope.scope.confounds import ConfoundResult
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.scope.separation import Auroc, compute_separation
from infoscope.stages.score.result import ScopeResult

MIN_GROUP = 10
"""With fewer features in a group, on average over SAE seeds, nothing is said of an AUROC: intervals are too short."""
SCORE_NAMES = {"cds": "CDS", "firing_rate": "firing frequency", "support": "support", "peak": "peak"}

Pairs = Sequence[tuple[ScopeResult, ConfoundResult]]
"""What was found of each SAE seed."""


class Correlation(NamedTuple):
    """Of a measure with a property of features.

    rho: Spearman's; n: over how many features; at_equal_rate: the partial one, given the firing frequency.
    """

    rho: Stat
    n: Stat
    at_equal_rate: Stat


def correlate(key: str, tables: Sequence[LatentTable], measure: str = "cds") -> Correlation:
    """Return the correlation of a measure with a column of the tables of latents, over the features that have both."""
    columns = [(np.asarray(table[key], dtype=np.float64), table[measure], table["firing_rate"]) for table in tables]
    rhos, counts = zip(*(compute_spearman(values, other) for values, other, _ in columns), strict=True)
    at_equal_rate = [compute_spearman(values, other, given=rate)[0] for values, other, rate in columns]
    return Correlation(compute_stat(rhos), compute_stat(counts), compute_stat(at_equal_rate))


class Ranks(NamedTuple):
    """Mean distances at the first and at the last rank of the CDS, over the features that have one at both.

    chance: of the same features, mean over ranks; spearman: of first and last; n: how many features.
    """

    first: Stat
    last: Stat
    chance: Stat
    spearman: Stat
    n: Stat


def compare_ranks(scopes: Sequence[ScopeResult]) -> Ranks:
    """Compare the distances of the first rank with those of the last one."""
    found = []
    for scope in scopes:
        scores, k = scope.scores, scope.k_cds
        first, last = scores.emd[:, 0], scores.emd[:, k - 1]
        both = np.isfinite(first) & np.isfinite(last)
        chance = mean_of_known(scores.chance_emd[both, :k], axis=0)
        means = [compute_stat(values).mean for values in (first[both], last[both], chance)]
        found.append((*means, *compute_spearman(first, last)))
    return Ranks(*map(compute_stat, zip(*found, strict=True)))


class Separation(NamedTuple):
    """How well known-global (in `BROAD` known-broad) features of a subset are separated from known-local ones.

    auroc: by score, 0..1; NaN where a group is empty.
    intervals: by score, the middle 95 % of its mean over seeds; seeds with an empty group are left out.
    n_global, n_local: how many features of each kind there are.
    """

    auroc: Mapping[str, Stat]
    intervals: Mapping[str, tuple[float, float]]
    n_global: Stat
    n_local: Stat

    @property
    def is_small(self) -> bool:
        """Whether there are too few features to say anything."""
        return min(self.n_global.mean, self.n_local.mean) < MIN_GROUP


def separate(pairs: Pairs) -> dict[str, Separation]:
    """Return how well scores separate the features of each subset; see `compute_separation`."""
    return join_seeds([compute_separation(scope.cds, confounds) for scope, confounds in pairs])


def join_seeds(seeds: Sequence[Mapping[str, Mapping[str, Auroc]]]) -> dict[str, Separation]:
    """Return the mean over SAE seeds of {subset: {score: AUROC}}."""
    return {subset: _join([of_seed[subset] for of_seed in seeds]) for subset in seeds[0]}


def _join(seeds: Sequence[Mapping[str, Auroc]]) -> Separation:
    by_score = {score: [of_seed[score] for of_seed in seeds] for score in seeds[0]}
    first = next(iter(by_score.values()))
    return Separation(
        {score: compute_stat(one.value for one in found) for score, found in by_score.items()},
        {score: _find_interval(found) for score, found in by_score.items()},
        compute_stat(one.n_positive for one in first),
        compute_stat(one.n_negative for one in first),
    )


def _find_interval(seeds: Sequence[Auroc]) -> tuple[float, float]:
    draws = [one.draws for one in seeds if math.isfinite(one.value)]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975]).tolist() if draws else (math.nan, math.nan)
    return low, high


def compute_medians(pairs: Pairs) -> dict[str, tuple[Stat, Stat]]:
    """Return the median CDS of known-global and known-local features of either support, and how many those are."""
    medians = {}
    for name in ("global_compact", "global_diffuse", "local_compact", "local_diffuse"):
        side, support = name.split("_")
        chosen = [scope.cds[getattr(of, f"known_{side}") & getattr(of, support)] for scope, of in pairs]
        scored = [cds[np.isfinite(cds)] for cds in chosen]
        values = (np.median(cds) if len(cds) else math.nan for cds in scored)
        medians[name] = compute_stat(values), compute_stat(map(len, scored))
    return medians
