"""Which backbone is looked into, and how the scenes' own CLIP is trained."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from infoscope.runtime.bounds import (
    Batch,
    Bounds,
    Count,
    CountOrNone,
    Few,
    FilePath,
    Name,
    NotNegative,
    OneOf,
    Pixels,
    Positive,
    Seed,
    Share,
    check,
)
from infoscope.runtime.errors import InputError
from infoscope.vision.hooks import AT_END, RESID_POST, SITES, HookPoint
from infoscope.vision.preprocessing import check_preprocessing

Channel = Annotated[float, Bounds(-1e30, 1e30, words="a finite number on the scale 0..1")]
"""Of a mean or a std, whose sense `check_preprocessing` sees in all of them."""


class ModelKind(Enum):
    """Where a backbone comes from."""

    open_clip = "open_clip"
    timm = "timm"
    planted_registers = "planted_registers"
    planted_facts = "planted_facts"
    context_free = "context_free"
    own = "own"
    """Of a judge: the experiment's own model."""


@dataclass
class ModelConfig:
    """Which frozen vision transformer is looked into, and where."""

    name: Name = "scenes_clip"
    """For display: appears in the names of artifacts."""
    kind: ModelKind = ModelKind.open_clip
    arch: str | None = None
    """open_clip's architecture, such as ViT-B-16; null where `pretrained` brings its own configuration. timm's, with
    kind timm: vit_base_patch16_224, or vit_base_patch16_224.mae where mean and std depend on whose weights a file has.
    """
    pretrained: FilePath | None = "shipped"
    """`random`, a file (.safetensors, .pt, .pth, .bin), or a tag that open_clip or timm has for the architecture. With
    open_clip also `shipped` (scenes_clip), `train_clip` (made by that stage), and `local-dir:<folder>`."""
    origin: str | None = None
    """Whose weights a local file holds, as one of open_clip's tags: it has the activation, mean and std of that tag,
    unless it tells of another. Tags and folders know themselves. With kind timm the tag stands in `arch`."""
    weights_key: str | None = None
    """Which set of weights is read of a local file that holds several (teacher, state_dict, ...); null: the averaged
    one, as timm and DINOv2 do."""
    quick_gelu: bool | None = None
    """The activation: true QuickGELU, false GELU; null: as the tag, the folder, the file or its origin has it. For
    open_clip's towers alone."""
    image_px: Pixels | None = None
    """Side of the input, a multiple of the patch; null: the model's own. Another one interpolates the positions."""
    mean: list[Channel] | None = None
    """RGB mean of the preprocessing, on the scale 0..1, with `std`; null: the model's own, found as the activation."""
    std: list[Channel] | None = None
    layer: Annotated[int, Bounds(-4096, 4096)] = -2
    """Block whose output (residual stream) is read: 0-based, negative from the end. Ours: the penultimate. Either
    number of a block means the same artifacts."""
    site: Annotated[str, OneOf(SITES)] = RESID_POST
    """resid_post: the residual stream after that block; post_norm: after the last block and the final norm (timm);
    pooled: the image embedding, one vector for each image; projected: each patch as the tower would embed it alone."""
    precision: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
    """float32 or bfloat16 (autocast) inside the backbone; tokens leave it as float32."""
    seed: Seed = 0
    """Of the weights where pretrained=random."""

    def __post_init__(self) -> None:
        if self.mean is not None or self.std is not None:
            check_preprocessing(self.mean, self.std, "model.")
        check(self, "model")
        if self.site in AT_END:
            self.layer = -1
        if not isinstance(self.quick_gelu, bool | None):
            raise InputError(f"Expected model.quick_gelu to be true, false or null, got {self.quick_gelu!r}.")
        if self.kind is ModelKind.timm:
            self._check_timm()
        if self.kind is ModelKind.open_clip:
            if self.pretrained is None:
                raise InputError(
                    "model.pretrained is missing: give one of open_clip's tags, a local file (.safetensors, .pt),"
                    " local-dir:<folder>, or random."
                )
            brings_config = self.pretrained in ("shipped", "train_clip") or self.pretrained.startswith("local-dir:")
            if self.arch is None and not brings_config and Path(self.pretrained).expanduser().is_dir():
                raise InputError(
                    f"model.pretrained={self.pretrained} is a folder: give local-dir:{self.pretrained} if open_clip's"
                    " configuration lies in it, else model.arch and a file of weights."
                )
            if self.arch is None and not brings_config and self.name != "scenes_clip":
                raise InputError(f"model.arch is missing: model.pretrained={self.pretrained} needs it (ViT-B-16, ...).")

    @property
    def hook(self) -> HookPoint:
        """Where tokens are read and edited."""
        return HookPoint(self.layer, self.site)

    @property
    def unread(self) -> dict[str, str]:
        """The settings that this model does not read, and in words what would."""
        if self.kind is ModelKind.own:
            names = [one.name for one in fields(self) if one.name not in ("name", "kind")]
            return dict.fromkeys(names, "by a judge of its own alone: drop it, or choose one, such as judge=dinov2_s14")
        unread: dict[str, str] = {}
        if self.site in AT_END:
            unread["layer"] = f"at other sites alone, {self.site} lies behind all blocks: drop it, or drop model.site"
        if self.kind not in (ModelKind.open_clip, ModelKind.timm):
            of_weights = ("arch", "pretrained", "origin", "weights_key", "quick_gelu", "image_px", "mean", "std")
            reads = "by model.kind=open_clip or timm alone: drop it, or choose another model"
            return unread | dict.fromkeys((*of_weights, "precision"), reads)
        if self.pretrained != "random":
            unread["seed"] = "by model.pretrained=random and by planted models alone: drop it, or choose one of those"
        brings_config = str(self.pretrained).startswith("local-dir:") or self.pretrained in ("shipped", "train_clip")
        if brings_config:
            reads = f"with other weights alone, model.pretrained={self.pretrained} has its own: drop it, or change that"
            unread |= dict.fromkeys(("arch", "origin"), reads)
        elif re.fullmatch(r"(?!random$)[\w-]+", str(self.pretrained)) and not os.path.isfile(str(self.pretrained)):
            unread["origin"] = "of a file of weights alone, and tags know themselves: drop it, or give a file"
        return unread

    def _check_timm(self) -> None:
        if self.arch is None:
            raise InputError("model.arch is missing: model.kind=timm needs it (vit_base_patch14_dinov2, ...).")
        is_open_clip = self.pretrained in (None, "shipped", "train_clip")
        if is_open_clip or str(self.pretrained).startswith("local-dir:"):
            raise InputError(
                f"Expected model.pretrained to be one of timm's tags, a local file (.safetensors, .pth) or random with"
                f" model.kind=timm, got {self.pretrained}."
            )
        if self.quick_gelu is not None:
            raise InputError(
                "model.quick_gelu is for open_clip's towers: with model.kind=timm choose an architecture such as"
                " vit_base_patch16_clip_quickgelu_224."
            )
        if self.origin is not None:
            raise InputError(
                "model.origin is for open_clip's towers: with model.kind=timm set model.origin=null and"
                f" model.arch={self.arch.partition('.')[0]}.<tag>, the tag that the file comes from."
            )


