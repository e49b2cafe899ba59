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
            if dtype is None or last - first != math.prod(part["shape"]) * dtype.itemsize:
                raise NotReadError(f"its tensor {name} is of the type {part['dtype']}, which is not read")
            file.seek(start + first)
            values = read_values(file, last - first)
            tensors[name] = torch.empty(0, dtype=dtype).set_(values).view(part["shape"])
    return tensors


def read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the data begin, and what the header says of each tensor: dtype, shape, data_offsets.

    Raises:
        NotReadError: if the file ends before the data that its header speaks of.
    """
    with path.open("rb") as file:
        n_header = struct.unpack("<Q", file.read(8))[0]
        header = file.read(n_header)
    if len(header) < n_header:
        raise NotReadError(f"it is cut off inside its header: {AGAIN}")
    try:
        parts = {name: part for name, part in json.loads(header).items() if name != "__metadata__"}
        start, size = 8 + n_header, path.stat().st_size
        expected = start + max((part["data_offsets"][1] for part in parts.values()), default=0)
    except Exception as error:  # anything can stand there
        raise NotReadError(f"its header is damaged: {AGAIN}") from error
    if size < expected:
        raise NotReadError(f"it is cut off, {size:,} of {expected:,} bytes are there: {AGAIN}")
    return start, parts
