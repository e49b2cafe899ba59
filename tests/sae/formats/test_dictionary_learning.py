"""dictionary_learning: seven classes, by config.json or by their tensors, and the backups of unfinished trainings."""

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
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    Array,
    K,
    Reference,
    Weights,
    compute,
    draw_tokens,
    draw_vector,
    draw_weights,
    get_source,
    measure_deviation,
    relu,
    topk,
)
from tests.support.foreign.files import make_state, save

State = dict[str, torch.Tensor]
THRESHOLD = 0.8
THRESHOLDS = draw_vector(2, -0.3, 1.5)
THRESHOLDS[:3] = 0
GATE, MAGNITUDE, SCALES = (draw_vector(seed, -0.5, 0.5) for seed in (4, 5, 6))


def linear(w: Weights, **more: Any) -> State:
    names = {"encoder__weight": w.tensor("W_enc", True), "decoder__weight": w.tensor("W_dec", True)}
    return make_state(**names, **more)


def above(limit: Any) -> Callable[[Array], Array]:
    return lambda a: relu(a) * (a > np.maximum(np.float64(limit), 0))


def make_standard(w: Weights) -> tuple[State, Reference]:
    z, x_hat = compute(w)
    return linear(w, encoder__bias=w["b_enc"], bias=w["b_dec"]), Reference(
        z * np.linalg.norm(w.double("W_dec"), axis=1), x_hat
    )


def make_new(w: Weights) -> tuple[State, Reference]:
    return linear(w, encoder__bias=w["b_enc"], decoder__bias=w["b_dec"]), compute(w, subtract=False)


def make_gated(w: Weights) -> tuple[State, Reference]:
    state = linear(w, decoder_bias=w["b_dec"], gate_bias=GATE, mag_bias=MAGNITUDE, r_mag=SCALES)
    without = Weights({**w, "b_enc": np.zeros_like(w["b_enc"])})
    gate, magnitude, scale = (values.astype(np.float64) for values in (GATE, MAGNITUDE, np.exp(SCALES.astype(float))))
    return state, compute(without, lambda a: (a + gate > 0) * relu(a * scale + magnitude))


def make_jumprelu(w: Weights) -> tuple[State, Reference]:
    return make_state(**w, threshold=THRESHOLDS), compute(w, above(THRESHOLDS), subtract=False)


def make_topk(w: Weights) -> tuple[State, Reference]:
    state = linear(w, encoder__bias=w["b_enc"], b_dec=w["b_dec"], k=torch.tensor(K), threshold=torch.tensor(THRESHOLD))
    return state, compute(w, lambda a: topk(relu(a)))


def make_batchtopk(w: Weights) -> tuple[State, Reference]:
    return make_topk(w)[0], compute(w, above(np.float32(THRESHOLD)))


def make_matryoshka(w: Weights) -> tuple[State, Reference]:
    numbers = {"k": torch.tensor(K), "threshold": torch.tensor(THRESHOLD), "group_sizes": torch.tensor([2, 4, 18])}
    return make_state(**w, **numbers), compute(w, above(np.float32(THRESHOLD)))


MAKERS = {
    "AutoEncoder": (make_standard, "relu"),
    "AutoEncoderNew": (make_new, "relu"),
    "GatedAutoEncoder": (make_gated, "gated"),
    "JumpReluAutoEncoder": (make_jumprelu, "jumprelu"),
    "AutoEncoderTopK": (make_topk, "topk"),
    "BatchTopKSAE": (make_batchtopk, "batchtopk"),
    "MatryoshkaBatchTopKSAE": (make_matryoshka, "matryoshka_prefix"),
}


def configure(cls: str, **more: Any) -> dict[str, Any]:
    sizes = {"activation_dim": D_IN, "dict_size": D_SAE}
    return {"trainer": {"dict_class": cls, **sizes, **more}, "buffer": {"d_submodule": D_IN}}


@pytest.mark.parametrize("cls", MAKERS)
def test_class_by_configuration(tmp_path: Path, cls: str) -> None:
    maker, kind = MAKERS[cls]
    state, reference = maker(draw_weights(1, unit_rows=False))
    about = {"layer": 5, "lm_name": "openai/clip-vit-base-patch16", "submodule_name": "resid_post_layer_5"}
    sae = load_sae(save(tmp_path / "ae.pt", state, configure(cls, **about)).parent)
    assert measure_deviation(sae, reference) < 1e-6
    assert (get_source(sae).format, get_source(sae).kind) == ("dictionary_learning", kind)
    assert (sae.origin.layer, sae.origin.site, get_source(sae).backbone) == (5, "resid_post", about["lm_name"])


@pytest.mark.parametrize("cls", ["AutoEncoder", "GatedAutoEncoder"])
def test_class_by_tensors_that_no_other_has(tmp_path: Path, cls: str) -> None:
    maker, kind = MAKERS[cls]
    state, reference = maker(draw_weights(2, unit_rows=False))
    sae = load_sae(save(tmp_path / "ae.pt", state))
    assert measure_deviation(sae, reference) < 1e-6
    assert (get_source(sae).format, get_source(sae).kind) == ("dictionary_learning", kind)
    (warning,) = get_source(sae).warnings
    assert f"taken for a {cls} of dictionary_learning, of kind {kind}, with b_dec subtracted" in warning


