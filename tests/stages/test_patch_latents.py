"""explain_patch: what it returns of every way to give a picture, what it refuses, and its figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infoscope import InputError, explain_patch
from infoscope.data.images import resize_image
from infoscope.sae.activations import TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.vision.backbone import Backbone
from infoscope.vision.hooks import POOLED
from infoscope.vision.planted import PlantedRegisters
from tests.support.shown import read_png

GRID, PATCH_PX = 6, 4


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return PlantedRegisters(grid=GRID, patch_px=PATCH_PX, d_in=32)


@pytest.fixture(scope="module")
def sae(backbone: Backbone) -> SparseAutoencoder:
    sae = SparseAutoencoder(32, 40, TopK(4)).requires_grad_(False)
    sae.origin = Origin.of(backbone, 0, TokenChoice.patch)
    return sae


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (26, 30, 3), dtype=np.uint8)


def test_the_latents_are_those_of_the_patch(backbone: Backbone, sae: SparseAutoencoder, picture: np.ndarray) -> None:
    found = explain_patch(backbone, sae, picture, 2, 3, n_latents=3)
    size_px = GRID * PATCH_PX
    np.testing.assert_array_equal(found.picture, resize_image(Image.fromarray(picture), size_px))
    tokens = backbone.tokens(torch.from_numpy(found.picture).permute(2, 0, 1)[None], 0)
    z = sae.encode(tokens.patches[0]).view(GRID, GRID, -1).numpy()
    assert z[2, 3, found.latents].tolist() == found.activations.tolist()
    np.testing.assert_array_equal(found.maps, z[..., found.latents].transpose(2, 0, 1))
    assert (np.diff(found.contributions) <= 0).all()
    assert (len(found.latents), found.n_active, found.layer) == (3, 4, 0)
    assert str(found).startswith("PatchLatents(4 latents fire on patch (2, 3), ")


def test_a_picture_is_given_in_any_way(
    backbone: Backbone, sae: SparseAutoencoder, picture: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    Image.fromarray(picture).save(file)
    given = [file, str(file), Image.fromarray(picture), torch.from_numpy(picture).permute(2, 0, 1)]
    usual = explain_patch(backbone, sae, picture, 0, 5)
    for one in given:
        found = explain_patch(backbone, sae, one, 0, 5)
        np.testing.assert_array_equal(found.maps, usual.maps)
    cropped = explain_patch(backbone, sae, picture, 0, 5, resize="crop")
    assert (cropped.picture != usual.picture).any()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "below the grid": ({"row": 6}, r"in 0\.\.5, for this backbone cuts a picture into 6 x 6 patches, got 6 and 1"),
    "before the grid": ({"column": -1}, "got 0 and -1"),
    "half a patch": ({"row": 1.5}, "Expected row to be a whole number, got 1.5"),
    "no latents": ({"n_latents": 0}, "Expected n_latents to be at least 1, got 0"),
    "no file": ({"image": "nowhere.png"}, r"Cannot read the picture nowhere.png \(.*\): give another one"),
    "several": ({"image": [np.zeros((8, 8, 3), np.uint8)]}, "a uint8 array as image=, got list"),
    "floats": ({"image": np.zeros((8, 8, 3))}, r"Expected uint8 pictures \(0\.\.255\), got float64 as image="),
    "other layer": ({"layer": 1}, "This SAE was trained on the tokens after block 0"),
    "other option": ({"latents": 3}, r"explain_patch takes no option 'latents' \(did you mean n_latents\?\)"),
    "other resize": ({"resize": "squeeze"}, "Expected resize to be one of squash, crop, got 'squeeze'"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_is_one_sentence(
    backbone: Backbone, sae: SparseAutoencoder, picture: np.ndarray, name: str
) -> None:
    given, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        explain_patch(backbone, sae, **{"image": picture, "row": 0, "column": 1, **given})


def test_saes_of_other_tokens_are_refused(backbone: Backbone, sae: SparseAutoencoder, picture: np.ndarray) -> None:
    wide = SparseAutoencoder(16, 20, TopK(4))
    with pytest.raises(InputError, match="reads tokens of width 16"):
        explain_patch(backbone, wide, picture, 0, 0)
    pooled = SparseAutoencoder(32, 40, TopK(4))
    pooled.origin = replace(sae.origin, site=POOLED)
    with pytest.raises(InputError, match="pooled embeddings"):
        explain_patch(backbone, pooled, picture, 0, 0, check_origin=False)
    with pytest.raises(InputError, match="Expected sae= to be what load_sae returns, got str"):
        explain_patch(backbone, "sae", picture, 0, 0)  # pyright: ignore[reportArgumentType]


def test_the_figure_shows_the_picture_and_each_map(
    backbone: Backbone, sae: SparseAutoencoder, picture: np.ndarray
) -> None:
    found = explain_patch(backbone, sae, picture, 2, 3, n_latents=3)
    first = int(found.latents[0])
    figure = found.figure({first: "sky", -1: "another one"})
    titles = [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]
    assert read_png(found).shape[1] == read_png(figure).shape[1] == 720
    assert len(figure.axes) == 1 + 3
    assert titles[0] == "patch (2, 3)"
    assert titles[1].startswith(f"{first}: ")
    assert [title.endswith("\nsky") for title in titles] == [False, True, False, False]
    outline = figure.axes[0].patches[0]
    assert outline.get_xy() == (3 * PATCH_PX - 0.5, 2 * PATCH_PX - 0.5)  # pyright: ignore[reportAttributeAccessIssue]
    of_latents = ("latents", "activations", "contributions", "maps")
    none = replace(found, n_active=0, **{name: getattr(found, name)[:0] for name in of_latents})
    assert "No latent fires here." in none.figure().texts[0].get_text()
    with pytest.raises(InputError, match="Expected labels= to be a dict"):
        found.figure(["sky"])  # pyright: ignore[reportArgumentType]
