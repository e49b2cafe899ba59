"""Predictions of edited tokens against the model's own, the images that change, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from infoscope.data.image_folder import ImageFolder
from infoscope.data.reader import iterate_images
from infoscope.predictions.config import PredictConfig, Templates
from infoscope.predictions.inputs import PredictInputs, TokenEditor
from infoscope.predictions.prompts import (
    SCENE_TEMPLATES,
    Prompts,
    count_names,
    get_imagenet_names,
    get_imagenet_templates,
    has_class_names,
    make_prompts,
    read_words,
)
from infoscope.predictions.responsible import explain_change
from infoscope.predictions.results import PredictionResult
from infoscope.predictions.run import run_predictions
from infoscope.predictions.zero_shot import ZeroShotHead, check_prompts, make_zero_shot_head
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import EditMode, GroupEditor, RemovedShareMeter
from infoscope.scope.ablations import make_ablations
from infoscope.vision.backbone import Tokens
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER
from tests.support.prediction_samples import make_planted_inputs, make_scene_inputs


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """60 rendered scenes, their tokens in the shipped scenes_clip, an SAE, and what is asked."""
    return make_scene_inputs(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def result(scenes) -> PredictionResult:
    return run_predictions(scenes.variants, scenes.inputs, scenes.head, PredictConfig(n_shown=2), scenes.prompts.labels)


def read_images(scenes) -> Tensor:
    return torch.cat([batch.images for batch in iterate_images(scenes.images, 96, 32)])


@pytest.mark.long
def test_unedited_tokens_give_the_models_own_image_embeddings(scenes):
    backbone, images = scenes.inputs.backbone, read_images(scenes)[:16]
    for layer in (0, -2):
        embedded = backbone.embed_tokens(backbone.tokens(images, layer), layer)
        torch.testing.assert_close(embedded, backbone.embed_images(images), atol=1e-5, rtol=0)


def test_texts_are_embedded_with_the_models_own_tokenizer(scenes):
    backbone: OpenClipBackbone = scenes.inputs.backbone
    embedded = backbone.embed_texts(["a ball", "a sphere", "a red cube at night"])
    torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(3))
    near, far = (embedded[0] @ embedded[1:].T).tolist()
    assert near > 0.9  # synonyms
    assert far < 0.5


def test_clips_own_tokenizer_is_at_hand_offline(monkeypatch):
    cfg = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: cfg)
    backbone = load_backbone(ModelConfig("tiny", arch="ViT-B-32", pretrained="random"))
    assert isinstance(backbone, OpenClipBackbone)
    texts = ["a photo of a tench.", "graffiti of a goldfish."]
    clip: Any = backbone.clip
    expected = clip.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True)
    torch.testing.assert_close(backbone.embed_texts(texts), expected)
    long = ["a", 76 * "red ", 75 * "red ", 200 * "é"]  # of 77 tokens two are marks
    assert backbone.find_cut(long) == (77, [1, 3])
    assert backbone.read_at("pooled").find_cut(long[:1]) == (77, [])
    with pytest.raises(InputError, match=r"sentences of at most 77 tokens, .* got 1 longer, first 'a red red .*"):
        check_prompts(backbone, Prompts(("red", 75 * "red "), ("a {}",)))
    assert backbone.logit_scale == pytest.approx(1 / 0.07)
    clip.logit_scale.fill_(6.0)
    assert backbone.logit_scale == 100  # CLIP's own bound


def test_a_tokenizer_of_another_text_tower_is_refused(tmp_path):
    copied = tmp_path / "clip"
    shutil.copytree(SHIPPED_FOLDER, copied)
    (copied / "vocabulary.json").unlink()
    backbone = load_backbone(ModelConfig("copy", pretrained=f"local-dir:{copied}"))
    with pytest.raises(InputError, match=r"the text tower has 130: put the model's vocabulary.json next to"):
        backbone.embed_texts(["a ball"])
    (copied / "vocabulary.json").write_text("{}")
    backbone = load_backbone(ModelConfig("copy", pretrained=f"local-dir:{copied}"))
    with pytest.raises(InputError, match="Cannot make the tokenizer"):
        backbone.embed_texts(["a ball"])


def test_the_original_row_is_the_direct_zero_shot_prediction(scenes, result):
    backbone, names = scenes.inputs.backbone, scenes.prompts.class_names
    texts = [[template.format(name) for template in SCENE_TEMPLATES] for name in names]
    weights = torch.stack([F.normalize(backbone.embed_texts(of_class).mean(0), dim=0) for of_class in texts])
    probabilities = (backbone.logit_scale * backbone.embed_images(read_images(scenes)) @ weights.T).softmax(-1)
    max_prob, predicted = probabilities.max(-1)
    assert (result.predicted[0] == predicted.numpy()).all()
    np.testing.assert_allclose(result.max_prob[0], max_prob.numpy(), atol=1e-4)
    np.testing.assert_allclose(result.original_prob[0], result.max_prob[0])
    assert result.metrics(0)["changed"] == result.metrics(0)["total_variation"] == 0
    assert (result.labels == scenes.images.labels("class")).all()
    top1 = result.metrics(0)["top1"]
    assert top1 is not None
    assert top1 >= 0.9  # 98% over hundreds of scenes


def test_removing_everything_changes_predictions_and_equal_tokens_give_equal_rows(scenes, result):
    rows = {variant["name"]: result.metrics(place) for place, variant in enumerate(result.variants)}
    gone = rows["reconstruct_without_all"]
    assert gone["changed"] > 0.5
    assert gone["total_variation"] > 0.5
    assert gone["top1"] < 0.5
    assert rows["error_preserving_without_empty"] == rows["original"]


def test_shares_are_those_of_the_test_tokens(scenes, result):
    inputs = scenes.inputs
    _, tokens = next(inputs.iterate(np.arange(len(inputs.tokens)), len(inputs.tokens)))
    for variant, told in zip(scenes.variants, result.variants, strict=True):
        group = torch.from_numpy(variant.ablated)[None]
        meter = RemovedShareMeter(inputs.sae, group, variant.mode)
        meter.update(GroupEditor(inputs.sae, tokens.patches))
        mass, energy = meter.compute()
        assert told["mass_share"] == pytest.approx(mass.item(), abs=1e-5)
        assert told["energy_share"] == pytest.approx(energy.item(), rel=1e-4)
    assert any(told["energy_share"] > 0.1 for told in result.variants)


def test_batches_and_drawn_images_change_nothing_else(scenes, result):
    few = run_predictions(
        scenes.variants[:3], scenes.inputs, scenes.head, PredictConfig(n_images=20, batch_images=7, n_shown=0)
    )
    assert not few.has_labels
    assert few.metrics(0)["top1"] is None
    assert few.metrics(0)["ece"] is None
    same = np.searchsorted(result.image_index, few.image_index)
    assert len(few.image_index) == 20
    assert (few.predicted == result.predicted[:3, same]).all()
    np.testing.assert_allclose(few.max_prob, result.max_prob[:3, same], atol=1e-4)


def test_save_and_load(result, tmp_path):
    result.save(tmp_path)
    loaded = PredictionResult.load(tmp_path)
    assert loaded.changed == result.changed
    assert loaded.class_names == result.class_names
    assert [loaded.metrics(place) for place in range(len(loaded.variants))] == [
        result.metrics(place) for place in range(len(result.variants))
    ]
    whole = (tmp_path / "predictions.npz").read_bytes()
    for damaged in (b"no arrays", whole[:100], b""):
        (tmp_path / "predictions.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="none that can be read"):
            PredictionResult.load(tmp_path)


def test_a_head_is_saved_and_loaded(scenes, tmp_path):
    scenes.head.save(tmp_path)
    loaded = ZeroShotHead.load(tmp_path)
    assert loaded.class_names == scenes.head.class_names
    assert loaded.logit_scale == scenes.head.logit_scale
    assert torch.equal(loaded.weights, scenes.head.weights)


# -- responsible features ------------------------------------------------------------------------------------------


def test_the_planted_feature_is_found_responsible():
    planted = make_planted_inputs()
    classes = planted.classes
    removed = np.zeros(planted.inputs.sae.d_sae, dtype=bool)
    removed[:6] = True  # the three class latents, and three that carry something else
    for row in range(6):
        why = explain_change(planted.inputs, planted.head, row, removed, int(classes[row]), PredictConfig())
        assert why.features[0].latent == classes[row]
        assert why.features[0].drop > 0.5
        assert why.rival != classes[row]
        assert why.drop > 0


def test_changed_images_are_those_that_lose_most_and_name_their_features():
    planted = make_planted_inputs()
    group = np.zeros(planted.inputs.sae.d_sae, dtype=bool)
    group[0] = True
    variants = make_ablations({"high": group}, ~group, np.ones(len(group)), n_draws=0)
    result = run_predictions(variants, planted.inputs, planted.head, PredictConfig(n_shown=3))
    place = [variant["name"] for variant in result.variants].index("error_preserving_without_high")
    fall = result.original_prob[0] - result.original_prob[place]
    falls = [image.old_prob - image.old_prob_after for image in result.changed]
    np.testing.assert_allclose(falls, sorted(fall, reverse=True)[:3], rtol=1e-5)
    assert {image.old_class for image in result.changed} == {0}
    assert {image.features[0].latent for image in result.changed} == {0}
    assert all(image.label is None and image.group == "high" for image in result.changed)
    assert all(len(image.features) == 1 for image in result.changed)


def test_only_the_tokens_the_sae_reads_are_edited():
    planted = make_planted_inputs()
    tokens = planted.inputs.load(np.arange(4))
    everything = torch.ones(planted.inputs.sae.d_sae, dtype=torch.bool)
    by_choice = {
        TokenChoice.patch: (True, False),
        TokenChoice.all: (True, True),
        TokenChoice.cls: (False, True),
    }
    for patches, prefix in by_choice.values():
        inputs = replace(planted.inputs, edits_patches=patches, edits_prefix=prefix)
        edited: Tokens = TokenEditor(inputs, tokens).edit(everything, EditMode.error_preserving)
        assert (edited.patches.shape, edited.prefix.shape) == (tokens.patches.shape, tokens.prefix.shape)
        assert torch.equal(edited.patches, tokens.patches) != patches
        assert torch.equal(edited.prefix, tokens.prefix) != prefix


# -- prompts -------------------------------------------------------------------------------------------------------


def test_imagenet_has_a_thousand_names_and_eighty_templates():
    names, templates = get_imagenet_names(), get_imagenet_templates()
    assert len(names) == 1000
    assert names[0] == "tench"
    assert len(templates) == len(set(templates)) == 80
    assert all(template.count("{}") == 1 for template in templates)
    prompts = Prompts(names, templates)
    assert prompts.texts(0)[0] == "a bad photo of a tench."
    assert count_names(names, "words") == "1,000 words (those of ImageNet)"
    assert count_names(names[::-1], "words") == "1,000 words"
    assert count_names(names[:9], "classes") == "9 classes"
    backbone = load_backbone("scenes_clip", progress=False)
    with pytest.raises(
        InputError, match=r"class names \(ImageNet's, .* without labels: predict\.class_names=FILE gives"
    ):
        check_prompts(backbone, prompts)
    with pytest.raises(InputError, match=r"class names \(predict\.class_names=FILE\) and templates in words"):
        check_prompts(backbone, Prompts(names[:9], templates))


def test_a_folder_without_labels_is_asked_for_imagenet_or_for_a_file(tmp_path, scenes):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(8):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(photos / f"{number}.png")
    images = ImageFolder(photos, "train", test_share=0.1)
    prompts = make_prompts(PredictConfig(templates=Templates.imagenet), images)
    assert (len(prompts.class_names), len(prompts.templates), prompts.labels) == (1000, 80, None)
    names = tmp_path / "names.txt"
    names.write_text("ball\n\n cube \n")
    config = PredictConfig(Templates.list, ["the {} in front"], class_names=str(names))
    prompts = make_prompts(config, images)
    assert prompts.cache_key_fields() == {
        "class_names": ["ball", "cube"],
        "templates": ["the {} in front"],
        "target": None,
    }
    names.write_text("ball\n")
    with pytest.raises(InputError, match="at least two classes to choose from, got 1"):
        make_prompts(config, images)
    with pytest.raises(InputError, match="target 'class', one per line, got 1"):
        make_prompts(config, scenes.images)
    with pytest.raises(InputError, match="got: no such file"):
        make_prompts(replace(config, class_names=str(tmp_path / "none.txt")), images)


def test_other_targets_of_the_scenes_need_names(scenes, tmp_path):
    assert has_class_names(PredictConfig(), scenes.images)
    assert has_class_names(PredictConfig(target="light"), None)
    assert not has_class_names(PredictConfig(target="light"), scenes.images)
    assert has_class_names(PredictConfig(class_names="none.txt"), scenes.images)  # whatever becomes of it
    with pytest.raises(InputError, match=r"predict.class_names for predict.target=light"):
        make_prompts(PredictConfig(target="light"), scenes.images)
    for ask in (make_prompts, has_class_names):
        with pytest.raises(InputError, match="Expected a target of the scenes"):
            ask(PredictConfig(target="mood"), scenes.images)
    names = tmp_path / "lights.txt"
    names.write_text("noon\ndusk\nnight\ndawn\n")
    prompts = make_prompts(PredictConfig(target="light", class_names=str(names)), scenes.images)
    assert prompts.labels is not None
    assert prompts.labels.max() == 3


def test_words_to_choose_from_stand_once(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\N{BYTE ORDER MARK}red\n\n sea \n".encode())
    assert read_words(file, "steer.words") == ("red", "sea")
    file.write_text("sea\nred\n\nRed\nsea\nred\n")
    refused = r"each word of steer\.words once, .* got 'sea' in lines 1 and 5 of .*, and 1 more twice: remove"
    with pytest.raises(InputError, match=refused):
        read_words(file, "steer.words")


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ModelKind.planted_registers, ModelKind.context_free])
def test_a_tower_without_text_is_refused_in_one_sentence(kind, scenes):
    backbone = load_backbone(ModelConfig(kind.name, kind=kind, pretrained=None))
    with pytest.raises(InputError, match=r"has no text tower.*model=scenes_clip") as error:
        PredictInputs(scenes.inputs.sae, scenes.inputs.tokens, backbone)
    assert "\n" not in str(error.value)
    for ask in (
        lambda: backbone.embed_texts(["a ball"]),
        lambda: make_zero_shot_head(backbone, scenes.prompts),
        lambda: backbone.embed_tokens(scenes.inputs.load(np.array([0])), 0),
    ):
        with pytest.raises(InputError, match="has no text tower"):
            ask()


def test_the_last_block_and_unknown_words_are_refused(scenes):
    with pytest.raises(InputError, match=r"model.layer=-1 is the last"):
        replace(scenes.inputs, layer=-1)
    with pytest.raises(InputError, match="got 'zebra'"):
        make_zero_shot_head(scenes.inputs.backbone, Prompts(("ball", "zebra"), ("a {}",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": Templates.list}, "predict.template_list for predict.templates=list"),
        ({"template_list": ["a {}"]}, "predict.template_list for predict.templates=list"),
        ({"templates": Templates.list, "template_list": ["a photo"]}, "one {} in each"),
        ({"n_images": 0}, "predict.n_images to be at least 1"),
        ({"batch_images": 0}, "predict.batch_images"),
    ],
)
def test_a_wrong_configuration_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        PredictConfig(**options)


def test_tokens_with_nan_are_reported():
    planted = make_planted_inputs()
    planted.inputs.tokens.patches[3] = np.nan
    variants = make_ablations({}, np.ones(16, dtype=bool), np.ones(16), n_draws=0)
    with pytest.raises(InputError, match="NaN or Inf"):
        run_predictions(variants, planted.inputs, planted.head, PredictConfig())
