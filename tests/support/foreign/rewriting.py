"""The files of a checkpoint read, to be written again with something changed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

WEIGHTS = (".pt", ".pth", ".ckpt", ".safetensors")


def find_weights(place: Path) -> Path:
    """Return the one file of weights at a path."""
    files = [place] if place.is_file() else place.rglob("*")
    (file,) = [path for path in files if path.suffix in WEIGHTS]
    return file


def load_part(file: Path) -> dict[str, Any]:
    """Return what a file holds as "content", and as "header" the first line of saev's."""
    if file.suffix == ".safetensors":
        return {"content": load_file(file)}
    if file.suffix not in WEIGHTS:
        return {"content": yaml.safe_load(file.read_text())}  # JSON too
    data = file.read_bytes()
    n_head = data.index(b"\n") + 1 if data.startswith(b"{") else 0
    content = torch.load(io.BytesIO(data[n_head:]), weights_only=False)
    return {"content": content} | ({"header": json.loads(data[:n_head])} if n_head else {})


def save_part(file: Path, part: dict[str, Any]) -> None:
    """Write what `load_part` gave."""
    if file.suffix == ".safetensors":
        save_file(part["content"], file)
    elif file.suffix not in WEIGHTS:
        file.write_text(json.dumps(part["content"]))
    else:
        stream = io.BytesIO()
        torch.save(part["content"], stream)
        head = json.dumps(part["header"]).encode() + b"\n" if "header" in part else b""
        file.write_bytes(head + stream.getvalue())


def add_tensor(content: Any, name: str, value: torch.Tensor) -> bool:
    """Put a tensor beside the first matrix in nested dicts; return whether there is one."""
    if not isinstance(content, dict):
        return False
    if any(isinstance(part, torch.Tensor) and part.ndim == 2 for part in content.values()):
        content[name] = value
        return True
    return any(add_tensor(part, name, value) for part in content.values())


def rewrite(place: Path, name: str, value: torch.Tensor) -> None:
    """Put a tensor into the one file of weights at a path."""
    part = load_part(file := find_weights(place))
    assert add_tensor(part, name, value)
    save_part(file, part)
