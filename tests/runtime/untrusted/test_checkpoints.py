"""Checkpoints of strangers: what they hold is read, and nothing that they name is run."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import struct
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record, list_keys, module_state, read_checkpoint


@pytest.fixture
def state() -> OrderedDict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(W_enc=torch.randn(3, 8, generator=generator), b_enc=torch.randn(8, generator=generator).half())


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_of_torch_is_read_whole(state, tmp_path, is_zip):
    path = tmp_path / "a.pt"
    torch.save({"k": 4, "state": state, "list": [state["W_enc"].T]}, path, _use_new_zipfile_serialization=is_zip)
    content, header, pickled = read_checkpoint(path)
    check(content["state"], state)
    assert content["k"] == 4
    assert torch.equal(content["list"][0], state["W_enc"].T)
    assert (header, pickled) == (None, ())
    assert list_keys(content) == ["k (int)", "state.W_enc [3, 8]", "state.b_enc [8]", "list.0 [8, 3]"]


def test_a_safetensors_file_is_read(state, tmp_path):
    more = {**state, "n": torch.tensor(3), "low": torch.ones(2, 0).bfloat16()}
    save_file(more, tmp_path / "a.safetensors", metadata={"format": "pt"})
    check(dict(sorted(read_checkpoint(tmp_path / "a.safetensors").content.items())), dict(sorted(more.items())))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_line_of_json_may_stand_before(state, tmp_path, is_zip):
    path = tmp_path / "sae.pt"
    with path.open("wb") as file:
        file.write(json.dumps({"schema": 5}).encode() + b"\n")
        torch.save(state, file, _use_new_zipfile_serialization=is_zip)
    content, header, _ = read_checkpoint(path)
    check(content, state)
    assert header == {"schema": 5}
    damaged: Path = tmp_path / "cut.pt"
    for n_bytes, words in ((14, "JSON, not weights, or a file of saev's that is cut off"), (300, "cut off|damaged")):
        damaged.write_bytes(path.read_bytes()[:n_bytes])
        with pytest.raises(InputError, match=rf"Cannot read checkpoint .*cut\.pt: .*({words})"):
            read_checkpoint(damaged)


def test_tensors_have_memory_of_their_own(state, tmp_path):
    """What happens to the file afterwards is nothing to them, and nothing of it is kept twice."""
    for save in (torch.save, save_file):
        path = tmp_path / "a"
        save(dict(state), path)
        content = read_checkpoint(path).content
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        check(dict(sorted(content.items())), dict(sorted(state.items())))
        assert not any(value.is_shared() for value in content.values())
        assert content["W_enc"].untyped_storage().nbytes() == 4 * 24


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_that_share_memory_still_do(tmp_path, is_zip):
    joint = torch.arange(12.0)
    torch.save([joint, joint[4:8].view(2, 2), joint], tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    whole, part, same = read_checkpoint(tmp_path / "a.pt").content
    assert torch.equal(part, joint[4:8].view(2, 2))
    assert whole.untyped_storage().data_ptr() == part.untyped_storage().data_ptr() == same.untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_every_protocol_and_dtype_is_read(tmp_path, protocol, is_zip):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool, torch.complex64]
    dtypes += [torch.float8_e4m3fn, torch.uint16] if is_zip else []
    values = {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in dtypes}
    values["parameter"] = nn.Parameter(torch.ones(2))
    path = tmp_path / "a.pt"
    torch.save({"values": values, "set": {1, "a"}, "b": b"\xff\x00"}, path, pickle_protocol=protocol,
               _use_new_zipfile_serialization=is_zip)  # fmt: skip
    content = read_checkpoint(path).content
    assert content["set"] == {1, "a"}
    assert content["b"] == b"\xff\x00"
    for name, value in values.items():
        found = content["values"][name]
        assert found.dtype == value.dtype
        assert torch.equal(found.to(torch.complex64), value.detach().to(torch.complex64))
        assert not found.requires_grad


class Part(nn.Module):
    """A part with a buffer that its state dict leaves out, and one that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.register_buffer("gone", None)
        self.register_parameter("bias", None)


