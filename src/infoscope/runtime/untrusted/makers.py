"""What a pickle may make besides plain values: tensors, containers and numbers. Each maker checks what it is given."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from infoscope.runtime.untrusted.records import Record


class NotReadError(Exception):
    """A reason why a file cannot be read, in words."""


def odd(words: str) -> NotReadError:
    """Return the reason that a pickle does what no toolkit's does: it is damaged, or worse."""
    return NotReadError(f"its pickle {words}, as no checkpoint needs: fetch it again, from where you trust it")


def name_kind(value: Any) -> str:
    """Return the type of a value, for a reason."""
    return type(value).__name__


class Storage(NamedTuple):
    """The memory of tensors, and the dtype that it was written with."""

    data: UntypedStorage
    dtype: torch.dtype


_MAX_REPEATED = 2**20
"""As many values may a tensor repeat of a smaller storage; more is refused before anybody copies it."""
_MAX_SIDE, _MAX_SIDES = 2**40, 64
_MAX_KEY = 1000
"""Letters of a key, and parts of one that is a tuple."""


def check_keys(keys: Iterable[Any]) -> list[Any]:
    """Return keys of a dict or values of a set, all plain: to hash a tuple of a million depths ends the process."""
    plain = (str, int, float, bytes, type(None), torch.dtype, torch.device, Record)
    keys = list(keys)
    for key in keys:
        if isinstance(key, str | bytes | tuple) and len(key) > _MAX_KEY:
            raise odd(f"has a key of more than {_MAX_KEY:,} letters or parts")
        if not all(isinstance(part, plain) for part in (key if isinstance(key, tuple) else (key,))):
            raise odd(f"has a {name_kind(key)} for a key")
    return keys


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    return _view(storage, offset, size, stride)


def _rebuild_v3(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise odd("makes a tensor of something else than a storage and a dtype")
    return _view(Storage(storage.data, dtype), offset, size, stride)


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return a tensor in a storage, which torch would enlarge to whatever the file claims."""
    if not isinstance(storage, Storage):
        raise odd(f"makes a tensor of a {name_kind(storage)}, not of a storage")
    if len(size) != len(stride) or len(size) > _MAX_SIDES:
        raise odd("has a tensor of impossible sides, steps or offset")
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and 0 <= n < _MAX_SIDE for n in numbers):
        raise odd("has a tensor of impossible sides, steps or offset")
    n_stored, n_values = storage.data.nbytes() // storage.dtype.itemsize, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if n_values else offset - 1
    if last >= n_stored or n_values > max(n_stored, _MAX_REPEATED):
        raise odd(f"has a tensor of shape {list(size)} that is larger than its storage of {n_stored:,} values")
    return torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, tuple(size), tuple(stride))


def _keep_tensor(data: Any, *_: Any) -> Tensor:
    """Return the tensor of a parameter."""
    if not isinstance(data, Tensor):
        raise odd(f"makes a parameter of a {name_kind(data)}")
    return data


def _make_ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _make_set(values: Any = ()) -> set[Any]:
    return set(check_keys(values))


def _make_size(sides: Any = ()) -> torch.Size:
    if not all(type(side) is int for side in sides):
        raise odd("has a size that is none")
    return torch.Size(sides)


def _make_device(kind: Any, index: Any = None) -> torch.device:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise odd("has a device that is none")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _encode(text: Any, encoding: Any = None) -> bytes:
    """Return the bytes that protocol 2 writes as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise odd("has bytes in an encoding that is not known")
    return text.encode("latin1")


def _decode_scalar(dtype: Any, data: Any = b"") -> Any:
    """Return a numpy scalar as a plain number."""
    kind = dtype.args[0] if isinstance(dtype, Record) and dtype.name == "numpy.dtype" and dtype.args else None
    code = _NUMBERS.get(kind) if isinstance(kind, str) else None
    if code is None or not isinstance(data, bytes) or len(data) != struct.calcsize(f"<{code}"):
        raise NotReadError("it holds a numpy object that is no number: save plain numbers and tensors")
    is_big = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    return struct.unpack(f"{'>' if is_big else '<'}{code}", data)[0]


_NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"}
_NUMBERS |= {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}

STORAGES = {
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "storage.UntypedStorage": torch.uint8,
}
STORAGES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
"""The dtypes of classes of storages; an untyped one is counted in bytes."""
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
TENSORS: dict[str, Any] = {
    "builtins.set": _make_set,
    "collections.OrderedDict": _make_ordered,
    "torch.Size": _make_size,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _keep_tensor,
    "torch._utils._rebuild_parameter_with_state": _keep_tensor,
}
"""What is made everywhere, by the name of what makes it elsewhere."""
VALUES: dict[str, Any] = {
    "torch.device": _make_device,
    "_codecs.encode": _encode,
    "numpy.core.multiarray.scalar": _decode_scalar,
    "numpy._core.multiarray.scalar": _decode_scalar,
}
"""What else is made where other names are refused."""
