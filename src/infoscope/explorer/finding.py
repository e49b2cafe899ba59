"""Explorers on the disk: which folder is meant, and whether it is whole and of a format that is known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infoscope.explorer.format import FORMAT, read
from infoscope.runtime.errors import InputError, list_some
from infoscope.runtime.experiments import tell_experiments

INDEX = "index.html"
MADE_IN = "artifacts/explore"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""Of views, sets and columns: they are parts of paths, and an explorer may come from anybody."""


def find_explorer(path: Path) -> Path | None:
    """Return the folder of an explorer; None: there is none in what is at this place.

    Args:
        path: the folder, its index.html, or an output folder: then the explorer that was made last.

    Raises:
        InputError: there is nothing at this place, or an output folder holds explorers of several experiments.
    """
    if not path.exists():
        raise InputError(
            f"Expected an explorer's folder, its {INDEX} or an output folder at {path}, found nothing: make an explorer"
            " with stage=explore."
        )
    if path.name == INDEX and path.is_file():
        path = path.parent
    if (path / INDEX).is_file() and (path / "page").is_dir():
        return path
    made = [file.parent for file in path.glob(f"{MADE_IN}/*/{INDEX}") if not file.parent.name.startswith(".")]
    made.sort(key=lambda folder: (folder / INDEX).stat().st_mtime_ns)
    if told := tell_experiments(made, lambda folder: None):
        raise InputError(
            f"{path} holds explorers of {len(told)} experiments: give the folder of one, {made[-1].parent / 'NAME'},"
            f" NAME being {list_some(told, 8)}."
        )
    return made[-1] if made else None


def read_explorer(folder: Path) -> dict[str, Any]:
    """Return the manifest of an explorer (data/manifest.js).

    Raises:
        InputError: the folder is not whole, or another version of infoscope has made it.
    """
    manifest = read(folder, "manifest")
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise InputError(
            f"The explorer in {folder} has format {version}, and this infoscope knows {FORMAT}: make it again with"
            " stage=explore, or use the version that made it."
        )
    try:
        names = dict.fromkeys(_list_names(manifest))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The manifest of the explorer in {folder} is damaged, {error} is missing or none: make it again with"
            " stage=explore."
        ) from error
    if wrong := [name for name in names if not _NAME.fullmatch(name)]:
        raise InputError(
            f"The explorer in {folder} has names that lead elsewhere ({list_some(map(repr, wrong))}): infoscope makes"
            " no such ones, do not trust it."
        )
    return manifest


def _list_names(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stands in paths; what the pages and explore.beside cannot do without is asked for.

    Raises:
        KeyError, TypeError, AttributeError: something of it is missing, or of another kind.
    """
    for name, about in manifest["sets"].items():
        yield from (str(name), str(about.get("name", name)), str(about.get("fingerprint") or name))
    for view in manifest["views"]:
        if not all(type(view[count]) is int and view[count] > 0 for count in ("d_sae", "block_size")):
            raise KeyError("d_sae, block_size")
        if not isinstance(view["title"], str):
            raise KeyError("title")
        for name in (view["set"], *(view.get("images") or {})):
            manifest["sets"][name]
        yield from (str(view["id"]), *(str(column["name"]) for column in view["columns"]))
