"""The numbers of the section on extents, over SAE seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infoscope.report.tables import Stat, compute_stat
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.config import By
from infoscope.scope.confounds import ConfoundResult
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.partial_ranks import MIN_LATENTS
from infoscope.scope.separation import compute_aurocs
from infoscope.stages.confounds.numbers import Correlation, Separation, correlate, join_seeds
from infoscope.stages.score.result import ScopeResult

ALL, NO_GROUP = "all features", "in no group"
MEASURES = {by.name: by.words for by in By if by is not By.cds}
"""What windows say of a feature: column of the table of latents, and name."""
SCORES = {**MEASURES, "cds": "CDS", "cds_minus_chance": "CDS - chance", "firing_rate": "firing frequency"}
"""What may tell known-global, and known-broad, from known-local features: likewise."""
CORRELATES = {
    "cds": "CDS",
    "cds_minus_chance": "CDS - chance",
    "firing_rate": "firing frequency",
    "support": "support (share of the grid)",
    "context_effect": "context effect",
    "image_effect": "effect of the global factors",
    "fact_effect": "effect of the broad facts",
    "label_effect": "effect of the patch labels",
}
"""What the measures may go with, as far as it is known: likewise."""


class Found(NamedTuple):
    """What was found of an SAE seed; `table` holds what is known of each latent."""

    extent: ExtentResult
    scope: ScopeResult
    confounds: ConfoundResult
    table: LatentTable

    @property
    def groups(self) -> dict[str, Bool[np.ndarray, " d_sae"]]:
        """The features with an extent: all of them, of each group, and of none."""
        known, groups = np.isfinite(self.extent.extent), self.scope.partition.groups
        rest = known & ~np.logical_or.reduce(list(groups.values()))
        return {ALL: known, **{name: members & known for name, members in groups.items()}, NO_GROUP: rest}


Seeds = Sequence[Found]


def list_groups(seeds: Seeds) -> list[str]:
    """Return the groups that have features with an extent in some seed, and those that the partition names."""
    return [name for name in seeds[0].groups if name != NO_GROUP or any(one.groups[name].any() for one in seeds)]


class Curve(NamedTuple):
    """Mean response of a group's features at each radius: their window alone, and all but their window."""

    kept: list[Stat]
    replaced: list[Stat]


def compute_curves(seeds: Seeds) -> dict[str, Curve]:
    """Return the responses of each group; a seed without such features is left out."""
    return {
        group: Curve(
            _mean_over_seeds([found.extent.response[:, found.groups[group]] for found in seeds]),
            _mean_over_seeds([found.extent.response_without[:, found.groups[group]] for found in seeds]),
        )
        for group in list_groups(seeds)
    }


def _mean_over_seeds(responses: Sequence[Float[np.ndarray, "n_radii n_members"]]) -> list[Stat]:
    means = [[compute_stat(row).mean for row in response] for response in responses if response.size]
    return [compute_stat(of) for of in zip(*means, strict=True)] or [compute_stat([])] * len(responses[0])


class Summary(NamedTuple):
    """Of a group's features that have an extent: how many, medians, shares, and images behind each."""

    n: Stat
    extent: Stat
    mean_extent: Stat
    context_effect: Stat
    at_0: Stat
    at_1: Stat
    n_images: Stat


def summarise_groups(seeds: Seeds) -> dict[str, Summary]:
    """Return the summary of each group over SAE seeds."""
    found = {}
    for group in list_groups(seeds):
        rows = []
        for one in seeds:
            members = one.groups[group]
            extent, effect = one.extent.extent[members], one.extent.context_effect[members]
            if not len(extent):
                rows.append((0, *[np.nan] * 6))
                continue
            shares = float((extent == 0).mean()), float((extent == 1).mean())
            mean_extent = one.extent.mean_extent[members]
            medians = float(np.median(extent)), float(np.median(mean_extent)), float(np.nanmedian(effect))
            rows.append((len(extent), *medians, *shares, float(one.extent.n_measured[members].mean())))
        found[group] = Summary(*map(compute_stat, zip(*rows, strict=True)))
    return found


def correlate_all(seeds: Seeds) -> dict[str, dict[str, Correlation]]:
    """Return {measure: {column: how they go together}}, of the columns that are there."""
    return {
        measure: {
            key: correlate(key, [found.table for found in seeds], measure)
            for key in CORRELATES
            if key != measure and all(key in found.table for found in seeds)
        }
        for measure in MEASURES
    }


def is_small(of: Correlation) -> bool:
    """Whether too few features have both to say how they go together, on average over SAE seeds."""
    return of.n.mean < MIN_LATENTS


def separate_seeds(seeds: Seeds) -> Mapping[str, Separation]:
    """Return how well each of `SCORES` tells known-global, or known-broad, from known-local features, by subset.

    Empty where it is not known which features are such.
    """
    if not all(found.confounds.has_truth for found in seeds):
        return {}
    return join_seeds(
        [compute_aurocs({name: np.asarray(found.table[name]) for name in SCORES}, found.confounds) for found in seeds]
    )
