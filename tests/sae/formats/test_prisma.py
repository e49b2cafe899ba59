"""Prisma: the configuration says which norm and which activation, in a file of its own or pickled with the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.describing import describe
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    Array,
    K,
    Norm,
    Weights,
    compute,
    constant_norm,
    draw_vector,
    draw_weights,
    get_source,
    layer_norm,
    measure_deviation,
    no_norm,
    relu,
    topk,
)
from tests.support.foreign.files import make_state, save, save_with_config

CLASS = "vit_prisma.sae.config.VisionModelSAERunnerConfig"
MODEL = "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
CONFIG = {
    "model_name": MODEL, "hook_point_layer": 8, "layer_subtype": "hook_resid_post", "hook_point_head_index": None,
    "use_patches_only": False, "cls_token_only": False, "d_in": D_IN, "d_sae": D_SAE, "architecture": "standard",
    "activation_fn_str": "relu", "activation_fn_kwargs": {}, "normalize_activations": None, "image_size": 224,
    "is_transcoder": False, "l1_coefficient": 1e-5, "a_setting_of_next_year": 3,
    "device": {"__type__": "torch.device", "value": "cuda"},
    "dtype": {"__type__": "torch.dtype", "value": "torch.float32"},
}  # fmt: skip
GATES = {name: draw_vector(seed, -0.5, 0.5) for seed, name in enumerate(("b_gate", "b_mag", "r_mag"))}


def write(folder: Path, w: Weights, more: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a state dict with a config.json beside it, as the recommended ones are."""
    return save(folder / "n_images_2600058.pt", make_state(**w, **(more or {})), CONFIG | config).parent


def above_gate(a: Array) -> Array:
    gate, magnitude, scale = (GATES[name].astype(np.float64) for name in GATES)
    return (a + gate > 0) * relu(a * np.exp(scale) + magnitude)


NORMS: dict[Any, tuple[Norm, TokenNorm]] = {
    None: (no_norm, TokenNorm.none),
    "layer_norm": (layer_norm, TokenNorm.layer_norm),
    "constant_norm_rescale": (constant_norm, TokenNorm.constant_norm),
}
ACTS: dict[str, tuple[Callable[[Array], Array], str, dict[str, Any]]] = {
    "relu": (relu, "relu", {"activation_fn_str": "relu"}),
    "tanh-relu": (lambda a: np.tanh(relu(a)), "tanh_relu", {"activation_fn_str": "tanh-relu"}),
    "topk": (lambda a: relu(topk(a)), "topk", {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("act", ACTS)
def test_configuration_says_norm_and_activation(tmp_path: Path, norm: str | None, act: str) -> None:
    w = draw_weights(1)
    w["b_enc"] -= 1  # so that among the k largest some are negative
    function, kind, config = ACTS[act]
    sae = load_sae(write(tmp_path / "vanilla-x64", w, **config, normalize_activations=norm))
    assert measure_deviation(sae, compute(w, function, norm=NORMS[norm][0])) < 2e-6
    assert sae.token_norm is NORMS[norm][1]
    source = get_source(sae)
    assert (source.format, source.kind, source.backbone) == ("prisma", kind, MODEL)
    assert (sae.origin.layer, sae.origin.site, sae.origin.tokens) == (8, "resid_post", TokenChoice.all)
    assert source.facts.get("k") == (K if act == "topk" else None)
    assert not source.warnings


def test_pickled_configuration_is_read_without_its_class(tmp_path: Path) -> None:
    w = draw_weights(2)
    config = CONFIG | {"normalize_activations": "layer_norm", "dtype": torch.float32, "device": torch.device("cuda")}
    state = {"state_dict": make_state(**w)}
    file = save_with_config(tmp_path / "weights.pt", state, "cfg", CLASS, config)
    assert measure_deviation(load_sae(file), compute(w, norm=layer_norm)) < 2e-6


def test_gated_leaves_b_enc_out(tmp_path: Path) -> None:
    w = draw_weights(3)
    without = Weights({**w, "b_enc": np.zeros_like(w["b_enc"])})
    sae = load_sae(write(tmp_path, w, GATES, architecture="gated", normalize_activations="layer_norm"))
    assert measure_deviation(sae, compute(without, above_gate, norm=layer_norm)) < 2e-6
    assert get_source(sae).kind == "gated"


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"cls_token_only": True}, TokenChoice.cls),
        ({"use_patches_only": True}, TokenChoice.patch),
        ({}, TokenChoice.all),
    ],
)
def test_tokens(tmp_path: Path, config: dict[str, bool], tokens: TokenChoice) -> None:
    assert load_sae(write(tmp_path, draw_weights(4), **config)).origin.tokens is tokens


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"layer_subtype": "hook_mlp_out"}, (8, "mlp_out")),
        ({"layer_subtype": "hook_resid_pre"}, (7, "resid_post")),
        ({"layer_subtype": "hook_resid_pre", "hook_point_layer": 0}, (0, "resid_pre")),
        ({"layer_subtype": "ln2.hook_normalized"}, (8, "ln2.hook_normalized")),
        ({"layer_subtype": "attn.hook_z", "hook_point_head_index": 3}, (8, "attn.hook_z of head 3")),
    ],
)
def test_place_in_the_block(tmp_path: Path, config: dict[str, Any], place: tuple[int, str]) -> None:
    origin = load_sae(write(tmp_path, draw_weights(4), **config)).origin
    assert (origin.layer, origin.site) == place


