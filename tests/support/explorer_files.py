"""What lies in an explorer's folder, read as a browser reads it and by none of the code that has written it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np


def read_value(folder: Path, key: str) -> Any:
    """Return the value of a data file: it is one call with a key and JSON."""
    text = (folder / "data" / f"{key}.js").read_text(encoding="ascii")
    assert text.startswith("infoscope.put("), key
    assert text.endswith(");\n"), key
    found, value = json.loads(f"[{text[len('infoscope.put(') : -3]}]")
    assert found == key
    return value


def read_array(packed: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])


def read_maps(packed: dict[str, Any], grid: int) -> np.ndarray:
    """Return packed maps as [n, grid, grid]."""
    maps = np.zeros((packed["n"], grid * grid))
    which = np.repeat(np.arange(packed["n"]), read_array(packed["counts"]))
    maps[which, read_array(packed["places"])] = read_array(packed["values"]) / 65535 * packed["scale"]
    return maps.reshape(-1, grid, grid)
