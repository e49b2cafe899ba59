"""Whatever a file holds, every reader reads it or refuses it by one sentence."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import Record
from infoscope.sae.formats import NAMES, load_formats
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import D_IN, D_SAE, draw_weights

W = draw_weights(11)
WORDS = (
    *("W_enc", "W_dec", "b_enc", "b_dec", "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "bias"),
    *("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights", "dictionary.multiplier"),
    *(
        "tied_bias",
        "pre_b",
        "enc",
        "dec",
        "k",
        "threshold",
        "feature_counts",
        "state_dict",
        "model_state_dict",
        "model",
    ),
    *("encoder.0.weight_g", "encoder.0.weight_v", "encoder.0.bias", "decoder.weight_g", "decoder.weight_v", "cfg"),
    *("mean_center", "scaling_factor", "pre_bias", "latent_bias", "encoder", "decoder", "thresholds", "config"),
)
SETTINGS = ("activation", "architecture", "k", "d_in", "num_latents", "trainer", "layer", "normalize_activations")


def draw(rng: random.Random, depth: int = 0) -> Any:
    """Return a value as a file could have it."""
    sides = [D_IN, D_SAE, 1, 0]
    kind = rng.randrange(10 if depth < 2 else 8)
    if kind < 4:
        return torch.zeros([rng.choice(sides) for _ in range(rng.randrange(4))])
    if kind == 4:
        return W.tensor(rng.choice(list(W)), transpose=rng.random() < 0.5)
    if kind < 8:
        return rng.choice([None, True, 3, 2.5, -1, "relu", "", b"x", [], [1, "a"], Record("overcomplete.A"), 10**30])
    return {rng.choice(WORDS): draw(rng, depth + 1) for _ in range(rng.randrange(12))}


@pytest.mark.parametrize("name", NAMES)
def test_no_content_breaks_a_reader(tmp_path, name):
    rng, options = random.Random(NAMES.index(name)), {"keys": {"W_enc": "W_enc", "W_dec": "W_dec"}}
    for i in range(40):
        content = draw(rng)
        if isinstance(content, Record):
            continue
        folder = tmp_path / str(i)
        folder.mkdir()
        torch.save(_without_records(content), folder / "a.pt")
        config = {rng.choice(SETTINGS): rng.choice([None, 3, "topk", [1], {"a": 2}, -1, True]) for _ in range(4)}
        (folder / rng.choice(["cfg.json", "config.json"])).write_text(json.dumps(config))
        with suppress(InputError):
            source = load_sae(folder, format=name, **(options if name == "plain" else {})).origin.source
            assert source is not None
            assert source.format == name


def _without_records(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_records(value) for key, value in content.items()}
    return None if isinstance(content, Record) else content


def test_a_file_of_several_formats_is_asked_about(tmp_path, monkeypatch):
    formats = load_formats()
    for name in ("sparsify", "dncbm"):
        monkeypatch.setattr(formats[name], "recognise", lambda found: True)
    torch.save({"W": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="sparsify or dncbm"):
        load_sae(tmp_path)


def test_what_is_no_path_is_one_sentence(tmp_path):
    for path in ("a" * 5000, "~nobody-of-this-name/x", tmp_path / ("b" * 300)):
        with pytest.raises(InputError, match=r"^(Cannot read|Expected the file or folder)"):
            load_sae(path)


def test_a_file_that_cannot_be_read_is_not_passed_over_in_a_folder(tmp_path):
    whole = draw_weights(1)
    torch.save(
        {"cfg": {"block_layer": 1}, "state_dict": {name: whole.tensor(name) for name in whole}}, tmp_path / "a.pt"
    )
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"holds 2 files: a\.pt, b\.pt"):
        load_sae(tmp_path)


@pytest.mark.parametrize("factor", [1e-46, 1e39, float("inf"), float("nan"), 0.0])
def test_a_scale_that_float32_does_not_hold_is_refused(tmp_path, factor):
    w = draw_weights(1)
    names = {"encoder": "W_enc", "decoder": "W_dec", "pre_bias": "b_dec", "latent_bias": "b_enc"}
    content = {"model": {name: w.tensor(of) for name, of in names.items()}, "mean_center": torch.zeros(D_IN)}
    file = tmp_path / f"{D_SAE}_{D_IN}_ReLU_003_False_False_0.0_cc3m_ViT-L~14_train_image_9_{D_IN}.pth"
    torch.save(content | {"scaling_factor": factor, "target_norm": 1.0}, file)
    with pytest.raises(InputError, match=r"scaling_factor|multiplies tokens"):
        load_sae(file)
