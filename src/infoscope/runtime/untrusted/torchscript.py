"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, without running anything that is in it.

`torch.jit.load` would compile and may run the archive's code, so it is as unsafe as a pickle. The tensors lie in plain
files of the archive, as those of `torch.save` do, and one pickle says how they are named.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from infoscope.runtime.untrusted.records import Record
from infoscope.runtime.untrusted.torch_files import read_archive

NO_WEIGHTS = {"attn_mask", "input_resolution", "context_length", "vocab_size"}
"""Tensors in CLIP's archives that are no weights."""
_KNOWN = ("__torch__.", "torch.jit._pickle.")
"""Modules of the archive's own code, and typed lists."""
_MAX_DEPTH = 64


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a TorchScript archive; no code of it is run.

    Raises:
        NotReadError: if it is damaged, or holds anything but modules, tensors and plain values.
    """
    tensors = _walk(read_archive(path, _KNOWN).content, "", 0)
    return {name: value for name, value in tensors if name.rpartition(".")[2] not in NO_WEIGHTS}


def _walk(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items() if isinstance(module, Record) and depth < _MAX_DEPTH else ():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _walk(value, f"{prefix}{name}.", depth + 1)
