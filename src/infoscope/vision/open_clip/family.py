"""open_clip's CLIPs by configuration: tags, local files or folders, our scenes_clip; SigLIP."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel

from infoscope.runtime.errors import InputError, get_first_line
from infoscope.runtime.manifests import compute_hash
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.open_clip.backbone import OpenClipBackbone, TimmClipBackbone
from infoscope.vision.open_clip.clip_backbone import make_tokenizer
from infoscope.vision.open_clip.source import Source, find_model_config, find_source
from infoscope.vision.open_clip.weights import Loaded, fetch_tag, load_tag_weights, load_weights
from infoscope.vision.timm.backbone import check_tower
from infoscope.vision.timm.weights import count_tower_blocks
from infoscope.vision.weights.facts import Facts
from infoscope.vision.weights.local import finish


def fingerprint(config: ModelConfig, trained_folder: Path | None) -> dict[str, Any]:
    """Return what determines a CLIP's numbers."""
    return _identify(find_source(config, trained_folder), config)


def _identify(source: Source, config: ModelConfig) -> dict[str, Any]:
    return {
        "kind": "open_clip",
        "model_cfg": compute_hash(source.model_cfg),
        **source.facts.normalisation,
        "weights": source.weights_id,
        "precision": config.precision,
    }


def count_blocks(config: ModelConfig) -> int | None:
    """Return how many blocks a CLIP's image tower has; None of those that are none of blocks, such as ResNets."""
    tower = find_model_config(config)["vision_cfg"]
    if tower.get("timm_model_name"):
        return count_tower_blocks(str(tower["timm_model_name"]))
    n_blocks = tower.get("layers", open_clip.CLIPVisionCfg.layers)
    return n_blocks if isinstance(n_blocks, int) and n_blocks > 0 else None


def facts(config: ModelConfig, trained_folder: Path | None) -> Facts:
    """Return a CLIP's activation, mean and std, and who says so."""
    return find_source(config, trained_folder).facts


def make(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    """Return the CLIP that a configuration stands for, its weights loaded."""
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
    family = TimmClipBackbone if is_timm else OpenClipBackbone
    options = {**source.facts.normalisation, "fingerprint": _identify(source, config), "precision": config.precision}
    backbone = family(clip, partial(make_tokenizer, source.tokenizer), **options)
    backbone.has_text, backbone.has_projection = loaded.has_text, loaded.has_projection
    return finish(backbone, config, loaded.notes)


def _make_clip(model_cfg: dict[str, Any], name: str) -> torch.nn.Module:
    cfg = {**model_cfg}
    custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg.get("text_cfg", {})
    cfg.pop("multimodal_cfg", None)
    if "timm_model_name" in cfg["vision_cfg"]:  # its weights come with the rest, never by themselves
        cfg["vision_cfg"] = {**cfg["vision_cfg"], "timm_model_pretrained": False}
    make = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    try:
        return make(**cfg)
    except Exception as error:  # sizes that do not fit, or a library that is not there
        raise InputError(f"Cannot make the model that {name} describes: {get_first_line(error)}.") from error
