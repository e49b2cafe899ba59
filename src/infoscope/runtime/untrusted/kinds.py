"""What a file is by its first bytes, and what to do where it holds no tensors that are read."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

from infoscope.runtime.errors import InputError, get_first_line, list_some
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.torch_files import AGAIN, is_legacy

_MAX_HEADER = 100_000_000
"""Bytes: safetensors' own bound."""
_FETCH = "fetch the file itself"
_MAGIC = {
    b"\x1f\x8b": "it is compressed by gzip: unpack it (gunzip) and give what comes out",
    b"BZh": "it is compressed by bzip2: unpack it (bunzip2) and give what comes out",
    b"\xfd7zXZ": "it is compressed by xz: unpack it (unxz) and give what comes out",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstandard: unpack it (unzstd) and give what comes out",
    b"7z\xbc\xaf": "it is a 7z archive: unpack it and give the file of weights in it",
    b"\x89HDF": "it is HDF5, as Keras writes it: give the PyTorch weights (model.safetensors, .bin, .pth)",
    b"GGUF": "it is GGUF, for llama.cpp: give the PyTorch weights (model.safetensors, .bin, .pth)",
    b"\x93NUMPY": "it is one numpy array: give the PyTorch weights (model.safetensors, .bin, .pth)",
    b"\x00" * 64: f"it begins with zeros, so the download was not finished: {AGAIN}",
    b"version https://git-lfs": f"it is a git-lfs pointer, not the weights: {_FETCH} (git lfs pull)",
    b"<": f"it is a web page or XML, not the weights: {_FETCH}, with a login if the page asks for one",
}
_PICKLE = "that torch.save has not written: load it by what wrote it and save it as .pt (torch.save of the state dict)"


def refuse(path: Path, what: str, error: Exception) -> InputError:
    """Return the sentence about a file that cannot be read: `what` it should be, and the reason."""
    if isinstance(error, NotReadError):
        words = str(error)
    elif isinstance(error, OSError) and error.strerror:
        words = error.strerror
    else:
        words = f"it is damaged ({get_first_line(error)}): {AGAIN}"
    return InputError(f"Cannot read {what} {path}: {make_printable(words)}.")


def make_printable(words: str) -> str:
    """Return words from a file on one line, without what a terminal obeys."""
    return "".join(letter if letter.isprintable() else " " for letter in words)[:500]


def read_head(path: Path) -> bytes:
    """Return the first 512 bytes of a file.

    Raises:
        NotReadError: if it is no file, or empty.
    """
    if not path.is_file():
        raise NotReadError("it is a folder: give a file in it" if path.is_dir() else "there is no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise NotReadError(f"it is empty: {AGAIN}")
    return head


def is_safetensors(head: bytes) -> bool:
    """Whether these are the first bytes of a safetensors file."""
    return len(head) > 8 and struct.unpack("<Q", head[:8])[0] <= _MAX_HEADER and head[8:9] == b"{"


def check_head(path: Path, head: bytes) -> None:
    """Refuse what is known by its first bytes not to be a file of torch's.

    Raises:
        NotReadError: with what it is instead, and what to do.
    """
    if head.startswith(b"PK"):
        _check_archive(path)
        return
    reason = next((reason for magic, reason in _MAGIC.items() if head.lstrip().startswith(magic)), None)
    if _holds_pickle(head):
        reason = f"it is a compressed pickle {_PICKLE}"
    if reason is None and head[257:262] == b"ustar":
        reason = "it is a tar archive: unpack it and give the file of weights in it"
    if reason is None and not head.startswith(b"\x80"):
        reason = _explain_text(path, head)
    if reason is None and not is_legacy(head):
        reason = f"it is a pickle {_PICKLE}"
    if reason is not None:
        raise NotReadError(reason)


def _check_archive(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise NotReadError(f"it is cut off, its end is missing: {AGAIN}")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        raise NotReadError(
            f"it holds numpy arrays ({list_some(names)}), as JAX and big_vision write them: give the PyTorch weights"
            " (model.safetensors, .bin, .pth)"
        )


def _holds_pickle(head: bytes) -> bool:
    """Whether what gzip has compressed begins as a pickle, such as PatchSAE's `.pkl.gz`."""
    try:
        return zlib.decompressobj(31).decompress(head, 1) == b"\x80"
    except zlib.error:
        return False


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "it is JSON, not weights: give the file of weights next to it"
    return (
        f"it is the index of weights in {len(parts)} parts ({list_some(parts)}): join them into one .safetensors file"
        " (safetensors.torch.load_file of each, save_file of all), and give that"
    )
