"""Which files of a folder are infoscope's, which another toolkit's, and what is said where they are of neither."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import TopK
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.loading import load_sae
from infoscope.sae.model import SparseAutoencoder
from tests.support.foreign.arrays import D_IN, D_SAE, draw_weights
from tests.support.foreign.dictionaries import write_dictionary


@pytest.mark.parametrize("text", ['{"a": 1}', "[]", "{", "", '{"format": "other"}', "\\x00" * 9])
@pytest.mark.parametrize("name", ["sae.json", "sub/sae.json"])
def test_a_sae_json_of_others_makes_no_folder_ours(tmp_path, text, name):
    place = write_dictionary("saelens", tmp_path, D_IN, D_SAE)
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).write_text(text)
    source = load_sae(place).origin.source
    assert source is not None
    assert source.format == "saelens"


def test_a_sae_json_of_others_makes_no_file_ours(tmp_path):
    place = write_dictionary("saelens", tmp_path, D_IN, D_SAE)
    next(place.glob("*.safetensors")).rename(place / "sae.safetensors")  # as sparsify calls it
    (place / "sae.json").write_text('{"a": 1}')
    source = load_sae(place / "sae.safetensors").origin.source
    assert source is not None
    assert source.format == "saelens"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": "infoscope-sae", "format_', "is damaged: expected JSON"),
        ("", "is damaged: expected JSON"),
        (None, r"found no sae\.json"),
        ('{"format": "infoscope-sae", "format_version": 9}', "update infoscope"),
    ],
)
def test_what_is_damaged_of_ours_is_still_ours(tmp_path, text, words):
    save_sae(tmp_path, SparseAutoencoder(4, 8, TopK(2)))
    (tmp_path / "sae.json").unlink()
    if text is not None:
        (tmp_path / "sae.json").write_text(text)
    for path in (tmp_path, tmp_path / "sae.safetensors"):
        with pytest.raises(InputError, match=words):
            load_sae(path)


def test_a_folder_of_numpy_files_is_one_sentence(tmp_path):
    np.savez(tmp_path / "m.npz", W=np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"found m\.npz; of numpy's arrays \(\.npz\) give the file itself"):
        load_sae(tmp_path)


@pytest.mark.parametrize("layer", [4097, 9999])
def test_a_layer_that_no_run_takes_is_refused(tmp_path, layer):
    place = write_dictionary("saelens", tmp_path, D_IN, D_SAE)
    config = json.loads((place / "cfg.json").read_text())
    (place / "cfg.json").write_text(json.dumps(config | {"metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}}))
    with pytest.raises(InputError, match=r"Expected (layer|blocks) to be "):
        load_sae(place)


@pytest.mark.parametrize("side", [-4, 0, 10**30])
def test_a_size_of_images_that_no_run_takes_is_refused(tmp_path, side):
    whole = draw_weights(1)
    weights = {name: whole.tensor(name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    torch.save({"cfg": {"block_layer": -2, "image_width": side}, "state_dict": weights}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"Expected (image_px|image_width) to be "):
        load_sae(tmp_path)


def test_a_name_of_the_hub_without_its_prefix_is_told_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no owner/name; on the hub it would be hf:owner/name\."):
        load_sae("owner/name")


def test_weights_without_their_configuration_are_told_so(tmp_path):
    save_file({"W_enc": torch.ones(2, 3), "other": torch.ones(3, 2)}, tmp_path / "a.safetensors")
    lonely = "no configuration such as cfg.json lies beside it"
    with pytest.raises(
        InputError, match=f"is of no known format of SAEs: it holds .*; {lonely}, which most need; known"
    ):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(InputError, match="is of no known format") as raised:
        load_sae(tmp_path)
    assert lonely not in str(raised.value)


@pytest.mark.parametrize("name", ["a" * 2000, "a\xa0b\tc", "\x1b[31m"])
def test_the_name_of_a_data_set_is_no_reason_to_refuse(tmp_path, name):
    place = write_dictionary("saelens", tmp_path, D_IN, D_SAE)
    config = json.loads((place / "cfg.json").read_text())
    config["metadata"] = {**config.get("metadata", {}), "dataset_path": name}
    (place / "cfg.json").write_text(json.dumps(config))
    source = load_sae(place).origin.source
    assert source is not None
    assert source.facts["dataset"].isprintable()
    assert len(source.facts["dataset"]) <= 1000
