"""The information scope of one SAE's features, as tables and figures read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Shaped

from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.agreement import Interval, bootstrap_cds, compute_split_half, find_undecided
from infoscope.scope.cds import (
    compute_chance_ratio,
    compute_one_sided_share,
    count_zero_maps,
    position_locked_score,
    uniform_chance_score,
)
from infoscope.scope.config import By, StabilityConfig
from infoscope.scope.examples import find_locked
from infoscope.scope.partition import Partition
from infoscope.scope.scores import Scores


@dataclass(frozen=True)
class ScopeResult:
    """The information scope of one SAE's features.

    Args:
        sae_seed: the seed the SAE was trained with.
        k_cds: how many ranks the CDS is a mean of.
        cds: NaN where fewer than half of the ranks have a valid pair.
        scores: what the CDS is computed from.
        mass: activation mass per token: the mean of z * |W_dec row|.
        firing_rate: share of tokens on which the latent fires.
        partition: gamma and the groups.
        rule: how gamma was found, in words ("Otsu", "quantile 0.9", ...).
        sae_metrics: numbers to print, among them fvu, l0, dead_share and cosine when known.
        stability: which interval says whose group is undecided.
        by: what the groups divide.
        measured: its values, 0..1, NaN where unknown; None: it is the CDS.
    """

    sae_seed: int
    k_cds: int
    cds: Float[np.ndarray, " d_sae"]
    scores: Scores
    mass: Float[np.ndarray, " d_sae"]
    firing_rate: Float[np.ndarray, " d_sae"]
    partition: Partition
    rule: str
    sae_metrics: Mapping[str, float] = field(default_factory=dict)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    by: By = By.cds
    measured: Float[np.ndarray, " d_sae"] | None = None

    @property
    def measure(self) -> Float[np.ndarray, " d_sae"]:
        """What the groups divide, 0..1; NaN: unscored."""
        return self.cds if self.measured is None else self.measured

    @property
    def cds_gamma(self) -> float | None:
        """gamma where it is a score, to stand among scores; None where there is none, or it divides something else."""
        return self.partition.gamma if self.by is By.cds else None

    @cached_property
    def interval(self) -> Interval:
        """Of each score, by resampling the feature's pairs, see `bootstrap_cds`."""
        return bootstrap_cds(self.scores.emd, self.k_cds, **self.stability.interval)

    @cached_property
    def undecided(self) -> Bool[np.ndarray, " d_sae"]:
        """The features whose group their pairs leave open, see `find_undecided`; none where they are not divided by
        CDS, for nothing else has an interval."""
        return find_undecided(self.cds, self.interval, self.cds_gamma)

    @cached_property
    def position_locked(self) -> Bool[np.ndarray, " d_sae"]:
        """The features that fire at one place of the grid whatever the picture, see `find_locked`."""
        return find_locked(self.scores.maps, self.k_cds)

    @cached_property
    def reliability(self) -> float:
        """How well the scores would repeat with as many other pairs, see `compute_split_half`."""
        return compute_split_half(self.scores.emd, self.k_cds).reliability

    @property
    def locked(self) -> float:
        """The score of a feature that fires at one place of the grid whatever the picture."""
        return position_locked_score(self.scores.grid, self.scores.shift_patches)

    @property
    def uniform_chance(self) -> float:
        """The expected score of two maps of one patch each, drawn at random."""
        return uniform_chance_score(self.scores.grid - self.scores.shift_patches)


def name_groups(scope: ScopeResult) -> Shaped[np.ndarray, " d_sae"]:
    """Return the group of each latent, "unscored" or "undecided" where it is in none."""
    group = np.where(scope.partition.unscored, "unscored", "undecided").astype(object)
    for name, members in scope.partition.groups.items():
        group[members] = name
    return group.astype(str)


def list_columns(scope: ScopeResult) -> Iterator[LatentColumn]:
    """Yield what the scores tell of each latent."""
    found, k, of_largest = scope.scores, scope.k_cds, "share of the largest distance"
    cds, chance = found.cds(k), found.chance(k)
    zeros = count_zero_maps(found.mass1, found.mass2, k)
    one_sided = compute_one_sided_share(found.mass1, found.mass2, k)
    yield LatentColumn("cds", cds.values, f"CDS over {k} ranks", of_largest)
    for end, bound in scope.interval._asdict().items():
        name = {"lower": "cds_low", "upper": "cds_high"}[end]
        heading = f"CDS, {end} end of its {scope.stability.level:.0%} interval over its pairs"
        yield LatentColumn(name, bound, heading, of_largest)
    by_chance = "CDS by chance: map 1 of each image against map 2 of the latent's next one, so equal mean support"
    yield LatentColumn("chance", chance, by_chance, of_largest)
    yield LatentColumn("cds_minus_chance", cds.values - chance, "CDS - chance", of_largest)
    yield LatentColumn("cds_over_chance", compute_chance_ratio(cds.values, chance), "CDS / chance", "1")
    yield LatentColumn("cds_all_ranks", found.cds(found.k_max).values, f"CDS over {found.k_max} ranks", of_largest)
    yield LatentColumn("n_valid", cds.n_valid, "pairs of crops that have a distance", "pairs")
    yield LatentColumn("n_one_sided", zeros.one_sided, "pairs with one map all zero", "pairs")
    yield LatentColumn("n_two_sided", zeros.two_sided, "pairs with both maps all zero", "pairs")
    yield LatentColumn("one_sided", one_sided, "one-sided zeros", "share of pairs")
    yield LatentColumn("group", name_groups(scope), f"group ({scope.rule})")
    if scope.by is By.cds:
        yield LatentColumn("undecided", scope.undecided, "its pairs leave its group open")