@pytest.mark.parametrize(("cls", "others"), [("AutoEncoderNew", "linear layers"), ("JumpReluAutoEncoder", "saelens")])
@pytest.mark.parametrize("name", ["ae.pt", "sae_weights.safetensors"])
def test_tensors_that_others_have_too_need_a_configuration_or_the_format(
    tmp_path: Path, cls: str, others: str, name: str
) -> None:
    state, reference = MAKERS[cls][0](draw_weights(2, unit_rows=False))
    file = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(
        {name: tensor.contiguous() for name, tensor in state.items()}, file
    )
    for path in (file, tmp_path):
        with pytest.raises(InputError, match=rf"a {cls} of dictionary_learning .*{others}.*give format=\"dictionary"):
            load_sae(path)
    sae = load_sae(file, format="dictionary_learning")
    assert measure_deviation(sae, reference) < 1e-6
    assert "b_dec not subtracted" in get_source(sae).warnings[0]
    (tmp_path / "config.json").write_text(json.dumps(configure(cls)))
    sae = load_sae(file)
    assert measure_deviation(sae, reference) < 1e-6
    assert not get_source(sae).warnings


@pytest.mark.parametrize(
    ("submodule", "site"),
    [
        ("resid_post_layer_5", "resid_post"), ("mlp_out_layer_5", "mlp_out"), ("attn_out", "attn_out"),
        ("resid_pre_layer_5", "resid_pre"), ("h.5.mlp", "h.5.mlp"), ("", None), (None, None), (7, None),
    ],
)  # fmt: skip
def test_place_in_the_block_keeps_its_name(tmp_path: Path, submodule: Any, site: str | None) -> None:
    state, _ = make_topk(draw_weights(3))
    config = configure("AutoEncoderTopK", submodule_name=submodule, layer=5)
    origin = load_sae(save(tmp_path / "ae.pt", state, config)).origin
    assert (origin.layer, origin.site) == (5, site)


def test_prefixes_are_sums_of_groups(tmp_path: Path) -> None:
    state, _ = make_matryoshka(draw_weights(1))
    sae = load_sae(save(tmp_path / "ae.pt", state, configure("MatryoshkaBatchTopKSAE")))
    assert get_source(sae).facts["prefix_sizes"] == [2, 6, 24]
    assert get_source(sae).facts["threshold"] == pytest.approx(THRESHOLD)
    assert get_source(sae).facts["k"] == K
    state["group_sizes"] = torch.tensor([2, 4])
    with pytest.raises(InputError, match=r"add up to 24 latents, found \[2, 4\]"):
        load_sae(save(tmp_path / "ae.pt", state))


def test_old_topk_takes_k_from_the_configuration_or_the_settings(tmp_path: Path) -> None:
    state, reference = make_topk(draw_weights(3))
    old = {name: tensor for name, tensor in state.items() if name not in ("k", "threshold")}
    configured = save(tmp_path / "configured/ae.pt", old, configure("AutoEncoderTopK", k=K))
    bare = save(tmp_path / "bare/ae.pt", old)
    assert measure_deviation(load_sae(configured), reference) < 1e-6
    with pytest.raises(InputError, match=r"how many latents are active: give k="):
        load_sae(bare)
    assert measure_deviation(load_sae(bare, k=K), reference) < 1e-6
    with pytest.raises(InputError, match=r"says k=4, got k=7"):
        load_sae(configured, k=7)


def test_checkpoint_of_a_training_has_its_configuration_a_folder_above(tmp_path: Path) -> None:
    state, reference = make_batchtopk(draw_weights(3))
    save(tmp_path / "trainer_0/ae.pt", state, configure("BatchTopKSAE", k=K))
    sae = load_sae(save(tmp_path / "trainer_0/checkpoints/ae_500.pt", state))
    assert measure_deviation(sae, reference) < 1e-6
    assert get_source(sae).format == "dictionary_learning"


def test_two_values_of_k_are_refused(tmp_path: Path) -> None:
    state, _ = make_topk(draw_weights(3))
    with pytest.raises(InputError, match="weights say k=4, and its configuration k=7"):
        load_sae(save(tmp_path / "ae.pt", state, configure("AutoEncoderTopK", k=7)))


@pytest.mark.parametrize("cls", MAKERS)
def test_backup_of_a_training_is_in_normalised_units(tmp_path: Path, cls: str) -> None:
    """The reference: the SAE itself on tokens over the factor, its code and tokens in raw units."""
    factor = 3.0
    small = draw_weights(4, unit_rows=False)
    raw = Weights({**small, "b_enc": small["b_enc"] * factor, "b_dec": small["b_dec"] * factor})
    maker, _ = MAKERS[cls]
    inner, reference = maker(small)[0], maker(raw)[1]
    if cls in ("GatedAutoEncoder", "JumpReluAutoEncoder"):  # as their references have constants of their own
        names = ("gate_bias", "mag_bias") if cls == "GatedAutoEncoder" else ("threshold",)
        inner |= {name: inner[name] / factor for name in names}
    elif "threshold" in inner:
        inner["threshold"] = inner["threshold"] / factor
    backup = {"step": 100, "ae": inner, "optimizer": {"state": {}}, "config": configure(cls)["trainer"]}
    sae = load_sae(save(tmp_path / "ae.pt", {**backup, "norm_factor": factor}))
    assert measure_deviation(sae, reference) < 2e-6


