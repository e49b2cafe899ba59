"""How the probes are trained, and which of them are refused because nothing could change what they read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from infoscope.runtime.bounds import (
    Batch,
    Bounds,
    Count,
    CountOrNone,
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

if TYPE_CHECKING:
    from infoscope.data.images import LabelledImages
    from infoscope.data.scene_set import SceneSet
    from infoscope.vision.backbone import Backbone


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
class ProbeConfig:
    """Linear probes on frozen, edited tokens. Learning rates are grids: the best is chosen on images held out."""

    tasks: Annotated[list[Task], Items()] = field(default_factory=lambda: list(Task))
    readouts: Annotated[list[Readout], Items()] = field(default_factory=lambda: [Readout.patch_mean, Readout.cls_final])
    target: str = "class"
    """What classification predicts: "class", or a factor that the data set knows."""
    seed: Seed = 0
    """Of the random groups, the images held out, the order of images and the pixels drawn."""
    n_draws: Annotated[int, Bounds(0, 10**4)] = 5
    """Random groups of each kind beside each group."""
    held_out_share: TrueShare = 0.1
    """Share of the training images on which the learning rate, or L2 strength, is chosen."""
    batch_norm: bool = True
    """Segmentation and depth: standardise every channel by the mean and the variance of the training tokens of that
    variant (BatchNorm with the statistics of the whole training set; its affine part is the linear head's)."""

    n_train_images: Count | None = None
    """Training images for classification; null: all."""
    n_test_images: Count | None = None
    classification_lrs: Rates = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    """Learning rates per 256 images of a batch (SGD, momentum 0.9, no weight decay, cosine to 0)."""
    classification_epochs: Count = 30
    classification_batch_images: Batch = 256
    classification_batch_norm: bool = True
    """Standardise every channel of the vectors, as `batch_norm` does with tokens."""
    classification_solver: Solver = Solver.sgd
    classification_l2: Rates = field(default_factory=lambda: [1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6])
    """L-BFGS: strengths at which the search begins, of the penalty strength / 2 * |W|^2 beside the sum of the images'
    cross-entropies (as CLIP; scikit-learn's C is 1 / strength)."""
    classification_l2_halvings: Annotated[int, Bounds(0, 100)] = 4
    """L-BFGS: how often the intervals on both sides of the best strength are halved."""
    lbfgs_max_iterations: Count = 1000
    """L-BFGS: iterations for one strength at most; results say where they did not suffice."""
    feature_dtype: Float = "float32"
    """Of the cached vectors of CLS on disk: float32, or float16 at half the size."""

    n_dense_train_images: Count | None = 500
    """Training images for segmentation and depth, drawn at random; null: all."""
    n_dense_test_images: Count | None = None
    segmentation_lrs: Rates = field(default_factory=lambda: [0.01, 0.03, 0.1])
    """Learning rates of AdamW, falling to 0; these suit the few steps of the default, thousands want about 1e-3."""
    depth_lrs: Rates = field(default_factory=lambda: [0.01, 0.03, 0.1])
    segmentation_crops: CropConfig = field(default_factory=CropConfig)
    depth_crops: CropConfig = field(default_factory=CropConfig)
    dense_steps: Count = 150
    dense_warmup_steps: CountOrNone = 0
    """Steps over which the dense learning rates rise from 0."""
    dense_schedule: DenseSchedule = DenseSchedule.cosine
    dense_batch_images: Batch = 8
    weight_decay: NotNegative = 0.01
    """Of AdamW."""
    n_pixels_per_image: Count | None = 64
    """Pixels of each image of a step on which the dense losses are taken; null: all. Evaluation takes all."""
    n_held_out_pixels_per_image: Count | None = 1024
    """Pixels of each held-out image on which the learning rate of the dense heads is chosen; null: all."""
    n_depth_bins: Annotated[int, Bounds(2, 10**6)] = 256
    max_depth_m: Annotated[float, Bounds(above=1e-3, most=1e6)] = 10.0

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

    def determining(self) -> dict[str, Any]:
        """Return what decides the results of `tasks`, as plain JSON values: no sizes of batches or chunks of variants,
        nothing that another task or solver reads."""
        ignored = {"n_draws", "variants_per_chunk", "feature_batch_images", "memory_gb"}
        if Task.classification not in self.tasks:
            ignored |= {*_CLASSIFICATION, *_SGD, *_LBFGS}
        else:
            ignored |= set(_LBFGS if self.classification_solver is Solver.sgd else _SGD)
            ignored |= set() if self.cls_readouts else {"feature_dtype"}
        if not {Task.segmentation, Task.depth} & set(self.tasks):
            ignored |= set(_DENSE)
        ignored |= {f"{task.name}_crops" for task in (Task.segmentation, Task.depth) if self.crops(task) is None}
        return {name: _plain(value) for name, value in asdict(self).items() if name not in ignored}


@dataclass
class SelectConfig:
    """How many latents `stage=select` keeps, and what their scope is told apart by. All numbers are ours."""

    n_kept: Annotated[list[Count], Items(ascending=True)] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """Latents kept; a rule that has fewer to choose from is left out."""
    n_bands: Annotated[int, Bounds(2, 1000)] = 3
    """Groups of equal size by CDS, from each of which the most active latents are kept."""
    n_draws: Annotated[int, Bounds(1, 10**4)] = 3
    """Random choices of each size."""

    def __post_init__(self) -> None:
        check(self, "select")


# What `ProbeConfig.determining` leaves out where a task or a solver is not used; all others always count.
_CLASSIFICATION = (
    "readouts",
    "target",
    "n_train_images",
    "classification_batch_norm",
    "classification_solver",
    "feature_dtype",
)
_SGD = ("classification_lrs", "classification_epochs", "classification_batch_images")
_LBFGS = ("classification_l2", "classification_l2_halvings", "lbfgs_max_iterations")
_DENSE = (
    "batch_norm",
    "n_dense_train_images",
    "n_dense_test_images",
    "segmentation_lrs",
    "depth_lrs",
    "segmentation_crops",
    "depth_crops",
    "dense_steps",
    "dense_warmup_steps",
    "dense_schedule",
    "dense_batch_images",
    "weight_decay",
    "n_pixels_per_image",
    "n_held_out_pixels_per_image",
    "n_depth_bins",
    "max_depth_m",
)


def _plain(value: Any) -> Any:
    """Return enums by name, and tuples as lists, at every depth."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def check_probes(
    config: ProbeConfig,
    backbone: Backbone | None,
    layer: int,
    images: LabelledImages | type[SceneSet],
    edits_patches: bool = True,
    edits_prefix: bool = False,
) -> None:
    """Refuse probes that an edit could not change, and targets that the data do not have.

    Args:
        backbone: needed for the readout cls_final alone.
        layer: the hooked block.
        edits_patches, edits_prefix: which tokens the SAE was trained on, and so which are edited.

    Raises:
        InputError: a readout or task that reads no edited token, cls_final from the last block, unknown target.
    """
    dense = [task.name for task in (Task.segmentation, Task.depth) if task in config.tasks]
    if dense and not edits_patches:
        raise InputError(f"{' and '.join(dense)} read patch tokens, which an SAE for CLS leaves alone: drop the task.")
    if Task.classification not in config.tasks:
        return
    if Readout.patch_mean in config.readouts and not edits_patches:
        raise InputError("The readout patch_mean cannot change under an SAE for CLS alone: use cls_layer or cls_final.")
    if Readout.cls_layer in config.readouts and not edits_prefix:
        raise InputError(
            "The readout cls_layer cannot change: the SAE was trained on patch tokens and leaves CLS alone; use"
            " patch_mean or cls_final, or an SAE that covers CLS."
        )
    if Readout.cls_layer in config.readouts and backbone is not None and not backbone.has_cls:
        raise InputError("The readout cls_layer needs a CLS token, which this model does not have: use patch_mean.")
    if Readout.cls_final in config.readouts:
        if backbone is None:
            raise InputError("The readout cls_final needs the backbone, to go on from the edited tokens: give it.")
        if backbone.check_layer(layer) == backbone.n_layers - 1:
            raise InputError(
                f"The readout cls_final needs a block after the hooked one, but model.layer={layer} is the last: use"
                " patch_mean, or an earlier layer."
            )
    n_classes = images.n_target_classes(config.target)
    if n_classes < 2:
        raise InputError(f"Expected a target with at least two classes, but {config.target!r} has {n_classes}.")
