"""SAEs of saev: a line of JSON whose schema decides what is subtracted, and the statistics that no file holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError, InputWarning
from infoscope.sae.config import TokenChoice
from infoscope.sae.import_config import ImportedConfig, Statistics
from infoscope.sae.loading import import_sae, load_sae
from infoscope.vision.hooks import POOLED
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    K,
    compute,
    draw_tokens,
    draw_weights,
    measure_deviation,
    relu,
    topk,
)

OLD = {"d_vit": D_IN, "exp_factor": D_SAE // D_IN, "sparsity_coeff": 0.0008, "normalize_w_dec": True, "seed": 1}
WEIGHTS = draw_weights(1)
THRESHOLD = "activation.threshold"


def write(folder, header, weights=WEIGHTS, data=None, **more):
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: weights.tensor(name) for name in weights} | more
    with (folder / "sae.pt").open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(state, file)
    if data is not None:
        (folder / "config.json").write_text(json.dumps({"data": data}))
    return folder


def make_header(schema, activation, d_in_name="d_model", **params):
    config = {d_in_name: D_IN, "d_sae": D_SAE, "activation": {"cls": activation, "params": params}, "reinit_blend": 0.8}
    return {"schema": schema, "cfg": config, "commit": "3d73f1f", "lib": "0.4.0"}


def make_old_header(cls, **params):
    return {"schema": 1, "cls": cls, "cfg": {"d_vit": D_IN, "exp_factor": D_SAE // D_IN, **params}}


def nested(cls, **params):
    return {**make_header(1, cls, "d_vit", **params), "cls": "SparseAutoencoderConfig"}


def above(threshold):
    return lambda a: a * (a > max(threshold, 0))


@pytest.mark.parametrize(
    ("header", "act", "subtract", "kind", "more"),
    [
        (make_old_header("Relu"), relu, True, "relu", {}),
        (make_old_header("TopK", top_k=K), topk, True, "topk", {}),
        (nested("Relu"), relu, True, "relu", {}),
        (nested("TopK", top_k=K), topk, True, "topk", {}),
        (make_header(2, "Relu", "d_vit", sparsity={}), relu, False, "relu", {}),
        (make_header(3, "TopK", top_k=K), topk, False, "topk", {}),
        (make_header(4, "BatchTopK", top_k=K), above(0.7), False, "batchtopk", {THRESHOLD: torch.tensor(0.7)}),
        (make_header(5, "BatchTopK", top_k=K), relu, False, "batchtopk", {THRESHOLD: torch.tensor(0.0)}),
        (make_header(5, "BatchTopK", top_k=K), relu, False, "batchtopk", {THRESHOLD: torch.tensor(-0.5)}),
        (make_header(5, "TopK", top_k=10 * D_SAE), lambda a: a, False, "topk", {}),
    ],
)
def test_the_schema_decides_what_is_subtracted_and_kept(tmp_path, header, act, subtract, kind, more):
    weights = draw_weights(2)
    weights["b_enc"] -= 1.5  # so that some of the k largest are below 0
    sae = load_sae(write(tmp_path, header, weights, **more))
    assert measure_deviation(sae, compute(weights, act, subtract)) < 1e-5
    source = sae.origin.source
    assert source is not None
    assert (source.format, source.kind, source.facts["schema"]) == ("saev", kind, header["schema"])
    assert (sae.origin.site, sae.origin.tokens) == ("resid_post", TokenChoice.patch)
    assert ("folded" in source.facts) is not subtract


def test_topk_keeps_what_is_below_0(tmp_path):
    weights = draw_weights(2)
    weights["b_enc"] -= 5
    sae = load_sae(write(tmp_path, make_header(5, "TopK", top_k=K), weights))
    z = sae.encode(torch.from_numpy(draw_tokens()))
    assert sae.activation.is_signed
    assert (z < 0).any()


@pytest.mark.parametrize(
    ("header", "say"),
    [
        (make_header(6, "Relu"), "schema 6"),
        (make_header("new", "Relu"), "schema 'new'"),
        (make_header(True, "Relu"), "schema True"),
        (make_header(5, "AbsBatchTopK", top_k=K), "AbsBatchTopK"),
        (make_old_header("JumpRelu"), "activation"),
        ({**make_old_header("SparseAutoencoderConfig")}, "activation"),
        ({"schema": 5}, "cfg"),
        ({"schema": 5, "cfg": [1]}, "cfg"),
        ({**OLD, "activation": {"cls": "Gelu"}}, "Gelu"),
        ({**OLD, "layer_norm": True}, "layer_norm"),
        ({**OLD, "d_vit": D_IN + 1}, "d_in"),
        (make_header(5, "BatchTopK", top_k=K), "give threshold="),
        (make_header(5, "TopK"), "give k="),
        (make_header(5, "TopK", top_k=0), "top_k"),
        (make_header(5, "TopK", top_k="many"), "top_k"),
    ],
)
def test_what_a_header_says_and_nobody_knows_is_refused(tmp_path, header, say):
    with pytest.raises(InputError, match=say):
        load_sae(write(tmp_path, header))


def test_other_tensors_are_refused(tmp_path):
    with pytest.raises(InputError, match="whitening"):
        load_sae(write(tmp_path, make_header(5, "Relu"), whitening=torch.eye(D_IN)))


def test_a_threshold_that_the_file_lacks_is_given(tmp_path):
    folder = write(tmp_path, make_header(4, "BatchTopK", top_k=K))
    sae = load_sae(folder, threshold=0.5)
    assert measure_deviation(sae, compute(WEIGHTS, above(0.5), subtract=False)) < 1e-5


# ---- statistics


def test_without_statistics_the_first_files_are_read_bare_and_say_so(tmp_path):
    data = {"layer": -2, "patches": "patches", "scale_mean": True, "scale_norm": True}
    with pytest.warns(
        InputWarning, match=r"without mean_file and scale .*, or on the command line sae.statistics=estimate, it reads"
    ) as caught:
        sae = load_sae(write(tmp_path, OLD, data=data))
    assert [warning.filename for warning in caught] == [__file__]
    assert measure_deviation(sae, compute(WEIGHTS)) < 1e-5
    source = sae.origin.source
    assert source is not None
    assert source.facts["needs_statistics"]
    assert "mean_file" in source.warnings[0]
    assert sae.origin.layer == -2


def save_mean(path, mean):
    tensor = torch.from_numpy(mean)
    if path.suffix == ".npy":
        np.save(path, mean)
    elif path.suffix == ".safetensors":
        save_file({"mean": tensor}, path)
    else:
        torch.save(tensor if path.suffix == ".pt" else {"mean": tensor, "n": 7}, path)
    return path


@pytest.mark.parametrize("name", ["mean.npy", "mean.pt", "mean.pth", "mean.safetensors"])
def test_mean_and_scale_are_given(tmp_path, name):
    mean, scalar = draw_tokens().mean(0), 1.7
    sae = load_sae(write(tmp_path / "sae", OLD), mean_file=save_mean(tmp_path / name, mean), scale=1 / scalar)
    x = draw_tokens().astype(np.float64)
    W = {name: WEIGHTS.double(name) for name in WEIGHTS}
    z = relu(((x - mean) / scalar - W["b_dec"]) @ W["W_enc"] + W["b_enc"])
    x_hat = (z @ W["W_dec"] + W["b_dec"]) * scalar + mean
    assert measure_deviation(sae, (z, x_hat)) < 1e-5
    assert sae.origin.source is not None
    assert "needs_statistics" not in sae.origin.source.facts
    assert sae.origin.source.warnings == ()


@pytest.mark.parametrize(
    ("options", "say"),
    [({"scale": 0.5}, "mean_file"), ({"mean_file": True}, "scale"), ({"mean_file": "no.pt"}, "no.pt")],
)
def test_half_of_the_statistics_is_refused(tmp_path, options, say):
    if options.get("mean_file") is True:
        options = {"mean_file": save_mean(tmp_path / "mean.pt", draw_tokens().mean(0))}
    with pytest.raises(InputError, match=say):
        load_sae(write(tmp_path / "sae", OLD), **options)


@pytest.mark.parametrize("scales", [(True, False), (False, True), ("mean.pt", False)])
def test_what_the_config_says_was_applied_is_asked_for(tmp_path, scales):
    data = {"scale_mean": scales[0], "scale_norm": scales[1]}
    sae = load_sae(write(tmp_path / "sae", OLD, data=data))
    assert sae.origin.source is not None
    assert sae.origin.source.facts["needs_statistics"]
    mean = save_mean(tmp_path / "mean.pt", draw_tokens().mean(0))
    given = load_sae(write(tmp_path / "sae", OLD, data=data), **({"mean_file": mean} if scales[0] else {"scale": 0.5}))
    assert float(given.scale) == (1 if scales[0] else 0.5)
    assert given.mean.any() == bool(scales[0])


def test_an_estimate_would_do_both(tmp_path):
    folder = write(tmp_path, OLD, data={"scale_mean": True, "scale_norm": False})
    with pytest.raises(InputError, match="mean_file alone"):
        import_sae(ImportedConfig(path=str(folder), statistics=Statistics.estimate))


def test_no_statistics_are_asked_for_where_none_were_applied(tmp_path):
    sae = load_sae(write(tmp_path, OLD, data={"scale_mean": False, "scale_norm": False}))
    assert sae.origin.source is not None
    assert "needs_statistics" not in sae.origin.source.facts


def test_a_later_schema_needs_them_only_if_its_config_says_so(tmp_path):
    header = make_header(2, "Relu", "d_vit")
    with pytest.raises(InputError, match="scale"):
        load_sae(write(tmp_path, header), scale=2.0)
    sae = load_sae(write(tmp_path, header, data={"scale_mean": True, "scale_norm": False}))
    assert sae.origin.source is not None
    assert sae.origin.source.facts["needs_statistics"]


def test_a_mean_of_another_width_is_refused(tmp_path):
    path = save_mean(tmp_path / "mean.npy", np.zeros(D_IN + 1, dtype=np.float32))
    with pytest.raises(InputError, match=rf"one mean \[{D_IN}\]"):
        load_sae(write(tmp_path / "sae", OLD), mean_file=path, scale=1.0)


# ---- origin


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("SAE_CLIP_24K_ViT-B-16_IN1K", "open_clip ViT-B-16 openai"),
        ("models--osunlp--SAE_DINOv2_24K_ViT-B-14_IN1K/snapshots/abc", "dinov2_vitb14_reg"),
        ("SAE_BioCLIP_24K_ViT-B-16_iNat21", "hf-hub:imageomics/bioclip"),
        ("SAE_DINOv3_TopK_ViT-L-16_IN1K/layer_13/a1b2", "facebook/dinov3-vitl16-pretrain-lvd1689m"),
        ("SAE_DINOv3_ViT-S-16_IN1K/layer_13/a1b2", "facebook/dinov3-vits16-pretrain-lvd1689m"),
    ],
)
def test_the_names_of_public_repositories_say_the_backbone(tmp_path, name, backbone):
    sae = load_sae(write(tmp_path / name, make_header(5, "Relu")))
    assert sae.origin.source is not None
    assert sae.origin.source.backbone == backbone
    assert sae.origin.layer == (13 if "layer_13" in name else None)


@pytest.mark.parametrize(
    ("data", "tokens", "site"),
    [
        ({"patches": "cls"}, TokenChoice.cls, "resid_post"),
        ({"tokens": "content"}, TokenChoice.patch, "resid_post"),
        ({"tokens": "all"}, TokenChoice.all, "resid_post"),
        ({"patches": "meanpool"}, None, POOLED),
    ],
)
def test_the_config_says_which_tokens(tmp_path, data, tokens, site):
    sae = load_sae(write(tmp_path, make_header(5, "Relu"), data=data))
    assert (sae.origin.tokens, sae.origin.site) == (tokens, site)


@pytest.mark.parametrize("said", ["registers", "", 3, ["cls"], {"cls": True}])
def test_tokens_that_are_not_known_are_refused(tmp_path, said):
    with pytest.raises(InputError, match=r"the tokens in config.json to be one of patches, .*, found"):
        load_sae(write(tmp_path, make_header(5, "Relu"), data={"patches": said}))
