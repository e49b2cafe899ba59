"""Whatever stands in a configuration, an SAE is read or refused by one sentence on one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.formats import load_formats
from infoscope.sae.formats.base import Options
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.loading import assemble, load_sae, read_found
from tests.support.foreign.arrays import D_IN, D_SAE, K, draw_weights
from tests.support.foreign.dictionaries import OPTIONS, OTHERS, WRITERS, write_dictionary
from tests.support.foreign.files import make_state, save
from tests.support.foreign.rewriting import find_weights, load_part, save_part

ODD = [None, True, -1, 0, 1.5, 10**400, float("nan"), "", "x", [], [1], {}, {"a": 1}, {"__type__": 1}]
PRISMA = {
    "model_name": "m", "hook_point_layer": 8, "layer_subtype": "hook_resid_post", "hook_point_head_index": None,
    "use_patches_only": False, "cls_token_only": False, "d_in": D_IN, "d_sae": D_SAE, "architecture": "standard",
    "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": None, "image_size": 224,
    "is_transcoder": False, "dataset_name": "imagenet",
}  # fmt: skip
SAELENS = {
    "d_in": D_IN, "d_sae": D_SAE, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True,
    "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
    "finetuning_scaling_factor": False, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
    "hook_name": "blocks.1.hook_resid_post", "hook_head_index": None, "model_name": "m", "metadata": None,
}  # fmt: skip
TRAINER = {
    "dict_class": "AutoEncoderTopK", "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": 3, "lm_name": "m",
    "submodule_name": "resid_post_layer_3",
}  # fmt: skip


def write(folder: Path, toolkit: str, config: dict[str, Any]) -> Path:
    w = draw_weights(1)
    if toolkit == "prisma":
        return save(folder / "weights.pt", make_state(**w), config)
    if toolkit == "dictionary_learning":
        linear = {"encoder__weight": w.tensor("W_enc", True), "decoder__weight": w.tensor("W_dec", True)}
        state = make_state(**linear, encoder__bias=w["b_enc"], b_dec=w["b_dec"])
        return save(folder / "ae.pt", state, {"trainer": config})
    return save(folder / "sae_weights.pt", make_state(**w), config, "cfg.json")


@pytest.mark.parametrize(
    ("toolkit", "config"), [("prisma", PRISMA), ("saelens", SAELENS), ("dictionary_learning", TRAINER)]
)
def test_odd_values(tmp_path: Path, toolkit: str, config: dict[str, Any]) -> None:
    found = read_found(write(tmp_path, toolkit, config))
    for name, value in product(config, ODD):
        odd = config | {name: value}
        (file_name,) = found.configs
        changed = replace(
            found, configs={file_name: {"trainer": odd} if "trainer" in found.configs[file_name] else odd}
        )
        said = ""
        try:
            foreign = load_formats()[toolkit].read(changed, Options(ImportedConfig(path="-")))
            sae = assemble(foreign)
        except InputError as error:
            said = str(error)
        else:
            assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
            assert type(foreign.layer) in (int, type(None))
            assert isinstance(foreign.site, str | None)
            assert isinstance(foreign.backbone, str | None)
            json.dumps(foreign.facts)
        assert "\n" not in said, said


UNREAD = {("prisma", "b_enc"), ("gated", "b_enc"), ("clip_topk_sae", "feature_counts")}
"""Tensors that a format has in its files, and no code depends on."""


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("format", sorted((WRITERS | OTHERS).keys() - {"overcomplete"}))  # a whole module
def test_quantised_weights_are_refused(tmp_path: Path, format: str, dtype: torch.dtype) -> None:
    place = write_dictionary(format, tmp_path, D_IN, D_SAE)
    part = load_part(file := find_weights(place))
    for tensors, name in list(find_tensors(part["content"])):
        whole = tensors[name]
        if (format, name) in UNREAD or not whole.is_floating_point():
            continue
        tensors[name] = whole.to(dtype)
        save_part(file, part)
        with pytest.raises(InputError, match=f"expected float numbers.*, got {dtype}"):
            load_sae(place, **OPTIONS.get(format, {}))
        tensors[name] = whole


def find_tensors(content: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where tensors lie in nested dicts."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from find_tensors(value)
        elif isinstance(value, torch.Tensor):
            yield content, name


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.bool, torch.int64])
@pytest.mark.parametrize("name", ["encoder.weight", "decoder.weight", "encoder.bias", "bias"])
def test_quantised_weights_are_refused_before_rows_become_unit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    w = draw_weights(1)
    linear = {"encoder__weight": w.tensor("W_enc", True), "decoder__weight": w.tensor("W_dec", True)}
    state = make_state(**linear, encoder__bias=w["b_enc"], bias=w["b_dec"])
    state[name] = state[name].to(dtype)
    with pytest.raises(InputError, match=f"expected float numbers in {name}, got {dtype}"):
        load_sae(save(tmp_path / "ae.pt", state))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_dictionary_of_overcomplete_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    w = draw_weights(1)
    state = make_state(
        encoder__final_block__0__weight=w.tensor("W_enc", True), encoder__final_block__0__bias=w["b_enc"]
    )
    state["dictionary._weights"] = w.tensor("W_dec").to(dtype)
    with pytest.raises(InputError, match=f"expected float numbers in _weights, got {dtype}"):
        load_sae(save(tmp_path / "sae.pth", state), kind="relu")
