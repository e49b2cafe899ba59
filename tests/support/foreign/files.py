"""Checkpoints as other toolkits leave them on the disk: weights, and configurations beside them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.foreign.pickled import package


def save_with_config(path: Path, content: Mapping[str, Any], key: str, class_name: str, config: dict[str, Any]) -> Path:
    """Save a dict that holds, under a key, an object of a class of this full name with these attributes."""
    with package() as classes:
        made = classes.make_class(class_name, object)()
        made.__dict__.update(config)
        return save(path, {**content, key: made})


def save(path: Path, content: Any, config: Mapping[str, Any] | None = None, config_name: str = "config.json") -> Path:
    """Save with torch, and a configuration beside it; return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    if config is not None:
        (path.parent / config_name).write_text(json.dumps(config))
    return path


def make_state(**tensors: torch.Tensor | NDArray[Any]) -> OrderedDict[str, torch.Tensor]:
    """Return a state dict; "__" in a name is a dot."""
    return OrderedDict(
        (name.replace("__", "."), torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value)
        for name, value in tensors.items()
    )
