"""Browsed images: what fires in them against the scored maps, their predictions against those of other stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope import explain_patch, explain_prediction
from infoscope.analyses.browsed_images import N_REMOVED, encode_image, list_latents, predict_image
from infoscope.data.images import ImageError
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.prompts import Prompts
from infoscope.predictions.run import run_predictions
from infoscope.predictions.zero_shot import make_zero_shot_head
from infoscope.sae.edit import EditMode
from infoscope.scope.config import Diagonal, ScopeConfig
from infoscope.scope.maps import CropEncoder, WantedMaps
from infoscope.stages.backbone import load_backbone
from infoscope.stages.explore.images import count_browsed_forwards, has_predictions, list_browsed, write_browsed_images
from infoscope.stages.images import open_split
from infoscope.stages.predict.stage import Predict
from infoscope.stages.rank import Rank
from infoscope.vision.backbone import Tokens
from tests.support.explorer_files import read_value
from tests.support.pipeline_samples import Recorder, make_tiny_config, run_tiny
from tests.support.prediction_samples import LAYER, SceneInputs, make_scene_inputs

IMAGE, SHIFT = 3, 2


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneInputs:
    return make_scene_inputs(tmp_path_factory.mktemp("scenes"))


def encode(scenes: SceneInputs, diagonal: Diagonal = Diagonal.main, n_latents: int = 2000):
    backbone = scenes.inputs.backbone
    square_px = (backbone.grid + SHIFT) * backbone.patch_px
    pictures = [torch.from_numpy(scenes.images.load(IMAGE, px)) for px in (backbone.image_px, square_px)]
    whole, square = (picture.permute(2, 0, 1) for picture in pictures)
    tokens = encode_image(backbone, LAYER, whole, square, SHIFT, diagonal)
    alone = Tokens(*(part[:1] for part in tokens))
    return list_latents(scenes.inputs.sae, tokens, backbone.grid, n_latents), alone


@pytest.mark.parametrize("diagonal", Diagonal)
def test_crops_are_those_that_are_scored(scenes: SceneInputs, diagonal: Diagonal) -> None:
    crops, _ = encode(scenes, diagonal)
    sae, config = scenes.inputs.sae, ScopeConfig(shift_patches=SHIFT, diagonal=diagonal)
    latents = np.arange(sae.d_sae)
    wanted = WantedMaps(sae, latents, np.full((sae.d_sae, 1), IMAGE))
    (scored,) = CropEncoder(scenes.inputs.backbone, scenes.images, config, LAYER).make_maps([wanted])
    dense = np.asarray(scored)[:, 0]
    for crop in (1, 2):
        assert crops[crop].n_left_out == 0
        np.testing.assert_array_equal(crops[crop].latents, np.flatnonzero(dense[:, crop - 1].any((1, 2))))
        np.testing.assert_allclose(crops[crop].maps, dense[crops[crop].latents, crop - 1], atol=1e-5)


def test_whole_image_is_that_of_explain_patch(scenes: SceneInputs) -> None:
    (whole, *_), _ = encode(scenes)
    backbone, sae = scenes.inputs.backbone, scenes.inputs.sae
    picture = scenes.images.load(IMAGE, backbone.image_px)
    found = explain_patch(backbone, sae, picture, 4, 5, n_latents=sae.d_sae, layer=LAYER)
    on_patch = whole.maps[:, 4, 5] > 0
    assert set(whole.latents[on_patch]) == set(found.latents)
    np.testing.assert_allclose(whole.maps[np.searchsorted(whole.latents, found.latents)], found.maps, atol=1e-5)


def test_the_same_latents_are_kept_in_all_crops(scenes: SceneInputs) -> None:
    every, _ = encode(scenes)
    few, _ = encode(scenes, n_latents=20)
    kept = set(np.concatenate([crop.latents for crop in few]))
    assert len(kept) == 20
    norms = scenes.inputs.sae.W_dec.norm(dim=1).numpy()
    strength = np.zeros(scenes.inputs.sae.d_sae)
    for crop in every:
        strength[crop.latents] = np.maximum(strength[crop.latents], crop.maps.max((1, 2)) * norms[crop.latents])
    assert kept == set(np.argsort(-strength)[:20])
    for crop, whole in zip(few, every, strict=True):
        assert set(crop.latents) == kept & set(whole.latents)
        assert len(crop.latents) + crop.n_left_out == len(whole.latents)


def test_predictions_are_those_of_other_stages(scenes: SceneInputs) -> None:
    inputs, head = scenes.inputs, scenes.head
    _, tokens = encode(scenes)
    label, groups = int(scenes.images.labels("class")[IMAGE]), {"high": np.arange(inputs.sae.d_sae) % 2 == 0}
    found = predict_image(inputs, head, tokens, groups, label)
    stage = run_predictions(scenes.variants, inputs, head, PredictConfig(n_shown=0), scenes.prompts.labels)
    place = [variant.key() for variant in scenes.variants].index(
        next(one.key() for one in scenes.variants if one.group == "high" and one.mode is EditMode.error_preserving)
    )
    for made, of in ((found.before, 0), (found.groups["high"], place)):
        assert found.classes[made.argmax()] == stage.predicted[of, IMAGE]
        assert made.max() == pytest.approx(stage.max_prob[of, IMAGE], abs=1e-4)
    assert label in found.classes
    assert (np.diff(found.before) <= 0).all()
    assert found.before.sum() <= 1 + 1e-5


def test_attributions_and_probabilities_are_those_of_explain_prediction(scenes: SceneInputs) -> None:
    backbone, sae, texts = scenes.inputs.backbone, scenes.inputs.sae, ["a cube", "a ball", "a star"]
    _, tokens = encode(scenes)
    head = make_zero_shot_head(backbone, Prompts(tuple(texts), ("{}",)))
    found = predict_image(scenes.inputs, head, tokens, {})
    picture = scenes.images.load(IMAGE, backbone.image_px)
    other = explain_prediction(backbone, sae, picture, texts, n_latents=sae.d_sae, layer=LAYER)
    np.testing.assert_allclose(found.before, other.probabilities[found.classes], atol=1e-5)
    assert sorted(found.classes) == [0, 1, 2]
    of = dict(zip(other.latents.tolist(), other.attributions.tolist(), strict=True))
    np.testing.assert_allclose(found.attributions, [of[latent] for latent in found.latents], atol=1e-6)
    largest = sorted(of, key=lambda latent: -abs(of[latent]))[:N_REMOVED]
    assert found.latents.tolist() == largest


def test_without_one_latent_is_the_groups_edit_of_it_alone(scenes: SceneInputs) -> None:
    _, tokens = encode(scenes)
    found = predict_image(scenes.inputs, scenes.head, tokens, {}, n_removed=3, n_at_once=2)
    alone = {str(latent): np.arange(scenes.inputs.sae.d_sae) == latent for latent in found.latents}
    groups = predict_image(scenes.inputs, scenes.head, tokens, alone, n_removed=3)
    assert found.classes.tolist() == groups.classes.tolist()
    np.testing.assert_allclose(found.without, np.stack(list(groups.groups.values())), atol=1e-5)
    assert np.abs(found.without - found.before).max() > 1e-4


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A tiny experiment on scenes_clip, whose predictions were made."""
    few = (
        "model=scenes_clip",
        "data.n_train=12",
        "data.n_test=6",
        "sae.n_tokens=2000",
        "scope.k_cds=2",
        "scope.k_max=2",
    )
    small = (*few, "probe.n_draws=0", "predict.n_shown=0", "predict.n_images=5", "partition.gamma=0.05")
    output_dir = tmp_path_factory.mktemp("predicted")
    run_tiny(output_dir, "stage=predict", *small)
    return Context(make_tiny_config(output_dir, "stage=explore", *small, "explore.n_browsed=6"), Recorder())


