"""sae-for-vlm: dictionary_learning's tensors, in folders whose names say what they were trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.loading import load_sae
from infoscope.vision.hooks import POOLED
from tests.support.foreign.arrays import K, Weights, compute, draw_weights, get_source, measure_deviation, relu, topk
from tests.support.foreign.files import make_state, save

CLIP = "clip-vit-large-patch14-336"
THRESHOLD = 0.8


def make_batch(w: Weights, threshold: float = THRESHOLD) -> dict[str, torch.Tensor]:
    """Return the tensors of a BatchTopK SAE, or of a top-k SAE: they are the same."""
    return make_state(
        b_dec=w["b_dec"], k=torch.tensor(K), threshold=torch.tensor(threshold), encoder__weight=w.tensor("W_enc", True),
        encoder__bias=w["b_enc"], decoder__weight=w.tensor("W_dec", True),
    )  # fmt: skip


def make_matryoshka(w: Weights, threshold: float = THRESHOLD) -> dict[str, torch.Tensor]:
    numbers = {"k": torch.tensor(K), "threshold": torch.tensor(threshold), "group_sizes": torch.tensor([6, 6, 12])}
    return make_state(**w, **numbers)


def place(folder: Path, model: str, layer: int, site: str, kind: str, above: str = "") -> Path:
    name = f"imagenet_train_activations_{model}_{layer}_{site}_{kind}_20_x3"
    return folder / above / name / "trainer_0/checkpoints/ae_100000.pt"


def above_threshold(a: np.ndarray) -> np.ndarray:
    return relu(a) * (a > np.float32(THRESHOLD))


@pytest.mark.parametrize("kind", ["batch_top_k", "matroyshka_batch_top_k"])
def test_folder_says_what_it_was_trained_on(tmp_path: Path, kind: str) -> None:
    w = draw_weights(1)
    state = make_batch(w) if kind == "batch_top_k" else make_matryoshka(w)
    sae = load_sae(save(place(tmp_path, CLIP, 22, "post_mlp_residual", kind), state))
    assert measure_deviation(sae, compute(w, above_threshold)) < 1e-6
    source = get_source(sae)
    assert (source.format, source.kind) == (
        "sae_for_vlm",
        "batchtopk" if kind == "batch_top_k" else "matryoshka_prefix",
    )
    assert (sae.origin.layer, sae.origin.site, sae.origin.tokens) == (22, "resid_post", TokenChoice.cls)
    assert source.backbone == f"openai/{CLIP}"
    assert source.facts["k"] == K
    assert source.facts["dataset"] == "imagenet"
    assert source.facts.get("prefix_sizes") == (None if kind == "batch_top_k" else [6, 12, 24])


def test_post_projection_is_pooled_and_an_untracked_threshold_is_relu(tmp_path: Path) -> None:
    w = draw_weights(2)
    file = place(tmp_path, "siglip-so400m-patch14-384", -1, "post_projection", "batch_top_k")
    sae = load_sae(save(file, make_batch(w, -1.0)).parents[3])
    assert measure_deviation(sae, compute(w)) < 1e-6
    assert (sae.origin.layer, sae.origin.site) == (None, POOLED)
    assert get_source(sae).backbone == "google/siglip-so400m-patch14-384"
    assert get_source(sae).facts["threshold"] == -1
    assert "never tracked" in get_source(sae).warnings[0]


def test_random_tokens_are_of_the_whole_image(tmp_path: Path) -> None:
    file = place(tmp_path, CLIP, 22, "post_mlp_residual", "matroyshka_batch_top_k", "random_k_2")
    assert load_sae(save(file, make_matryoshka(draw_weights(3)))).origin.tokens is TokenChoice.all


@pytest.mark.parametrize("name", ["matroyshka_batch_top_k_20_x3", "batch_top_k_20_x3", "top_k_20_x3"])
def test_short_name_of_a_folder_says_the_kind(tmp_path: Path, name: str) -> None:
    w = draw_weights(4)
    state = make_matryoshka(w) if "matroyshka" in name else make_batch(w)
    sae = load_sae(save(tmp_path / name / "ae.pt", state))
    act = (lambda a: topk(relu(a))) if name.startswith("top_k") else above_threshold
    assert measure_deviation(sae, compute(w, act)) < 1e-6
    assert get_source(sae).format == "sae_for_vlm"


def test_bare_batchtopk_may_be_a_topk(tmp_path: Path) -> None:
    w = draw_weights(5)
    file = save(tmp_path / "ae_100.pt", make_batch(w))
    with pytest.raises(InputError, match=r"same tensors.*give kind= \(batchtopk or topk\)"):
        load_sae(file)
    assert measure_deviation(load_sae(file, kind="batchtopk"), compute(w, above_threshold)) < 1e-6
    assert measure_deviation(load_sae(file, kind="topk"), compute(w, lambda a: topk(relu(a)))) < 1e-6


def test_bare_matryoshka_is_what_its_tensors_are(tmp_path: Path) -> None:
    w = draw_weights(6)
    sae = load_sae(save(tmp_path / "ae_100.pt", make_matryoshka(w)))
    assert measure_deviation(sae, compute(w, above_threshold)) < 1e-6
    assert (get_source(sae).format, get_source(sae).kind) == ("sae_for_vlm", "matryoshka_prefix")
    assert (sae.origin.layer, sae.origin.site, sae.origin.tokens) == (None, None, None)


def test_folder_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "matroyshka_batch_top_k_20_x3/ae.pt", make_batch(draw_weights(7)))
    with pytest.raises(
        InputError, match=r"matroyshka_batch_top_k, and it has tensors of AutoEncoderTopK, BatchTopKSAE"
    ):
        load_sae(file)


@pytest.mark.parametrize(
    "name", ["imagenet-batch_top_k_20_x4", "clip_l14-batch_top_k_20_x4", "BATCH_top_k_20_x4", "my_batch_top_k_20_x4"]
)
def test_longest_kind_that_the_name_ends_in_counts(tmp_path: Path, name: str) -> None:
    w = draw_weights(8)
    sae = load_sae(save(tmp_path / name / "ae.pt", make_batch(w)))
    assert measure_deviation(sae, compute(w, above_threshold)) < 1e-6


@pytest.mark.parametrize(
    "name",
    [
        *("batch-top_k_20_x4", "minibatch_top_k_20_x4", "matryoshka_batch_top_k_20_x4", "BatchTopK_20_x4"),
        f"imagenet_train_activations_{CLIP}_22_post_mlp_minibatch_top_k_20_x4",
    ],
)
def test_kind_spelt_otherwise_must_be_given(tmp_path: Path, name: str) -> None:
    w = draw_weights(9)
    file = save(tmp_path / name / "ae.pt", make_batch(w))
    with pytest.raises(InputError, match=r"give kind= \(batchtopk or topk\)"):
        load_sae(file)
    assert measure_deviation(load_sae(file, kind="batchtopk"), compute(w, above_threshold)) < 1e-6
