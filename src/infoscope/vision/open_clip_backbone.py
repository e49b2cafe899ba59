"""Frozen backbones by configuration, and open_clip's CLIPs: tags, local files or folders, our scenes_clip; SigLIP."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from infoscope.runtime.calls import convert_all, name_type, say_in_python, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.progress import ProgressCallback, choose_display
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.clip_backbone import ClipBackbone, Tokenizer, make_tokenizer
from infoscope.vision.cls_attention import attend_for_cls
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.origins import Facts
from infoscope.vision.planted import make_context_free, make_planted_registers
from infoscope.vision.preprocessing import check_preprocessing
from infoscope.vision.sources import find_source
from infoscope.vision.timm_backbone import TimmBackbone, check_tower
from infoscope.vision.timm_weights import fetch_timm_tag, find_timm_source, load_timm_weights, make_trunk
from infoscope.vision.weight_files import get_first_line
from infoscope.vision.weights import Loaded, fetch_tag, find_local_file, load_tag_weights, load_weights

LOG = logging.getLogger("infoscope")
TIMM_PREFIX = "timm:"
"""Before the architecture in the short form of `load_backbone`."""
_IN_PYTHON = {
    r"\btrue or false\b": "True or False",
    r"\bmodel\.kind=timm\b": f'"{TIMM_PREFIX}<arch>:<weights>"',
    r"\bmodel\.(arch|pretrained)=": "",
    r"\bmodel\.arch\b": "the architecture",
    r"\bmodel\.pretrained\b": "the weights",
}
"""How settings of the command line are called in Python that are no arguments there."""
_ARGUMENTS = {f"model.{one.name}" for one in fields(ModelConfig)}


def compute_model_fingerprint(config: ModelConfig, trained_folder: Path | None = None) -> dict[str, Any]:
    """Return what determines a backbone's numbers, without building it; plain JSON types, no paths.

    Args:
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.

    Raises:
        InputError: as `load_backbone`.
    """
    if config.kind is ModelKind.timm:
        found = find_timm_source(config)
        return {
            "kind": "timm",
            "arch": found.arch,
            "image_px": found.image_px,
            "mean": found.facts.mean,
            "std": found.facts.std,
            "weights": found.weights_id,
            "precision": config.precision,
        }
    if config.kind is not ModelKind.open_clip:
        return {"kind": config.kind.name, "seed": config.seed}
    source = find_source(config, trained_folder)
    return {
        "kind": "open_clip",
        "model_cfg": compute_hash(source.model_cfg),
        "mean": source.facts.mean,
        "std": source.facts.std,
        "weights": source.weights_id,
        "precision": config.precision,
    }


def find_facts(config: ModelConfig, trained_folder: Path | None = None) -> Facts | None:
    """Return with which activation, mean and std a model is run, and who says so; None for planted backbones.

    Raises:
        InputError: as `load_backbone`.
    """
    match config.kind:
        case ModelKind.open_clip:
            return find_source(config, trained_folder).facts
        case ModelKind.timm:
            return find_timm_source(config).facts
        case _:
            return None


@speaks_python()
def load_backbone(
    config: ModelConfig | str = "scenes_clip",
    trained_folder: Path | None = None,
    *,
    origin: str | None = None,
    quick_gelu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights_key: str | None = None,
    image_px: int | None = None,
    precision: str | None = None,
    seed: int | None = None,
    progress: bool | ProgressCallback = True,
) -> Backbone:
    """Return a frozen backbone in evaluation mode.

    A short form means what the same architecture and weights mean on the command line.

    Args:
        config: a full configuration, or a short form: "scenes_clip", "<arch>:<pretrained>" such as "ViT-B-16:openai" or
            "ViT-B-16:/weights/b16.safetensors", "local-dir:<folder>", or "timm:<arch>:<pretrained>" such as
            "timm:vit_base_patch14_dinov2:lvd142m".
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.
        origin: the tag of open_clip's that a file comes from, such as "openai": whose activation, mean and std it has.
        quick_gelu: whether the activation is QuickGELU.
        mean, std: of the preprocessing, RGB values in 0..1.
        weights_key: which set of weights is read of a file that holds several, such as "teacher".
        image_px: side of the input; another one than the model's own interpolates its positions.
        precision: "float32", or "bfloat16" by autocast.
        seed: of the weights with "<arch>:random".
        progress: True says on stderr, every half minute, that it goes on; False does not.

    Raises:
        InputError: unknown architecture or tag, weights that are missing, damaged or of another architecture, no
            network and no cached weights, a tower that is not a plain vision transformer, or a file that does not say
            with which activation, mean or std it was trained.
    """
    given = {"origin": origin, "quick_gelu": quick_gelu, "weights_key": weights_key}
    given |= {"image_px": image_px, "precision": precision, "seed": seed}
    if mean is not None or std is not None:
        given |= check_preprocessing(mean, std, "")._asdict()
    options = convert_all(ModelConfig, {name: value for name, value in given.items() if value is not None})
    show = choose_display(progress)
    if isinstance(config, ModelConfig):
        with show.bar("loading the backbone"):
            return _tell_notes(make_backbone(replace(config, **options) if options else config, trained_folder))
    if not isinstance(config, str):
        raise InputError(f'Expected a name such as "scenes_clip" or "ViT-B-16:openai", got {name_type(config)}.')
    try:
        config = _read_short_form(config, options)
        facts = find_facts(config, trained_folder)
        if facts is not None and facts.is_contradicted:
            warnings.warn(_speak_python(f"{config.arch or config.pretrained} runs with {facts.words}."), stacklevel=3)
        with show.bar("loading the backbone"):
            return _tell_notes(make_backbone(config, trained_folder))
    except InputError as error:
        raise InputError(_speak_python(str(error))) from error


def _tell_notes(backbone: Backbone) -> Backbone:
    """Log what a user of Python should know of the weights: the command line says it itself."""
    if backbone.notes:
        LOG.warning(_speak_python(backbone.notes))
    return backbone


def make_backbone(config: ModelConfig, trained_folder: Path | None = None) -> Backbone:
    """Return the frozen backbone of a configuration, see `load_backbone`; its notes are not printed."""
    match config.kind:
        case ModelKind.planted_registers | ModelKind.context_free:
            return _make_planted(config)
        case ModelKind.timm:
            backbone = _load_timm(config)
        case ModelKind.open_clip:
            backbone = _load_clip(config, trained_folder)
    if config.image_px is not None and backbone.image_px != config.image_px:
        raise InputError(
            f"Expected model.image_px to be a multiple of the patch ({backbone.patch_px} px), got {config.image_px}."
        )
    return backbone.eval().requires_grad_(False)


def _say_notes(config: ModelConfig, notes: Sequence[str]) -> str:
    return f"{config.pretrained}: {'; '.join(notes)}." if notes else ""


def _read_short_form(text: str, options: dict[str, Any]) -> ModelConfig:
    if text == "scenes_clip":
        return ModelConfig(**options)
    if text.startswith("local-dir:"):
        return ModelConfig("local-dir", pretrained=text, **options)
    kind = ModelKind.timm if text.startswith(TIMM_PREFIX) else ModelKind.open_clip
    arch, _, pretrained = text.removeprefix(TIMM_PREFIX).partition(":")
    if arch == "hf-hub":
        arch, pretrained = text, "openai"  # refused by its name
    if not arch or not pretrained:
        raise InputError(
            f'Expected "scenes_clip", "local-dir:<folder>" or "<arch>:<weights>", such as "ViT-B-16:openai" or'
            f' "{TIMM_PREFIX}vit_base_patch14_dinov2:lvd142m", got {text!r}.'
        )
    if "origin" in options and pretrained != "random" and find_local_file(pretrained) is None:
        raise InputError(f"origin says whose weights a file holds, but {pretrained} is a tag: leave it out.")
    return ModelConfig(Path(arch).name, kind=kind, arch=arch, pretrained=pretrained, **options)


def _speak_python(sentence: str) -> str:
    """Return a sentence that names the arguments of `load_backbone` in place of the settings of the command line."""
    for settings, words in _IN_PYTHON.items():
        sentence = re.sub(settings, words, sentence)
    return say_in_python(sentence, _ARGUMENTS)


def _make_planted(config: ModelConfig) -> Backbone:
    make = make_planted_registers if config.kind is ModelKind.planted_registers else make_context_free
    backbone = make(seed=config.seed)
    backbone.fingerprint = compute_model_fingerprint(config)
    return backbone


def _load_timm(config: ModelConfig) -> Backbone:
    source = find_timm_source(config)
    weights = fetch_timm_tag(source) if source.repo is not None else source.weights
    trunk = make_trunk(source, config.seed)
    notes = load_timm_weights(trunk, weights, source.full_name, config) if weights is not None else ()
    fingerprint = compute_model_fingerprint(config)
    backbone = TimmBackbone(trunk, source.facts.mean, source.facts.std, fingerprint, config.precision)
    backbone.notes = _say_notes(config, notes)
    return backbone


def _load_clip(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    source = find_source(config, trained_folder)
    is_tag = source.weights_id.startswith("tag:")
    weights = fetch_tag(config) if is_tag else source.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        clip = _make_clip(source.model_cfg, source.tokenizer)
    loaded = Loaded()
    if weights is not None and is_tag:
        load_tag_weights(clip, weights, config)
    elif weights is not None:
        loaded = load_weights(clip, weights, config)
    tower: Any = clip.visual
    is_timm = isinstance(tower, TimmModel)
    if is_timm and config.image_px is not None:
        check_tower(tower.trunk).set_input_size((config.image_px, config.image_px))
    fingerprint = compute_model_fingerprint(config, trained_folder)
    tokenizer = partial(make_tokenizer, source.tokenizer)
    make = TimmClipBackbone if is_timm else OpenClipBackbone
    backbone = make(clip, source.facts.mean, source.facts.std, fingerprint, config.precision, tokenizer)
    backbone.has_text, backbone.has_projection = loaded.has_text, loaded.has_projection
    backbone.notes = _say_notes(config, loaded.notes)
    return backbone


class OpenClipBackbone(ClipBackbone):
    """A CLIP whose image tower is open_clip's own VisionTransformer with CLS pooling.

    Args:
        clip: the whole model; the text tower serves zero-shot heads.
        mean, std: RGB normalisation.
        fingerprint: what determines its numbers.
        precision: float32, or bfloat16 by autocast.
        make_tokenizer: makes the text tower's tokenizer when a text is embedded, not before.
    """

    def __init__(
        self,
        clip: torch.nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        fingerprint: dict[str, Any],
        precision: str = "float32",
        make_tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        visual: Any = clip.visual
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
            raise InputError(
                f"Expected open_clip's vision transformer with CLS pooling, or timm's (SigLIP), got"
                f" {type(visual).__name__}: choose a ViT-* architecture."
            )
        tower: Any = visual  # open_clip annotates its sizes as plain numbers
        grid, patch = tower.grid_size, tower.patch_size
        if grid[0] != grid[1] or patch[0] != patch[1]:
            raise InputError(f"Expected square patches and a square grid, got patches {patch} and grid {grid}.")
        super().__init__(
            clip,
            make_tokenizer,
            d_in=tower.class_embedding.shape[0],
            n_layers=len(visual.transformer.resblocks),
            n_prefix_tokens=1,
            grid=grid[0],
            patch_px=patch[0],
            mean=mean,
            std=std,
            fingerprint=fingerprint,
            precision=precision,
        )
        self.visual: VisionTransformer = visual

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layer: int) -> Tokens:
        with self._autocast():
            x = self.visual._embeds(pixels)
            for block in self.visual.transformer.resblocks[: layer + 1]:
                x = block(x)
        x = x.float()
        return Tokens(x[:, :1], x[:, 1:])

    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_out"]:
        x = torch.cat([tokens.prefix, tokens.patches], dim=1)
        blocks = list(self.visual.transformer.resblocks[layer + 1 :])
        with self._autocast():
            for block in blocks[:-1]:
                x = block(x)
            x = self._run_for_cls(blocks[-1], x) if isinstance(blocks[-1], ResidualAttentionBlock) else blocks[-1](x)
            pooled, _ = self.visual._pool(x)
        return pooled.float()

    @staticmethod
    def _run_for_cls(block: Any, x: Float[Tensor, "batch n_tokens d_in"]) -> Float[Tensor, "batch 1 d_in"]:
        """Run the last block for CLS alone: only CLS asks, all tokens answer."""
        attn = block.attn
        answer = attend_for_cls(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias, attn.num_heads)
        cls = x[:, :1] + block.ls_1(attn.out_proj(answer)[:, None])
        return cls + block.ls_2(block.mlp(block.ln_2(cls)))

    def _project(self, pooled: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch embed_dim"]:
        proj = self.visual.proj  # the final LayerNorm is behind it already
        return pooled if proj is None else pooled @ proj


class TimmClipBackbone(ClipBackbone, TimmBackbone):
    """A CLIP whose image tower is a plain vision transformer of timm's: SigLIP, which pools its patches by attention.

    Args: as `OpenClipBackbone`.
    """

    def __init__(
        self,
        clip: torch.nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        fingerprint: dict[str, Any],
        precision: str = "float32",
        make_tokenizer: Callable[[], Tokenizer] | None = None,
    ) -> None:
        visual: Any = clip.visual
        super().__init__(
            clip,
            make_tokenizer,
            trunk=visual.trunk,
            mean=mean,
            std=std,
            fingerprint=fingerprint,
            precision=precision,
        )
        self.head = visual.head

    def _project(self, pooled: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch embed_dim"]:
        return self.head(self.trunk.head(pooled))


def _make_clip(model_cfg: dict[str, Any], name: str) -> torch.nn.Module:
    cfg = {**model_cfg}
    custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg.get("text_cfg", {})
    cfg.pop("multimodal_cfg", None)
    if "timm_model_name" in cfg["vision_cfg"]:  # its weights come with the rest, never by themselves
        cfg["vision_cfg"] = {**cfg["vision_cfg"], "timm_model_pretrained": False}
    make = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    try:
        return make(**cfg)
    except Exception as error:  # whatever sizes that do not fit, or a library that is not there, lead to
        raise InputError(f"Cannot make the model that {name} describes: {get_first_line(error)}.") from error
