"""Tensors and settings that no reader knows are refused, in every format; what a training has counted is not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.formats.unknown import refuse_settings
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import D_IN, D_SAE, draw_weights
from tests.support.foreign.dictionaries import OTHERS, WRITERS, write_dictionary
from tests.support.foreign.rewriting import add_tensor, find_weights, load_part, rewrite, save_part

ALL = sorted((WRITERS | OTHERS).keys() - {"plain", "overcomplete"})  # which name theirs, and a whole module
W = draw_weights(4)


@pytest.mark.parametrize("format", ALL)
def test_a_tensor_that_is_not_known_is_refused(tmp_path: Path, format: str) -> None:
    place = write_dictionary(format, tmp_path, D_IN, D_SAE)
    load_sae(place)
    rewrite(place, "gain", torch.full((D_SAE,), 2.0))
    with pytest.raises(InputError, match=r"\bgain\b"):
        load_sae(place)


@pytest.mark.parametrize("name", ["norm_freq", "pre_scale_count", "input_mean_square", "cap_step"])
def test_a_tensor_that_sounds_like_a_count_is_refused(tmp_path: Path, name: str) -> None:
    place = write_dictionary("prisma", tmp_path, D_IN, D_SAE)
    rewrite(place, name, torch.full((D_SAE,), 2.0))
    with pytest.raises(InputError, match=f"it holds {name} "):
        load_sae(place)


@pytest.mark.parametrize("name", ["n_forward_passes_since_fired", "act_freq_scores", "num_updates", "sparsity"])
@pytest.mark.parametrize("format", ["saelens", "prisma", "saev", "msae", "clipscope", "visaebench"])
def test_what_a_training_has_counted_is_left(tmp_path: Path, format: str, name: str) -> None:
    place = write_dictionary(format, tmp_path, D_IN, D_SAE)
    before = load_sae(place)
    rewrite(place, name, torch.full((D_SAE,), 2.0))
    after = load_sae(place)
    assert all(before.state_dict()[part].equal(value) for part, value in after.state_dict().items())


TRAINING = {
    "normalize_sae_decoder": True,
    "noise_scale": 0.1,
    "lp_norm": 1,
    "jumprelu_bandwidth": 0.05,
    "dead_feature_threshold": 1e-6,
    "init_std": 0.02,
    "clip_model": "ViT-B/16",
    "clip_grad": 1.0,
}


def read(folder: Path, format: str, config: Mapping[str, Any]) -> None:
    """Read a dictionary whose configuration, a file or a part of the weights', says this too."""
    place = write_dictionary(format, folder, D_IN, D_SAE)
    file = next(place.glob("*.json"), None) or find_weights(place)
    part = load_part(file)
    part["content"].get("cfg", part["content"]).update(config)
    save_part(file, part)
    source = load_sae(place).origin.source
    assert source is not None
    assert source.format == format


@pytest.mark.parametrize("format", ["patchsae", "clipscope"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("normalize_activations", True), ("normalize_activations", "layer_norm"), ("activation_fn", "topk"),
        ("activation_fn_str", "tanh-relu"), ("use_relu", True), ("apply_b_dec_to_input", False), ("scale", 2.0),
    ],
)  # fmt: skip
def test_a_setting_that_changes_the_code_is_refused(tmp_path: Path, format: str, setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"says {setting}: "):
        read(tmp_path, format, {setting: value})


@pytest.mark.parametrize(
    ("format", "config"),
    [
        ("patchsae", {"architecture": "topk", "k": 6}), ("patchsae", {"architecture": "jumprelu"}),
        ("patchsae", {"unit_norm": True}), ("patchsae", {"l2_normalize": True}), ("patchsae", {"mean_center": True}),
        ("prisma", {"zero_mean": True}), ("saelens", {"transform": "log1p"}), ("saelens", {"input_scale": 2}),
        ("saelens", {"topk": 7}), ("patchsae", {"standardize": True}), ("prisma", {"input_std": [2.0]}),
        ("patchsae", {"std": 2.0}), ("prisma", {"clip": 5.0}), ("saelens", {"residual": True}),
        ("patchsae", {"unit": True}), ("prisma", {"l2": True}), ("saelens", {"hidden_act": "gelu"}),
        ("patchsae", {"is_gated": True}),
    ],
)  # fmt: skip
def test_a_setting_of_another_sae_is_refused(tmp_path: Path, format: str, config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"its configuration says {next(iter(config))}: "):
        read(tmp_path, format, config)


