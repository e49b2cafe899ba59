"""How contextual dependency is scored, and how features are divided by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from infoscope.runtime.bounds import Batch, Bounds, Count, Few, FewOrNone, Items, Positive, Seed, TrueShare, check
from infoscope.runtime.errors import InputError


class RankBy(Enum):
    """By what images are ranked for a latent: a statistic of its activations over an image's patches, or at random."""

    max = "max"
    mean = "mean"
    drawn = "drawn"
    """Evenly from all images on which it fires, at every quantile of its activation, not the top alone (ours)."""


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


class Donor(Enum):
    """What stands in the place of the pixels that a window leaves out."""

    images = "images"
    """The same place in other images of the set."""
    mean = "mean"
    """The mean colour of some images of the set."""
    blur = "blur"
    """The same place in the image itself, blurred."""

    @property
    def words(self) -> str:
        """What donors are, for display."""
        return {"images": "other images", "mean": "a mean colour", "blur": "the image itself, blurred"}[self.value]


POOL_IMAGES = 32
"""Images from which donors are drawn, and of which the mean colour is taken (ours)."""


@dataclass
class ExtentConfig:
    """How far the evidence of a latent reaches, measured by windows that are kept or replaced. All numbers are ours."""

    n_latents: Count | None = None
    """Latents, drawn from those that fire; null: all. Better few on several images than many on one."""
    n_images: Few = 3
    """Top images per latent."""
    n_donors: Annotated[int, Bounds(1, POOL_IMAGES - 1)] = 2
    """Images that replace pixels, for each patch; read by donor=images."""
    radii: Annotated[list[FewOrNone] | None, Items(ascending=True)] = None
    """Of the windows of (2 r + 1) x (2 r + 1) patches, ascending from 0; null: 0, 1, 2, 3, 5, 8, ... up to the widest
    that is smaller than the grid."""
    donor: Donor = Donor.images
    blur_patches: Positive = 2.0
    """Standard deviation of the blur in patches; read by donor=blur."""
    budget_images: Count = 1_000_000
    """Pictures that are encoded per SAE seed at most; to keep to it donors, images, radii and last latents are left
    out, see `choose_design`."""
    seed: Seed = 0
    """Of the donors, and of the latents that are drawn where not all are measured."""

    def __post_init__(self) -> None:
        check(self, "scope.extent")
        if self.radii is not None and self.radii[0] != 0:
            raise InputError(
                f"Expected scope.extent.radii to begin with 0, the patch alone, got {self.radii}: add it, or set null."
            )

    @property
    def unread(self) -> dict[str, str]:
        """The settings that this donor does not read, and in words what would."""
        readers = {"n_donors": Donor.images, "blur_patches": Donor.blur}
        others = {name: donor.name for name, donor in readers.items() if donor is not self.donor}
        return {name: f"by scope.extent.donor={donor} alone: drop it, or choose that" for name, donor in others.items()}

    @property
    def donors_per_patch(self) -> int:
        """Donors for each patch: of a colour and of a blur there is one."""
        return self.n_donors if self.donor is Donor.images else 1


@dataclass
class ScopeConfig:
    """How contextual dependency is scored."""

    k_cds: Few = 8
    """Images per latent that the score averages over."""
    k_max: Few | None = None
    """Images per latent that are ranked and scored, so that any k_cds up to it is arithmetic; null: max(16, k_cds)."""
    shift_patches: Few = 1
    """By how many patches, down and to the side, crop 2 is shifted against crop 1."""
    diagonal: Diagonal = Diagonal.main
    rank_by: RankBy = RankBy.max
    emd: EMDMethod = EMDMethod.exact
    sinkhorn_blur: Positive = 0.1
    """Blur of the transport plan in patches; read by emd=sinkhorn, and by stage=stability."""
    batch_images: Batch | None = None
    """Images encoded at a time, both crops of each; null: 16, and 128 on CUDA."""
    n_workers: FewOrNone = 0
    """Processes for exact distances at most; 0: one per core. Results do not depend on it."""
    extent: ExtentConfig = field(default_factory=ExtentConfig)
    """Read by stage=extent, and by what divides features by it."""

    def __post_init__(self) -> None:
        check(self, "scope")
        if self.k_max is not None and self.k_max < self.k_cds:
            raise InputError(
                f"Expected scope.k_max to be at least scope.k_cds ({self.k_cds}), got {self.k_max}: raise it or set"
                " null."
            )

    @property
    def n_ranks(self) -> int:
        """k_max with its default filled in."""
        return max(16, self.k_cds) if self.k_max is None else self.k_max

    def choose_batch(self, device: str) -> int:
        """Return batch_images with its default filled in, for a type of device: "cpu", "cuda"."""
        return (128 if device == "cuda" else 16) if self.batch_images is None else self.batch_images


