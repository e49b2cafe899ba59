"""SAEs whose k largest may be negative: CLIP-Scope, Attributing CLIP, clip-topk-sae."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError, InputWarning
from infoscope.sae.config import TokenChoice
from infoscope.sae.loading import load_sae
from infoscope.vision.hooks import POOLED
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    K,
    Reference,
    draw_tokens,
    draw_vector,
    draw_weights,
    measure_deviation,
    topk,
)

W = draw_weights(7, unit_rows=False)
W["b_enc"] -= 4  # so that some of the k largest are below 0


def refer(W_dec, subtract=False, b_enc=True, b_dec=True, W_enc=None, k=K) -> Reference:
    x = draw_tokens().astype(np.float64) - subtract * W.double("b_dec")
    z = topk(x @ (W.double("W_enc") if W_enc is None else W_enc) + b_enc * W.double("b_enc"), k)
    assert (z < 0).any()
    return Reference(z, z @ W_dec + b_dec * W.double("b_dec"))


def unit(D, axis):
    return D / np.linalg.norm(D, axis=axis, keepdims=True)


# ---- CLIP-Scope


MOST = D_SAE - 4


def write_scope(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    state = {"pre_b": W.tensor("b_dec"), "enc": W.tensor("W_enc"), "dec": W.tensor("W_dec")}
    content = {
        "n_features": D_SAE,
        "d_in": D_IN,
        "k": MOST,
        "model_state_dict": state | changes.pop("state", {}),
        **changes,
    }
    torch.save({name: value for name, value in content.items() if value is not None}, folder / "1200013184.pt")
    return folder


def test_clipscope(tmp_path):
    sae = load_sae(write_scope(tmp_path / "22_resid"))
    assert measure_deviation(sae, refer(W.double("W_dec"), subtract=True, b_enc=False, k=MOST)) < 1e-5
    origin = sae.origin
    assert origin.source is not None
    assert (origin.layer, origin.site, origin.tokens) == (22, "resid_post", TokenChoice.all)
    assert (origin.source.format, origin.source.backbone) == ("clipscope", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K")
    assert origin.source.facts == {"k": MOST, "dtype": "float32"}


def test_its_layer_is_in_the_name_of_the_folder_alone(tmp_path):
    assert load_sae(write_scope(tmp_path / "mine")).origin.layer is None


@pytest.mark.parametrize(
    ("changes", "say"),
    [
        ({"state": {"router": torch.zeros(D_IN, 2)}}, "switch"),
        ({"state": {"enc": torch.zeros(2, D_IN, D_SAE)}}, "switch"),
        ({"state": {"enc_b": torch.zeros(D_SAE)}}, "enc_b"),
        ({"n_features": D_SAE + 1}, "n_features"),
        ({"k": None}, "k="),
        ({"normalize": True}, "normalize"),
    ],
)
def test_other_models_of_clipscope_are_refused(tmp_path, changes, say):
    with pytest.raises(InputError, match=say):
        load_sae(write_scope(tmp_path, **changes))


# ---- Attributing CLIP

GAINS, LENGTHS = draw_vector(8, 0.5, 2), draw_vector(9, 0.5, 2)
NAME = "clip_vit_b16_datacomp_xl_s13b_b90k_imagenet_topk-{}-{}-30000_layer--1_lr_0.0002"


def write_attributing(folder, newer=False, gain=1.0, prefix="", **more):
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "encoder.0.bias": W.tensor("b_enc"),
        "encoder.0.weight_g": torch.from_numpy(GAINS)[:, None],
        "encoder.0.weight_v": torch.from_numpy(W["W_enc"].T * LENGTHS[:, None]),
        "decoder.weight_g": torch.full((1, D_SAE), gain),
        "decoder.weight_v": torch.from_numpy(W["W_dec"].T * LENGTHS[None]),
        **more,
    }
    if newer:
        parts = ("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1")
        for old, new in parts:
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
    content = {"epoch": 30, "pytorch-lightning_version": "2.5.0", "loops": {}, "hyper_parameters": {"lr": 0.1}}
    torch.save(content | {"state_dict": {f"{prefix}{name}": t for name, t in state.items()}}, folder / "last.ckpt")
    return folder


def refer_attributing(gain=1.0):
    W_enc = unit(W.double("W_enc"), 0) * GAINS.astype(np.float64)
    return refer(unit(W.double("W_dec"), 1) * gain, b_dec=False, W_enc=W_enc)


@pytest.mark.parametrize("options", [{}, {"newer": True}, {"gain": 1.5}, {"prefix": "sae."}])
def test_attributing_clip(tmp_path, options):
    sae = load_sae(write_attributing(tmp_path / NAME.format("spatial", K), **options))
    assert measure_deviation(sae, refer_attributing(options.get("gain", 1.0))) < 1e-5
    origin, source = sae.origin, sae.origin.source
    assert source is not None
    assert (origin.layer, origin.site, origin.tokens) == (-1, "resid_post", TokenChoice.patch)
    assert (source.format, source.backbone) == ("attributing_clip", "clip_vit_b16_datacomp_xl_s13b_b90k")
    assert source.facts == {"k": K, "dataset": "imagenet", "scale_is_free": True, "dtype": "float32"}
    assert "scale" in source.warnings[0]


def test_its_tokens_are_in_the_name(tmp_path):
    assert load_sae(write_attributing(tmp_path / NAME.format("cls", K))).origin.tokens is TokenChoice.cls


def test_k_that_is_given_wins_over_the_name_and_says_so(tmp_path):
    with pytest.warns(InputWarning, match=f"folder's name says k 64; k={K} is used") as caught:
        sae = load_sae(write_attributing(tmp_path / NAME.format("spatial", 64)), k=K)
    assert len(caught) == 2
    assert measure_deviation(sae, refer_attributing()) < 1e-5


def test_without_the_name_k_is_given(tmp_path):
    with pytest.raises(InputError, match="k="):
        load_sae(write_attributing(tmp_path))
    sae = load_sae(write_attributing(tmp_path), k=K)
    assert measure_deviation(sae, refer_attributing()) < 1e-5
    assert sae.origin.source is not None
    assert sae.origin.source.backbone is None


@pytest.mark.parametrize(
    ("more", "say"),
    [
        ({"decoder.bias": torch.zeros(D_IN)}, r"decoder\.bias"),
        ({"encoder.0.weight_g": torch.ones(1, D_IN)}, "gain"),
    ],
)
def test_other_models_of_attributing_clip_are_refused(tmp_path, more, say):
    with pytest.raises(InputError, match=say):
        load_sae(write_attributing(tmp_path, **more), k=K)


@pytest.mark.parametrize(("part", "shape"), [("encoder.0", (1, D_IN)), ("decoder", (D_IN, 1))])
def test_gains_along_the_other_dim_are_refused_in_a_square_one_too(tmp_path, part, shape):
    names = ("encoder.0.weight_g", "encoder.0.weight_v", "decoder.weight_g", "decoder.weight_v", "encoder.0.bias")
    shapes = ((D_IN, 1), (D_IN, D_IN), (1, D_IN), (D_IN, D_IN), (D_IN,))
    square: dict[str, Any] = {name: torch.rand(size) + 0.1 for name, size in zip(names, shapes, strict=True)}
    changed: dict[str, Any] = square | {f"{part}.weight_g": torch.ones(shape)}
    load_sae(write_attributing(tmp_path, **square), k=K)
    with pytest.raises(InputError, match=rf"{part}\.weight_g to be a gain for each latent"):
        load_sae(write_attributing(tmp_path, **changed), k=K)


# ---- clip-topk-sae


def write_pooled(folder, config, bias=True, **more):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("W_enc", "b_enc", "W_dec") + ("b_dec",) * bias
    counts = {"feature_counts": torch.zeros(D_SAE), "total_samples": torch.tensor(7)}
    save_file({name: W.tensor(name) for name in names} | counts | more, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "bias"), [({}, True), ({"normalize_decoder": False}, True), ({"decoder_bias": False}, False)]
)
def test_clip_topk_sae(tmp_path, changes, bias):
    config = {
        "input_dim": D_IN,
        "hidden_dim": D_SAE,
        "k": K,
        "use_ghost_grads": True,
        "ghost_threshold": 0.0,
        **changes,
    }
    sae = load_sae(write_pooled(tmp_path, config, bias))
    D = W.double("W_dec") if changes.get("normalize_decoder") is False else unit(W.double("W_dec"), 1)
    assert measure_deviation(sae, refer(D, b_dec=bias)) < 1e-5
    assert sae.origin.source is not None
    assert (sae.origin.site, sae.origin.source.format, sae.origin.source.facts["k"]) == (POOLED, "clip_topk_sae", K)


@pytest.mark.parametrize(
    ("changes", "more", "say"),
    [
        ({"hidden_dim": 7}, {}, "hidden_dim"),
        ({"k": None}, {}, "k="),
        ({"input_norm": True}, {}, "input_norm"),
        ({"normalize_decoder": "false"}, {}, "normalize_decoder to be one of"),
        ({"decoder_bias": False}, {}, "decoder_bias: False, and b_dec is among its tensors"),
        ({}, {"threshold": torch.ones(D_SAE)}, "threshold"),
    ],
)
def test_other_models_of_clip_topk_sae_are_refused(tmp_path, changes, more, say):
    with pytest.raises(InputError, match=say):
        load_sae(write_pooled(tmp_path, {"input_dim": D_IN, "hidden_dim": D_SAE, "k": K} | changes, **more))


def test_clip_topk_sae_without_its_config_needs_k(tmp_path):
    folder = write_pooled(tmp_path, None)
    with pytest.raises(InputError, match="k="):
        load_sae(folder)
    assert measure_deviation(load_sae(folder, k=K), refer(unit(W.double("W_dec"), 1))) < 1e-5