@pytest.mark.parametrize("format", ["patchsae", "prisma", "saelens"])
def test_settings_of_training_are_left(tmp_path: Path, format: str) -> None:
    read(tmp_path, format, TRAINING)


@pytest.mark.parametrize("format", ["patchsae", "clipscope"])
@pytest.mark.parametrize(
    "config", [{"normalize_activations": False}, {"normalize_activations": None, "scale": None}, {"lr": 1, "seed": 3}]
)
def test_a_setting_that_changes_nothing_is_none(tmp_path: Path, format: str, config: dict[str, Any]) -> None:
    read(tmp_path, format, config)


@pytest.mark.parametrize("setting", ["apply_b_dec_to_input", "subtract_b_dec", "use_bias", "pre_bias"])
def test_false_of_a_bias_is_no_setting_that_is_off(setting: str) -> None:
    refuse_settings({setting: False}, setting)
    with pytest.raises(InputError, match=f"says {setting}: False"):
        refuse_settings({setting: False}, subtracts_b_dec=True)
    if setting != "use_bias":
        refuse_settings({setting: False}, subtracts_b_dec=False)
        refuse_settings({setting: True}, subtracts_b_dec=True)
    refuse_settings({"b_dec_init_method": "mean", "bias_lr": 0.1, "normalize_activations": False})


@pytest.mark.parametrize(
    "said",
    [
        {"use_relu": False}, {"apply_relu": False}, {"activation_fn": "none"}, {"hidden_act": "none"},
        {"activation_type": "none"}, {"sae_activation": False}, {"relu_on_codes": False},
        {"apply_relu_to_codes": False}, {"nonlinearity": "None"}, {"encoder_activation_fn_str": "none"},
    ],
)  # fmt: skip
def test_an_activation_that_is_off_is_no_relu(said: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"says {next(iter(said))}: "):
        refuse_settings(said)
    refuse_settings(dict.fromkeys(said, None) | {"use_ghost_grads": False})


def test_false_of_what_is_no_activation_is_off() -> None:
    names = (
        "normalize_activation", "normalize_activations", "activation_store_on_gpu", "n_activations", "use_jumprelu",
        "use_jump_relu", "use_leaky_relu", "no_relu", "log_activation", "apply_activation_checkpointing", "activations",
        "scale_sae_activation", "activation_norm", "activation_fn_kwargs", "topk_relu", "use_jumprelu_activation",
    )  # fmt: skip
    refuse_settings(dict.fromkeys(names, False))
    refuse_settings(dict.fromkeys(names, "none"))


def test_a_relu_is_what_patchsae_has(tmp_path: Path) -> None:
    read(tmp_path, "patchsae", {"activation_fn": "relu", "activation_fn_str": "relu"})


@pytest.mark.parametrize(("factor", "is_read"), [(1.0, True), (1.5, False)])
def test_prisma_may_hold_factors_of_ones(tmp_path: Path, factor: float, is_read: bool) -> None:
    place = write_dictionary("prisma", tmp_path, D_IN, D_SAE)
    rewrite(place, "scaling_factor", torch.full((D_SAE,), factor))
    if is_read:
        load_sae(place)
        return
    with pytest.raises(InputError, match=r"it holds scaling_factor \[24\], and what is done with that is not known"):
        load_sae(place)


@pytest.mark.parametrize("format", ["saelens", "prisma", "jumprelu", "clipscope", "visaebench", "msae"])
def test_names_of_any_length_make_one_short_sentence(tmp_path: Path, format: str) -> None:
    place = write_dictionary(format, tmp_path, D_IN, D_SAE)
    part = load_part(file := find_weights(place))
    for i in range(300):
        assert add_tensor(part, f"{i}\n\x1b[31m{'x' * 900}", torch.ones(1))
    save_part(file, part)
    with pytest.raises(InputError) as caught:
        load_sae(place)
    assert len(str(caught.value)) < 6000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("format", ["saelens", "prisma"])
def test_a_setting_of_any_length_is_refused_at_once(tmp_path: Path, format: str) -> None:
    place = write_dictionary(format, tmp_path, D_IN, D_SAE)
    part = load_part(file := next(place.glob("*.json")))
    part["content"]["apply_" * 100_000] = True
    save_part(file, part)
    began = time.process_time()
    with pytest.raises(InputError, match="has a name of 600,000 letters, 'apply_"):
        load_sae(place)
    assert time.process_time() - began < 5
