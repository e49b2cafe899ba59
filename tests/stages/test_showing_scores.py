"""What `contextual_dependency` returns, looked at: a latent's images, a row per latent, and what a notebook shows."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from infoscope import InputError, contextual_dependency
from infoscope.sae.activations import TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.scope.config import Diagonal, RankBy
from infoscope.scope.crops import shifted_crops
from infoscope.scope.partition import Partition
from infoscope.stages.contextual_dependency.found import ContextualDependency
from infoscope.stages.score.example_figure import lay_heat
from infoscope.vision.backbone import Backbone
from infoscope.vision.planted import PlantedRegisters
from tests.support.scope_samples import make_noise
from tests.support.shown import read_png

QUIET: dict[str, Any] = {"k_cds": 3, "n_workers": 1, "progress": False}


def make_models() -> tuple[Backbone, SparseAutoencoder]:
    backbone = PlantedRegisters(grid=6, patch_px=4, d_in=32)
    sae = SparseAutoencoder(32, 40, TopK(4)).requires_grad_(False)
    sae.origin = Origin.of(backbone, 0, TokenChoice.patch)
    return backbone, sae


@pytest.fixture(scope="module")
def found() -> ContextualDependency:
    """Scores on pictures of noise; the last latent never fires, the one before it in one image alone."""
    backbone, sae = make_models()
    sae.b_enc[-1] = -1e6
    found = contextual_dependency(backbone, sae, make_noise(12, side=28), **QUIET)
    found.ranking.top_images[-2, 1:] = -1
    found.scores.emd[-2, 1:] = np.nan
    return found


def read_titles(figure: Figure) -> list[str]:
    return [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes if axes.get_images()]


@pytest.mark.parametrize("diagonal", ["main", "anti"])
def test_a_latent_is_shown_on_its_own_crops(
    diagonal: str,
) -> None:
    found = contextual_dependency(*make_models(), make_noise(6), **QUIET, diagonal=diagonal)
    latent = int(np.nanargmax(found.cds))
    figure = found.show(latent, 3)
    pairs = [axes for axes in figure.axes if axes.get_images()]
    assert [title.split(".")[0] for title in read_titles(figure)] == ["1", "2", "3"]
    for axes, rank in zip(pairs, range(3), strict=False):
        image = found.images.load(int(found.ranking.top_images[latent, rank]), 28)
        crops = shifted_crops(torch.from_numpy(image).permute(2, 0, 1)[None], 4, 6, 1, Diagonal[diagonal])
        maps = np.asarray(found.scores.maps[latent, rank])
        outlines = [axes.patches[0], axes.patches[2]]
        for number, (crop, shown) in enumerate(zip(crops, axes.get_images()[:2], strict=True)):
            heat = maps[number] / maps.max()
            np.testing.assert_allclose(shown.get_array(), lay_heat(crop[0].permute(1, 2, 0).numpy(), heat), atol=1e-6)
            left = shown.get_extent()[0]
            x, y = outlines[number].get_xy()  # pyright: ignore[reportAttributeAccessIssue]
            shared = crop[0, :, int(y) : int(y) + 20, int(x - left) : int(x - left) + 20]
            other = crops[1 - number][0]
            ox, oy = outlines[1 - number].get_xy()  # pyright: ignore[reportAttributeAccessIssue]
            ox -= axes.get_images()[1 - number].get_extent()[0]
            assert torch.equal(shared, other[:, int(oy) : int(oy) + 20, int(ox) : int(ox) + 20])


def test_of_a_latent_as_many_images_are_shown_as_one_asks_for(found: ContextualDependency) -> None:
    latent = int(np.nanargmin(found.cds))
    assert len(read_titles(found.show(latent))) == 8
    figure, n = found.show(latent, ranks=[5, 0]), np.isfinite(found.emd[latent, :3]).sum()
    assert [title.split(".")[0] for title in read_titles(figure)] == ["6", "1"]
    assert f"feature {latent}, CDS {found.cds[latent]:.3f}, {n} of 3 pairs" in [
        text.get_text() for text in figure.texts
    ]
    assert len(np.unique(read_png(figure))) > 50  # a picture, not a blank one
    bands = found.show(latent, 1, groups=found.divide(n_bands=2))
    assert "band 1 of 2 (lowest CDS)" in [text.get_text() for text in bands.texts]


def test_latents_without_score_or_images_are_shown_as_such(found: ContextualDependency) -> None:
    silent = found.show(39)
    assert silent.axes[0].texts[0].get_text() == "Feature 39 fires on none of the 12 images."
    one = found.show(38)
    assert len(read_titles(one)) == 1
    texts = [text.get_text() for text in one.texts]
    assert "unscored" in texts
    assert "feature 38, no CDS, 1 of 3 pairs, a CDS takes 2" in texts


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent": 40}, r"Expected latent= in 0\.\.39, for the SAE has 40 latents, got 40\."),
        ({"latent": -1}, "got -1"),
        ({"latent": "3"}, "Expected latent to be a whole number, got '3'"),
        ({"n_images": 0}, "Expected n_images to be at least 1, got 0"),
        ({"ranks": [0, 99]}, r"Expected ranks= to be some of 0\.\.\d+, the images of latent 0, got \[0, 99\]"),
        ({"ranks": []}, r"got \[\]"),
        ({"groups": "high"}, r"Expected groups= to be what divide\(\) returns, got str"),
        ({"groups": Partition(None, {}, np.ones(3, dtype=bool))}, "this SAE's 40 latents, got those of 3"),
        ({"n_pictures": 1}, "show takes no option 'n_pictures'.*expected one of latent, n_images, ranks, groups"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_one_sentence(found: ContextualDependency, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as told:
        found.show(**{"latent": 0, **options})
    assert "\n" not in str(told.value)


def test_images_that_are_gone_are_named(
    tmp_path: Path,
) -> None:
    for number, picture in enumerate(make_noise(6)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    found = contextual_dependency(*make_models(), tmp_path, **QUIET, test_share=0)
    latent = int(np.nanargmax(found.cds))
    found = pickle.loads(pickle.dumps(found))  # small: without pictures
    found.show(latent, 1)  # read from the disk, when they are asked for
    (tmp_path / found.image_ids[found.ranking.top_images[latent, 0]]).unlink()
    with pytest.raises(InputError, match=r"Cannot read the image .*\.png \(.*\), one of those that were measured: put"):
        found.show(latent)


def test_there_is_a_row_per_latent(found: ContextualDependency, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, halves = found.to_pandas(), found.divide()
    assert frame.index.name == "latent"
    np.testing.assert_array_equal(frame["cds"], found.cds)
    np.testing.assert_array_equal(frame["cds_minus_chance"], found.cds - found.chance)
    np.testing.assert_array_equal(frame["mass"], found.mass)
    np.testing.assert_array_equal(frame["group"] == "high", halves.high)
    assert set(frame["group"]) == {"high", "low", "unscored"}
    ids = [found.image_ids[image] for image in found.ranking.top_images[0, :3]]
    assert frame["top_images"][0] == ids
    assert [len(frame["top_images"][latent]) for latent in (38, 39)] == [1, 0]
    assert set(found.to_pandas(found.divide(n_bands=2))["group"]) == {"band 1 of 2", "band 2 of 2", "unscored"}
    assert repr(found.table()).startswith("LatentTable(40 latents: cds, cds_low, cds_high, chance, ")
    monkeypatch.setattr("infoscope.sae.latent_table.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs pandas, which is not installed"):
        found.to_pandas()


def test_a_notebook_shows_numbers_a_histogram_and_how_to_go_on(found: ContextualDependency) -> None:
    shown = found._repr_html_()
    scored = np.isfinite(found.cds).sum()
    assert f"{scored} of 40 latents scored on 12 images" in shown
    assert f"median {np.nanmedian(found.cds):.3f}" in shown
    assert 'src="data:image/png;base64,iVBOR' in shown
    assert "<code>found.show(" in shown
    low = found.divide().low
    assert f"{low.sum()}</td>" in shown
    assert repr(found).startswith(f"ContextualDependency({scored} of 40 latents scored on 12 images")
    drawn = replace(found, ranking=replace(found.ranking, rank_by=RankBy.drawn))._repr_html_()
    assert "images that excite a latent most (k_cds)" in shown
    assert "images drawn from those on which a latent fires (k_cds)" in drawn


def test_names_of_strangers_are_escaped(found: ContextualDependency) -> None:
    name = "<script>alert(1)</script>"
    shown = replace(found, skipped={f"{name}.png": "damaged & <b>"})._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.png (damaged &amp; &lt;b&gt;)" in shown


def test_scores_of_nothing_are_shown_too(found: ContextualDependency) -> None:
    scores = replace(found.scores, emd=np.full_like(found.emd, np.nan), chance_emd=np.full_like(found.emd, np.nan))
    shown = replace(found, scores=scores)._repr_html_()
    assert "0 of 40 latents scored" in shown
    assert "no latent has one" in shown
