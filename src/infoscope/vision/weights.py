"""Where open_clip's configurations and weights come from: tags, local files or folders, our scenes_clip.

A configuration is resolved first (`find_source`), so that what determines a model is known before anything is loaded.
"""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infoscope.artifacts import compute_checksum
from infoscope.errors import InputError
from infoscope.vision.config import ModelConfig

SHIPPED_FOLDER = Path(__file__).with_name("scenes_clip")
LOCAL_CONFIG = "open_clip_config.json"
LOCAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_DOWNLOAD_PROBE_S = 3.0


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
        folder = None
        if pretrained.endswith((".safetensors", ".pt", ".pth", ".bin")) or "/" in pretrained:
            local_file = Path(pretrained).expanduser()
            if not local_file.is_file():
                raise InputError(
                    f"model.pretrained={pretrained} is no file: give an existing .safetensors, .pt or .bin."
                )
            if config.arch is None and config.name == "scenes_clip":
                folder = SHIPPED_FOLDER

    if folder is not None:
        model_cfg, preprocess = _read_local_config(folder)
        if local_file is None and pretrained != "random":
            local_file = _find_local_weights(folder)
    else:
        model_cfg, preprocess = _read_builtin_config(config, is_tag=local_file is None and pretrained != "random")
    if config.quick_gelu is not None:
        model_cfg["quick_gelu"] = config.quick_gelu
    if config.image_px is not None:
        model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "image_size": config.image_px}

    if pretrained == "random":
        weights_id = f"random:{config.seed}"
    elif local_file is not None:
        weights_id = f"sha256:{compute_checksum(local_file)}"
    else:
        weights_id = f"tag:{config.arch}:{pretrained}"
    mean = config.mean or preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN
    std = config.std or preprocess.get("std") or open_clip.OPENAI_DATASET_STD
    tokenizer = f"local-dir:{folder}" if folder is not None else str(config.arch)
    return Source(model_cfg, list(mean), list(std), local_file, weights_id, tokenizer)


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
        return dict(model_cfg), {}
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


def load_weights(clip: torch.nn.Module, path: Path, config: ModelConfig) -> None:
    """Load a local file into a model, by safetensors or `weights_only=True`; never an unguarded pickle.

    Raises:
        InputError: if the file is damaged, holds NaN or Inf, or is of another architecture.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
                raise InputError(
                    f"{path} is a TorchScript archive (OpenAI's own format): expected a state dict; convert it with"
                    " open_clip (load_openai_model, then save its state_dict as .safetensors)."
                )
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        kind = "safetensors" if isinstance(error, SafetensorError) else "weights"
        if isinstance(error, UnpicklingError):  # torch's own words advise to run whatever the file holds
            reason = "it is damaged, or holds other objects than tensors, which are not loaded; give a state dict"
        else:
            reason = get_first_line(error)
        raise InputError(f"Cannot read {kind} file {path}: {reason}.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"Expected {path} to hold a state dict of tensors, got {type(state).__name__}.")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    open_clip.model.resize_pos_embed(state, clip)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path} holds NaN or Inf in {name}: the file is damaged, get a good one.")
    try:
        clip.load_state_dict(state)
    except RuntimeError as error:
        arch = config.arch or config.name
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
    if not _can_connect(cfg):
        raise InputError(
            f"The weights {name} are not in the cache ({_cache_folder(cfg)}) and there is no"
            " network: give a local file by model.pretrained=<file>.safetensors, or fill the cache."
        )
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
        from huggingface_hub import try_to_load_from_cache

        repo, _, name = cfg["hf_hub"].rpartition("/")
        found = [try_to_load_from_cache(repo, file) for file in ([name] if name else LOCAL_WEIGHTS)]
        return next((Path(file) for file in found if isinstance(file, str)), None)
    path = _cache_folder(cfg) / Path(cfg.get("url", "")).name
    return path if path.is_file() else None


def _cache_folder(cfg: dict[str, Any]) -> Path:
    if cfg.get("hf_hub"):
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE)
    return Path("~/.cache/clip").expanduser()


def _can_connect(cfg: dict[str, Any]) -> bool:
    """Whether the host of the weights answers within seconds; huggingface_hub would retry for minutes."""
    url = cfg.get("url", "")
    if cfg.get("hf_hub"):
        from huggingface_hub import constants

        url = constants.ENDPOINT
    host = urlparse(url).hostname
    if not host:
        return False
    try:
        socket.create_connection((host, 443), timeout=_DOWNLOAD_PROBE_S).close()
    except OSError:
        return False
    return True
