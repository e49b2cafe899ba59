"""How the probes are trained: a dataclass for each recipe, and all of them side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Annotated, Any

from infoscope.runtime.bounds import (
    Batch,
    Bounds,
    Count,
    CountOrNone,
    FilePath,
    Float,
    Items,
    NotNegative,
    Pixels,
    Positive,
    Seed,
    TrueShare,
    check,
)
from infoscope.runtime.errors import InputError
from infoscope.scope.config import Control

Rates = Annotated[list[Positive], Items(ascending=True)]


class Task(Enum):
    """What a probe predicts."""

    classification = "classification"
    segmentation = "segmentation"
    depth = "depth"


class Readout(Enum):
    """What classification reads: the mean of the edited patch tokens at the hook; CLS after the remaining blocks,
    before projection; CLS at the hook itself."""

    patch_mean = "patch_mean"
    cls_final = "cls_final"
    cls_layer = "cls_layer"


class Solver(Enum):
    """What trains the heads of classification: SGD over a grid of learning rates, or L-BFGS over a search of L2
    strengths."""

    sgd = "sgd"
    lbfgs = "lbfgs"


class DenseSchedule(Enum):
    """How the learning rates of segmentation and depth fall to 0 after the warm-up."""

    cosine = "cosine"
    linear = "linear"


@dataclass
class CropConfig:
    """Segmentation or depth on crops of the photographs; without `crop_px`, on whole images squashed to the model's
    resolution.

    Training: random scale, random square crop, flip; padding has the model's mean colour and no truth. Evaluation:
    windows of the crops' size, averaged where they overlap, resized bilinearly to the size of the truth. The backbone's
    positions are interpolated to the crops' size. The SAE was trained on tokens at the model's own resolution, from
    which those of crops differ slightly.
    """

    crop_px: Pixels | None = None
    """Side of a crop and of a window, taken to the nearest multiple of the model's patch (512: 518 for 14 px); null:
    whole images, and nothing else here counts."""
    stride_px: Pixels = 341
    """From one window to the next; the last one of a row or column is shifted back to fit."""
    short_side_px: Pixels | None = 512
    """To which a photograph is resized, keeping its aspect; null: as it is stored."""
    scale_range: Annotated[list[Annotated[float, Bounds(above=0, most=100)]], Items(2)] = field(
        default_factory=lambda: [0.5, 2.0]
    )
    """Between which a training photograph is scaled, beyond that, uniformly."""
    flip: bool = True
    """Mirror every second training crop, left to right."""
    n_steps: Count | None = None
    """Training steps; null: probe.dense_steps."""
    n_norm_crops: Batch = 1024
    """With probe.batch_norm, the statistics are those of the first so many training crops, exact and the same anew."""
    n_held_out: Count | None = 100
    """Photographs held out to choose the learning rate, at most; null: probe.held_out_share of all."""

    def __post_init__(self) -> None:
        check(self, "probe.<task>_crops")
        if self.crop_px is not None and self.stride_px > self.crop_px:
            raise InputError(
                f"Expected probe.<task>_crops.stride_px to be at most crop_px={self.crop_px}, so that windows leave no"
                f" gap, got {self.stride_px}."
            )
        if self.scale_range[0] > self.scale_range[1]:
            raise InputError(
                f"Expected probe.<task>_crops.scale_range to hold the smaller number first, got {self.scale_range}."
            )


@dataclass
class ClassificationRecipe:
    """What classification reads, under every solver of its heads."""

    readouts: Annotated[list[Readout], Items()] = field(default_factory=lambda: [Readout.patch_mean, Readout.cls_final])
    target: str = "class"
    """What is predicted, by the linear probe of `stage=quality` too: "class", or a factor that the data set knows."""
    n_train_images: Count | None = None
    """Training images; null: all."""
    n_test_images: Count | None = None
    classification_solver: Solver = Solver.sgd
    classification_batch_norm: bool = True
    """Standardise every channel of the vectors, as `batch_norm` does with tokens."""
    feature_dtype: Float = "float32"
    """Of the cached vectors of CLS on disk: float32, or float16 at half the size."""


@dataclass
class SGDRecipe(ClassificationRecipe):
    """Classification by SGD: momentum 0.9, no weight decay, cosine to 0."""

    classification_lrs: Rates = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    """Learning rates per 256 images of a batch."""
    classification_epochs: Count = 30
    classification_batch_images: Batch = 256


@dataclass
class LBFGSRecipe(ClassificationRecipe):
    """Classification by L-BFGS, as CLIP's linear probes."""

    classification_l2: Rates = field(default_factory=lambda: [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6])
    """Strengths at which the search begins, of the penalty strength / 2 * |W|^2 added to the sum of the images'
    cross-entropies (as CLIP; scikit-learn's C is 1 / strength)."""
    classification_l2_halvings: Annotated[int, Bounds(0, 100)] = 4
    """How often the intervals on both sides of the best strength are halved."""
    lbfgs_max_iterations: Count = 1000
    """Iterations for one strength at most; results say where they did not suffice."""


