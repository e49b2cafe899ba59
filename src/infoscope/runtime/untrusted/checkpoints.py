"""A checkpoint of another toolkit: what it holds as tensors, plain values and `Record`s."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zipfile import is_zipfile

from torch import Tensor

from infoscope.runtime.untrusted.kinds import check_head, is_safetensors, read_head, refuse
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.records import Record, walk
from infoscope.runtime.untrusted.safetensors_files import read_safetensors
from infoscope.runtime.untrusted.torch_files import AGAIN, Read, is_legacy, read_archive, read_legacy
from infoscope.runtime.untrusted.torchscript import is_torchscript

_MAX_LINE = 2**20
_N_LISTED = 30


class Checkpoint(NamedTuple):
    """What a file holds.

    content: dicts, lists, tuples, sets, plain values, `Tensor`s (on the CPU, in memory of their own) and `Record`s.
    header: the JSON object on the first line, where there is one (saev).
    pickled: the names of the classes and functions in it that tensors do not need.
    """

    content: Any
    header: dict[str, Any] | None
    pickled: tuple[str, ...]


def read_checkpoint(path: Path, known: Sequence[str] = ()) -> Checkpoint:
    """Return what a safetensors file or a file of `torch.save` holds. Nothing that it names is imported or called.

    Args:
        known: beginnings of names, such as "overcomplete.", of whose classes and functions `Record`s are made; a file
            that names others is refused, but for what tensors, devices and numpy's numbers need.

    Raises:
        InputError: if it is damaged, cut off, of another format, or names what is not known.
    """
    try:
        return _read(path, known)
    except Exception as error:  # a damaged file can fail anywhere inside the readers
        raise refuse(path, "checkpoint", error) from error


def list_keys(content: Any) -> list[str]:
    """Return what a checkpoint's content holds, for messages: "W_enc [24, 96]", names dotted, the first 30."""
    return [_describe(name, value) for name, value in islice(walk(content), _N_LISTED)]


def _describe(name: str, value: Any) -> str:
    shown = "".join(letter for letter in name if letter.isprintable())[:120]
    kind = value.name if isinstance(value, Record) else type(value).__name__
    return f"{shown} {list(value.shape) if isinstance(value, Tensor) else f'({kind})'}".lstrip()


def _read(path: Path, known: Sequence[str]) -> Checkpoint:
    head = read_head(path)
    with path.open("rb") as file:
        if head.startswith(b"{"):
            header = _read_header(file)
            content, names = _read_torch(path, file, known)
        elif is_safetensors(head):
            return Checkpoint(read_safetensors(path), None, ())
        else:
            header = None
            check_head(path, head)
            content, names = _read_torch(path, file, known)
    return Checkpoint(content, header, names)


def _read_header(file: BufferedReader) -> dict[str, Any]:
    """Return the first line of a file of saev's, behind which comes what torch has written."""
    line = file.readline(_MAX_LINE)
    if len(line) == _MAX_LINE:
        raise NotReadError(f"its first line is longer than {_MAX_LINE:,} bytes: fetch the checkpoint itself")
    is_last = not file.peek(1)
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if is_last or (header is None and len(line) < 4):
        raise NotReadError(
            "it is JSON, not weights, or a file of saev's that is cut off behind its first line: give the file of"
            f" weights next to it, or {AGAIN}"
        )
    if not isinstance(header, dict):
        raise NotReadError(f"its first line is no JSON, as saev writes it: {AGAIN}")
    return header


def _read_torch(path: Path, file: BinaryIO, known: Sequence[str]) -> Read:
    """Return what torch has written from where the file stands."""
    start = file.tell()
    head = file.read(512)
    if head.startswith(b"PK"):
        if not is_zipfile(path):
            raise NotReadError(f"it is cut off, its end is missing: {AGAIN}")
        if is_torchscript(path):
            raise NotReadError("it is a TorchScript archive, which is a program: give the state dict (torch.save)")
        return read_archive(path, known)
    if not is_legacy(head):
        raise NotReadError(f"behind its first line comes nothing that torch.save has written: {AGAIN}")
    file.seek(start)
    return read_legacy(file, known)
