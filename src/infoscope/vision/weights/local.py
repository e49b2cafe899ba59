"""Which local file of weights a configuration names, and what determines weights of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import open_clip
import timm

from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import compute_checksum
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.weights.sets import choose_set

_WORDS = ("random", "shipped", "train_clip")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def find_local_file(pretrained: str) -> Path | None:
    """Return the file that `model.pretrained` names, or None if it is the name of something else.

    Raises:
        InputError: if there is no such file.
    """
    path = Path(pretrained).expanduser()
    is_word = "/" not in pretrained and path.suffix == ""
    if is_word and (pretrained in _WORDS or not path.is_file() or pretrained in _list_tags()):
        return None
    if path.is_dir():
        raise InputError(f"model.pretrained={pretrained} is a folder: {_say_what_to_give(path)}.")
    if not path.is_file():
        raise InputError(f"model.pretrained={pretrained} is no file: give an existing .safetensors, .pt or .bin.")
    return path


def _list_tags() -> set[str]:
    return {tag for _, tag in open_clip.list_pretrained()} | {name.partition(".")[2] for name in timm.list_pretrained()}


def _say_what_to_give(folder: Path) -> str:
    if (folder / "open_clip_config.json").is_file():
        return f"give local-dir:{folder}"
    if any(folder.glob("*.index.json")):
        return "its weights are in parts: join them into one .safetensors file, and give that"
    files = [path for path in sorted(folder.iterdir()) if path.suffix in _WEIGHT_SUFFIXES]
    return f"give the file of weights in it, such as {files[0]}" if files else "give a file of weights"


def get_weights_id(config: ModelConfig, local_file: Path | None, arch: str | None) -> str:
    """Return what determines the weights: a seed, the hash of a file and which of its sets is read, or a tag."""
    if config.pretrained == "random":
        return f"random:{config.seed}"
    if local_file is not None:
        chosen = choose_weights_set(config, local_file)
        return f"sha256:{compute_file_checksum(local_file)}" + (f":{chosen}" if chosen else "")
    return f"tag:{arch}:{config.pretrained}"


def choose_weights_set(config: ModelConfig, local_file: Path | None) -> str:
    """Return what the set is called that is read of a file with several, else empty; the file's form is checked by it.

    Raises:
        InputError: if the file holds no weights, or sets of which none is chosen; a key for weights that are no file.
    """
    if local_file is not None:
        return choose_set(local_file, config.arch or config.name, config.weights_key)
    if config.weights_key is not None:
        raise InputError(
            f"model.weights_key={config.weights_key} chooses among the sets of weights in a local file, but"
            f" model.pretrained={config.pretrained} is none: give a file, or drop the key."
        )
    return ""


def compute_file_checksum(file: Path) -> str:
    """Return the SHA-256 of a file of weights, computed once as long as its size and time stay."""
    stat = file.stat()
    return _compute_checksum_once(file, stat.st_size, stat.st_mtime_ns)


@cache
def _compute_checksum_once(file: Path, _size: int, _mtime_ns: int) -> str:
    return compute_checksum(file)


def finish(backbone: Backbone, config: ModelConfig, notes: Sequence[str]) -> Backbone:
    """Return a backbone that says as one sentence what was decided or left out while its weights were loaded.

    Raises:
        InputError: if its patches do not fill the side of images that is asked for.
    """
    backbone.notes = f"{config.pretrained}: {'; '.join(notes)}." if notes else ""
    if config.image_px is not None and backbone.image_px != config.image_px:
        raise InputError(
            f"Expected model.image_px to be a multiple of the patch ({backbone.patch_px} px), got {config.image_px}."
        )
    return backbone
