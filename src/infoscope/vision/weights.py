"""Where open_clip's configurations and weights come from: tags, local files or folders, our scenes_clip.

A configuration is resolved first (`find_source`), so that what determines a model is known before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infoscope.errors import InputError
from infoscope.manifests import compute_checksum
from infoscope.vision.config import ModelConfig
from infoscope.vision.hub import check_network, find_cached, get_cache_folder
from infoscope.vision.torchscript import is_torchscript, read_torchscript

SHIPPED_FOLDER = Path(__file__).with_name("scenes_clip")
LOCAL_CONFIG = "open_clip_config.json"
LOCAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Source:
    """A model configuration resolved to what open_clip needs: its model config, the preprocessing, the weights.

    tokenizer: what its tokenizer is called: `local-dir:<folder>`, or an architecture.
    """

    model_cfg: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    weights: Path | None
    weights_id: str
    tokenizer: str


def find_source(config: ModelConfig, trained_folder: Path | None) -> Source:
    """Resolve a configuration to a model config, preprocessing and weights; nothing is loaded yet.

    Raises:
        InputError: an unknown architecture or tag, a file or folder that is missing or holds something else.
    """
    pretrained = config.pretrained or ""
    local_file: Path | None = None
    if pretrained == "shipped" or (pretrained == "random" and config.arch is None):
        folder: Path | None = SHIPPED_FOLDER
    elif pretrained == "train_clip":
        if trained_folder is None:
            raise InputError("model.pretrained=train_clip needs the artifact of stage train_clip: give its folder.")
        folder = trained_folder
    elif pretrained.startswith("local-dir:"):
        folder = Path(pretrained.removeprefix("local-dir:")).expanduser()
    else:
        local_file = find_local_file(pretrained)
        is_ours = local_file is not None and config.arch is None and config.name == "scenes_clip"
        folder = SHIPPED_FOLDER if is_ours else None

    if folder is not None:
        model_cfg, preprocess = _read_local_config(folder)
        if local_file is None and pretrained != "random":
            local_file = _find_local_weights(folder)
    else:
        model_cfg, preprocess = _read_builtin_config(config, is_tag=local_file is None and pretrained != "random")
    if config.quick_gelu is not None:
        model_cfg["quick_gelu"] = config.quick_gelu
    elif local_file is not None and is_torchscript(local_file):
        model_cfg["quick_gelu"] = True  # OpenAI alone ships this format
    if config.image_px is not None:
        model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "image_size": config.image_px}

    mean = config.mean or preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = config.std or preprocess.get("std") or open_clip.OPENAI_DATASET_STD
    tokenizer = f"local-dir:{folder}" if folder is not None else str(config.arch)
    weights_id = get_weights_id(config, local_file, config.arch)
    return Source(model_cfg, list(mean), list(std), local_file, weights_id, tokenizer)


def find_local_file(pretrained: str) -> Path | None:
    """Return the file that `model.pretrained` names, or None if it is the name of something else.

    Raises:
        InputError: if there is no such file.
    """
    if not pretrained.endswith(_WEIGHT_SUFFIXES) and "/" not in pretrained:
        return None
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise InputError(f"model.pretrained={pretrained} is no file: give an existing .safetensors, .pt or .bin.")
    return path


def get_weights_id(config: ModelConfig, local_file: Path | None, arch: str | None) -> str:
    """Return what determines the weights: a seed, the hash of a file, or a tag."""
    if config.pretrained == "random":
        return f"random:{config.seed}"
    if local_file is not None:
        return f"sha256:{compute_checksum(local_file)}"
    return f"tag:{arch}:{config.pretrained}"


def _read_local_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = folder / LOCAL_CONFIG
    try:
        content = json.loads(path.read_text())
        return dict(content["model_cfg"]), dict(content.get("preprocess_cfg", {}))
    except OSError as error:
        raise InputError(f"Expected {LOCAL_CONFIG} in {folder}, found none that can be read.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"Expected {path} to be JSON with a `model_cfg`, got something else: {error}.") from error


def _find_local_weights(folder: Path) -> Path:
    for name in LOCAL_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"Expected {' or '.join(LOCAL_WEIGHTS)} in {folder}, found neither.")


def _read_builtin_config(config: ModelConfig, is_tag: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    assert config.arch is not None
    model_cfg = open_clip.get_model_config(config.arch)
    if model_cfg is None:
        near = [name for name in open_clip.list_models() if name.startswith("ViT-")][:12]
        raise InputError(
            f"Expected model.arch to be one of open_clip's, such as {', '.join(near)}; got {config.arch!r}."
        )
    if not is_tag:
        return dict(model_cfg), _find_shared_preprocessing(config.arch)
    tags = open_clip.list_pretrained_tags_by_model(config.arch)
    if config.pretrained not in tags:
        raise InputError(
            f"Expected model.pretrained to be a file, local-dir:<folder>, random, or a tag of {config.arch}"
            f" ({', '.join(tags) or 'it has none'}); got {config.pretrained!r}."
        )
    preprocess = open_clip.get_pretrained_cfg(config.arch, config.pretrained or "") or {}
    if preprocess.get("quick_gelu"):
        model_cfg = {**model_cfg, "quick_gelu": True}
    return dict(model_cfg), preprocess


def _find_shared_preprocessing(arch: str) -> dict[str, Any]:
    """What all tags of an architecture agree on: a local file does not say. (SigLIP's do, those of ViT-L-14 do not.)"""
    cfgs = [open_clip.get_pretrained_cfg(arch, tag) or {} for tag in open_clip.list_pretrained_tags_by_model(arch)]
    ways = [{"mean": cfg.get("mean"), "std": cfg.get("std")} for cfg in cfgs]
    return ways[0] if ways and all(way == ways[0] for way in ways) else {}


def load_weights(clip: torch.nn.Module, path: Path, config: ModelConfig) -> None:
    """Load a local file into a CLIP; positions of another grid are interpolated as open_clip does.

    Raises:
        InputError: if the file is damaged, holds NaN or Inf, or is of another architecture.
    """
    state = read_weights(path)
    open_clip.model.resize_pos_embed(state, clip)
    load_state(clip, state, path, config.arch or config.name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a local file, without what training wraps around it (`state_dict`, `model`, `module.`).

    Nothing that a file holds is ever run: safetensors, `weights_only=True`, or the tensors of a TorchScript archive.

    Raises:
        InputError: if the file is damaged, holds NaN or Inf, or no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        elif is_torchscript(path):
            state = read_torchscript(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        kind = "safetensors" if isinstance(error, SafetensorError) else "weights"
        if isinstance(error, UnpicklingError):  # torch's own words advise to run whatever the file holds
            reason = "it is damaged, or holds other objects than tensors, which are not loaded; give a state dict"
        else:
            reason = get_first_line(error)
        raise InputError(f"Cannot read {kind} file {path}: {reason}.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"Expected {path} to hold a state dict of tensors, got {type(state).__name__}.")
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path} holds NaN or Inf in {name}: the file is damaged, get a good one.")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_state(model: torch.nn.Module, state: dict[str, Tensor], path: Path, arch: str) -> None:
    """Load a state dict whose names and shapes are exactly the model's.

    Raises:
        InputError: if they are not.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:240]
        raise InputError(
            f"{path} does not fit model.arch={arch}: give the architecture it was made with ({detail})."
        ) from error


def fetch_tag(config: ModelConfig) -> Path:
    """Return the weights of one of open_clip's tags.

    Raises:
        InputError: at once where they are not cached and there is no network; if the download fails.
    """
    assert config.arch is not None
    assert config.pretrained is not None
    cfg = open_clip.get_pretrained_cfg(config.arch, config.pretrained) or {}
    cached = _find_cached(cfg)
    if cached is not None:
        return cached
    name = f"{config.arch}:{config.pretrained}"
    check_network("" if cfg.get("hf_hub") else cfg.get("url", ""), name, _cache_folder(cfg))
    try:
        return Path(open_clip.download_pretrained(cfg))
    except Exception as error:  # whatever the network and the hub lead to
        raise InputError(f"Cannot download the weights {name}: {get_first_line(error)}.") from error


def load_tag_weights(clip: Any, path: Path, config: ModelConfig) -> None:
    """Load the weights of a tag as open_clip does (old names, other shapes of the logit scale, other grids).

    Raises:
        InputError: if the file is damaged or does not fit.
    """
    try:
        open_clip.load_checkpoint(clip, str(path), weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        raise InputError(
            f"Cannot load the weights {config.arch}:{config.pretrained} from {path}: {get_first_line(error)}."
        ) from error


def get_first_line(error: Exception) -> str:
    """Return what an error says first, in at most 200 letters."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _find_cached(cfg: dict[str, Any]) -> Path | None:
    """Return the cached file of a tag. Where the hub has it, the hub's cache counts: open_clip asks there alone."""
    if cfg.get("hf_hub"):
        repo, _, name = cfg["hf_hub"].rpartition("/")
        return find_cached(repo, [name] if name else LOCAL_WEIGHTS)
    path = _cache_folder(cfg) / Path(cfg.get("url", "")).name
    return path if path.is_file() else None


def _cache_folder(cfg: dict[str, Any]) -> Path:
    return get_cache_folder() if cfg.get("hf_hub") else Path("~/.cache/clip").expanduser()