def test_older_dict_of_both(tmp_path: Path) -> None:
    w = draw_weights(5)
    config = {"hook_point": "blocks.9.hook_mlp_out", "hook_point_layer": [9], "d_in": D_IN, "d_sae": D_SAE}
    content = {"config": config, "optimizer": {}, "autoencoder": {"state_dict": make_state(**w)}}
    sae = load_sae(save(tmp_path / "old.pt", content))
    assert measure_deviation(sae, compute(w, norm=layer_norm)) < 2e-6
    assert get_source(sae).format == "prisma"
    assert (sae.origin.layer, sae.origin.site, sae.origin.tokens) == (9, "mlp_out", None)
    (warning,) = get_source(sae).warnings
    assert "not say normalize_activations and activation_fn_str: taken for layer_norm and relu, as" in warning
    assert "give sae.format=plain." in warning
    assert "token_norm" not in warning


@pytest.mark.parametrize("is_pickled", [True, False])
def test_what_a_configuration_lacks_is_as_the_toolkits_loader_has_it(tmp_path: Path, is_pickled: bool) -> None:
    w = draw_weights(5)
    config = {name: value for name, value in CONFIG.items() if name not in ("normalize_activations", "dtype", "device")}
    state = make_state(**w)
    if is_pickled:
        file = save_with_config(tmp_path / "weights.pt", {"state_dict": state}, "cfg", CLASS, config)
    else:
        file = save(tmp_path / "weights.pt", state, config)
    sae = load_sae(file)
    assert measure_deviation(sae, compute(w, norm=layer_norm)) < 2e-6
    assert "not say normalize_activations: taken for layer_norm, as" in get_source(sae).warnings[0]
    assert "give sae.token_norm=." in get_source(sae).warnings[0]
    given = load_sae(file, token_norm="none")
    assert measure_deviation(given, compute(w)) < 2e-6
    assert not get_source(given).warnings


def test_a_configuration_without_an_activation_is_a_topk(tmp_path: Path) -> None:
    w = draw_weights(5)
    config = {name: value for name, value in CONFIG.items() if name != "activation_fn_str"}
    file = save(tmp_path / "weights.pt", make_state(**w), config)
    with pytest.raises(InputError, match=r"activation_fn_str is missing .* whose configuration lacks k: give k="):
        load_sae(file)
    assert measure_deviation(load_sae(file, k=K), compute(w, lambda a: relu(topk(a)))) < 2e-6


