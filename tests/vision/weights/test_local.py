"""Where weights on this machine lie: a file needs no suffix, and a folder is answered with what to give."""

from __future__ import annotations

from pathlib import Path

import pytest

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.open_clip.source import find_source
from infoscope.vision.weights.local import find_local_file


def test_a_file_needs_no_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "openai", "a.weights"):
        (tmp_path / name).write_bytes(b"x")
    assert find_local_file("weights") == Path("weights")
    assert find_local_file("a.weights") == Path("a.weights")
    assert find_local_file("openai") is None  # a tag is a tag
    assert find_local_file("./openai") == Path("openai")
    assert find_local_file("random") is None
    with pytest.raises(InputError, match=r"model\.pretrained=gone\.ckpt is no file"):
        find_local_file("gone.ckpt")


def test_a_folder_is_answered_with_what_to_give(tmp_path):
    with pytest.raises(InputError, match="is a folder: give a file of weights"):
        find_local_file(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"give the file of weights in it, such as .*model\.safetensors"):
        find_local_file(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"a config\.json, as transformers .*pretrained=.*model\.safetensors"):
        find_source(ModelConfig("x", pretrained=f"local-dir:{tmp_path}"), None)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="its weights are in parts: join them"):
        find_local_file(str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match=f"give local-dir:{tmp_path}"):
        find_local_file(str(tmp_path))
