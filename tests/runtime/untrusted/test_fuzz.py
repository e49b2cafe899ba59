"""Damaged files: cut off anywhere, or with any byte changed, they are refused by a sentence or read as they were."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Checkpoint, list_keys, module_state, read_checkpoint
from infoscope.runtime.untrusted.tensors import read_shapes, read_tensors

KNOWN = ("torch.nn.modules.",)


def make_content() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = {"W_enc": torch.randn(5, 9, generator=generator), "b_enc": torch.randn(9, generator=generator).half()}
    torch.manual_seed(0)
    more = {"k": 4, "name": "a", "target_norm": np.float64(3.5), "device": torch.device("cpu"), "dtype": torch.float32}
    return {"state_dict": state, **more, "model": nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "sizes": [1, 2.5, None]}


def by_torch(is_zip: bool, header: bytes = b"") -> bytes:
    stream = io.BytesIO()
    torch.save(make_content(), stream, _use_new_zipfile_serialization=is_zip)
    return header + stream.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "zip": lambda: by_torch(True),
    "legacy": lambda: by_torch(False),
    "saev": lambda: by_torch(True, json.dumps({"schema": 5, "cfg": {"d_sae": 9}}).encode() + b"\n"),
    "safetensors": lambda: save(make_content()["state_dict"], metadata={"format": "pt"}),
}


def flatten(content: Any) -> list[Any]:
    """Return what a checkpoint holds, in a form that can be compared."""
    if isinstance(content, Tensor):
        return [content.dtype, content.tolist()]
    if isinstance(content, dict):
        return [[key, flatten(value)] for key, value in content.items()]
    if isinstance(content, list | tuple | set):
        return [flatten(value) for value in content]
    return [flatten(module_state(content)) if hasattr(content, "is_module") else content]


def read(path: Path) -> Checkpoint | None:
    """Return what is read, None where it is refused by one sentence; both without any other error."""
    for reader in (read_tensors, read_shapes):  # what backbones are read by
        with suppress(InputError):
            reader(path)
    refused = ""
    try:
        found = read_checkpoint(path, KNOWN)
    except InputError as error:
        found, refused = None, str(error)
    assert refused.isprintable()
    assert found is not None or str(path) in refused
    assert all(key.isprintable() for key in list_keys(found and found.content))
    return found


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, kind):
    data, path = FILES[kind](), tmp_path / "a.pt"
    path.write_bytes(data)
    assert read(path) is not None
    rng = np.random.default_rng(0)
    for n_bytes in {0, 1, 7, 8, 9, len(data) - 1, *rng.integers(len(data), size=60).tolist()}:
        path.write_bytes(data[:n_bytes])
        assert read(path) is None, n_bytes


@pytest.mark.long
@pytest.mark.parametrize("kind", FILES)
def test_a_file_with_changed_bytes_is_refused_or_read(tmp_path, kind):
    """An archive has checksums of all that is read, so what is read of it is what was written."""
    data, path = FILES[kind](), tmp_path / "a.pt"
    path.write_bytes(data)
    whole, n_refused = read(path), 0
    assert whole is not None
    rng = np.random.default_rng(1)
    for _ in range(400):
        changed = bytearray(data)
        places = rng.integers(len(data), size=rng.integers(1, 4))
        changed[int(places[0])] ^= 1 << int(rng.integers(8))
        for place in places[1:]:
            changed[int(place)] = int(rng.integers(256))
        path.write_bytes(changed)
        found = read(path)
        n_refused += found is None
        if found is not None and kind in ("zip", "saev"):
            assert flatten(found.content) == flatten(whole.content)
    assert 20 < n_refused < 400