@dataclass
class DenseRecipe:
    """What segmentation and depth read both. They are trained by AdamW."""

    n_dense_train_images: Count | None = 500
    """Training images, drawn at random; null: all."""
    n_dense_test_images: Count | None = None
    batch_norm: bool = True
    """Standardise every channel by the mean and the variance of the training tokens of that variant (BatchNorm with the
    statistics of the whole training set; its affine part is the linear head's)."""
    dense_steps: Count = 150
    dense_warmup_steps: CountOrNone = 0
    """Steps over which the learning rates rise from 0."""
    dense_schedule: DenseSchedule = DenseSchedule.cosine
    dense_batch_images: Batch = 8
    weight_decay: NotNegative = 0.01
    n_pixels_per_image: Count | None = 64
    """Pixels of each image of a step on which the losses are taken; null: all (of whole images: they must have one
    size). Evaluation takes all."""
    n_held_out_pixels_per_image: Count | None = 1024
    """Pixels of each held-out image on which the learning rate is chosen; null: all."""


@dataclass
class SegmentationRecipe(DenseRecipe):
    """Segmentation."""

    segmentation_lrs: Rates = field(default_factory=lambda: [0.01, 0.03, 0.1])
    """Learning rates, falling to 0; these suit the few steps of the default, thousands want about 1e-3."""
    segmentation_crops: CropConfig = field(default_factory=CropConfig)


@dataclass
class DepthRecipe(DenseRecipe):
    """Depth, as the expectation over bins."""

    depth_lrs: Rates = field(default_factory=lambda: [0.01, 0.03, 0.1])
    depth_crops: CropConfig = field(default_factory=CropConfig)
    n_depth_bins: Annotated[int, Bounds(2, 10**6)] = 256
    max_depth_m: Annotated[float, Bounds(above=1e-3, most=1e6)] = 10.0


_RECIPES: dict[type, str] = {
    SGDRecipe: "classification (sgd)",
    LBFGSRecipe: "classification (lbfgs)",
    SegmentationRecipe: "segmentation",
    DepthRecipe: "depth",
}
"""The recipes, and what is trained by each."""


