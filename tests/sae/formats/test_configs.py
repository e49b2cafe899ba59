"""Configurations beside a checkpoint: read where one asks for them, within bounds, or refused by one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.formats.configs import Configs
from infoscope.sae.formats.unknown import refuse_settings
from infoscope.sae.formats.values import show
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import K, draw_weights

W = draw_weights(13)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


def write_plain(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = {"encoder.weight": W.tensor("W_enc", True), "encoder.bias": W.tensor("b_enc")}
    torch.save(names | {"decoder.weight": W.tensor("W_dec")}, folder / "sae.pt")
    return folder


@pytest.mark.parametrize(
    ("name", "text", "say"),
    [
        ("config.yaml", BOMB + "architecture: topk\nk: 4\n", "anchors or aliases"),
        ("config.yaml", f"{BOMB}architecture: *a9\n", "anchors or aliases"),
        ("config.yml", "k: &k 4\n", "anchors or aliases"),
        ("config.yaml", "architecture: topk\n# " + "x" * 2**16, "larger than 65,536 bytes"),
        ("config.json", '{"a": "' + "x" * 2**24 + '"}', "larger than 16,777,216 bytes"),
        ("config.json", '{"architecture": "topk"', "damaged"),
        ("config.json", '{"k": ' + "1" * 10_000 + "}", "damaged"),
        ("config.json", "[" * 100_000, "damaged"),
        ("config.yaml", "[" * 5000, "damaged"),
        ("config.yaml", "a: !!python/object/apply:os.system [touch PWNED]", "damaged"),
        ("cfg.json", "\x00", "damaged"),
    ],
)
def test_what_fills_the_memory_or_is_damaged_is_refused_at_once(tmp_path, name, text, say):
    folder = write_plain(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}: .*{say}.*; if it says nothing of the SAE, give format=") as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value)
    keys = {"W_enc": "encoder.weight.T", "W_dec": "decoder.weight"}
    sae = load_sae(folder, format="plain", kind="topk", k=K, keys=keys)
    assert sae.d_sae == W["W_enc"].shape[1]


def test_only_what_a_format_asks_for_is_read(tmp_path):
    folder = write_plain(tmp_path)
    for name in ("dataset_info.json", "hydra.yaml"):
        (folder / name).write_text(BOMB)
    (folder / "config.json").write_text(json.dumps({"architecture": "topk", "k": K}))
    source = load_sae(folder).origin.source
    assert source is not None
    assert source.format == "visaebench"


def test_a_configuration_is_read_once_for_all_files_of_a_folder(tmp_path, monkeypatch):
    folder = write_plain(tmp_path)
    for i in range(5):
        torch.save({"counts": torch.zeros(3)}, folder / f"counts_{i}.pt")
    (folder / "config.json").write_text(json.dumps({"architecture": "topk", "k": K}))
    opened, read = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **kw: opened.append(path.name) or read(path, *args, **kw))
    load_sae(folder)
    assert opened.count("config.json") == 2  # to see which file is an SAE's, and for that


def test_the_last_folder_counts(tmp_path):
    for name, files in {"a": {"x.json": "{}", "y.yaml": "k: 1"}, "b": {"x.json": '{"k": 2}', "y.yaml": "[1]"}}.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    configs = Configs(tmp_path / "a", tmp_path / "b")
    assert dict(configs) == {"x.json": {"k": 2}, "y.yaml": {"k": 1}}
    assert configs.get("z.json") is None


def test_messages_look_at_the_beginning_alone():
    value = [1]
    for _ in range(30):
        value = [value, value]
    assert len(show(value)) <= 80
    with pytest.raises(InputError, match="says activation"):
        refuse_settings({"activation": value})
