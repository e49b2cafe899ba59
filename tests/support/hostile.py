"""Archives of torch's around pickles that are written step by step, and how they must be refused."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import read_checkpoint

KNOWN = ("src.sae_training.", "overcomplete.", "torch.nn.modules.")


def write(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> Path:
    """Write an archive as torch does, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/byteorder", "little")
        for key, values in (storages or {"0": bytes(16)}).items():
            archive.writestr(f"a/data/{key}", values)
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def refuse(path: Path, words: str, known: tuple[str, ...] = KNOWN) -> None:
    with pytest.raises(InputError, match=f"Cannot read checkpoint .*{path.name}: .*({words})") as caught:
        read_checkpoint(path, known)
    assert str(caught.value).isprintable()


def name(full: str) -> bytes:
    """Return the step that looks up module.Class."""
    return b"c" + full.rpartition(".")[0].encode() + b"\n" + full.rpartition(".")[2].encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


STORAGE = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
"""The storage of four floats."""


def tensor(size: tuple = (4,), stride: tuple = (1,), offset: int = 0, storage: bytes = STORAGE) -> bytes:
    """Return the steps that make a tensor."""
    parts = [pickle.dumps(value, protocol=2)[2:-1] for value in (offset, size, stride)]
    return name("torch._utils._rebuild_tensor_v2") + b"(" + storage + b"".join(parts) + b"\x89N" + b"tR"
