"""A result on disk: its arrays in NumPy's files, everything else in a JSON file next to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np


def save_result(
    folder: Path,
    name: str,
    values: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    *,
    one_by_one: bool = False,
    compressed: bool = False,
) -> None:
    """Write the arrays among some values into <name>.npz and the rest, enums by name, into <name>.json.

    Args:
        folder: is made if missing.
        facts: more for the JSON file.
        one_by_one: an array has a .npy file of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    if not one_by_one:
        save: Callable[..., None] = np.savez_compressed if compressed else np.savez
        save(folder / f"{name}.npz", **arrays)
    for key, array in arrays.items() if one_by_one else ():
        np.save(folder / f"{key}.npy", array)
    rest = {key: value.name if isinstance(value, Enum) else value for key, value in values.items() if key not in arrays}
    (folder / f"{name}.json").write_text(json.dumps(rest | dict(facts or {}), indent=1) + "\n", encoding="utf-8")


def load_result(
    folder: Path, name: str, one_by_one: Collection[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the rest of what `save_result` wrote, enums as their names.

    Args:
        one_by_one: the arrays, where each has a file of its own.
    """
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if one_by_one:
        return {key: np.load(folder / f"{key}.npy") for key in one_by_one}, facts
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays), facts