_AS_EVER = (("init", "random"), ("place", None))


@dataclass
class ContrastiveConfig:
    """How `stage=train_clip` trains a CLIP on captioned scenes."""

    n_images: Batch = 100_000
    """Training pictures, rendered from a stream of their own (never the ones the SAE or the probes see)."""
    n_test_images: Batch = 1_000
    n_steps: Count = 8_000
    batch_size: Batch = 512
    lr: Positive = 1.0e-3
    weight_decay: NotNegative = 0.1
    warmup_steps: CountOrNone = 500
    patch_dropout: Annotated[float, Bounds(0, below=1, words="at least 0 and below 1")] = 0.5
    """Share of patch tokens left out while training, until `full_share` of the steps is left (Li et al., 2023)."""
    full_share: Share = 0.2
    seed: Seed = 0
    precision: Annotated[str, OneOf(("32-true", "16-mixed", "bf16-mixed"))] = "32-true"
    """Lightning's precision of the training run."""
    width: Pixels = 128
    layers: Few = 4
    text_layers: Few = 2
    embed_dim: Pixels = 128
    patch_px: Few = 8
    grid: Few = 12
    context_length: Few = 32
    init: Annotated[str, OneOf(("random", "shipped"))] = "random"
    """Weights that training begins with; shipped: those of scenes_clip, whose sizes the defaults are."""
    place: str | None = None
    """Train on the scenes of one place alone, such as sea; null: on all."""

    def __post_init__(self) -> None:
        check(self, "clip")
        if self.width % 32:
            raise InputError(f"Expected clip.width to be a multiple of 32, an attention head's, got {self.width}.")
        if self.warmup_steps > self.n_steps:
            raise InputError(
                f"Expected clip.warmup_steps to be at most clip.n_steps ({self.n_steps}), got {self.warmup_steps}."
            )
        if self.batch_size > self.n_images:
            raise InputError(
                f"Expected clip.batch_size to be at most clip.n_images ({self.n_images}), got {self.batch_size}."
            )

    def cache_key_fields(self) -> dict[str, Any]:
        """Return all settings as plain JSON, the last two where they are not as they always were."""
        settings = vars(self).copy()
        return {name: value for name, value in settings.items() if (name, value) not in _AS_EVER}

    @property
    def sets(self) -> dict[str, int]:
        """The splits of the scenes that it is trained and measured on, and how many pictures of each."""
        return {"clip_train": self.n_images, "clip_test": self.n_test_images}

    @property
    def image_px(self) -> int:
        """Side of the model's input in pixels."""
        return self.grid * self.patch_px
