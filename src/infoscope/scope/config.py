"""How contextual dependency is scored, and how features are divided by it."""

from __future__ import annotations

from dataclasses import dataclass, field
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


class Diagonal(Enum):
    """Along which diagonal of the picture the two crops lie."""

    main = "main"
    """Crop 2 lies further down and to the right, as in the paper."""
    anti = "anti"
    """Crop 2 lies further down and to the left (ours)."""


@dataclass
class ScopeConfig:
    """How contextual dependency is scored."""

    k_cds: int = 8
    """Images per latent that the score averages over."""
    k_max: int | None = None
    """Images per latent that are ranked and scored, so that any k_cds up to it is arithmetic; null: max(16, k_cds)."""
    shift_patches: int = 1
    """By how many patches, down and to the side, crop 2 is shifted against crop 1."""
    diagonal: Diagonal = Diagonal.main
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


class OutlierRule(Enum):
    """Above which norm a patch token is an outlier."""

    mad = "mad"
    """median + c * 1.4826 * MAD of the norms over the data set."""
    absolute = "absolute"
    """The given norm."""
    quantile = "quantile"
    """A quantile of the norms over the data set: there are outliers by definition."""


@dataclass
class OutlierConfig:
    """Which patch tokens are outliers, and on how many images they are looked at."""

    rule: OutlierRule = OutlierRule.mad
    c: float = 6.0
    """Median absolute deviations above the median, in standard deviations of a normal law; read by the rule mad (6 is
    ours)."""
    value: float | None = None
    """Norm of the raw token; read by the rule absolute, which needs it."""
    quantile: float = 0.99
    """Share of the tokens that are normal; read by the rule quantile."""
    n_images: int = 256
    """Images cropped twice for the distances (ours)."""
    n_layer_images: int = 128
    """Images for the norms by layer, each encoded once per block (ours)."""

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise InputError(f"Expected outliers.c to be above 0, got {self.c}.")
        if self.value is not None and not self.value > 0:
            raise InputError(f"Expected outliers.value, a norm, to be above 0, got {self.value}.")
        if self.rule is OutlierRule.absolute and self.value is None:
            raise InputError("Expected outliers.value, the norm that outliers.rule=absolute reads, got none: give one.")
        if not 0 < self.quantile < 1:
            raise InputError(f"Expected outliers.quantile between 0 and 1, got {self.quantile}.")
        for name in ("n_images", "n_layer_images"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected outliers.{name} to be at least 1, got {getattr(self, name)}.")

    @property
    def rule_in_words(self) -> str:
        """How the threshold is found, for people."""
        return {
            OutlierRule.mad: f"median + {self.c:g} x 1.4826 x MAD",
            OutlierRule.absolute: "given",
            OutlierRule.quantile: f"quantile {self.quantile:g}",
        }[self.rule]


@dataclass
class StabilityConfig:
    """What the scores are compared with. All numbers are ours."""

    shifts: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    """Shifts in patches; one that leaves fewer than 2 x 2 shared patches is noted, not measured."""
    n_latents: int | None = None
    """Scored features per SAE that are scored again under another shift, diagonal or image set; null: all."""
    n_solver_latents: int = 32
    """Scored features per SAE whose distances are computed by the other solver too: Sinkhorn is some 500 times slower
    than the exact solver (20 pairs of 13 x 13 maps per second and core)."""
    n_draws: int = 1000
    """Resamplings of a feature's images for its interval."""
    level: float = 0.95
    """Of the interval."""
    min_cosine: float = 0.7
    """Features of two SAE seeds count as the same above this cosine of their decoder rows."""
    seed: int = 0
    """Of the resampling and of the features that are drawn."""

    def __post_init__(self) -> None:
        for name in ("n_latents", "n_solver_latents", "n_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected stability.{name} to be at least 1, got {value}.")
        if self.seed < 0:
            raise InputError(f"Expected stability.seed to be at least 0, got {self.seed}.")
        if any(shift < 1 for shift in self.shifts):
            raise InputError(f"Expected stability.shifts of at least 1 patch each, got {self.shifts}.")
        if not 0 < self.level < 1:
            raise InputError(f"Expected stability.level between 0 and 1, got {self.level}.")
        if not -1 <= self.min_cosine <= 1:
            raise InputError(f"Expected stability.min_cosine in -1..1, got {self.min_cosine}.")