class Control(Enum):
    """What a random group has in common with the group that it controls for."""

    size = "size"
    mass = "mass"
    energy = "energy"
    """How much the tokens change without it."""


class By(Enum):
    """What features are divided by: names of columns of the table of latents, all but the CDS of `ExtentResult` too."""

    cds = "cds"
    """The contextual dependency score: how far the activation moves when the context shifts."""
    extent = "extent"
    """How far the evidence reaches: the smallest window that keeps half of the response (ours)."""
    mean_extent = "mean_extent"
    """The share of the response that windows lose, averaged over their sizes (ours)."""
    context_effect = "context_effect"
    """The share of the variance of a patch's activation that contexts make (ours)."""

    @property
    def words(self) -> str:
        """What it is called in a sentence and along an axis."""
        return {
            By.cds: "CDS",
            By.extent: "evidence extent",
            By.mean_extent: "mean extent",
            By.context_effect: "context effect",
        }[self]


class Rule(Enum):
    """How features are divided."""

    mass = "mass"
    """gamma is where the activation mass divides, half and half by default: removing either group removes as much."""
    energy = "energy"
    """gamma is where removing either group changes the tokens equally much."""
    threshold = "threshold"
    """gamma is the given number."""
    quantile = "quantile"
    """gamma is a quantile of the scores: comparable between models, whose scores lie on different scales."""
    otsu = "otsu"
    """gamma divides the scores into two groups of least variance within."""
    bands = "bands"
    """No gamma: groups of equal size from the lowest to the highest scores."""


_READS = {Rule.mass: "mass_share", Rule.threshold: "gamma", Rule.quantile: "quantile", Rule.bands: "n_bands"}
"""The number that each rule reads; otsu and energy read none."""
_DEFAULTS = {Rule.mass: 0.5, Rule.quantile: 0.5, Rule.bands: 4}