def test_browsed_images_are_predicted_as_the_predict_stage_does(predicted: Context, tmp_path: Path) -> None:
    (seed,) = predicted.config.seeds
    assert (has_predictions(predicted, seed), has_predictions(predicted, seed + 1)) == (True, False)
    backbone = load_backbone(predicted)
    n_before = backbone.n_images_encoded
    written = write_browsed_images(predicted, {seed: "a"}, tmp_path)
    assert backbone.n_images_encoded == n_before + 3 * 6
    assert {split: len(images) for split, images in written.items()} == {"train": 3, "test": 3}
    of_files = {
        path.stem: read_value(tmp_path, f"a/images/{path.stem}") for path in (tmp_path / "data/a/images").iterdir()
    }
    assert set(of_files) == {f"{split}-{image}" for split, images in written.items() for image in images}
    result, labels = Predict.at(predicted, seed).load(), open_split(predicted, "test").labels("class")
    places = {
        str(variant["group"]): place
        for place, variant in enumerate(result.variants)
        if (variant["role"], variant["mode"]) == ("group", "error_preserving") and not variant["empty"]
    }
    n_compared = 0
    for image in set(written["test"]) & set(result.image_index.tolist()):
        found, row = of_files[f"test-{image}"]["predictions"], result.image_index.tolist().index(image)
        assert (found["label"], found["n_classes"]) == (labels[image], len(result.class_names))
        assert found["texts"] == [result.class_names[place] for place in found["classes"]]
        assert [one["name"] for one in found["groups"]] == list(places)
        versions = {0: found["before"]} | {places[one["name"]]: one["probabilities"] for one in found["groups"]}
        for place, probabilities in versions.items():
            assert found["classes"][int(np.argmax(probabilities))] == result.predicted[place, row]
            assert max(probabilities) == pytest.approx(
                result.max_prob[place, row], abs=2e-3
            )  # tokens are kept as float16
            n_compared += 1
    assert n_compared >= 4
    assert count_browsed_forwards(predicted) == 6 * (3 + 3 + 1 + 2 + N_REMOVED)


def test_half_of_the_training_images_are_first_images_of_latents(predicted: Context) -> None:
    browsed, firsts = list_browsed(predicted), Rank.at(predicted, predicted.config.seeds[0]).load().top_images[:, 0]
    assert len(np.intersect1d(browsed["train"], firsts)) >= 1
    assert all((np.diff(images) > 0).all() for images in browsed.values())
    again = Context(replace(predicted.config, explore=replace(predicted.config.explore, seed=7)), Recorder())
    assert any(list_browsed(again)[split].tolist() != browsed[split].tolist() for split in browsed)


def test_what_cannot_be_read_is_not_browsed(predicted: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_split(predicted, "test")
    load = type(images).load

    def fail(self: SceneSet, index: int, size_px: int) -> np.ndarray:
        if index < 3 and self.split == "test":
            raise ImageError(f"scene {index}", "lost")
        return load(self, index, size_px)

    monkeypatch.setattr(type(images), "load", fail)
    again = Context(predicted.config, Recorder())
    assert list_browsed(again)["test"].tolist() == [3, 4, 5]
