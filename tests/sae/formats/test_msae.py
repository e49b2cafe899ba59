"""MSAE: the name of the file is its configuration, its statistics lie in the file, its full code knows no k."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenNorm
from infoscope.sae.loading import load_sae
from infoscope.vision.hooks import POOLED
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    Array,
    K,
    Reference,
    Weights,
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
from tests.support.foreign.files import make_state, save

ENDING = "cc3m_ViT-L~14_train_image_100_8"
MEAN = draw_tokens().mean(0)
SCALE = 0.37
LOGS = draw_vector(3, -1.0, 0.5)


def name_file(act: str, tied: bool = False, normalise: bool = False, cap: float = 0.0, ending: str = ENDING) -> str:
    return f"{D_SAE}_{D_IN}_{act}_{tied}_{normalise}_{cap}_{ending}.pth"


def write(folder: Path, name: str, w: Weights, tied: bool = False, **more: Any) -> Path:
    """Write a file as its training does; `target_norm` is a number of numpy's there."""
    state = make_state(pre_bias=w["b_dec"], encoder=w["W_enc"], latent_bias=w["b_enc"], **more)
    if not tied:
        state["decoder"] = w.tensor("W_dec")
    content = {"model": state, "mean_center": torch.from_numpy(MEAN), "scaling_factor": SCALE}
    return save(folder / name, {**content, "target_norm": np.sqrt(D_IN)})


def compute(
    w: Weights, act: Callable[[Array], Array] = relu, norm: Any = no_norm, cap: float = 0.0, tied: bool = False
) -> Reference:
    x = (draw_tokens().astype(np.float64) - MEAN) * SCALE
    x_n, back = norm(x)
    z = act((x_n - w.double("b_dec")) @ w.double("W_enc") + w.double("b_enc"))
    z = cap * np.tanh(z / cap) if cap else z
    decoder = w.double("W_enc").T if tied else w.double("W_dec")
    return Reference(z, back(z @ decoder + w.double("b_dec")) / SCALE + MEAN)


KINDS = {"ReLU_003": "relu", "TopKReLU_4": "topk", "BatchTopKReLU_4": "batchtopk", "TopKReLU_4_UW": "matryoshka_k"}


@pytest.mark.parametrize(("act", "kind"), KINDS.items())
def test_full_code_is_a_relu_without_k(tmp_path: Path, act: str, kind: str) -> None:
    w = draw_weights(1)
    sae = load_sae(write(tmp_path, name_file(act), w))
    assert measure_deviation(sae, compute(w)) < 1e-6
    assert (get_source(sae).format, get_source(sae).kind, sae.origin.site) == ("msae", kind, POOLED)
    assert get_source(sae).backbone == "ViT-L/14"
    assert get_source(sae).facts["modality"] == "image"
    assert get_source(sae).facts["dataset"] == "cc3m"


def test_levels_double_from_the_first_to_all(tmp_path: Path) -> None:
    sae = load_sae(write(tmp_path, name_file("TopKReLU_4_RW"), draw_weights(1)))
    assert get_source(sae).facts["levels"] == [4, 8, 16, 24]
    assert get_source(sae).facts["weighting"] == "RW"


@pytest.mark.parametrize("act", ["ReLU_003", "TopKReLU_4", "BatchTopKReLU_4", "TopKReLU_4_RW"])
def test_k_keeps_the_largest(tmp_path: Path, act: str) -> None:
    w = draw_weights(2)
    sae = load_sae(write(tmp_path, name_file(act), w), k=K)
    assert measure_deviation(sae, compute(w, lambda a: topk(relu(a)))) < 1e-6


def test_cap_comes_after_k(tmp_path: Path) -> None:
    w = draw_weights(3)
    sae = load_sae(write(tmp_path, name_file("TopKReLU_4", cap=2.0), w), k=K)
    reference = compute(w, lambda a: topk(relu(a)), cap=2.0)
    assert reference.z.max() > 1  # so that the cap shows
    assert measure_deviation(sae, reference) < 1e-6


