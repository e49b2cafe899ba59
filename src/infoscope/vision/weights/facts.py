"""Which activation, mean and std weights were trained with, and who says so.

State dicts do not hold these facts, and wrong ones give wrong numbers without a word. So somebody has to say them: the
user, the tag, what lies in or next to a file, the origin that `model.origin` names, or all tags of the architecture, if
they agree. The first of these who speaks is followed; where nobody does, the user is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.preprocessing import Preprocessing, check_preprocessing

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What timm and transformers call the weights in a folder."""


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
    def normalisation(self) -> dict[str, list[float]]:
        """RGB mean and std of the preprocessing, by name."""
        return {name: list(values) for name, values in self.preprocessing.value._asdict().items()}

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


def read_processor(file: Path) -> Preprocessing | None:
    """Return mean and std of the preprocessor_config.json that transformers writes next to its weights.

    Raises:
        InputError: if it is damaged, or they make no sense.
    """
    content = read_beside(file, "preprocessor_config.json")
    mean, std = content.get("image_mean"), content.get("image_std")
    place = f"{file.with_name('preprocessor_config.json')}: image_"
    return None if mean is std is None else check_preprocessing(mean, std, place)


def read_beside(file: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file next to weights that are called as the hub calls them; empty: there is none.

    Raises:
        InputError: as `read_json`.
    """
    path = file.with_name(name)
    return read_json(path) if file.name in HUB_WEIGHTS and path.is_file() else {}


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


def _is_same(one: Any, other: Any) -> bool:
    return one.is_close_to(other) if isinstance(one, Preprocessing) else one == other


def _show(value: Any) -> str:
    return str(value) if isinstance(value, Preprocessing) else "QuickGELU" if value else "GELU"