class Autoencoder(nn.Module):
    """Pickled as a whole, with attributes that its state dict does not know, as overcomplete does."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 2), Part(), nn.ReLU())
        self.top_k, self.running_threshold, self.kernel = 5, torch.tensor(1.25), torch.nn.functional.relu


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_module_is_a_record(tmp_path, is_zip, recwarn):
    module, path = Autoencoder(), tmp_path / "a.pt"
    torch.save(module, path, _use_new_zipfile_serialization=is_zip)
    here = f"{__name__}."
    content, _, pickled = read_checkpoint(path, (here, "torch.nn."))
    assert isinstance(content, Record)
    assert content.name == f"{here}Autoencoder"
    assert content.is_module
    check(module_state(content), module.state_dict())
    assert content.attributes["top_k"] == 5
    assert torch.equal(content.attributes["running_threshold"], torch.tensor(1.25))
    assert content.attributes["kernel"].name == "torch.nn.functional.relu"
    assert not content.attributes["kernel"].is_module
    assert pickled[0] == f"{here}Autoencoder"
    assert "torch.nn.modules.linear.Linear" in pickled
    assert list_keys(content) == [f"{name} {list(value.shape)}" for name, value in module.state_dict().items()]


@dataclass
class Config:
    """Pickled by its attributes."""

    d_in: int
    device: torch.device


@dataclass(slots=True)
class Slotted:
    d_in: int


class Kind(Enum):
    relu = 1


def test_objects_keep_what_the_pickle_says(tmp_path):
    torch.save({"cfg": Config(3, torch.device("cuda")), "slots": Slotted(4), "kind": Kind.relu}, tmp_path / "a.pt")
    here = f"{__name__}."
    content, _, pickled = read_checkpoint(tmp_path / "a.pt", (here,))
    assert content["cfg"].attributes == {"d_in": 3, "device": torch.device("cuda")}
    assert content["kind"].args == (1,)
    assert pickled == (f"{here}Config", "torch.device", f"{here}Slotted", f"{here}Kind")
    assert list_keys(content) == [f"cfg ({here}Config)", f"slots ({here}Slotted)", f"kind ({here}Kind)"]
    with pytest.raises(InputError, match=rf"it holds a {re.escape(here)}Config, which is not loaded: give a file of"):
        read_checkpoint(tmp_path / "a.pt")


def test_of_many_keys_the_first_are_listed(tmp_path):
    assert list_keys({"a": {str(i): torch.ones(i) for i in range(100)}}) == [f"a.{i} [{i}]" for i in range(30)]
    assert list_keys({"a\nb\x1b[31m": 1, "x" * 500: None}) == ["ab[31m (int)", f"{'x' * 120} (NoneType)"]
    assert list_keys(torch.ones(2)) == ["[2]"]
    assert list_keys([1, 2]) == ["(list)"]


def make_archive(path: Path) -> bytes:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    return path.read_bytes()


def make_numpy(path: Path, save: Callable, value: Any) -> bytes:
    with path.open("wb") as file:
        save(file, value)
    return path.read_bytes()


CONTENTS: dict[str, tuple[Any, str]] = {
    "empty": (b"", "it is empty: fetch it again"),
    "zeros": (bytes(500), "begins with zeros, so the download was not finished: fetch it again"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        r"a git-lfs pointer.*git lfs pull",
    ),
    "page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page or XML, not the weights"),
    "pickle": (pickle.dumps({"W_enc": torch.ones(2)}), "a pickle that torch.save has not written.*save it as .pt"),
    "pickle.gz": (gzip.compress(pickle.dumps({"a": 1})), "a compressed pickle that torch.save has not.*save it as .pt"),
    "gz": (gzip.compress(b"weights"), r"compressed by gzip: unpack it \(gunzip\)"),
    "program": (make_archive, "a TorchScript archive, which is a program: give the state dict"),
    "npy": (lambda path: make_numpy(path, np.save, np.ones(3)), "one numpy array: give the PyTorch weights"),
    "npz": (lambda path: make_numpy(path, np.savez, np.ones(3)), r"numpy arrays \(arr_0\.npy\)"),
    "text": (b"Not Found", r"it holds text, not weights \('Not Found'\)"),
    "list": (b"[1, 2]", "it holds text, not weights"),
    "config": (json.dumps({"d_in": 4}, indent=4).encode(), "it is JSON, not weights"),
    "line": (b'{"d_in": 4}', "it is JSON, not weights, or a file of saev's that is cut off behind its first line"),
    "header alone": (b'{"schema": 5}\n', "cut off behind its first line: give .* or fetch it again"),
    "no header": (b"{schema: 5}\nPK\x03\x04", "its first line is no JSON, as saev writes it"),
    "deep header": (b'{"a":' * 100_000 + b"\nPK\x03\x04", "its first line is no JSON"),
    "header of megabytes": (b'{"a": "' + b"x" * 2**21 + b'"}\nPK', "its first line is longer than 1,048,576 bytes"),
    "header of a page": (b'{"schema": 5}\n<html>', "behind its first line comes nothing that torch.save has written"),
    "half": (b'{"schema": 5}\nPK\x03\x04abc', "it is cut off, its end is missing: fetch it again"),
    "noise": (bytes(range(200, 256)) * 3, r"no format that is known \(its first bytes are c8 c9"),
    "safetensors of nothing": (struct.pack("<Q", 100) + b'{"a": ', "cut off inside its header"),
    "safetensors of megabytes": (struct.pack("<Q", 2) + b"{}" + b"x" * 9, "a.pt|metadata|header|incomplete"),
    "safetensors of no tensors": (struct.pack("<Q", 10) + b'{"a": [1]}', ""),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_checkpoint_is_named(tmp_path, name):
    content, words = CONTENTS[name]
    path = tmp_path / "a.pt"
    path.write_bytes(content if isinstance(content, bytes) else content(path))
    with pytest.raises(
        InputError, match=f"^Cannot read checkpoint .*a.pt: .*{words.removeprefix('Cannot read')}"
    ) as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(InputError, match="it is a folder: give a file in it"):
        read_checkpoint(tmp_path)
    with pytest.raises(InputError, match=r"gone\.pt: there is no such file"):
        read_checkpoint(tmp_path / "gone.pt")


def test_a_safetensors_file_that_lies_about_its_tensors_is_refused(tmp_path):
    def write(data: bytes, **parts: Any) -> Path:
        header = json.dumps(parts).encode()
        (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + data)
        return tmp_path / "a"

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert read_checkpoint(write(bytes(8), a=good)).content["a"].tolist() == [0, 0]
    lies: list[dict[str, Any]] = [{"shape": [3]}, {"shape": [2**40]}, {"shape": [-2]}, {"shape": "2"}, {"dtype": "F4"}]
    lies += [{"data_offsets": [8, 0]}, {"data_offsets": [0, 16]}, {"data_offsets": [-8, 0]}, {"data_offsets": [0]}]
    for lie in lies:
        with pytest.raises(InputError, match=r"Cannot read checkpoint .*/a: "):
            read_checkpoint(write(bytes(8), a={**good, **lie}))


@pytest.mark.long
def test_a_large_file_is_in_memory_once(tmp_path):
    """A process of its own, whose peak is that of one file after the other (of exec on; ru_maxrss is older)."""
    state = {"W_enc": torch.ones(16, 2**20), "W_dec": torch.ones(2**20, 16)}
    torch.save(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "saev.pt").write_bytes(b'{"schema": 5}\n' + (tmp_path / "a.pt").read_bytes())
    program = """
import re, sys
from pathlib import Path
from infoscope.runtime.untrusted import read_checkpoint
def measure():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = measure()
for path in sys.argv[1:]:
    read_checkpoint(Path(path))
print(measure() - before)
"""
    files = [str(path) for path in sorted(tmp_path.iterdir())]
    found = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert len(files) == 4
    assert 0.9 * 2**27 < int(found.stdout) < 1.3 * 2**27
