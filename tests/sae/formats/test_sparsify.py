"""SAEs of sparsify: cfg.json says the activation and k; transcoders are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import D_IN, D_SAE, K, compute, draw_weights, measure_deviation, relu, topk

WEIGHTS = draw_weights(3, unit_rows=False)
OLD = {
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": D_SAE,
    "k": K,
    "multi_topk": True,
    "d_in": D_IN,
}


def write(folder, config, dtype=torch.float32, **more):
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "encoder.weight": WEIGHTS.tensor("W_enc", transpose=True),
        "encoder.bias": WEIGHTS.tensor("b_enc"),
        "W_dec": WEIGHTS.tensor("W_dec"),
        "b_dec": WEIGHTS.tensor("b_dec"),
        **more,
    }
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, folder / "sae.safetensors")
    if config is not None:
        (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def top_of_relu(a):
    return topk(relu(a))


def group_max(a, k=K):
    grouped = relu(a).reshape(len(a), k, -1)
    return (grouped * (np.arange(grouped.shape[2]) == grouped.argmax(2)[:, :, None])).reshape(a.shape)


@pytest.mark.parametrize(
    ("changes", "act", "kind"),
    [
        ({}, top_of_relu, "topk"),
        ({"activation": "topk", "skip_connection": False, "transcode": False}, top_of_relu, "topk"),
        ({"num_latents": 0, "expansion_factor": D_SAE // D_IN}, top_of_relu, "topk"),
        ({"expansion_factor": 2.5}, top_of_relu, "topk"),
        ({"expansion_factor": 0}, top_of_relu, "topk"),
        ({"activation": "groupmax"}, group_max, "groupmax"),
        ({"signed": False, "hookpoint": "layers.3", "seed": 7}, top_of_relu, "topk"),
    ],
)
def test_the_config_decides(tmp_path, changes, act, kind):
    sae = load_sae(write(tmp_path, {**OLD, **changes}))
    assert measure_deviation(sae, compute(WEIGHTS, act)) < 1e-5
    assert sae.origin.source is not None
    assert (sae.origin.source.format, sae.origin.source.kind) == ("sparsify", kind)
    assert sae.origin.source.facts == {"k": K, "dtype": "float32"}


def test_bfloat16_is_read_as_it_is(tmp_path):
    sae = load_sae(write(tmp_path, OLD, torch.bfloat16))
    assert measure_deviation(sae, compute(WEIGHTS.as_dtype(torch.bfloat16), top_of_relu)) < 1e-5
    assert sae.W_dec.dtype == torch.float32
    assert sae.origin.source is not None
    assert sae.origin.source.facts["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "say"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "transcoder"),
        ({"signed": True}, "signed"),
        ({"activation": "jumprelu"}, "jumprelu"),
        ({"activation": None}, "None"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations"),
        ({"num_latents": 2 * D_SAE}, "num_latents"),
        ({"num_latents": 0, "expansion_factor": 32}, "num_latents"),
        ({"d_in": D_IN + 1}, "d_in"),
        ({"k": 0}, "k"),
        ({"k": "64"}, "k"),
        ({"k": D_SAE + 1}, "number of latents"),
    ],
)
def test_what_it_says_and_is_not_read_is_refused(tmp_path, changes, say):
    with pytest.raises(InputError, match=say):
        load_sae(write(tmp_path, {**OLD, **changes}))


def test_a_skip_is_a_transcoder_whatever_the_config_says(tmp_path):
    with pytest.raises(InputError, match="transcoder"):
        load_sae(write(tmp_path, OLD, W_skip=torch.zeros(D_IN, D_IN)))


def test_without_its_config_kind_and_k_are_given(tmp_path):
    folder = write(tmp_path, None)
    for options in ({}, {"k": K}):
        with pytest.raises(InputError, match=r"cfg\.json"):
            load_sae(folder, **options)
    assert measure_deviation(load_sae(folder, kind="groupmax", k=K), compute(WEIGHTS, group_max)) < 1e-5


def test_what_the_config_says_need_not_be_given_again_and_not_otherwise(tmp_path):
    folder = write(tmp_path, OLD)
    load_sae(folder, k=K)
    with pytest.raises(InputError, match="k"):
        load_sae(folder, k=K + 1)
    with pytest.raises(InputError, match="kind"):
        load_sae(folder, kind="topk")


@pytest.mark.parametrize(
    ("name", "layer", "site"),
    [
        ("layers.10", 10, "resid_post"),
        ("vision_model.encoder.layers.7", 7, "resid_post"),
        ("blocks.3.mlp", 3, "mlp_out"),
        ("layers.2.attn", 2, "attn_out"),
        ("layers.2.norm1", 2, "norm1"),
        ("layers.4.attention.output", 4, "attention.output"),
        ("encoder.layers.4.mlp.layers.0", 4, "mlp.layers.0"),
        ("run", None, None),
    ],
)
def test_the_folder_is_named_after_the_hookpoint(tmp_path, name, layer, site):
    origin = load_sae(write(tmp_path / name, OLD)).origin
    assert (origin.layer, origin.site, origin.tokens) == (layer, site, None)


def test_of_several_hookpoints_one_is_chosen(tmp_path):
    for layer in (2, 10):
        write(tmp_path / f"layers.{layer}", OLD)
    with pytest.raises(InputError, match=r"layers\.10/sae\.safetensors, layers\.2/sae\.safetensors"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "layers.2").origin.layer == 2


def test_what_a_training_leaves_above_the_hookpoints_is_no_sae(tmp_path):
    for layer in (2, 10):
        write(tmp_path / f"layers.{layer}", OLD)
    for name in ("state", "optimizer_0", "lr_scheduler_0"):
        torch.save({"step": 3, "exp_avg": torch.zeros(3)}, tmp_path / f"{name}.pt")
    with pytest.raises(InputError, match=r"layers\.10/sae\.safetensors, layers\.2/sae\.safetensors"):
        load_sae(tmp_path)


def test_a_configuration_without_k_is_said_to_be_there(tmp_path):
    with pytest.raises(InputError, match=r"Its cfg\.json does not say how many latents are active: give k="):
        load_sae(write(tmp_path, {**OLD, "k": None}))
