"""Which backbone is looked into, and how the scenes' own CLIP is trained."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from infoscope.errors import InputError


class ModelKind(Enum):
    """Where a backbone comes from."""

    open_clip = "open_clip"
    timm = "timm"
    planted_registers = "planted_registers"
    context_free = "context_free"


@dataclass
class ModelConfig:
    """Which frozen vision transformer is looked into, and where."""

    name: str = "scenes_clip"
    """For people: appears in the names of artifacts."""
    kind: ModelKind = ModelKind.open_clip
    arch: str | None = None
    """open_clip's architecture, such as ViT-B-16; null where `pretrained` brings its own configuration. timm's, with
    kind timm: vit_base_patch16_224, or vit_base_patch16_224.mae where mean and std depend on whose weights a file has.
    """
    pretrained: str | None = "shipped"
    """`random`, a file (.safetensors, .pt, .pth, .bin), or a tag that open_clip or timm has for the architecture. With
    open_clip also `shipped` (scenes_clip), `train_clip` (made by that stage), and `local-dir:<folder>`."""
    quick_gelu: bool | None = None
    """null: as the tag demands. A local file does not say, unless it is OpenAI's own TorchScript archive: give true
    for OpenAI, MetaCLIP and DFN2B weights. For open_clip's towers alone."""
    image_px: int | None = None
    """Side of the input, a multiple of the patch; null: the model's own. Another one interpolates the positions."""
    mean: list[float] | None = None
    """RGB mean of the preprocessing; null: the model's own."""
    std: list[float] | None = None
    layer: int = -2
    """Block whose output (residual stream) is read: 0-based, negative from the end. Ours: the penultimate."""
    precision: str = "float32"
    """float32 or bfloat16 (autocast) inside the backbone; tokens leave it as float32."""
    seed: int = 0
    """Of the weights where pretrained=random."""

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"Expected model.precision to be float32 or bfloat16, got {self.precision!r}.")
        if self.kind is ModelKind.timm:
            self._check_timm()
        if self.kind is ModelKind.open_clip:
            if self.pretrained is None:
                raise InputError(
                    "model.pretrained is missing: give one of open_clip's tags, a local file (.safetensors, .pt),"
                    " local-dir:<folder>, or random."
                )
            brings_config = self.pretrained in ("shipped", "train_clip") or self.pretrained.startswith("local-dir:")
            if self.arch is None and not brings_config and self.name != "scenes_clip":
                raise InputError(f"model.arch is missing: model.pretrained={self.pretrained} needs it (ViT-B-16, ...).")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise InputError(f"Expected model.{name} to hold three numbers (R, G, B), got {len(value)}.")

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


@dataclass
class ContrastiveConfig:
    """How `stage=train_clip` trains a CLIP on captioned scenes."""

    n_images: int = 100_000
    """Training pictures, rendered from a stream of their own (never the ones the SAE or the probes see)."""
    n_test_images: int = 1_000
    n_steps: int = 8_000
    batch_size: int = 512
    lr: float = 1.0e-3
    weight_decay: float = 0.1
    warmup_steps: int = 500
    patch_dropout: float = 0.5
    """Share of patch tokens left out while training, until `full_share` of the steps is left (Li et al., 2023)."""
    full_share: float = 0.2
    seed: int = 0
    precision: str = "32-true"
    """Lightning's precision of the training run."""
    width: int = 128
    layers: int = 4
    text_layers: int = 2
    embed_dim: int = 128
    patch_px: int = 8
    grid: int = 12
    context_length: int = 32

    def __post_init__(self) -> None:
        for name in ("n_images", "n_test_images", "n_steps", "batch_size", "width", "layers", "text_layers", "grid"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected clip.{name} to be at least 1, got {getattr(self, name)}.")
        if self.batch_size > self.n_images:
            raise InputError(
                f"Expected clip.batch_size to be at most clip.n_images ({self.n_images}), got {self.batch_size}."
            )

    @property
    def sets(self) -> dict[str, int]:
        """The splits of the scenes that it is trained and measured on, and how many pictures of each."""
        return {"clip_train": self.n_images, "clip_test": self.n_test_images}

    @property
    def image_px(self) -> int:
        """Side of the model's input in pixels."""
        return self.grid * self.patch_px
