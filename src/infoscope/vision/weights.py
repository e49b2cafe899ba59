"""Files of weights: where they lie, and what is read from them."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infoscope.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.hub import check_network, find_cached, get_cache_folder
from infoscope.vision.torchscript import is_torchscript, read_torchscript

SHIPPED_FOLDER = Path(__file__).with_name("scenes_clip")
LOCAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


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
