"""explain_prediction: attributions against finite differences and ablation, what it refuses, and its figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import infoscope
from infoscope import InputError, explain_prediction
from infoscope.data.scenes.render import render_split_part
from infoscope.sae.activations import TopK, make_activation
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.planted import PlantedRegisters
from tests.support.shown import read_png

TEXTS = ["a cube", "a ball", "a star"]
LAYER = 2


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return infoscope.load_backbone("scenes_clip", progress=False)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render_split_part(0, "test", 0, 1, size_px=96)[0].image


def make_sae(backbone: Backbone, tokens: TokenChoice = TokenChoice.patch, layer: int = LAYER) -> SparseAutoencoder:
    sae = SparseAutoencoder(backbone.d_in, 24, make_activation("topk", {"k": 4}), scale=2.0, seed=3)
    sae.origin = Origin.of(backbone, layer, tokens)
    return sae.requires_grad_(False)


def compute_cosine(backbone: Backbone, tokens: Tokens, text: str) -> float:
    return float(backbone.embed_tokens(tokens, LAYER)[0] @ backbone.embed_texts([text])[0])


def test_attributions_are_derivatives_and_losses_are_ablations(backbone: Backbone, picture: np.ndarray) -> None:
    sae = make_sae(backbone)
    found = explain_prediction(backbone, sae, picture, TEXTS, n_latents=sae.d_sae)
    tokens = backbone.tokens(torch.from_numpy(picture).permute(2, 0, 1)[None], LAYER)
    z = sae.encode(tokens.patches[0])
    cosines = [compute_cosine(backbone, tokens, text) for text in TEXTS]
    assert found.text == int(np.argmax(cosines))
    assert found.cosine == pytest.approx(max(cosines), abs=1e-5)
    expected = torch.softmax(backbone.logit_scale * torch.tensor(cosines), dim=0)
    np.testing.assert_allclose(found.probabilities, expected.numpy(), atol=1e-4)
    assert set(found.latents.tolist()) == set(z.sum(0).nonzero()[:, 0].tolist())
    assert (found.n_active, found.layer) == (len(found.latents), LAYER)
    assert (np.diff(found.attributions) <= 0).all()
    assert found.total == pytest.approx(float(found.attributions.sum()), abs=1e-5)
    np.testing.assert_allclose(found.maps.sum((1, 2)), found.attributions, atol=1e-5)
    step = 0.02
    for latent, attribution, loss in list(zip(found.latents, found.attributions, found.losses, strict=True))[:3]:
        wrote = z[:, latent, None] * sae.W_dec[latent] / sae.scale
        without = [tokens._replace(patches=tokens.patches - share * wrote) for share in (1.0, step, -step)]
        all_of_it, less, more = (compute_cosine(backbone, one, TEXTS[found.text]) for one in without)
        assert loss == pytest.approx(max(cosines) - all_of_it, abs=1e-5)
        assert attribution == pytest.approx((more - less) / (2 * step), abs=2e-4)


def test_another_text_and_tokens_before_the_patches(backbone: Backbone, picture: np.ndarray) -> None:
    first = explain_prediction(backbone, make_sae(backbone), picture, TEXTS, text=0, n_latents=3)
    alone = explain_prediction(backbone, make_sae(backbone), picture, "a cube", n_latents=3)
    assert (first.text, alone.texts, alone.probabilities.tolist()) == (0, ("a cube",), [1.0])
    np.testing.assert_allclose(first.attributions, alone.attributions, rtol=1e-4)
    assert str(alone).startswith("PredictionLatents('a cube': cosine ")
    assert "probability" in str(first)
    both = explain_prediction(backbone, make_sae(backbone, TokenChoice.all), picture, TEXTS, n_latents=24)
    assert both.maps.shape == (len(both.latents), backbone.grid, backbone.grid)
    assert not np.allclose(both.maps.sum((1, 2)), both.attributions, atol=1e-4)  # CLS has a part in it
    cls = explain_prediction(backbone, make_sae(backbone, TokenChoice.cls), picture, TEXTS)
    assert cls.attributions.any()
    assert not cls.maps.any()


def test_a_picture_in_which_nothing_fires_has_no_latents(backbone: Backbone, picture: np.ndarray) -> None:
    silent = SparseAutoencoder(backbone.d_in, 24, make_activation("relu", {}))
    torch.nn.init.zeros_(silent.W_enc)
    found = explain_prediction(backbone, silent.requires_grad_(False), picture, TEXTS, layer=LAYER)
    assert (found.n_active, found.total, found.maps.shape) == (0, 0.0, (0, backbone.grid, backbone.grid))
    assert len(found.figure().axes) == 1


def test_pooled_embeddings_have_attributions_and_no_place(backbone: Backbone, picture: np.ndarray) -> None:
    pooled = backbone.read_at("pooled")
    found = explain_prediction(pooled, make_sae(pooled, layer=-1), picture, TEXTS)
    assert found.maps.shape == (len(found.latents), 1, 1)
    np.testing.assert_allclose(found.maps[:, 0, 0], found.attributions, atol=1e-6)
    with pytest.raises(InputError, match="of the whole picture"):
        found.figure()
    assert found._repr_png_() is None  # a notebook prints it then
    with pytest.raises(InputError, match=r'reads pooled embeddings, .* \(from Python backbone\.read_at\("pooled"\)\)'):
        explain_prediction(backbone, make_sae(pooled, layer=-1), picture, TEXTS)


def test_the_figure_shows_the_picture_and_each_map(backbone: Backbone, picture: np.ndarray) -> None:
    found = explain_prediction(backbone, make_sae(backbone), picture, TEXTS, n_latents=3)
    figure = found.figure({int(found.latents[1]): "sky"})
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]
    assert read_png(found).shape == (308, 720, 3)
    assert read_png(figure).shape == (332, 720, 3)  # a line more
    assert titles[0] == TEXTS[found.text]
    assert titles[1].startswith(f"{found.latents[0]}: {found.attributions[0]:+.4f} (")
    assert [title.endswith("\nsky") for title in titles] == [False, False, True, False]
    with pytest.raises(InputError, match="Expected labels= to be a dict"):
        found.figure(["sky"])  # pyright: ignore[reportArgumentType]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"texts": []}, r"Expected texts= to hold at least one sentence, got none"),
    "no sentences": ({"texts": [1, 2]}, "Expected texts to be"),
    "another text": ({"text": 3}, r"Expected text= to be a position in 0\.\.2 of texts=, got 3"),
    "no latents": ({"n_latents": 0}, "Expected n_latents to be at least 1, got 0"),
    "unknown words": ({"texts": "a zebra"}, r"Expected texts= .*'zebra'"),
    "other layer": ({"layer": 1}, "This SAE was trained on the tokens after block 2"),
    "no file": ({"image": "nowhere.png"}, r"Cannot read the picture nowhere.png"),
    "other option": ({"classes": 3}, r"explain_prediction takes no option 'classes'"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_is_one_sentence(backbone: Backbone, picture: np.ndarray, name: str) -> None:
    given, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        explain_prediction(backbone, make_sae(backbone), **{"image": picture, "texts": TEXTS, **given})


def test_models_and_tokens_without_a_prediction_are_refused(backbone: Backbone, picture: np.ndarray) -> None:
    planted = PlantedRegisters(grid=6, patch_px=4, d_in=32)
    with pytest.raises(InputError, match="text tower"):
        explain_prediction(planted, SparseAutoencoder(32, 40, TopK(4)), picture, TEXTS, layer=0)
    last = backbone.n_layers - 1
    with pytest.raises(InputError, match="Predictions need a block after the hooked one"):
        explain_prediction(backbone, make_sae(backbone, layer=last), picture, TEXTS)
