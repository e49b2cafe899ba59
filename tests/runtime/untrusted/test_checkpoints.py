"""Checkpoints of strangers: what they hold is read, and nothing that they name is run."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import list_keys, read_checkpoint


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
