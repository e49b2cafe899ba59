"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON types into a file of a folder that nobody else reads yet."""
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
