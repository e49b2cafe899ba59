"""The tensors of a file of weights, whose format its content decides, not its name.

Nothing that a file holds is ever run: safetensors, `weights_only=True`, an unpickler that calls nothing, or the tensors
of a TorchScript archive.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from infoscope.runtime.errors import InputError, get_first_line
from infoscope.vision.weights.inert_pickle import Inert, read_inert
from infoscope.vision.weights.origins import list_some
from infoscope.vision.weights.torchscript import is_torchscript, read_torchscript
from infoscope.vision.weights.towers import get_shapes

_MAX_HEADER = 100_000_000
"""Bytes: safetensors' own bound."""
_MAX_DEPTH = 20
_FETCH, _AGAIN = "fetch the file itself", "fetch it again"
_OTHER_OBJECTS = "holds other objects than tensors, which are not loaded: give a state dict"
_MAGIC = {
    b"\x1f\x8b": "it is compressed by gzip: unpack it (gunzip) and give what comes out",
    b"BZh": "it is compressed by bzip2: unpack it (bunzip2) and give what comes out",
    b"\xfd7zXZ": "it is compressed by xz: unpack it (unxz) and give what comes out",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstandard: unpack it (unzstd) and give what comes out",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it and give the file of weights in it",
    b"\x89HDF": "it is HDF5, as Keras writes it: give the PyTorch weights (model.safetensors, .bin, .pth)",
    b"GGUF": "it is GGUF, for llama.cpp: give the PyTorch weights (model.safetensors, .bin, .pth)",
    b"\x93NUMPY": "it is one numpy array: give the PyTorch weights (model.safetensors, .bin, .pth)",
    b"\x00" * 64: f"it begins with zeros, so the download was not finished: {_AGAIN}",
    b"version https://git-lfs": f"it is a git-lfs pointer, not the weights: {_FETCH} (git lfs pull)",
    b"<": f"it is a web page or XML, not the weights: {_FETCH}, with a login if the page asks for one",
}


class _NotRead(Exception):
    """A reason why a file cannot be read, in words."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file under dotted names: `state_dict.visual.proj`, `optimizer.state.0.exp_avg`.

    Raises:
        InputError: if it is damaged, cut off, or no file of weights.
    """
    return dict(_guard(path, _read))


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `read_tensors` returns; of a safetensors file from its header alone.

    Raises:
        InputError: as `read_tensors`.
    """
    return dict(_guard(path, _read_shapes))


def _guard(path: Path, read: Any) -> Any:
    try:
        return read(path)
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        kind = "safetensors" if path.suffix == ".safetensors" else "weights"
        raise InputError(f"Cannot read {kind} file {path}: {_explain(error)}.") from error


def _explain(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error):
        return f"it is damaged, or {_OTHER_OBJECTS}"  # torch's own words advise to run what the file holds
    if "Invalid magic number" in str(error):
        return "it is a pickle that torch.save has not written: save the state dict by torch.save"
    return get_first_line(error)


def _read(path: Path) -> dict[str, Tensor]:
    head = _read_head(path)
    if _is_safetensors(head):
        _check_length(path, head)
        return load_file(path)
    return dict(_flatten(_read_torch(path, head)))


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    head = _read_head(path)
    if not _is_safetensors(head):
        return get_shapes(_read(path))
    _check_length(path, head)
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise _NotRead(f"it is empty: {_AGAIN}")
    return head


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and struct.unpack("<Q", head[:8])[0] <= _MAX_HEADER and head[8:9] == b"{"


def _check_length(path: Path, head: bytes) -> None:
    """Refuse a file that ends before the data that its header speaks of."""
    n_header = struct.unpack("<Q", head[:8])[0]
    with path.open("rb") as file:
        file.seek(8)
        header = file.read(n_header)
    if len(header) < n_header:
        raise _NotRead(f"it is cut off inside its header: {_AGAIN}")
    parts = [part for name, part in json.loads(header).items() if name != "__metadata__"]
    size, expected = path.stat().st_size, 8 + n_header + max((part["data_offsets"][1] for part in parts), default=0)
    if size < expected:
        raise _NotRead(f"it is cut off, {size:,} of {expected:,} bytes are there: {_AGAIN}")


def _read_torch(path: Path, head: bytes) -> Any:
    """Return what a file holds that `torch.save` or TorchScript has written."""
    is_zip = head.startswith(b"PK")
    if is_zip:
        _check_archive(path)
    else:
        _check_head(path, head)
    if is_zip and is_torchscript(path):
        return read_torchscript(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols
            if is_zip and path.suffix != ".safetensors":  # torch believes that suffix
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = read_inert(path)
    if not any(_flatten(content)):
        raise _NotRead(f"it {_OTHER_OBJECTS}")
    return content


def _check_archive(path: Path) -> None:
    """Refuse zip files that torch has not written, and any that it would take for TorchScript where we do not."""
    if not zipfile.is_zipfile(path):
        raise _NotRead(f"it is cut off, its end is missing: {_AGAIN}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        raise _NotRead(
            f"it holds numpy arrays ({list_some(names)}), as JAX and big_vision write them: give the PyTorch weights"
            " (model.safetensors, .bin, .pth)"
        )
    if is_torchscript(path):
        return
    if not any(name.endswith("data.pkl") for name in names) or any(name.endswith("constants.pkl") for name in names):
        raise _NotRead(f"it is a zip archive of {list_some(names)}: unpack it and give the file of weights in it")


def _check_head(path: Path, head: bytes) -> None:
    """Refuse what is known by its first bytes not to be a file of torch's."""
    reason = next((reason for magic, reason in _MAGIC.items() if head.lstrip().startswith(magic)), None)
    if reason is None and head[257:262] == b"ustar":
        reason = "it is a tar archive: unpack it and give the file of weights in it"
    if reason is None and not head.startswith(b"\x80"):
        reason = _explain_text(path, head)
    if reason is not None:
        raise _NotRead(reason)


def _explain_text(path: Path, head: bytes) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return (
            f"it is damaged, or of no format that is known (its first bytes are {head[:8].hex(' ')}): give a state dict"
        )
    if not text.lstrip().startswith("{"):
        return f"it holds text, not weights ({' '.join(text.split())[:40]!r}): {_FETCH}"
    try:
        parts = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it is JSON, not weights: give the file of weights next to it"
    return (
        f"it is the index of weights in {len(parts)} parts ({list_some(parts)}): join them into one .safetensors file"
        " (safetensors.torch.load_file of each, save_file of all), and give that"
    )


def _flatten(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif depth > _MAX_DEPTH:
        return
    elif isinstance(content, Inert) and content.is_module:
        yield from _flatten(_read_module(content.state), name, depth + 1)
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from _flatten(value, f"{name}.{i}" if name else str(i), depth + 1)


def _read_module(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a whole pickled module has in its state dict: parameters, lasting buffers, and its parts."""
    passing = set(state.get("_non_persistent_buffers_set") or ())
    buffers = {name: value for name, value in state["_buffers"].items() if name not in passing}
    return {**state["_parameters"], **buffers, **state["_modules"]}