@dataclass
class PartitionConfig:
    """How scored features are divided into groups: by a rule, and the number that it reads.

    A number that the rule does not read is refused. Without a rule it is the one that reads the number given, else
    `mass`.
    """

    by: By = By.cds
    """What is divided; all but the CDS are measured by stage=extent, under `scope.extent`."""
    rule: Rule | None = None
    mass_share: TrueShare | None = None
    """Least share of the scored features' activation mass in the low group; null: half."""
    gamma: Annotated[float, Bounds(0, 1, words="in 0..1, the range of the score")] | None = None
    """High scope is CDS > gamma, low scope CDS <= gamma; 0..1; the same of what else is divided."""
    quantile: TrueShare | None = None
    """Share of the scored features in the low group; null: half."""
    n_bands: Annotated[int, Bounds(2, 1000)] | None = None
    """Groups of equal size; null: 4."""
    decided_only: bool = False
    """Both groups hold only features that their pairs of crops settle; the others, undecided, are in no group. Their
    interval is that of `stability`."""

    def __post_init__(self) -> None:
        check(self, "partition")
        rule, number = self.chosen
        if self.decided_only and rule is Rule.bands:
            raise InputError(
                "partition.decided_only=true means nothing to partition.rule=bands, which has no gamma: drop it, or"
                " choose another rule."
            )
        if self.decided_only and self.by is not By.cds:
            raise InputError(
                f"partition.decided_only=true means nothing to partition.by={self.by.name}, which has no interval: drop"
                " it, or divide by CDS."
            )
        for reader, name in _READS.items():
            value = getattr(self, name)
            if value is not None and reader is not rule:
                raise InputError(
                    f"partition.{name}={value} means nothing to partition.rule={rule.name}: drop it, or choose"
                    f" partition={reader.name} (partition.{name}=null where a preset gives it)."
                )
        if rule is Rule.threshold and number is None:
            raise InputError("Expected partition.gamma, the number that partition.rule=threshold reads, got none.")

    @property
    def chosen(self) -> tuple[Rule, float | None]:
        """The rule and its number, defaults filled in; otsu and energy have none."""
        given = (rule for rule, name in _READS.items() if getattr(self, name) is not None)
        rule = self.rule or next(given, Rule.mass)
        number = getattr(self, _READS[rule]) if rule in _READS else None
        return rule, _DEFAULTS.get(rule) if number is None else number

    def cache_key_fields(self) -> dict[str, Any]:
        """Return what decides the groups: the rule and its number, and what is divided, as plain JSON values."""
        rule, number = self.chosen
        key: dict[str, Any] = {"rule": rule.name} | ({} if number is None else {_READS[rule]: number})
        return key | ({"decided_only": True} if self.decided_only else {}) | self.cache_key_of_measure

    @property
    def cache_key_of_measure(self) -> dict[str, Any]:
        """What is divided, as plain JSON values; nothing where it is the CDS."""
        return {} if self.by is By.cds else {"by": self.by.name}

    @property
    def rule_in_words(self) -> str:
        """How the groups are found, for display."""
        rule, number = self.chosen
        words = {
            Rule.mass: f"{number or 0:.0%} of the mass",
            Rule.energy: "equal energy",
            Rule.threshold: "given",
            Rule.quantile: f"quantile {number or 0:g}",
            Rule.otsu: "Otsu",
            Rule.bands: f"{number} bands",
        }[rule]
        words = words if self.by is By.cds else f"{words}, by {self.by.words}"
        return f"{words}, decided features only" if self.decided_only else words


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
    c: Positive = 6.0
    """Median absolute deviations above the median, in standard deviations of a normal law; read by the rule mad (6 is
    ours)."""
    value: Positive | None = None
    """Norm of the raw token; read by the rule absolute, which needs it."""
    quantile: TrueShare = 0.99
    """Share of the tokens that are normal; read by the rule quantile."""
    n_images: Count = 256
    """Images cropped twice for the distances (ours)."""
    n_layer_images: Count = 128
    """Images for the norms by layer, each encoded once per block (ours)."""

    def __post_init__(self) -> None:
        check(self, "outliers")
        if self.rule is OutlierRule.absolute and self.value is None:
            raise InputError("Expected outliers.value, the norm that outliers.rule=absolute reads, got none: give one.")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that this rule does not read, and in words what would."""
        readers = {"c": OutlierRule.mad, "value": OutlierRule.absolute, "quantile": OutlierRule.quantile}
        others = {name: rule.name for name, rule in readers.items() if rule is not self.rule}
        return {name: f"by outliers.rule={rule} alone: drop it, or choose that" for name, rule in others.items()}

    @property
    def rule_in_words(self) -> str:
        """How the threshold is found, for display."""
        return {
            OutlierRule.mad: f"median + {self.c:g} x 1.4826 x MAD",
            OutlierRule.absolute: "given",
            OutlierRule.quantile: f"quantile {self.quantile:g}",
        }[self.rule]


@dataclass
class StabilityConfig:
    """What the scores are compared with. All numbers are ours."""

    shifts: list[Few] = field(default_factory=lambda: [1, 2, 3, 4])
    """Shifts in patches; one that leaves fewer than 2 x 2 shared patches is noted, not measured."""
    n_latents: Count | None = None
    """Scored features per SAE that are scored again under another shift, diagonal or image set; null: all."""
    n_solver_latents: Count = 32
    """Scored features per SAE whose distances are computed by the other solver too: Sinkhorn is some 500 times slower
    than the exact solver (20 pairs of 13 x 13 maps per second and core)."""
    n_draws: Annotated[int, Bounds(1, 10**6)] = 1000
    """Resamplings of a feature's images for its interval."""
    level: TrueShare = 0.95
    """Of the interval."""
    min_cosine: Annotated[float, Bounds(-1, 1, words="in -1..1")] = 0.7
    """Features of two SAE seeds count as the same above this cosine of their decoder rows."""
    seed: Seed = 0
    """Of the resampling and of the features that are drawn."""

    def __post_init__(self) -> None:
        check(self, "stability")
        if len(set(self.shifts)) != len(self.shifts):
            raise InputError(f"Expected stability.shifts to hold none twice, got {self.shifts}.")

    @property
    def interval(self) -> dict[str, Any]:
        """What determines the interval of each feature's score, which also says whose group is undecided."""
        return {"n_draws": self.n_draws, "seed": self.seed, "level": self.level}
