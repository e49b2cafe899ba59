"""Telling artifacts of several experiments apart, by what differs in the configurations that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from infoscope.runtime.manifests import CONFIG, flatten_determining

_NAMED_FIRST = (
    "model.name",
    "model.pretrained",
    "model.layer",
    "model.site",
    "sae.kind",
    "sae.path",
    "data.kind",
    "data.root",
    "precision",
)
"""What tells experiments apart in words, wherever it differs; other settings are named where these do not suffice."""

_BEFORE = {"partition.by": "cds"}
"""What held before a setting existed, of those whose other choices make other experiments."""


def tell_experiments(folders: Sequence[Path], find_scores: Callable[[Path], str | None]) -> list[str]:
    """Return the newest artifact of each experiment, the newest first, as "NAME (what differs)"; [] where all are one.

    Settings that one of them does not have, for it was made before these existed, count as the same; so do two numbers
    of one block, -2 and 2, which lead to the same scores.

    Args:
        folders: of artifacts of one kind, the newest last.
        find_scores: the hash of the scores that an artifact shows; None: not known.
    """
    settings = [found and {**_BEFORE, **found} for found in map(read_settings, folders)]
    if len(settings) < 2:
        return []
    newest, layers = settings[-1], {}
    for folder, of in zip(reversed(folders), reversed(settings), strict=True):
        if (scores := find_scores(folder)) is not None and "model.layer" in of:
            of["model.layer"] = layers.setdefault(scores, of["model.layer"])
    differing = sorted({key for of in settings for key in of.keys() & newest.keys() if of[key] != newest[key]})
    if not differing:
        return []
    found: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}  # of each experiment the newest
    for folder, of in zip(folders, settings, strict=True):
        found.pop(told := _choose(of, differing), None)
        found[told] = folder.name, of
    keys = [key for key in _NAMED_FIRST if key in differing]
    for key in differing:
        if len({_choose(of, [*keys, key]) for of in settings}) > len({_choose(of, keys) for of in settings}):
            keys.append(key)
    return [f"{name} ({', '.join(f'{key}={of.get(key)}' for key in keys)})" for name, of in reversed(found.values())]


def list_differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that both have and that differ, with the other's values, those that tell most first."""
    differing = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    named = [key for key in _NAMED_FIRST if key in differing]
    return {key: other[key] for key in dict.fromkeys([*named, *differing])}


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the configuration that made an artifact, without what changes no number, by dotted key; {}: not there."""
    try:
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(found, dict):
        return {}
    precision = (found.get("trainer") or {}).get("precision")
    return {**flatten_determining(found), "precision": precision}


def _choose(settings: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, ...]:
    return tuple(settings.get(key) for key in keys)
