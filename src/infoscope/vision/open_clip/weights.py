"""Weights of CLIPs: where they lie, what is read from them, and under which names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from infoscope.runtime.errors import InputError, get_first_line
from infoscope.runtime.hub import get_cache_folder
from infoscope.vision.config import ModelConfig
from infoscope.vision.weights.fit import check_fit, check_size
from infoscope.vision.weights.hub import download, find_cached
from infoscope.vision.weights.sets import read_weights
from infoscope.vision.weights.towers import get_shapes, measure
from infoscope.vision.weights.transformers_names import translate

SHIPPED_FOLDER = Path(__file__).with_name("scenes_clip")
LOCAL_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SCALES = {"logit_scale", "logit_bias"}
"""Of the cosines of images and texts: of no use without a text tower."""
_TEXT = ("positional_embedding", "token_embedding.", "transformer.", "ln_final.", "text_projection", "cls_emb")
_NO_WEIGHTS = {"attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size", "n_averaged"}
"""Last parts of the names of tensors that are constants or counts."""


@dataclass(frozen=True)
class Loaded:
    """What a local file gave to a CLIP.

    notes: what was decided or left out, each in a few words.
    has_text: whether it brought a text tower; has_projection: whether what images and texts are compared in.
    """

    notes: tuple[str, ...] = ()
    has_text: bool = True
    has_projection: bool = True


def load_weights(clip: torch.nn.Module, path: Path, config: ModelConfig) -> Loaded:
    """Load a local file into a CLIP: open_clip's, OpenAI's, transformers', whole or its image tower alone.

    Positions of another grid are interpolated as open_clip does.

    Raises:
        InputError: if the file is damaged, holds NaN or Inf, is of another architecture, or holds several sets of
            weights of which none is chosen.
    """
    arch = config.arch or config.name
    weights = read_weights(path, arch, config.weights_key)
    expected = clip.state_dict()
    original = to_open_clip(translate(weights.state), expected)
    notes = check_size(clip, original, path, arch, config.image_px)
    state, size = dict(original), measure(get_shapes(original))
    if size is not None and size.grid is not None:
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        open_clip.model.resize_pos_embed(state, clip)  # which knows no half precision
    text = {name for name in expected if not name.startswith("visual.")}
    has_text = any(name in text - SCALES for name in state)
    has_projection = has_text or "visual.proj" in state or "visual.proj" not in expected
    without = set() if has_text else text | ({"visual.proj"} - state.keys())
    state = {name: value for name, value in state.items() if has_text or name not in SCALES}
    check_fit(clip, state, path, arch, original, without)
    clip.load_state_dict(state, strict=has_text)
    if not has_text:
        notes = (*notes, "it has no text tower, so there are no predictions from texts")
    return Loaded((*weights.notes, *notes), has_text, has_projection)


def fetch_tag(config: ModelConfig) -> Path:
    """Return the weights of one of open_clip's tags.

    Raises:
        InputError: at once where they are not cached and there is no network; if the download fails.
    """
    assert config.arch is not None
    assert config.pretrained is not None
    cfg = open_clip.get_pretrained_cfg(config.arch, config.pretrained) or {}
    if cfg.get("hf_hub"):  # where the hub has it, the hub's cache counts: open_clip asks there alone
        repo, _, name = cfg["hf_hub"].rpartition("/")
        cached, folder, url = find_cached(repo, [name] if name else LOCAL_WEIGHTS), get_cache_folder(), ""
    else:
        folder, url = Path("~/.cache/clip").expanduser(), cfg.get("url", "")
        file = folder / Path(url).name
        cached = file if file.is_file() else None
    if cached is not None:
        return cached
    tag = f"{config.arch}:{config.pretrained}"
    return download(tag, lambda: open_clip.download_pretrained(cfg), folder, url)


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


def to_open_clip(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that a model expects.

    Args:
        state: open_clip's, with the text tower under `text.` or not, or an image tower alone, by names from its root.
        expected: the model's own.
    """
    state = {name: value for name, value in state.items() if not _is_beside(name)}
    if "class_embedding" in state or "patch_embed.proj.weight" in state:  # a bare tower
        is_timm = "class_embedding" not in state and "visual.trunk.patch_embed.proj.weight" in expected
        prefix = "visual." if "class_embedding" in state else "visual.trunk." if is_timm else ""
        return {f"{prefix}{name}": value for name, value in state.items()}
    if "text.positional_embedding" in expected:
        state = {f"text.{name}" if name.startswith(_TEXT) else name: value for name, value in state.items()}
    elif "positional_embedding" in expected:
        state = {name.removeprefix("text."): value for name, value in state.items()}
    for name in SCALES & state.keys() & expected.keys():
        if state[name].numel() == 1:
            state[name] = state[name].reshape(expected[name].shape)
    return state


def _is_beside(name: str) -> bool:
    """Whether a tensor is no part of a CLIP: a constant, a count, a classifier that was put on its image tower."""
    return name.startswith("classifier.") or name.rpartition(".")[2] in _NO_WEIGHTS
