"""SAELens: every architecture of version 6, the flat configurations before it, and what it leaves out of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenNorm
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    Array,
    K,
    Norm,
    Reference,
    Weights,
    compute,
    constant_norm,
    draw_tokens,
    draw_vector,
    draw_weights,
    get_source,
    layer_norm,
    measure_deviation,
    no_norm,
    relu,
    topk,
)
from tests.support.foreign.files import make_state

SIZES = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cuda"}
NEW = {
    **SIZES, "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.18.0", "model_name": "clip-b16", "hook_name": "blocks.10.hook_resid_post"},
}  # fmt: skip
OLD = {**SIZES, "model_name": "clip-b16", "hook_point": "blocks.10.hook_mlp_out", "hook_point_layer": 10}
THRESHOLDS = draw_vector(2, -0.3, 1.5)
THRESHOLDS[:3] = 0
GATES = {name: draw_vector(seed, -0.5, 0.5) for seed, name in enumerate(("b_gate", "b_mag", "r_mag"))}


def write(
    folder: Path, w: Weights, config: dict[str, Any], without: str = "", dtype: torch.dtype = torch.float32, **more: Any
) -> Path:
    """Write weights, their configuration and, as the toolkit does, how often latents fire."""
    state = {name: tensor.to(dtype) for name, tensor in make_state(**w, **more).items() if name != without}
    save_file(state, folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def above(limit: Any) -> Callable[[Array], Array]:
    return lambda a: relu(a) * (a > np.float64(limit))


def above_gate(a: Array) -> Array:
    gate, magnitude, scale = (GATES[name].astype(np.float64) for name in GATES)
    return (a + gate > 0) * relu(a * np.exp(scale) + magnitude)


NORMS: dict[str, tuple[Norm, TokenNorm]] = {
    "none": (no_norm, TokenNorm.none),
    "layer_norm": (layer_norm, TokenNorm.layer_norm),
    "constant_norm_rescale": (constant_norm, TokenNorm.constant_norm),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subtract", [True, False])
def test_standard(tmp_path: Path, norm: str, subtract: bool) -> None:
    w = draw_weights(1, unit_rows=False)
    config = {**NEW, "architecture": "standard", "normalize_activations": norm, "apply_b_dec_to_input": subtract}
    sae = load_sae(write(tmp_path, w, config))
    assert measure_deviation(sae, compute(w, relu, subtract, NORMS[norm][0])) < 2e-6
    assert sae.token_norm is NORMS[norm][1]
    assert (get_source(sae).format, get_source(sae).kind, get_source(sae).backbone) == ("saelens", "relu", "clip-b16")
    assert (sae.origin.layer, sae.origin.site, sae.origin.tokens) == (10, "resid_post", None)


def test_topk_keeps_the_largest_then_relu(tmp_path: Path) -> None:
    w = draw_weights(2, unit_rows=False)
    w["b_enc"] -= 2
    sae = load_sae(write(tmp_path, w, {**NEW, "architecture": "topk", "k": K}))
    assert measure_deviation(sae, compute(w, lambda a: relu(topk(a)))) < 1e-6
    assert not sae.activation.is_signed
    assert (get_source(sae).kind, get_source(sae).facts["k"]) == ("topk", K)


def test_rescaled_topk_compares_by_decoder_norm(tmp_path: Path) -> None:
    w = draw_weights(3, unit_rows=False)
    sae = load_sae(write(tmp_path, w, {**NEW, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}))
    assert measure_deviation(sae, rescaled(w, lambda a: relu(topk(a)))) < 1e-6


def rescaled(w: Weights, act: Callable[[Array], Array]) -> Reference:
    """Return z = act(a |d|) and its reconstruction (z / |d|) W_dec + b_dec."""
    norms = np.linalg.norm(w.double("W_dec"), axis=1)
    z = compute(w, lambda a: act(a * norms)).z
    return Reference(z, (z / norms) @ w.double("W_dec") + w.double("b_dec"))


def test_jumprelu_has_thresholds_of_0_and_below(tmp_path: Path) -> None:
    w = draw_weights(4)
    sae = load_sae(write(tmp_path, w, {**NEW, "architecture": "jumprelu"}, threshold=THRESHOLDS))
    assert measure_deviation(sae, compute(w, above(THRESHOLDS))) < 1e-6
    assert get_source(sae).kind == "jumprelu"
    assert "threshold" not in get_source(sae).facts


def test_one_threshold_is_a_fact(tmp_path: Path) -> None:
    w = draw_weights(4)
    file = write(tmp_path, w, {**NEW, "architecture": "jumprelu"}, threshold=np.full(D_SAE, 0.5, np.float32))
    assert get_source(load_sae(file)).facts["threshold"] == 0.5


def test_gated_has_no_b_enc(tmp_path: Path) -> None:
    w = draw_weights(5)
    without = Weights({**w, "b_enc": np.zeros_like(w["b_enc"])})
    sae = load_sae(write(tmp_path, w, {**NEW, "architecture": "gated"}, "b_enc", **GATES))
    assert measure_deviation(sae, compute(without, above_gate)) < 1e-6
    assert get_source(sae).kind == "gated"


@pytest.mark.parametrize("rescale", [True, False])
def test_unfinished_batchtopk_becomes_what_the_toolkit_makes_of_it(tmp_path: Path, rescale: bool) -> None:
    w = draw_weights(6, unit_rows=False)
    config = {**NEW, "architecture": "matryoshka_batchtopk", "k": 2.5, "rescale_acts_by_decoder_norm": rescale}
    file = write(tmp_path, w, {**config, "matryoshka_widths": [6, 24]}, topk_threshold=torch.tensor(0.5))
    sae = load_sae(file)
    assert measure_deviation(sae, rescaled(w, above(0.5)) if rescale else compute(w, above(0.5))) < 1e-6
    assert get_source(sae).kind == "matryoshka_prefix"
    assert {"k": 2.5, "threshold": 0.5, "prefix_sizes": [6, 24]}.items() <= get_source(sae).facts.items()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    w = draw_weights(7, unit_rows=False)
    config = {**NEW, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
    sae = load_sae(write(tmp_path, w, config, dtype=dtype))
    assert measure_deviation(sae, rescaled(w.as_dtype(dtype), lambda a: relu(topk(a)))) < 2e-6
    assert sae.W_enc.dtype == torch.float32
    assert get_source(sae).facts["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("normalise", [False, None, "none"])
def test_flat_topk_of_before_6_is_no_relu(tmp_path: Path, normalise: Any) -> None:
    w = draw_weights(8)
    kwargs = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "finetuning_scaling_factor": False}
    sae = load_sae(write(tmp_path, w, {**OLD, **kwargs, "normalize_activations": normalise}))
    assert measure_deviation(sae, compute(w, lambda a: relu(topk(a)))) < 1e-6
    assert (get_source(sae).kind, sae.origin.layer, sae.origin.site) == ("topk", 10, "mlp_out")


def test_flat_tanh_relu(tmp_path: Path) -> None:
    w = draw_weights(8)
    sae = load_sae(write(tmp_path, w, {**OLD, "activation_fn": "tanh-relu"}))
    assert measure_deviation(sae, compute(w, lambda a: np.tanh(relu(a)))) < 1e-6
    assert get_source(sae).kind == "tanh_relu"


@pytest.mark.parametrize("name", ["finetuning_scaling_factor", "scaling_factor"])
def test_finetuning_changes_the_decoder_alone(tmp_path: Path, name: str) -> None:
    w, factors = draw_weights(9), draw_vector(9, 0.5, 2.0)
    sae = load_sae(write(tmp_path, w, {**OLD, "finetuning_scaling_factor": True}, **{name: factors}))
    z = compute(w).z
    reference = Reference(z, (z * factors.astype(np.float64)) @ w.double("W_dec") + w.double("b_dec"))
    assert measure_deviation(sae, reference) < 1e-6


def test_finetuning_of_ones_or_without_factors_is_none(tmp_path: Path) -> None:
    w = draw_weights(9)
    config = {**OLD, "finetuning_scaling_factor": False}
    ones = load_sae(write(tmp_path, w, config, scaling_factor=np.ones(D_SAE, "f")))
    assert measure_deviation(ones, compute(w)) < 1e-6
    sae = load_sae(write(tmp_path, w, {**OLD, "finetuning_scaling_factor": True}))
    assert measure_deviation(sae, compute(w)) < 1e-6
    assert "holds no such factors" in get_source(sae).warnings[0]


@pytest.mark.parametrize(
    "config", [{**NEW, "normalize_activations": "expected_average_only_in"}, {**OLD, "normalize_activations": True}]
)
def test_expected_average_may_lack_its_factor(tmp_path: Path, config: dict[str, Any]) -> None:
    w, factor = draw_weights(10), 0.4
    x = draw_tokens().astype(np.float64) * factor
    z = relu((x - w.double("b_dec")) @ w.double("W_enc") + w.double("b_enc"))
    scaled = Reference(z, (z @ w.double("W_dec") + w.double("b_dec")) / factor)
    folder = write(tmp_path, w, config)
    bare = load_sae(folder)
    assert measure_deviation(bare, compute(w)) < 1e-6
    assert "issues 222 and 381" in get_source(bare).warnings[0]
    given = load_sae(folder, scale=factor)
    assert measure_deviation(given, scaled) < 1e-6
    assert not get_source(given).warnings
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    assert measure_deviation(load_sae(folder), scaled) < 1e-6


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.10.hook_resid_pre", (9, "resid_post")),
        ("blocks.0.hook_resid_pre", (0, "resid_pre")),
        ("blocks.3.mlp.hook_post", (3, "mlp.hook_post")),
        ("vision_model.encoder.layers.3", (None, None)),
    ],
)
def test_place_in_the_network(tmp_path: Path, hook: str, place: tuple[int | None, str | None]) -> None:
    origin = load_sae(write(tmp_path, draw_weights(1), {**NEW, "metadata": {"hook_name": hook}})).origin
    assert (origin.layer, origin.site) == place


@pytest.mark.parametrize(
    "name", ["transcoder", "skip_transcoder", "crosscoder", "abstopk", "matching_pursuit", "temporal"]
)  # fmt: skip
def test_architectures_that_are_no_sae_of_a_token_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"architecture {name}, which is not read"):
        load_sae(write(tmp_path, draw_weights(1), {**NEW, "architecture": name}, "W_enc"))


@pytest.mark.parametrize(
    ("config", "more", "match"),
    [
        ({**NEW, "architecture": "lista"}, {}, "architecture .* found 'lista'"),
        ({**NEW, "architecture": ["topk"]}, {}, "architecture .* found"),
        ({**NEW, "reshape_activations": "hook_z"}, {}, "reshape_activations .* found 'hook_z'"),
        ({**OLD, "hook_point": "blocks.3.attn.hook_z"}, {}, "reshape_activations .* found 'hook_z'"),
        ({**NEW, "normalize_activations": "batch_norm"}, {}, "normalize_activations .* found 'batch_norm'"),
        ({**NEW, "apply_b_dec_to_input": "no"}, {}, "apply_b_dec_to_input .* found 'no'"),
        ({**OLD, "activation_fn_str": "gelu"}, {}, "activation_fn of a standard SAE .* found 'gelu'"),
        ({**OLD, "architecture": "gated", "activation_fn_str": "topk"}, {}, "of a gated SAE .* found 'topk'"),
        ({**OLD, "activation_fn_str": "topk"}, {}, "lacks k: give k="),
        ({**NEW, "architecture": "topk", "k": 2.5}, {}, "k to be a whole number above 0, found 2.5"),
        ({**NEW, "architecture": "standard"}, {"threshold": THRESHOLDS}, "standard, and has tensors .*: threshold"),
        ({**NEW, "architecture": "jumprelu"}, {}, "tensor threshold"),
        ({**NEW, "architecture": "jumprelu"}, {"threshold": THRESHOLDS[:5]}, "24 thresholds, one per latent, got 5"),
        ({**OLD, "finetuning_scaling_factor": False}, {"scaling_factor": THRESHOLDS}, "finetuning factors"),
        ({**NEW, "scaling": 2.0}, {}, "says scaling: 2.0, and what is done with that is not known"),
        ({**NEW, "d_sae": 48}, {}, "d_in=8 and d_sae=48"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(
    tmp_path: Path, config: dict[str, Any], more: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        load_sae(write(tmp_path, draw_weights(11), config, **more))
