"""What `torch.save` has written: a zip archive, or a row of pickles before torch 1.6. Nothing in it is run."""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import UntypedStorage

from infoscope.runtime.errors import list_some
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.nesting import check_content
from infoscope.runtime.untrusted.unpickler import Unpickler

AGAIN = "fetch it again"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_MAX_PICKLE = 2**26
"""Bytes of a pickle beside the tensors: what is larger is no checkpoint."""
_CHUNK = 2**23


class Read(NamedTuple):
    """What a file holds, and the names of the classes and functions in it that tensors do not need."""

    content: Any
    names: tuple[str, ...]


def read_archive(path: Path, known: Sequence[str] | None, is_mapped: bool = False) -> Read:
    """Return what a zip archive of torch's holds, whatever stands before it in the file.

    Args:
        known: see `Unpickler`.
        is_mapped: the tensors stay in the file until they are used; else they are read into memory of their own.

    Raises:
        NotReadError: if it is damaged, or holds anything that is not read.
    """
    with zipfile.ZipFile(path) as archive:
        members = _check_members(path, archive)
        index = next(name for name in members if name.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        storages: dict[str, UntypedStorage] = {}
        whole = UntypedStorage.from_file(str(path), False, path.stat().st_size) if is_mapped else None

        def load_storage(key: str, dtype: torch.dtype, n_values: int) -> UntypedStorage:
            member, n_bytes = members.get(f"{folder}data/{key}"), n_values * dtype.itemsize
            if member is not None and member.compress_type != zipfile.ZIP_STORED:
                raise NotReadError("its tensors are compressed: unpack the archive, and zip it again without (zip -0)")
            if member is None or member.file_size != n_bytes:
                raise NotReadError(f"its storage {key} does not have the {n_bytes:,} bytes of its tensors: {AGAIN}")
            if key not in storages:
                storages[key] = _map(whole, archive, member) if whole else _read_member(archive, member)
            return storages[key]

        unpickler = Unpickler(io.BytesIO(archive.read(index)), known, load_storage)
        content = unpickler.read_object()
    check_content(content)
    return Read(content, tuple(unpickler.met))


def _check_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the members of an archive by name, if they can be those of torch's."""
    members = {member.filename: member for member in archive.infolist()}
    indices = [member for name, member in members.items() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(members) < len(archive.infolist()) or any(".." in name.split("/") or name[:1] == "/" for name in members):
        raise NotReadError("members of the archive have the same name, or one outside of it: do not trust this file")
    if len(indices) != 1:
        raise NotReadError(f"it is a zip archive of {list_some(members)}: unpack it and give the file of weights in it")
    if sum(member.compress_size for member in members.values()) > path.stat().st_size:
        raise NotReadError("members of the archive overlap: do not trust this file")
    if indices[0].file_size > _MAX_PICKLE:
        raise NotReadError(f"it holds {indices[0].file_size:,} bytes beside the tensors: give the state dict alone")
    order = members.get(indices[0].filename.removesuffix("data.pkl") + "byteorder")
    if order is not None and order.file_size < 100 and archive.read(order) != sys.byteorder.encode():
        raise NotReadError("its numbers have another byte order than this machine's: save it on a machine like this")
    return members


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> UntypedStorage:
    with archive.open(member) as stream:
        return read_values(stream, member.file_size)


def read_values(stream: Any, n_bytes: int) -> UntypedStorage:
    """Read bytes into memory of their own, part by part, so that they are there but once."""
    storage = torch.empty(n_bytes, dtype=torch.uint8).untyped_storage()
    _fill(stream, storage)
    return storage


def _fill(stream: Any, storage: UntypedStorage) -> None:
    view = torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data
    for start in range(0, len(view), _CHUNK):
        part = view[start : start + _CHUNK]
        if stream.readinto(part) != len(part):
            raise NotReadError(f"it is cut off inside its tensors: {AGAIN}")


def _map(whole: Any, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """Return the part of the mapped file that is a member; a copy where it begins at an odd place."""
    with open(archive.filename or "", "rb") as file:
        file.seek(member.header_offset + 26)
        start = file.tell() + 4 + sum(struct.unpack("<HH", file.read(4)))
    return _read_member(archive, member) if start % 8 else whole[start : start + member.file_size]


def is_legacy(head: bytes) -> bool:
    """Whether a file's first bytes are those that torch before 1.6 writes; other pickles are none of torch's."""
    return head.startswith(b"\x80") and _MAGIC_BYTES in head[:32]


def read_legacy(file: BinaryIO, known: Sequence[str] | None) -> Read:
    """Return what a row of pickles from torch before 1.6 holds, read from where the file stands.

    Raises:
        NotReadError: if it is damaged, or holds anything that is not read.
    """
    start = file.tell()
    n_left = file.seek(0, 2) - start
    file.seek(start)
    storages: dict[str, tuple[UntypedStorage, int]] = {}
    n_claimed = 0

    def load_storage(key: str, dtype: torch.dtype, n_values: int) -> UntypedStorage:
        nonlocal n_claimed
        if key not in storages:
            n_claimed += n_values * dtype.itemsize
            if n_claimed > n_left:
                raise NotReadError(f"it is cut off, its tensors are of {n_claimed:,} bytes at least: {AGAIN}")
            storages[key] = UntypedStorage(n_values * dtype.itemsize), dtype.itemsize
        storage, itemsize = storages[key]
        if storage.nbytes() != n_values * dtype.itemsize or itemsize != dtype.itemsize:
            raise NotReadError(f"its storage {key} has two sizes: {AGAIN}")
        return storage

    magic, protocol, system = (Unpickler(file, ()).read_object() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not isinstance(system, dict) or not system.get("little_endian"):
        raise NotReadError("it is of an unknown version of torch's format: save it again by torch")
    unpickler = Unpickler(file, known, load_storage)
    content = unpickler.read_object()
    keys = Unpickler(file, ()).read_object()
    is_list = isinstance(keys, list) and all(type(key) is str for key in keys)
    if not is_list or len(keys) != len(storages) or set(keys) != set(storages):
        raise NotReadError(f"its list of storages is not that of its tensors: {AGAIN}")
    for key in keys:
        storage, itemsize = storages[key]
        if int.from_bytes(file.read(8), "little") * itemsize != storage.nbytes():
            raise NotReadError(f"it is cut off, or its storage {key} has another size than its tensors: {AGAIN}")
        _fill(file, storage)
    check_content(content)
    return Read(content, tuple(unpickler.met))
