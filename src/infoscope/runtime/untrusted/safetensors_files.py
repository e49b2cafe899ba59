"""The tensors of a safetensors file, read where they stand."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.torch_files import AGAIN, read_values

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


_MAX_HEADER = 2**24
"""Bytes of a header that is read: a hundred thousand tensors."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, each in memory of its own.

    Raises:
        NotReadError: if it is cut off, or has tensors of another dtype than those that are read.
        Exception: safetensors' own, if its header is damaged.
    """
    start, parts = read_header(path)
    with safe_open(path, "pt"):  # it checks that names, sides and places agree
        pass
    tensors = {}
    with path.open("rb") as file:
        for name, part in parts.items():
            dtype, (first, last) = DTYPES.get(part["dtype"]), part["data_offsets"]
            if dtype is None:
                raise NotReadError(f"its tensor {name} is of the type {part['dtype']}, which is not read")
            file.seek(start + first)
            values = read_values(file, last - first)
            tensors[name] = torch.empty(0, dtype=dtype).set_(values).view(part["shape"])
    return tensors


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data begin, and what the header says of each tensor: dtype, shape, data_offsets.

    Raises:
        NotReadError: if the header is damaged, its shapes are not of the sizes that it says, or the file ends before
            the data that it speaks of.
    """
    with path.open("rb") as file:
        n_header = struct.unpack("<Q", file.read(8))[0]
        if n_header > _MAX_HEADER:
            raise NotReadError(f"its header is of {n_header:,} bytes, more than any checkpoint's: {AGAIN}")
        header = file.read(n_header)
    if len(header) < n_header:
        raise NotReadError(f"it is cut off inside its header: {AGAIN}")
    try:
        parts = {name: part for name, part in json.loads(header).items() if name != "__metadata__"}
        start, size = 8 + n_header, path.stat().st_size
        expected = start + max((_find_end(part) for part in parts.values()), default=0)
    except Exception as error:  # anything can stand there
        raise NotReadError(f"its header is damaged: {AGAIN}") from error
    if size < expected:
        raise NotReadError(f"it is cut off, {size:,} of {expected:,} bytes are there: {AGAIN}")
    return start, parts


def _find_end(part: dict[str, Any]) -> int:
    """Return where a tensor's data end; of dtypes that are not read, only this is known."""
    dtype, (first, last) = DTYPES.get(part["dtype"]), part["data_offsets"]
    sides = part["shape"]
    if not all(type(n) is int and n >= 0 for n in (*sides, first, last)):
        raise ValueError
    if dtype is not None and last - first != math.prod(sides) * dtype.itemsize:
        raise ValueError
    return last