def test_threshold_that_was_never_tracked_is_none_in_any_units(tmp_path: Path) -> None:
    state, _ = make_batchtopk(draw_weights(5))
    state["threshold"] = torch.tensor(-1.0)
    w = draw_weights(5)
    scaled = Weights({**w, "b_enc": w["b_enc"] * 2, "b_dec": w["b_dec"] * 2})
    backup = {"step": 1, "ae": state, "config": configure("BatchTopKSAE")["trainer"], "norm_factor": 2.0}
    sae = load_sae(save(tmp_path / "ae.pt", backup))
    assert measure_deviation(sae, compute(scaled)) < 1e-6
    assert get_source(sae).facts["threshold"] == -1
    assert "never tracked" in get_source(sae).warnings[0]


def test_batchtopk_without_threshold_needs_one(tmp_path: Path) -> None:
    state, reference = make_batchtopk(draw_weights(5))
    del state["threshold"]
    file = save(tmp_path / "ae.pt", state, configure("BatchTopKSAE"))
    with pytest.raises(InputError, match=r"no threshold.*give threshold="):
        load_sae(file)
    assert measure_deviation(load_sae(file, threshold=float(np.float32(THRESHOLD))), reference) < 1e-6


def test_dead_row_stays_dead(tmp_path: Path) -> None:
    w = draw_weights(6, unit_rows=False)
    w["W_dec"][3] = 0
    sae = load_sae(save(tmp_path / "ae.pt", make_standard(w)[0]))
    z = sae.encode(torch.from_numpy(draw_tokens()))
    assert not sae.W_dec[3].any()
    assert not z[:, 3].any()
    assert z.isfinite().all()


@pytest.mark.parametrize(
    ("change", "config", "match"),
    [
        ({}, configure("IdentityDict"), "'IdentityDict', which is not read"),
        ({}, configure("AutoEncoderNew"), "has the tensors .* found bias \\[8\\] too"),
        ({"encoder.weight": torch.zeros(D_SAE, 5)}, None, r"found \[24, 5\] and \[8, 24\]\."),
        ({"encoder.bias": torch.zeros(5)}, None, r"encoder bias \[24\], found \[5\]"),
        ({}, {"trainer": {"dict_class": "AutoEncoder", "activation_dim": 9}}, r"activation_dim=9 .* is \[8, 24\]"),
        ({"encoder.bias": torch.full((D_SAE,), torch.nan)}, None, "NaN or Inf in b_enc"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, change: State, config: dict[str, Any] | None, match: str) -> None:
    state = make_standard(draw_weights(7))[0] | change
    with pytest.raises(InputError, match=match):
        load_sae(save(tmp_path / "ae.pt", state, config))


def test_norm_factor_must_be_a_number(tmp_path: Path) -> None:
    state, _ = make_new(draw_weights(8))
    backup = {"step": 1, "ae": state, "config": {}, "norm_factor": -1.0}
    with pytest.raises(InputError, match="norm_factor to be a number above 0, found -1"):
        load_sae(save(tmp_path / "ae.pt", backup))


@pytest.mark.parametrize(("cls", "subtracts"), [("AutoEncoder", True), ("AutoEncoderNew", False)])
def test_a_setting_of_the_bias_must_say_what_the_class_does(tmp_path: Path, cls: str, subtracts: bool) -> None:
    state, reference = MAKERS[cls][0](draw_weights(8, unit_rows=False))
    file = save(tmp_path / "ae.pt", state, configure(cls, subtract_b_dec=subtracts))
    assert measure_deviation(load_sae(file), reference) < 1e-6
    file = save(tmp_path / "ae.pt", state, configure(cls, subtract_b_dec=not subtracts))
    with pytest.raises(InputError, match=f"says subtract_b_dec: {not subtracts}"):
        load_sae(file)


@pytest.mark.parametrize(
    "sizes", [torch.tensor([-D_SAE, 2 * D_SAE]), torch.tensor([0, D_SAE]), torch.tensor([4.0, D_SAE - 4.0])]
)
def test_group_sizes_are_whole_numbers_above_0(tmp_path: Path, sizes: torch.Tensor) -> None:
    state = make_state(**draw_weights(3), k=torch.tensor(K), threshold=torch.tensor(0.5), group_sizes=sizes)
    with pytest.raises(InputError, match="Expected group_sizes to be whole numbers above 0 that add up to 24"):
        load_sae(save(tmp_path / "ae.pt", state, {"trainer": {"dict_class": "MatryoshkaBatchTopKSAE"}}))
