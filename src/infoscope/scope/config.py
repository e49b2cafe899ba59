"""How contextual dependency is scored, and how features are divided by it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from infoscope.errors import InputError


class RankBy(Enum):
    """What of a latent's activations over an image's patches its rank goes by."""

    max = "max"
    mean = "mean"


class EMDMethod(Enum):
    """How distances between maps are computed."""

    exact = "exact"
    sinkhorn = "sinkhorn"


@dataclass
class ScopeConfig:
    """How contextual dependency is scored."""

    k_cds: int = 8
    """Images per latent that the score averages over."""
    k_max: int | None = None
    """Images per latent that are ranked and scored, so that any k_cds up to it is arithmetic; null: max(16, k_cds)."""
    shift_patches: int = 1
    """By how many patches, down and to the right, crop 2 is shifted against crop 1."""
    rank_by: RankBy = RankBy.max
    emd: EMDMethod = EMDMethod.exact
    sinkhorn_blur: float = 0.1
    """Blur of the transport plan in patches; read by emd=sinkhorn."""
    batch_images: int = 32
    """Images encoded at a time (each crop apart)."""
    n_workers: int = 0
    """Processes for exact distances at most; 0: one per core. Results do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("k_cds", "shift_patches", "batch_images"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected scope.{name} to be at least 1, got {getattr(self, name)}.")
        if self.k_max is not None and self.k_max < self.k_cds:
            raise InputError(
                f"Expected scope.k_max to be at least scope.k_cds ({self.k_cds}), got {self.k_max}: raise it or set"
                " null."
            )
        if not self.sinkhorn_blur > 0:
            raise InputError(f"Expected scope.sinkhorn_blur to be above 0 patches, got {self.sinkhorn_blur}.")
        if self.n_workers < 0:
            raise InputError(f"Expected scope.n_workers to be at least 0, got {self.n_workers}.")

    @property
    def n_ranks(self) -> int:
        """k_max with its default filled in."""
        return max(16, self.k_cds) if self.k_max is None else self.k_max


class Rule(Enum):
    """How features are divided."""

    threshold = "threshold"
    """gamma is the given number."""
    quantile = "quantile"
    """gamma is a quantile of the scores: comparable between models, whose scores lie on different scales."""
    otsu = "otsu"
    """gamma divides the scores into two groups of least variance within."""
    bands = "bands"
    """No gamma: groups of equal size from the lowest to the highest scores."""


@dataclass
class PartitionConfig:
    """How scored features are divided into groups."""

    rule: Rule = Rule.threshold
    gamma: float = 0.1
    """High scope is CDS > gamma, low scope CDS <= gamma; read by the rule threshold (0.1 is ours)."""
    quantile: float = 0.5
    """Share of the scored features in the low group; read by the rule quantile."""
    n_bands: int = 4
    """Groups of equal size; read by the rule bands."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise InputError(f"Expected partition.gamma in 0..1, the range of the score, got {self.gamma}.")
        if not 0 < self.quantile < 1:
            raise InputError(f"Expected partition.quantile between 0 and 1, got {self.quantile}.")
        if self.n_bands < 2:
            raise InputError(f"Expected partition.n_bands to be at least 2, got {self.n_bands}.")