def test_a_norm_that_the_file_says_is_not_overruled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='token_norm="layer_norm" is not read'):
        load_sae(write(tmp_path, draw_weights(5)), token_norm="layer_norm")


def test_topk_needs_k(tmp_path: Path) -> None:
    w = draw_weights(6)
    folder = write(tmp_path, w, activation_fn_str="topk")
    with pytest.raises(InputError, match="lacks k: give k="):
        load_sae(folder)
    assert measure_deviation(load_sae(folder, k=K), compute(w, lambda a: relu(topk(a)))) < 1e-6


@pytest.mark.parametrize(
    ("config", "more", "match"),
    [
        ({"is_transcoder": True}, {}, "transcoder"),
        ({}, {"W_skip": draw_vector(1)}, "transcoder"),
        ({}, {"b_dec_out": draw_vector(1)}, "transcoder"),
        ({"normalize_activations": "expected_average"}, {}, "normalize_activations .* found 'expected_average'"),
        ({"normalize_activations": {"eps": 1}}, {}, "normalize_activations .* found {'eps': 1}"),
        ({"activation_fn_str": "leaky_relu"}, {}, "activation_fn_str .* found 'leaky_relu'"),
        ({"architecture": "jumprelu"}, {}, "architecture .* found 'jumprelu'"),
        ({"architecture": "gated", "activation_fn_str": "topk"}, GATES, "activation_fn_str .* found 'topk'"),
        ({"architecture": "gated"}, {}, "tensor b_gate"),
        ({}, GATES, "architecture standard, and has tensors of something else: b_gate, b_mag, r_mag"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K, "postact_fn": "Identity"}}, {}, "hold k alone"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": "many"}}, {}, "k to be a whole number"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 99}}, {}, r"k in 1\.\.24"),
        ({"d_in": 9}, {}, "d_in=9 and d_sae=24"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], more: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        load_sae(write(tmp_path, draw_weights(7), more, **config))


def test_what_a_pickle_names_is_said(tmp_path: Path) -> None:
    state = {"state_dict": make_state(**draw_weights(1))}
    config = {**CONFIG, "device": torch.device("cuda"), "dtype": torch.float32}
    sae = load_sae(save_with_config(tmp_path / "weights.pt", state, "cfg", CLASS, config))
    assert get_source(sae).facts["pickled"] == [CLASS, "torch.device"]
    assert describe(sae)["pickle"].startswith(f"names {CLASS}, torch.device; nothing")
    plain = load_sae(write(tmp_path / "plain", draw_weights(1)))
    assert "pickled" not in get_source(plain).facts
    assert "pickle" not in describe(plain)


def test_a_bias_said_not_to_be_subtracted_is_refused(tmp_path: Path) -> None:
    w = draw_weights(7)
    assert measure_deviation(load_sae(write(tmp_path / "a", w, apply_b_dec_to_input=True)), compute(w)) < 2e-6
    with pytest.raises(InputError, match="says apply_b_dec_to_input: False"):
        load_sae(write(tmp_path / "b", w, apply_b_dec_to_input=False))


def test_what_a_pickled_configuration_lacks_is_read_beside_it(tmp_path: Path) -> None:
    w = draw_weights(6)
    inner = {name: value for name, value in CONFIG.items() if name != "normalize_activations"}
    file = save(tmp_path / "weights.pt", {"cfg": inner, "state_dict": make_state(**w)}, {"normalize_activations": None})
    sae = load_sae(file)
    assert sae.token_norm is TokenNorm.none
    assert not get_source(sae).warnings
    assert measure_deviation(sae, compute(w)) < 2e-6


@pytest.mark.parametrize(("point", "layer"), [([3], 3), (3.0, 3), ("3", 3), (-2, -2)])
def test_the_block_may_be_written_otherwise(tmp_path: Path, point: Any, layer: int) -> None:
    origin = load_sae(write(tmp_path, draw_weights(6), hook_point_layer=point)).origin
    assert (origin.layer, origin.site) == (layer, "resid_post")
