"""Files of weights are told by their content; what is none is said by name, and nothing in it is run."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted.tensors import read_shapes, read_tensors


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.randn(3, generator=generator).half()}


def check(path: Path, expected: dict[str, torch.Tensor], prefix: str = "") -> None:
    found = read_tensors(path)
    assert read_shapes(path) == {name: tuple(value.shape) for name, value in found.items()}
    for name, value in expected.items():
        assert found[prefix + name].dtype == value.dtype
        assert torch.equal(found[prefix + name], value)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.ckpt", "weights"])
def test_the_content_decides_not_the_name(state, tmp_path, name):
    path = tmp_path / name
    save_file(state, path)
    check(path, state)
    for is_zip in (True, False):
        with path.open("wb") as file:
            torch.save(state, file, _use_new_zipfile_serialization=is_zip)
        check(path, state)


def test_shared_tensors_and_views(state, tmp_path):
    joint = torch.arange(12.0)
    torch.save(
        {"tied": joint, "same": joint, "part": joint[4:8].view(2, 2), "across": joint.view(3, 4).T}, tmp_path / "a"
    )
    found = read_tensors(tmp_path / "a")
    assert torch.equal(found["same"], joint)
    assert torch.equal(found["part"], joint[4:8].view(2, 2))
    assert torch.equal(found["across"], joint.view(3, 4).T)


class Settings:
    """Stands for a class of a toolkit that is not there when the file is read."""

    def __init__(self) -> None:
        self.lr = 0.1


@pytest.mark.parametrize("is_zip", [True, False])
def test_other_objects_beside_the_weights_stay_unread(state, tmp_path, is_zip):
    more = {
        "args": argparse.Namespace(out=Path("x")),
        "settings": Settings(),
        "seen": {Settings: np.float64(3)},
        "n": {1},
    }
    torch.save(
        {"state_dict": state, "hyper_parameters": more}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip
    )
    check(tmp_path / "a.ckpt", state, "state_dict.")
    assert len(read_tensors(tmp_path / "a.ckpt")) == 2


class Net(nn.Module):
    """A module that is pickled as a whole, with a buffer that its state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.register_buffer("mask", torch.ones(2), persistent=False)


def test_a_whole_module_is_read_as_its_state_dict(tmp_path):
    net = Net()
    torch.save({"model": net}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    assert list(found) == [f"model.{name}" for name in net.state_dict()]
    assert torch.equal(found["model.inner.0.weight"], net.get_parameter("inner.0.weight"))


class Calling:
    """An object whose unpickling would call something."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, subprocess.Popen, eval, getattr, pickle.loads])
def test_a_file_that_names_commands_is_refused_and_runs_nothing(state, tmp_path, function, is_zip):
    made = tmp_path / "made"
    arguments = {
        os.mkdir: (str(made),),
        subprocess.Popen: (["mkdir", str(made)],),
        eval: (f"__import__('os').mkdir({str(made)!r})",),
        getattr: (made, "mkdir"),
        pickle.loads: (pickle.dumps(Calling(os.mkdir, (str(made),))),),
    }[function]
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": state, "x": Calling(function, arguments)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError, match=r"evil\.ckpt: it asks for \w+\.\w+, which runs commands"):
        read_tensors(path)
    assert not made.exists()


def leave_trace(path: str) -> None:
    Path(path).mkdir()


def test_a_call_of_what_nobody_knows_is_not_made(state, tmp_path):
    path, made = tmp_path / "odd.ckpt", tmp_path / "made"
    torch.save({"state_dict": state, "x": Calling(leave_trace, (str(made),))}, path)
    check(path, state, "state_dict.")
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it would indeed have been made


CONTENTS = {
    "empty": (b"", "it is empty: fetch it again"),
    "zeros": (bytes(500), "begins with zeros, so the download was not finished"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        r"a git-lfs pointer.* \(git lfs pull\)",
    ),
    "page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page or XML, not the weights"),
    "denied": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page or XML"),
    "gzip": (gzip.compress(b"weights"), r"compressed by gzip: unpack it \(gunzip\)"),
    "text": (b"Not Found", r"it holds text, not weights \('Not Found'\)"),
    "config": (b'{"model_type": "clip"}', "it is JSON, not weights: give the file of weights next to it"),
    "index": (
        json.dumps(
            {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        ).encode(),
        r"index of weights in 2 parts \(model-00001-of-00002\.safetensors, .*join them into one",
    ),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "it is HDF5"),
    "noise": (bytes(range(200, 256)) * 3, r"no format that is known \(its first bytes are c8 c9 .*give a state dict"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "a pickle that torch.save has not written"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_file_of_weights_is_named(tmp_path, name, suffix):
    content, words = CONTENTS[name]
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(content)
    for read in (read_tensors, read_shapes):
        with pytest.raises(InputError, match=f"Cannot read .* file .*{name}{suffix}: .*{words}") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_archives_are_named(state, tmp_path):
    arrays: dict[str, Any] = {"params/img/embedding/kernel": np.ones(3)}
    np.savez(tmp_path / "b16.npz", **arrays)
    torch.save(state, tmp_path / "a.pt")
    for kind in ("zip", "tar"):
        shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "a.pt")
    words = {
        "b16.npz": "numpy arrays .*big_vision",
        "packed.zip": r"zip archive of a\.pt: unpack",
        "packed.tar": "tar archive",
    }
    for name, reason in words.items():
        with pytest.raises(InputError, match=f"Cannot read .* file .*{name}: .*{reason}"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, share):
    state = {f"{i}.weight": torch.full((8, 8), float(i)) for i in range(20)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        for read in (read_tensors, read_shapes):
            with pytest.raises(InputError, match=f"Cannot read .* file .*{name}: it is cut off"):
                read(tmp_path / name)
