"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, without running anything that is in it.

`torch.jit.load` would compile and may run the archive's code, so it is as unsafe as a pickle. The tensors lie in plain
files of the archive, and one pickle says how they are named: that one is read by an unpickler that knows tensors and
inert containers, and nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infoscope.vision.weights.inert_pickle import Inert, keep_data

DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NO_WEIGHTS = {"attn_mask", "input_resolution", "context_length", "vocab_size"}
"""Tensors in CLIP's archives that are no weights."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a TorchScript archive; no code of it is run.

    Raises:
        pickle.UnpicklingError: if it holds anything but modules, tensors and plain values.
        Exception: of many kinds, if it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if index is None:
            raise pickle.UnpicklingError("it has no data.pkl")
        with archive.open(index) as file:
            root = _Reader(file, archive, index.removesuffix("data.pkl")).load()
    return {name: value for name, value in _walk(root, "") if name.rpartition(".")[2] not in NO_WEIGHTS}


class _Reader(pickle.Unpickler):
    """Unpickles modules as `Inert`, tensors from the archive's own files, and refuses every other global."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return Inert
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # typed lists
            return keep_data
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not loaded")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, n_values = pid
        data = self.archive.read(f"{self.folder}data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype)[:n_values] if data else torch.empty(0, dtype=dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()


def _walk(module: Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.state.items() if isinstance(module.state, dict) else ():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Inert):
            yield from _walk(value, f"{prefix}{name}.")
