"""What open_clip, its tags, and what lies in or next to a file of a CLIP say of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip

from infoscope.runtime.errors import InputError, list_some
from infoscope.runtime.untrusted.torchscript import is_torchscript
from infoscope.vision.preprocessing import Preprocessing, check_preprocessing
from infoscope.vision.weights.facts import Account, read_beside, read_json, read_processor

LOCAL_CONFIG = "open_clip_config.json"
DEFAULT = Preprocessing(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
"""open_clip's, where nothing is said."""
_N_NAMED = 8
"""Tags that a sentence names."""


def describe_tag(arch: str, tag: str, by: str) -> Account:
    """Return what open_clip says of one of its tags.

    Raises:
        InputError: if the architecture has no such tag.
    """
    cfg = open_clip.get_pretrained_cfg(arch, tag) if tag in open_clip.list_pretrained_tags_by_model(arch) else None
    if cfg is None:
        raise InputError(
            f"Expected model.origin to be a tag of {arch} ({list_tags(arch)}) or null, got {tag!r}: it says whose"
            " weights a file holds."
        )
    model_cfg = open_clip.get_model_config(arch) or {}
    quick_gelu = bool(cfg.get("quick_gelu") or model_cfg.get("quick_gelu"))
    return Account(by, quick_gelu, Preprocessing(tuple(cfg["mean"]), tuple(cfg["std"])), tag)


def find_agreement(arch: str, model_cfg: dict[str, Any]) -> Account:
    """Return what all tags of an architecture have in common; without tags: what open_clip makes of its name."""
    tags = [describe_tag(arch, tag, "") for tag in open_clip.list_pretrained_tags_by_model(arch)]
    if not tags:
        return Account(f"open_clip's default for {arch}", bool(model_cfg.get("quick_gelu")), DEFAULT)
    first = tags[0]
    agree_on = {name: len({getattr(tag, name) for tag in tags}) == 1 for name in ("quick_gelu", "preprocessing")}
    return Account(
        f"all tags of {arch}",
        first.quick_gelu if agree_on["quick_gelu"] else None,
        first.preprocessing if agree_on["preprocessing"] else None,
    )


def list_tags(arch: str) -> str:
    """Return the first tags of an architecture, for a sentence."""
    return list_some(open_clip.list_pretrained_tags_by_model(arch), _N_NAMED) or "it has none"


def read_account(file: Path, checksum: str, arch: str) -> Account | None:
    """Return what a file says of itself: by its format, its checksum, or the configuration next to it.

    Raises:
        InputError: if that configuration is damaged or makes no sense.
    """
    if is_torchscript(file):
        return Account("the file, OpenAI's own archive", True, DEFAULT, "openai")  # OpenAI alone ships this format
    for tag in open_clip.list_pretrained_tags_by_model(arch):
        published = _get_published_checksum(open_clip.get_pretrained_cfg(arch, tag).get("url", ""))
        if published and checksum.startswith(published):
            return describe_tag(arch, tag, f"the file's checksum, that of {tag}")
    config = file.with_name(LOCAL_CONFIG)
    if file.name.startswith("open_clip_") and config.is_file():
        return describe_local(*read_local_config(config), config)
    return _read_transformers(file)


def read_local_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `model_cfg` and `preprocess_cfg` of an open_clip_config.json.

    Raises:
        InputError: if it cannot be read, or holds something else.
    """
    content = read_json(path)
    model_cfg, preprocess = content.get("model_cfg"), content.get("preprocess_cfg") or {}
    parts = [model_cfg.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(model_cfg, dict) else []
    if not parts or not all(isinstance(part, dict) for part in (*parts, preprocess)):
        raise InputError(
            f"Expected {path} to be JSON with a `model_cfg` that holds `vision_cfg` and `text_cfg`, and perhaps a"
            " `preprocess_cfg`, as open_clip writes it."
        )
    assert isinstance(model_cfg, dict)
    if not isinstance(model_cfg.get("quick_gelu", False), bool):
        raise InputError(f"Expected `quick_gelu` in {path} to be true or false, got {model_cfg['quick_gelu']!r}.")
    return dict(model_cfg), preprocess


def describe_local(model_cfg: dict[str, Any], preprocess: dict[str, Any], path: Path) -> Account:
    """Return what an open_clip_config.json says.

    Raises:
        InputError: if its mean and std make no sense.
    """
    pair = [preprocess.get(name) for name in ("mean", "std")]
    mean, std = ([one] * 3 if isinstance(one, int | float) else one for one in pair)  # open_clip's own reading
    known = None if mean is std is None else check_preprocessing(mean, std, f"{path}: ")
    return Account(path.name, bool(model_cfg.get("quick_gelu")), known)


def _read_transformers(file: Path) -> Account | None:
    """Return what the configurations that transformers writes say of the CLIP next to them."""
    content = read_beside(file, "config.json")
    if content.get("model_type") not in ("clip", "clip_vision_model"):
        return None
    tower = (content.get("vision_config") or {}) if content["model_type"] == "clip" else content
    activation = tower.get("hidden_act", "quick_gelu") if isinstance(tower, dict) else None  # its own default
    if activation not in ("quick_gelu", "gelu"):
        config = file.with_name("config.json")
        raise InputError(f"Expected the activation in {config} to be quick_gelu or gelu, got {activation!r}.")
    return Account("the config.json next to the file", activation == "quick_gelu", read_processor(file))


def _get_published_checksum(url: str) -> str:
    """Return the beginning of a file's SHA-256 as its publisher's URL tells it, as open_clip checks it; or nothing."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""
