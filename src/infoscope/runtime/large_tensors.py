"""Tensors as large as a dictionary, some rows at a time: a second copy of one may not fit, nor a mask of it.

Files are those of safetensors. Its own `save` joins all bytes before they are written, its `save_file` does not say
when a disk is full, and its `load_file` maps the file, which then may not change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.safetensors_files import DTYPES, read_header
from infoscope.runtime.untrusted.torch_files import read_values

MAX_VALUES = 2**20
"""Of a part."""
Change = Callable[[Tensor], Tensor]
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def cut_rows(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor in parts along its first side, of `MAX_VALUES` values or of one row."""
    yield from tensor.split(max(1, MAX_VALUES * len(tensor) // max(1, tensor.numel()))) if tensor.ndim else [tensor]


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or Inf."""
    return all(bool(torch.isfinite(part).all()) for part in cut_rows(tensor))


def reduce_rows(W: Float[Tensor, "n d"], reduce: Callable[[Tensor], Tensor]) -> Float64[Tensor, " n"]:
    """Return the one value that becomes of each row in float64; `reduce` takes some rows at a time."""
    made, start = torch.empty(len(W), dtype=torch.float64, device=W.device), 0
    for part in cut_rows(W):  # small results allocated among large parts would keep the parts' memory from being freed
        made[start : start + len(part)] = reduce(part.double())
        start += len(part)
    return made


def row_norms(W: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return the norms of rows."""
    return reduce_rows(W, lambda part: part.norm(dim=1))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], changes: Mapping[str, Change] | None = None
) -> None:
    """Write a safetensors file, byte for byte as safetensors' `save` makes it.

    Args:
        changes: what is done to each part of the tensor of this name before it is written, such as scaling.

    Raises:
        OSError: the disk is full.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            change = (changes or {}).get(name, lambda part: part)
            for part in cut_rows(tensors[name].detach()):
                file.write(change(part).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def fill_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read a safetensors file into tensors of any strides, whose names and shapes must be just those that it holds.

    Raises:
        NotReadError: they are others, or the file is damaged.
    """
    start, parts = read_header(path)
    if others := sorted(parts.keys() ^ tensors.keys()):
        raise NotReadError(f"{others[0]} is {'too much' if others[0] in parts else 'missing'}")
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            dtype, shape = DTYPES.get(parts[name]["dtype"]), parts[name]["shape"]
            if dtype is None or shape != list(tensor.shape):
                raise NotReadError(f"{name} is {parts[name]['dtype']} {shape}, expected {list(tensor.shape)}")
            file.seek(start + parts[name]["data_offsets"][0])
            for part in cut_rows(tensor.detach()):
                values = torch.empty(0, dtype=dtype).set_(read_values(file, part.numel() * dtype.itemsize))
                part.copy_(values.view(part.shape))