@dataclass
class ProbeConfig(DepthRecipe, SegmentationRecipe, LBFGSRecipe, SGDRecipe):
    """Linear probes on frozen, edited tokens. Learning rates are grids: the best is chosen on images held out.

    Tasks are probed side by side, so a configuration holds the recipes of all, and which are read follows from `tasks`.
    They are inherited, not nested: a setting's name on the command line does not tell whose it is.
    """

    tasks: Annotated[list[Task], Items()] = field(default_factory=lambda: list(Task))
    seed: Seed = 0
    """Of the random groups, the images held out (of `stage=quality` too), the order of images and the pixels drawn."""
    n_draws: Annotated[int, Bounds(0, 10**4)] = 5
    """Random control groups of each kind for each group."""
    controls: Annotated[list[Control], Items()] = field(default_factory=lambda: [Control.mass, Control.energy])
    """Kinds of random groups: of equal mass, equal energy, equal size. (Groups of equal size say least: they differ in
    mass as well.)"""
    held_out_share: TrueShare = 0.1
    """Share of the training images on which the learning rate, or L2 strength, is chosen, in `stage=quality` too."""
    variants_per_chunk: Count = 32
    """Variants trained in one go: bounds memory, changes no result beyond rounding."""
    feature_batch_images: Batch = 8
    """Images edited and sent through the remaining blocks at a time, for all variants of a chunk."""
    memory_gb: Annotated[float, Bounds(above=0, most=1e9)] = 4.0
    """Vectors that classification holds in memory at a time, float32, both splits and all readouts: so many variants
    are trained together as fit (at least one, `variants_per_chunk` at most). And edited tokens and logits that
    segmentation and depth hold: they go through in slices of variants. Changes no result beyond rounding."""

    def __post_init__(self) -> None:
        check(self, "probe")
        for task in self.tasks:
            if task is Task.classification:
                continue
            crops = self.crops(task)
            n_steps = (crops and crops.n_steps) or self.dense_steps
            if self.dense_warmup_steps > n_steps:
                raise InputError(
                    f"Expected probe.dense_warmup_steps to be at most the steps of {task.name}, {n_steps}, got"
                    f" {self.dense_warmup_steps}."
                )

    def crops(self, task: Task) -> CropConfig | None:
        """Return how one of the tasks is shown crops; None: it is shown whole images, is no dense task or not there."""
        crops = {Task.segmentation: self.segmentation_crops, Task.depth: self.depth_crops}.get(task)
        return None if crops is None or crops.crop_px is None or task not in self.tasks else crops

    @property
    def recipes(self) -> set[type]:
        """The recipes that are read."""
        classification = SGDRecipe if self.classification_solver is Solver.sgd else LBFGSRecipe
        of = {Task.classification: classification, Task.segmentation: SegmentationRecipe, Task.depth: DepthRecipe}
        return {of[task] for task in self.tasks}

    @property
    def unread(self) -> dict[str, str]:
        """The settings that these probes do not read, by their keys below `probe`, and in words what would."""
        dense = [task for task in self.tasks if task is not Task.classification]
        crops = {f"{task.name}_crops": self.crops(task) for task in dense}
        unread: dict[str, str] = {}
        if all(one and one.n_steps for one in crops.values()):
            steps = ", ".join(f"probe.{name}.n_steps" for name in crops)
            unread["dense_steps"] = f"where crops have no steps of their own: drop it, or set {steps}"
        if all(crops.values()):
            unread["n_held_out_pixels_per_image"] = "by probes of whole images alone: drop it"
        for name, one in crops.items():
            others = [] if one else [other.name for other in fields(CropConfig) if other.name != "crop_px"]
            with_crops = f"with probe.{name}.crop_px alone: drop it, or give that too"
            unread |= {f"{name}.{other}": with_crops for other in others}
            if one and not self.batch_norm:
                unread[f"{name}.n_norm_crops"] = "with probe.batch_norm=true alone: drop it, or give that too"
        if not self.cls_readouts:
            unread["feature_dtype"] = "by readouts of CLS: drop it, or add one to probe.readouts"
        tasks, solver = ",".join(task.name for task in self.tasks), self.classification_solver.name
        chosen = f"probe.tasks=[{tasks}] with probe.classification_solver={solver}: drop it, or change those"
        for name in {name for recipe in _RECIPES for name in _list_names(recipe)}:
            readers = [recipe for recipe in _RECIPES if name in _list_names(recipe)]
            if not self.recipes & set(readers):
                unread[name] = f"by {' and '.join(_RECIPES[reader] for reader in readers)}, not by {chosen}"
        return unread

    @property
    def heads(self) -> set[str]:
        """The heads that are trained, as results name them: "classification/<readout>", "segmentation", "depth"."""
        dense = {task.name for task in self.tasks if task is not Task.classification}
        readouts = self.readouts if Task.classification in self.tasks else []
        return dense | {f"{Task.classification.name}/{readout.name}" for readout in readouts}

    @property
    def cls_readouts(self) -> list[Readout]:
        """The readouts whose vectors are cached for each variant; means of patches follow from those of the images."""
        chosen = self.readouts if Task.classification in self.tasks else []
        return [readout for readout in Readout if readout in chosen and readout is not Readout.patch_mean]

    @property
    def chosen_images(self) -> list[int | None]:
        """What decides which images classification reads: n_train_images, n_test_images, and the seed of a draw."""
        wanted = [self.n_train_images, self.n_test_images]
        return [*wanted, None if wanted == [None, None] else self.seed]

    def cache_key_fields(self) -> dict[str, Any]:
        """Return what decides the results of `tasks`, as plain JSON values: no sizes of batches or chunks of variants,
        nothing that another task or solver reads. (The first keys held, for any task, `n_test_images`, and for either
        dense task the recipe of the other but for its crops: so do all.)"""
        dense = {SegmentationRecipe, DepthRecipe}
        keyed = self.recipes | (dense if self.recipes & dense else set())
        kept = {"n_test_images", *(name for recipe in keyed for name in _list_names(recipe))}
        ignored = {name for recipe in _RECIPES for name in _list_names(recipe)} - kept
        ignored |= {"n_draws", "controls", "variants_per_chunk", "feature_batch_images", "memory_gb"}
        ignored |= set() if self.cls_readouts else {"feature_dtype"}
        ignored |= {f"{task.name}_crops" for task in Task if self.crops(task) is None}
        return {name: _plain(value) for name, value in asdict(self).items() if name not in ignored}


