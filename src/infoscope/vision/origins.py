"""Which activation, mean and std weights were trained with, and who says so.

State dicts do not hold these facts, and wrong ones give wrong numbers without a word. So somebody has to say them: the
user, the tag, what lies in or beside a file, the origin that `model.origin` names, or all tags of the architecture, if
they agree. The first of these who speaks is followed; where nobody does, the user is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.preprocessing import Preprocessing, check_preprocessing
from infoscope.vision.torchscript import is_torchscript
from infoscope.vision.weight_origins import list_some

LOCAL_CONFIG = "open_clip_config.json"
HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What timm and transformers call the weights in a folder."""
DEFAULT = Preprocessing(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
"""open_clip's, where nothing is said."""
_N_NAMED = 8
"""Tags that a sentence names."""


@dataclass(frozen=True)
class Account:
    """What somebody says of weights; None: nothing.

    by: who that is, in words.
    tag: whose weights they are, where that is said.
    """

    by: str
    quick_gelu: bool | None = None
    preprocessing: Preprocessing | None = None
    tag: str | None = None


class Fact(NamedTuple):
    """A fact, who says it, and who says otherwise (empty: nobody)."""

    value: Any
    by: str
    against: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of weights. A timm tower's activation is its architecture's: None.

    weights_set: which of several sets in the file is read, else empty.
    """

    quick_gelu: Fact | None
    preprocessing: Fact
    weights_set: str = ""

    @property
    def mean(self) -> list[float]:
        """RGB mean of the preprocessing."""
        return list(self.preprocessing.value.mean)

    @property
    def std(self) -> list[float]:
        """RGB standard deviation of the preprocessing."""
        return list(self.preprocessing.value.std)

    @property
    def words(self) -> str:
        """The facts and who says them."""
        said: dict[str, list[str]] = {}
        for fact in self._known:
            said.setdefault(f" (by {fact.by}{fact.against})", []).append(_show(fact.value))
        chosen = [f"{self.weights_set} of the sets of weights in the file"] if self.weights_set else []
        return ", ".join([*(", ".join(values) + by for by, values in said.items()), *chosen])

    @property
    def is_assumed(self) -> bool:
        """Whether a file is taken for one of the origin that is named."""
        return any(fact.by.startswith("model.origin=") and "the file does not say" in fact.by for fact in self._known)

    @property
    def is_contradicted(self) -> bool:
        """Whether the user overrides what the weights were trained with."""
        return any(fact.against for fact in self._known)

    @property
    def _known(self) -> list[Fact]:
        return [fact for fact in (self.quick_gelu, self.preprocessing) if fact is not None]


def choose(asked: Any, asked_by: str, accounts: Sequence[Account], name: str) -> Fact | None:
    """Return a fact as the user asks for it, else as the first account that speaks of it has it; None: nobody does."""
    speaker = next((account for account in accounts if getattr(account, name) is not None), None)
    said = getattr(speaker, name, None)
    if asked is None:
        return Fact(said, speaker.by) if speaker is not None else None
    against = "" if speaker is None or _is_same(asked, said) else f" against {_show(said)} of {speaker.by}"
    return Fact(asked, asked_by, against)


def read_asked(config: ModelConfig) -> Account:
    """Return what the user says."""
    known = None if config.mean is None else check_preprocessing(config.mean, config.std, "model.")
    return Account("the user", config.quick_gelu, known)


def contradicts(asked: Account, other: Account) -> bool:
    """Whether the user says something else of a file than an origin does: then it is not of that origin."""
    return any(
        getattr(asked, name) is not None and not _is_same(getattr(asked, name), getattr(other, name))
        for name in ("quick_gelu", "preprocessing")
    )


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
    """Return what a file says of itself: by its format, its checksum, or the configuration that it lies beside.

    Raises:
        InputError: if that configuration is damaged or makes no sense.
    """
    if is_torchscript(file):
        return Account("the file, OpenAI's own archive", True, DEFAULT, "openai")  # OpenAI alone ships this format
    for tag in open_clip.list_pretrained_tags_by_model(arch):
        published = _get_published_checksum(open_clip.get_pretrained_cfg(arch, tag).get("url", ""))
        if published and checksum.startswith(published):
            return describe_tag(arch, tag, f"the file's checksum, that of {tag}")
    beside = file.with_name(LOCAL_CONFIG)
    if file.name.startswith("open_clip_") and beside.is_file():
        return describe_local(*read_local_config(beside), beside)
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
    """Return what the configurations that transformers writes say of the CLIP beside them."""
    config = file.with_name("config.json")
    if file.name not in HUB_WEIGHTS or not config.is_file():
        return None
    content = read_json(config)
    if content.get("model_type") not in ("clip", "clip_vision_model"):
        return None
    tower = (content.get("vision_config") or {}) if content["model_type"] == "clip" else content
    activation = tower.get("hidden_act", "quick_gelu") if isinstance(tower, dict) else None  # its own default
    if activation not in ("quick_gelu", "gelu"):
        raise InputError(f"Expected the activation in {config} to be quick_gelu or gelu, got {activation!r}.")
    return Account("the config.json beside the file", activation == "quick_gelu", read_processor(file))


def read_processor(file: Path) -> Preprocessing | None:
    """Return mean and std of the preprocessor_config.json that transformers writes beside its weights.

    Raises:
        InputError: if it is damaged, or they make no sense.
    """
    processor = file.with_name("preprocessor_config.json")
    if file.name not in HUB_WEIGHTS or not processor.is_file():
        return None
    mean, std = (read_json(processor).get(name) for name in ("image_mean", "image_std"))
    return None if mean is std is None else check_preprocessing(mean, std, f"{processor}: image_")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        InputError: if it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Expected {path.name} in {path.parent}, found none that can be read.") from error
    except ValueError as error:
        raise InputError(f"Expected {path} to be JSON, got something else: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"Expected {path} to be JSON with names, got {type(content).__name__}.")
    return content


def _get_published_checksum(url: str) -> str:
    """Return the beginning of a file's SHA-256 as its publisher's URL tells it, as open_clip checks it; or nothing."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""


def _is_same(one: Any, other: Any) -> bool:
    return one.is_close_to(other) if isinstance(one, Preprocessing) else one == other


def _show(value: Any) -> str:
    return str(value) if isinstance(value, Preprocessing) else "QuickGELU" if value else "GELU"
