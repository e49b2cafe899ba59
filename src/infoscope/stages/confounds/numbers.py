"""The numbers of the section on confounds, per SAE seed: correlations, AUROCs, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from infoscope.report.tables import Stat, compute_stat, format_number
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.confounds import ConfoundResult
from infoscope.scope.separation import Auroc, compute_spearman
from infoscope.stages.confounds.figures import compute_rank_means
from infoscope.stages.score.result import ScopeResult

MIN_GROUP = 10
"""With fewer features in a group, on average over SAE seeds, nothing is said of an AUROC: intervals are too short."""
MEDIUM_RHO = 0.3
"""Rank correlations from here on are called out ("medium" by Cohen, 1988)."""
SCORE_NAMES = {"cds": "CDS", "firing_rate": "firing frequency", "support": "support", "peak": "peak"}
QUADRANTS = {
    "global_compact": ("known_global", "compact"),
    "global_diffuse": ("known_global", "diffuse"),
    "local_compact": ("known_local", "compact"),
    "local_diffuse": ("known_local", "diffuse"),
}


class Correlation(NamedTuple):
    """Of the CDS with a property, one value per SAE seed.

    rho: Spearman's; n: over how many features; at_equal_rate: the partial one, given the firing frequency.
    """

    rho: list[float]
    n: list[int]
    at_equal_rate: list[float]

    @property
    def mean(self) -> float:
        """Of rho, over seeds."""
        return compute_stat(self.rho).mean


Separations = Sequence[Mapping[str, Mapping[str, Auroc]]]
"""Per SAE seed, as `compute_separation` gives it."""


def correlate(key: str, tables: Sequence[LatentTable]) -> Correlation:
    """Return the correlation of the CDS with a column of the tables of latents, over the features that have both."""
    found = Correlation([], [], [])
    for table in tables:
        values, cds = np.asarray(table[key], dtype=np.float64), table["cds"]
        rho, n = compute_spearman(values, cds)
        partial_rho, _ = compute_spearman(values, cds, given=table["firing_rate"])
        found.rho.append(rho)
        found.n.append(n)
        found.at_equal_rate.append(partial_rho)
    return found


def compare_ranks(scopes: Sequence[ScopeResult]) -> dict[str, list[tuple[float, int]]]:
    """Per quantity, (value, number of features) of each seed; first against last rank over features with both."""
    found: dict[str, list[tuple[float, int]]] = {"first": [], "last": [], "chance": [], "spearman": []}
    for scope in scopes:
        first, last = scope.emd[:, 0], scope.emd[:, scope.k_cds - 1]
        both = np.isfinite(first) & np.isfinite(last)
        found["first"].append((_mean(first[both]), int(both.sum())))
        found["last"].append((_mean(last[both]), int(both.sum())))
        chance = compute_rank_means(scope.chance_emd[:, : scope.k_cds], both)
        found["chance"].append((_mean(chance), int(both.sum())))
        found["spearman"].append(compute_spearman(first, last))
    return found


def read_auroc(separations: Separations, subset: str, score: str = "cds") -> Stat:
    """Return mean and spread over seeds of an AUROC, 0..1; NaN where a group is empty."""
    return compute_stat(found[subset][score].value for found in separations)


def count_features(separations: Separations, subset: str) -> tuple[Stat, Stat]:
    """Return how many known-global and how many known-local features a subset holds, over seeds."""
    found = [found[subset]["cds"] for found in separations]
    return compute_stat(one.n_positive for one in found), compute_stat(one.n_negative for one in found)


def read_interval(separations: Separations, subset: str) -> tuple[float, float]:
    """The middle 95 % of the mean over seeds; seeds with an empty group are left out."""
    draws = [one.draws for found in separations if math.isfinite((one := found[subset]["cds"]).value)]
    if not draws:
        return math.nan, math.nan
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return float(low), float(high)


def compute_quadrant(
    pairs: Sequence[tuple[ScopeResult, ConfoundResult]], known: str, support: str
) -> tuple[Stat, Stat]:
    """Median CDS of the known features of one support, and how many those are, over SAE seeds."""
    values = []
    for scope, found in pairs:
        chosen = scope.cds[getattr(found, known) & getattr(found, support)]
        values.append(chosen[np.isfinite(chosen)])
    return compute_stat(np.median(v) if len(v) else math.nan for v in values), compute_stat(len(v) for v in values)


def format_signed(value: float) -> str:
    """Return a number of two digits with its sign, for display."""
    return format_number(value, 2, signed=True)


def _mean(values: np.ndarray) -> float:
    return compute_stat(values).mean
