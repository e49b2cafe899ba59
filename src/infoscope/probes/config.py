"""How the probes are trained, and which of them are refused because nothing could change what they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from infoscope.errors import InputError

if TYPE_CHECKING:
    from infoscope.data.images import LabelledImages
    from infoscope.vision.backbone import Backbone


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


@dataclass
class ProbeConfig:
    """Linear probes on frozen, edited tokens. Learning rates are grids: the best is chosen on images held out."""

    tasks: list[Task] = field(default_factory=lambda: list(Task))
    readouts: list[Readout] = field(default_factory=lambda: [Readout.patch_mean, Readout.cls_final])
    target: str = "class"
    """What classification predicts: "class", or a factor that the data set knows."""
    seed: int = 0
    """Of the random groups, the images held out, the order of images and the pixels drawn."""
    n_draws: int = 5
    """Random groups of each kind beside each group."""
    held_out_share: float = 0.1
    """Share of the training images on which the learning rate is chosen."""
    batch_norm: bool = True
    """Standardise every channel by the mean and the variance of the training tokens of that variant (BatchNorm with
    the statistics of the whole training set; its affine part is the linear head's)."""

    n_train_images: int | None = None
    """Training images for classification; null: all."""
    n_test_images: int | None = None
    classification_lrs: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    """Learning rates per 256 images of a batch (SGD, momentum 0.9, no weight decay, cosine to 0)."""
    classification_epochs: int = 30
    classification_batch_images: int = 256

    n_dense_train_images: int | None = 500
    """Training images for segmentation and depth, drawn at random; null: all."""
    n_dense_test_images: int | None = None
    segmentation_lrs: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1])
    """Learning rates of AdamW, cosine to 0; these suit the few steps of the default, thousands want about 1e-3."""
    depth_lrs: list[float] = field(default_factory=lambda: [0.01, 0.03, 0.1])
    dense_steps: int = 150
    dense_batch_images: int = 8
    weight_decay: float = 0.01
    """Of AdamW."""
    n_pixels_per_image: int | None = 64
    """Pixels of each image of a step on which the dense losses are taken; null: all. Evaluation takes all."""
    n_held_out_pixels_per_image: int | None = 1024
    """Pixels of each held-out image on which the learning rate of the dense heads is chosen; null: all."""
    n_depth_bins: int = 256
    max_depth_m: float = 10.0

    variants_per_chunk: int = 32
    """Variants trained in one go: bounds memory, changes no result beyond rounding."""
    feature_batch_images: int = 8
    """Images edited and sent through the remaining blocks at a time, for all variants of a chunk."""

    def __post_init__(self) -> None:
        for name in ("tasks", "readouts", "classification_lrs", "segmentation_lrs", "depth_lrs"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InputError(f"Expected probe.{name} to hold at least one value and none twice, got {values}.")
        for name in ("classification_lrs", "segmentation_lrs", "depth_lrs"):
            values = getattr(self, name)
            if min(values) <= 0 or sorted(values) != list(values):
                raise InputError(f"Expected probe.{name} to be positive and ascending, got {values}.")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected probe.{name} to be at least 1, got {value}.")
        if self.n_draws < 0 or self.weight_decay < 0:
            raise InputError(
                f"Expected probe.n_draws and probe.weight_decay >= 0, got {self.n_draws} and {self.weight_decay}."
            )
        if not 0 < self.held_out_share < 1:
            raise InputError(f"Expected probe.held_out_share between 0 and 1, got {self.held_out_share}.")
        if self.n_depth_bins < 2 or self.max_depth_m <= 1e-3:
            raise InputError(
                "Expected probe.n_depth_bins >= 2 and probe.max_depth_m > 0.001,"
                f" got {self.n_depth_bins} and {self.max_depth_m}."
            )

    @property
    def heads(self) -> set[str]:
        """The heads that are trained, as results name them: "classification/<readout>", "segmentation", "depth"."""
        dense = {task.name for task in self.tasks if task is not Task.classification}
        readouts = self.readouts if Task.classification in self.tasks else []
        return dense | {f"{Task.classification.name}/{readout.name}" for readout in readouts}


@dataclass
class SelectConfig:
    """How many latents `stage=select` keeps, and what their scope is told apart by. All numbers are ours."""

    n_kept: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64])
    """Latents kept; a rule that has fewer to choose from is left out."""
    n_bands: int = 3
    """Groups of equal size by CDS, from each of which the most active latents are kept."""
    n_draws: int = 3
    """Random choices of each size."""

    def __post_init__(self) -> None:
        if not self.n_kept or min(self.n_kept) < 1 or sorted(set(self.n_kept)) != list(self.n_kept):
            raise InputError(f"Expected select.n_kept to hold ascending numbers of at least 1, got {self.n_kept}.")
        if self.n_bands < 2 or self.n_draws < 1:
            raise InputError(
                f"Expected select.n_bands >= 2 and select.n_draws >= 1, got {self.n_bands} and {self.n_draws}."
            )


_COUNTS = (
    "n_train_images",
    "n_test_images",
    "classification_epochs",
    "classification_batch_images",
    "n_dense_train_images",
    "n_dense_test_images",
    "dense_steps",
    "dense_batch_images",
    "n_pixels_per_image",
    "n_held_out_pixels_per_image",
    "variants_per_chunk",
    "feature_batch_images",
)


def check_probes(
    config: ProbeConfig,
    backbone: Backbone | None,
    layer: int,
    images: LabelledImages,
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