def test_each_token_is_normalised_if_the_name_says_so(tmp_path: Path) -> None:
    w = draw_weights(4)
    sae = load_sae(write(tmp_path, name_file("ReLU_03", normalise=True, cap=30.0), w))
    assert sae.token_norm is TokenNorm.layer_norm
    assert measure_deviation(sae, compute(w, norm=layer_norm, cap=30.0)) < 1e-6


def test_tied_decoder_is_the_encoder(tmp_path: Path) -> None:
    w = draw_weights(5)
    sae = load_sae(write(tmp_path, name_file("ReLU_03", tied=True), w, tied=True))
    assert measure_deviation(sae, compute(w, tied=True)) < 1e-6


def test_thresholds_are_logarithms(tmp_path: Path) -> None:
    w = draw_weights(6)
    both = {"activation__log_threshold": LOGS, "dead_activations__log_threshold": LOGS}  # one module, saved twice
    sae = load_sae(write(tmp_path, name_file("JumpReLU"), w, **both))
    limit = np.exp(LOGS.astype(np.float64))
    assert measure_deviation(sae, compute(w, lambda a: relu(a) * (relu(a) > limit))) < 1e-6
    assert get_source(sae).kind == "jumprelu"


@pytest.mark.parametrize("act", ["TopK_4", "BatchTopK_4", "TopK_4_UW"])
def test_code_without_relu_needs_k(tmp_path: Path, act: str) -> None:
    w = draw_weights(7)
    w["b_enc"] -= 4
    file = write(tmp_path, name_file(act), w)
    with pytest.raises(InputError, match=r"negative ones too.*k="):
        load_sae(file)
    sae = load_sae(file, k=K)
    reference = compute(w, topk)
    assert (reference.z < 0).any()
    assert sae.activation.is_signed
    assert measure_deviation(sae, reference) < 1e-6


def test_renamed_file_needs_its_kind(tmp_path: Path) -> None:
    w = draw_weights(8)
    file = write(tmp_path, "clip_sae.pth", w)
    with pytest.raises(InputError, match=r"kind= .*soft_cap="):
        load_sae(file)
    sae = load_sae(file, kind="matryoshka_k", soft_cap=2.0)
    assert measure_deviation(sae, compute(w, cap=2.0)) < 1e-6
    assert get_source(sae).kind == "matryoshka_k"
    assert "capped at 2" in get_source(sae).warnings[0]
    assert "not capped" in get_source(load_sae(file, kind="relu")).warnings[0]
    normalised = load_sae(file, kind="relu", token_norm="layer_norm")
    assert measure_deviation(normalised, compute(w, norm=layer_norm)) < 1e-6
    assert "a layer norm of each token" in get_source(normalised).warnings[0]
    with pytest.raises(InputError, match="constant_norm"):
        load_sae(file, kind="relu", token_norm="constant_norm")
    with pytest.raises(InputError, match=r"no tensor activation\.log_threshold"):
        load_sae(file, kind="jumprelu")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (name_file("TopKabsReLU_4"), "TopKabsReLU.*not read"),
        (name_file("Identity"), "Identity.*not read"),
        (name_file("ReLU_03", tied=True), "tied is True, and it has a decoder"),
        (name_file("ReLU_03").replace("24_8", "48_8", 1), r"d_in=8 and d_sae=48, W_enc is \[8, 24\]"),
    ],
)
def test_name_that_contradicts_the_file_is_refused(tmp_path: Path, name: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_sae(write(tmp_path, name, draw_weights(9)))


def test_what_the_name_says_is_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"soft_cap=30.*not read"):
        load_sae(write(tmp_path, name_file("ReLU_03"), draw_weights(9)), soft_cap=30.0)


def test_statistics_that_are_none_are_refused(tmp_path: Path) -> None:
    w = draw_weights(9)
    content = torch.load(write(tmp_path, name_file("ReLU_03"), w), weights_only=False)
    content["scaling_factor"] = 0.0
    with pytest.raises(InputError, match="scaling_factor to be a number above 0, found 0"):
        load_sae(save(tmp_path / "zero" / name_file("ReLU_03"), content))
