"""A configuration that contradicts itself, another one or the tensors is refused by what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import ReLU
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import D_IN, D_SAE, draw_weights
from tests.support.foreign.files import make_state, save
from tests.support.foreign.rewriting import save_part

W = draw_weights(6)
PRISMA = {"hook_point_layer": 8, "layer_subtype": "hook_resid_post", "activation_fn_str": "relu"}
SAELENS = {"d_in": D_IN, "d_sae": D_SAE, "architecture": "standard"}


def write(folder: Path, toolkit: str, config: dict[str, Any]) -> Path:
    if toolkit == "prisma":
        return save(folder / "weights.pt", make_state(**W), {"normalize_activations": None, **PRISMA, **config})
    if toolkit == "patchsae":
        return save(folder / "sae.pt", {"cfg": {"block_layer": -2, **config}, "state_dict": make_state(**W)})
    if toolkit == "saev":
        header = {"schema": 5, "cfg": {"d_model": D_IN, "d_sae": D_SAE, "activation": {"cls": "Relu"}, **config}}
        save_part(file := folder / "sae.pt", {"header": header, "content": make_state(**W)})
        return file
    if toolkit == "dictionary_learning":
        linear = {"encoder__weight": W.tensor("W_enc", True), "decoder__weight": W.tensor("W_dec", True)}
        state = make_state(**linear, encoder__bias=W["b_enc"], bias=W["b_dec"])
        return save(folder / "ae.pt", state, {"trainer": {"dict_class": "AutoEncoder", **config}})
    return save(folder / "sae_weights.pt", make_state(**W), {**SAELENS, **config}, "cfg.json")


@pytest.mark.parametrize(
    ("toolkit", "config", "message"),
    [
        ("prisma", {"activation_fn_kwargs": {"k": 5}}, "activation_fn_str: relu, and k: 5"),
        ("prisma", {"architecture": "gated", "activation_fn_kwargs": {"k": 5}}, "activation_fn_str: relu, and k: 5"),
        ("saelens", {"architecture": "topk", "k": 6, "activation_fn_kwargs": {"k": 3}}, "k: 6, and k: 3"),
        ("saelens", {"k": 4}, "says k: 4"),
        ("saelens", {"architecture": None, "k": 4}, "says k: 4"),
        ("saelens", {"activation_fn_str": "relu", "activation_fn_kwargs": {"k": 4}}, "says k: 4"),
        ("patchsae", {"k": 4}, "says k: 4"),
        ("saev", {"k": 4}, "says k: 4"),
        ("saev", {"activation": {"cls": "Relu", "params": {"top_k": 4}}}, "says top_k: 4"),
        ("dictionary_learning", {"trainer_class": "TopKTrainer", "k": 4}, "says k: 4"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    tmp_path: Path, toolkit: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_sae(write(tmp_path, toolkit, config))


@pytest.mark.parametrize("toolkit", ["saelens", "patchsae", "saev", "dictionary_learning"])
def test_a_relu_may_say_that_it_has_no_k(tmp_path: Path, toolkit: str) -> None:
    assert isinstance(load_sae(write(tmp_path, toolkit, {"k": None, "activation_fn_kwargs": {}})).activation, ReLU)


def test_prisma_says_one_thing_in_both_places(tmp_path: Path) -> None:
    config = {**PRISMA, "normalize_activations": "layer_norm"}
    beside = {**config, "normalize_activations": None}
    file = save(tmp_path / "weights.pt", {"cfg": config, "state_dict": make_state(**W)}, beside)
    with pytest.raises(InputError, match=r"normalize_activations: 'layer_norm', and config\.json .* says None"):
        load_sae(file)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sae_type": "topk", "architecture": "batchtopk", "k": 3}, "sae_type: 'topk' and architecture: 'batchtopk'"),
        ({"architecture": "batchtopk", "threshold": 0.75}, "threshold: 0.75, and _running_threshold is 0.5"),
    ],
)
def test_visaebench_says_one_thing(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
    state = {theirs: W.tensor(ours, transpose=ours == "W_enc") for ours, theirs in names.items()}
    torch.save(state | {"_running_threshold": torch.tensor(0.5)}, tmp_path / "sae.pt")
    with pytest.raises(InputError, match=message):
        load_sae(tmp_path)
