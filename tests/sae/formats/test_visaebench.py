"""SAEs of visaebench: a configuration beside the tensors, by overcomplete's names or plain ones; rows as stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.loading import load_sae
from infoscope.vision.names import find_backbone_name
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    K,
    Reference,
    draw_tokens,
    draw_vector,
    draw_weights,
    measure_deviation,
    relu,
    topk,
)

W = draw_weights(5, unit_rows=False)
PUBLIC = {
    "activation_dir": "/scratch/clip_vitb16/layer_11",
    "architecture": "batchtopk",
    "backbone": "clip_vitb16",
    "batch_size": 4096,
    "d_model": D_IN,
    "dict_size": D_SAE,
    "expansion_factor": D_SAE // D_IN,
    "k": K,
    "lr": 0.001,
    "threshold": 0.75,
}


def make_state(is_plain=False, multiplier=0.0, bias=False):
    names = ("encoder.weight", "encoder.bias", "decoder.weight")
    if not is_plain:
        names = ("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights")
    tensors = W.tensor("W_enc", transpose=True), W.tensor("b_enc"), W.tensor("W_dec")
    more = {} if is_plain else {"dictionary.multiplier": torch.tensor(multiplier)}
    return dict(zip(names, tensors, strict=True)) | more | ({"decoder.bias": W.tensor("b_dec")} if bias else {})


def write(folder, config, state=None, config_name="config.yaml", name="sae.pt"):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config) if config_name.endswith("json") else yaml.safe_dump(config)
    (folder / config_name).write_text(text)
    state = make_state() if state is None else state
    (save_file if name.endswith("safetensors") else torch.save)(state, folder / name)
    return folder


def refer(act, bias=False, factor=1.0) -> Reference:
    z = act(relu(draw_tokens().astype(np.float64) @ W.double("W_enc") + W.double("b_enc")))
    return Reference(z, z @ W.double("W_dec") * factor + bias * W.double("b_dec"))


def at_least(threshold):
    return lambda z: z * (z >= threshold)


@pytest.mark.parametrize("config_name", ["config.yaml", "config.yml", "config.json"])
def test_the_public_ones_are_read(tmp_path, config_name):
    sae = load_sae(write(tmp_path, PUBLIC, config_name=config_name))
    assert measure_deviation(sae, refer(at_least(0.75))) < 1e-5
    origin, source = sae.origin, sae.origin.source
    assert source is not None
    assert (source.format, source.kind, source.backbone) == ("visaebench", "batchtopk", "clip_vitb16")
    assert (origin.layer, origin.site, origin.tokens) == (11, "resid_post", TokenChoice.patch)
    assert source.facts == {"k": K, "threshold": 0.75, "meets_threshold": True, "dtype": "float32"}


@pytest.mark.parametrize(("is_plain", "bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("name", ["sae.pt", "model.safetensors", "model.pt"])
def test_both_names_and_a_bias_that_is_not_subtracted(tmp_path, is_plain, bias, name):
    sae = load_sae(write(tmp_path, PUBLIC, make_state(is_plain, bias=bias), name=name))
    assert measure_deviation(sae, refer(at_least(0.75), bias)) < 1e-5


def test_a_multiplier_counts(tmp_path):
    sae = load_sae(write(tmp_path, PUBLIC, make_state(multiplier=0.4)))
    assert measure_deviation(sae, refer(at_least(0.75), factor=np.exp(0.4))) < 1e-5


LIMITS = draw_vector(5, 0, 1)


@pytest.mark.parametrize(
    ("config", "more", "act", "kind"),
    [
        ({"activation": "topk", "k": K, "hidden_dim": D_SAE, "input_dim": D_IN}, {}, topk, "topk"),
        ({"sae_type": "TopK", "k": K, "input_dim": D_IN}, {}, topk, "topk"),
        ({"activation": "batchtopk"}, {"_running_threshold": torch.tensor(0.5)}, at_least(0.5), "batchtopk"),
        (
            {"activation": "jumprelu"},
            {"jump_thresholds": torch.from_numpy(LIMITS)},
            lambda z: z * (z > LIMITS),
            "jumprelu",
        ),
        ({"activation": "jumprelu"}, {"thresholds": torch.from_numpy(LIMITS)}, lambda z: z * (z > LIMITS), "jumprelu"),
    ],
)
def test_other_kinds(tmp_path, config, more, act, kind):
    sae = load_sae(write(tmp_path, config, make_state(is_plain=True) | more))
    assert measure_deviation(sae, refer(act)) < 1e-5
    assert sae.origin.source is not None
    assert sae.origin.source.kind == kind
    assert sae.origin.source.backbone is None


@pytest.mark.parametrize(
    ("backbone", "name", "site"),
    [
        ("dinov2_vitb14", "facebook/dinov2-base", "post_norm"),
        ("siglip_vitb16", "google/siglip-base-patch16-224", "resid_post"),
        ("mae_vitb16", "vit_base_patch16_224.mae", "resid_post"),
        ("deit_vitb16", "deit_base_patch16_224.fb_in1k", "resid_post"),
        ("my_vit", None, "resid_post"),
    ],
)
def test_dinov2_is_read_behind_its_last_norm(tmp_path, backbone, name, site):
    config = {key: value for key, value in PUBLIC.items() if key != "activation_dir"} | {"backbone": backbone}
    origin = load_sae(write(tmp_path, config)).origin
    assert origin.source is not None
    assert (origin.source.backbone, origin.site) == (backbone, site)
    assert find_backbone_name(backbone) == (name and find_backbone_name(name))
    assert origin.layer == (None if backbone == "my_vit" else 11)


@pytest.mark.parametrize(
    ("change", "more", "say"),
    [
        ({"threshold": None}, {}, "threshold"),
        ({"threshold": "high"}, {}, "threshold"),
        ({"architecture": "jumprelu"}, {}, "jump_thresholds"),
        ({"architecture": "jumprelu"}, {"thresholds": torch.from_numpy(LIMITS)}, "overcomplete"),
        ({"architecture": "topk", "k": None}, {}, "k="),
        ({"dict_size": 2 * D_SAE}, {}, "dict_size"),
        ({"input_norm": "layer_norm"}, {}, "input_norm"),
        ({}, {"encoder.final_block.1.weight": torch.ones(D_SAE)}, r"final_block\.1"),
        ({}, {"decoder.bias": W.tensor("b_dec")}, r"decoder\.bias"),
    ],
)
def test_what_is_missing_or_not_known_is_refused(tmp_path, change, more, say):
    with pytest.raises(InputError, match=say):
        load_sae(write(tmp_path, PUBLIC | change, make_state() | more))


def test_a_multiplier_is_of_overcompletes_names(tmp_path):
    with pytest.raises(InputError, match=r"dictionary\.multiplier"):
        load_sae(write(tmp_path, PUBLIC, make_state(is_plain=True) | {"dictionary.multiplier": torch.tensor(0.4)}))


def test_an_unknown_architecture_is_not_taken_for_visaebench(tmp_path):
    with pytest.raises(InputError, match="class"):
        load_sae(write(tmp_path, PUBLIC | {"architecture": "gated"}))  # by its names it is overcomplete's


def test_overcomplete_may_be_insisted_on(tmp_path):
    state = make_state() | {"thresholds": torch.from_numpy(np.log(LIMITS + 0.1))}
    sae = load_sae(write(tmp_path, PUBLIC | {"architecture": "jumprelu"}, state), format="overcomplete")
    limits = np.exp(np.log(LIMITS + 0.1).astype(np.float64))
    D = W.double("W_dec") / np.linalg.norm(W.double("W_dec"), axis=1, keepdims=True)
    z = refer(at_least(limits)).z
    assert measure_deviation(sae, Reference(z, z @ D)) < 1e-5


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu"])
def test_a_latent_that_meets_its_threshold_fires_in_batch_topk_alone(tmp_path, kind):
    state = make_state(is_plain=True)
    if kind == "jumprelu":
        state["jump_thresholds"] = torch.full((D_SAE,), 0.5)
    state["encoder.weight"][0] = 0
    state["encoder.bias"][0] = 0.5
    sae = load_sae(write(tmp_path, {"activation": kind, **({"threshold": 0.5} if kind == "batchtopk" else {})}, state))
    z = sae.encode(torch.from_numpy(draw_tokens()))
    assert (z[:, 0] == (0.5 if kind == "batchtopk" else 0)).all()


def test_of_two_configurations_the_toolkit_reads_the_json(tmp_path):
    write(tmp_path, PUBLIC | {"architecture": "topk"})
    assert measure_deviation(load_sae(write(tmp_path, PUBLIC, config_name="config.json")), refer(at_least(0.75))) < 1e-5
