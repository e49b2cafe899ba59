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

_MAX_RATIO = 100
"""Weights hardly compress; what shrinks more is made to fill the memory."""


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
        for part in archive.infolist():
            if part.file_size > _MAX_RATIO * max(part.compress_size, 1):
                raise NotReadError(f"{part.filename} in it is compressed more than weights can be")
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
    data = file.read(n_values * dtype.itemsize)
    array = np.frombuffer(data, dtype, n_values).astype(dtype.newbyteorder("="))
    return torch.from_numpy(array.reshape(shape, order="F" if is_fortran else "C"))
