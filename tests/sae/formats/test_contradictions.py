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


@pytest.mark.parametrize(
    ("toolkit", "config"),
    [
        ("prisma", {"activation_fn_kwargs": {"k": 0}}),
        ("prisma", {"activation_fn_kwargs": {"k": None}}),
        ("patchsae", {"topk_sae": False, "topk_k": 32}),
    ],
)
def test_a_k_that_is_not_used_is_left(tmp_path: Path, toolkit: str, config: dict[str, Any]) -> None:
    assert isinstance(load_sae(write(tmp_path, toolkit, config)).activation, ReLU)


@pytest.mark.parametrize("config", [{"topk_sae": True, "topk_k": 32}, {"topk_k": 32}])
def test_a_topk_of_a_fork_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"says {next(iter(config))}: "):
        load_sae(write(tmp_path, "patchsae", config))


@pytest.mark.parametrize("toolkit", ["saelens", "patchsae", "saev", "dictionary_learning"])
def test_a_relu_may_say_that_it_has_no_k(tmp_path: Path, toolkit: str) -> None:
    assert isinstance(load_sae(write(tmp_path, toolkit, {"k": None, "activation_fn_kwargs": {}})).activation, ReLU)


@pytest.mark.parametrize(
    ("name", "inner", "outer"),
    [
        ("normalize_activations", "layer_norm", None), ("hook_point_layer", 8, 9), ("d_sae", D_SAE, D_SAE + 1),
        ("cls_token_only", True, False), ("use_patches_only", False, True),
    ],
)  # fmt: skip
def test_prisma_says_one_thing_in_both_places(tmp_path: Path, name: str, inner: Any, outer: Any) -> None:
    config = {**PRISMA, "d_sae": D_SAE, name: inner}
    file = save(tmp_path / "weights.pt", {"cfg": config, "state_dict": make_state(**W)}, {**config, name: outer})
    with pytest.raises(InputError, match=rf"{name}: {inner!r}, and config\.json .* says {outer!r}"):
        load_sae(file)


@pytest.mark.parametrize("beside", [{"hook_point_layer": [8.0]}, {"d_in": None}, {"cls_token_only": False}])
def test_prisma_may_say_one_thing_in_two_ways(tmp_path: Path, beside: dict[str, Any]) -> None:
    config = {**PRISMA, "d_in": D_IN, "cls_token_only": None}
    file = save(tmp_path / "weights.pt", {"cfg": config, "state_dict": make_state(**W)}, beside)
    assert load_sae(file).origin.layer == 8


@pytest.mark.parametrize(
    "beside", [{"model_type": "clip", "hidden_act": "quick_gelu"}, {"architecture": "vit_base_patch16_224"}]
)
def test_the_configuration_of_a_backbone_beside_is_left(tmp_path: Path, beside: dict[str, Any]) -> None:
    file = save(tmp_path / "weights.pt", {"cfg": PRISMA, "state_dict": make_state(**W)}, beside)
    assert isinstance(load_sae(file).activation, ReLU)
    file = save(tmp_path / "b/weights.pt", {"cfg": PRISMA, "state_dict": make_state(**W)}, {**PRISMA, **beside})
    with pytest.raises(InputError, match=r"hidden_act|architecture"):
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
