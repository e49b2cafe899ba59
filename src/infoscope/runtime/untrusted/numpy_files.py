"""Arrays of numpy's own formats, never those of Python objects, which are pickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from infoscope.runtime.untrusted.kinds import AGAIN, refuse
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.torch_files import read_values

_MAX_RATIO, _SLACK = 4, 2**20
"""Weights hardly compress, those of bfloat16 in float32 to half; zeros, such as a bias, count as bytes of the slack."""


def read_npy(path: Path) -> Tensor:
    """Return the array of numbers in a .npy file.

    Raises:
        InputError: it is damaged, cut off, or holds something else.
    """
    try:
        with path.open("rb") as file:
            return _read_array(file, path.stat().st_size)
    except Exception as error:  # a damaged file can fail anywhere inside the reader
        raise refuse(path, "array", error) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of numbers in a .npz file by name.

    Raises:
        InputError: it is damaged, cut off, or holds something else.
    """
    try:
        return dict(_read_arrays(path))
    except Exception as error:  # as above
        raise refuse(path, "arrays", error) from error


def _read_arrays(path: Path) -> Iterator[tuple[str, Tensor]]:
    with zipfile.ZipFile(path) as archive:
        n_bytes, n_packed = sum(part.file_size for part in archive.infolist()), path.stat().st_size
        if n_bytes > _MAX_RATIO * n_packed + _SLACK:
            raise NotReadError(f"{n_bytes:,} bytes are compressed to {n_packed:,} in it, more than weights can be")
        for part in archive.infolist():
            with archive.open(part) as file:
                yield part.filename.removesuffix(".npy"), _read_array(file, part.file_size)


def _read_array(file: IO[bytes], n_bytes: int) -> Tensor:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    n_values = math.prod(shape)
    if dtype.kind not in "fiub":
        raise NotReadError(f"it holds an array of {dtype}, not of numbers")
    if n_values * dtype.itemsize != n_bytes - file.tell():
        raise NotReadError(f"its header says {list(shape)} of {dtype}, which is not what follows: {AGAIN}")
    data = torch.empty(0, dtype=torch.uint8).set_(read_values(file, n_values * dtype.itemsize)).numpy()
    array = data.view(dtype).astype(dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(array.reshape(shape, order="F" if is_fortran else "C"))