@dataclass
class SelectConfig:
    """How many latents `stage=select` keeps, and from how many bands of scope. All numbers are ours."""

    n_kept: Annotated[list[Count], Items(ascending=True)] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """Latents kept; a rule that has fewer to choose from is left out."""
    n_bands: Annotated[int, Bounds(2, 1000)] = 3
    """Groups of equal size by CDS, from each of which the most active latents are kept."""
    n_draws: Annotated[int, Bounds(1, 10**4)] = 3
    """Random choices of each size."""
    weights: FilePath | None = None
    """A file of experiments/select_features.py: the latents of most predicted worth to each task are kept, too, by each
    of its rules. What they are predicted from, MS and class counts, is that of `stage=describe`."""

    def __post_init__(self) -> None:
        check(self, "select")

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change results, as plain JSON: no path."""
        return {name: getattr(self, name) for name in ("n_kept", "n_bands", "n_draws")}


@dataclass
class CurveConfig:
    """How much `stage=curve` removes, from either end of the scores and in `probe.n_draws` random orders (ours)."""

    mass_shares: Annotated[list[TrueShare], Items(ascending=True)] = field(
        default_factory=lambda: [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    )
    """Of the scored features' activation mass."""

    def __post_init__(self) -> None:
        check(self, "curve")


@dataclass
class EffectConfig:
    """On what `stage=effects` measures the effect of each latent. All numbers are ours."""

    n_images: Count | None = 1000
    """Test images, drawn at random; null: all. What the final CLS makes of an image is computed anew for every latent
    that fires in it."""
    n_pixels: Count | None = 1024
    """Pixels of each image at which segmentation and depth are read; null: all."""

    def __post_init__(self) -> None:
        check(self, "effects")


def _list_names(recipe: type) -> set[str]:
    return {one.name for one in fields(recipe)}


def _plain(value: Any) -> Any:
    """Return enums by name, and tuples as lists, at every depth."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value
