"""The tensors of a file of weights, whose format its content decides, not its name. Nothing in it is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from torch import Tensor

from infoscope.runtime.untrusted.kinds import check_head, is_safetensors, read_head, refuse
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.records import walk
from infoscope.runtime.untrusted.safetensors_files import read_header
from infoscope.runtime.untrusted.torch_files import read_archive, read_legacy
from infoscope.runtime.untrusted.torchscript import is_torchscript, read_torchscript

Found = TypeVar("Found")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file under dotted names: `state_dict.visual.proj`, `optimizer.state.0.exp_avg`.

    Those of most files stay in the file until they are used.

    Raises:
        InputError: if it is damaged, cut off, or no file of weights.
    """
    return _guard(path, _read)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `read_tensors` returns, without reading values.

    Raises:
        InputError: as `read_tensors`.
    """
    return _guard(path, lambda path: {name: tuple(value.shape) for name, value in _read(path).items()})


def _guard(path: Path, read: Callable[[Path], Found]) -> Found:
    try:
        return read(path)
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        kind = "safetensors" if path.suffix == ".safetensors" else "weights"
        raise refuse(path, f"{kind} file", error) from error


def _read(path: Path) -> dict[str, Tensor]:
    head = read_head(path)
    if is_safetensors(head):
        read_header(path)
        return load_file(path)
    check_head(path, head)
    if is_torchscript(path):
        return read_torchscript(path)
    if head.startswith(b"PK"):
        content, names = read_archive(path, None, is_mapped=True)
    else:
        with path.open("rb") as file:
            content, names = read_legacy(file, None)
    tensors = {name: value for name, value in walk(content) if isinstance(value, Tensor)}
    if names and not tensors:
        raise NotReadError("it holds other objects than tensors, which are not loaded: give a state dict")
    return tensors
