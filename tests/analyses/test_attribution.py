"""Attributions are the derivatives that autograd and finite differences give, and their tests remove what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor
from torch.testing import assert_close

from infoscope.analyses import attribution, image_attribution, latent_orders
from infoscope.analyses.attribution import AttributionResult, compute_alignment, measure_attribution
from infoscope.analyses.image_attribution import AttributionInputs, attribute, group_latents
from infoscope.analyses.latent_orders import (
    ABLATION,
    COSINE,
    DELETION,
    GRADIENT,
    INSERTION,
    METHODS,
    PLACES,
    PROB,
    RANDOM,
    correlate_ranks,
    embed_rows,
)
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, TokenEditor, put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenNorm
from infoscope.sae.edit import EditMode
from infoscope.scope.top_images import TopImages
from infoscope.vision.backbone import Tokens
from infoscope.vision.embedded import EmbeddedBackbone
from infoscope.vision.hooks import POOLED
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from tests.support.clip_samples import WIDTH, make_backbone, make_images
from tests.support.imported_samples import make_sae
from tests.support.memory_tokens import PrefixedTokens
from tests.support.prediction_samples import make_planted_inputs
from tests.support.probe_samples import DEPTH_LATENT, N_CLASSES, D, SampleCache

N_IMAGES, D_SAE = 6, 96
CONFIG = PredictConfig(batch_images=4)


@pytest.fixture(scope="module")
def clip() -> OpenClipBackbone:
    return make_backbone()


@pytest.fixture(scope="module")
def head(clip: OpenClipBackbone) -> ZeroShotHead:
    weights = F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)), dim=-1)
    return ZeroShotHead(("a", "b", "c"), weights, 10.0)


def make_inputs(
    clip: OpenClipBackbone, kind: str = "topk", norm: TokenNorm = TokenNorm.none, **options: bool
) -> PredictInputs:
    """Tokens of block 1 of 4 of noise, and an SAE of random tensors on them."""
    sae = make_sae(kind, norm, torch.float32, WIDTH, D_SAE)
    cache = PrefixedTokens(clip.tokens(make_images(N_IMAGES), 1))
    return PredictInputs(sae, cache, clip, 1, check_origin=False, **options)  # pyright: ignore[reportArgumentType]


def compute_cosines(inputs: PredictInputs, head: ZeroShotHead, read: Tensor, tokens: Tokens, classes: Tensor) -> Tensor:
    embedded = inputs.backbone.embed_tokens(put_tokens(tokens, read, inputs.reads), inputs.layer, with_gradient=True)
    return (embedded * head.weights[classes]).sum(-1)


def correlate(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation by its definition."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


@pytest.mark.parametrize(
    ("kind", "norm", "options"),
    [
        ("topk", TokenNorm.none, {}),
        ("topk", TokenNorm.layer_norm, {"edits_prefix": True}),
        ("signed", TokenNorm.constant_norm, {}),
        ("relu", TokenNorm.none, {"edits_patches": False, "edits_prefix": True}),
    ],
)
def test_it_is_the_derivative_by_each_activation_through_the_whole_model(
    clip: OpenClipBackbone, head: ZeroShotHead, kind: str, norm: TokenNorm, options: dict[str, bool]
) -> None:
    """x' = x + s (z' - z) W_dec / c, the SAE's error kept: autograd by all z at once."""
    inputs = make_inputs(clip, kind, norm, **options)
    sae, tokens = inputs.sae, inputs.load(np.arange(N_IMAGES))
    found = attribute(inputs, head, tokens)
    x = take_tokens(tokens, inputs.reads).clone()
    z = sae.encode(x)
    free, factor = z.clone().requires_grad_(), sae.token_factor(x)
    decoded = (free - z) @ sae.W_dec / sae.scale * (1 if factor is None else factor)
    plain = Tokens(tokens.prefix.clone(), tokens.patches.clone())
    cosines = compute_cosines(inputs, head, x + decoded, plain, found.classes)
    (gradient,) = torch.autograd.grad(cosines.sum(), free)
    expected = (z * gradient).sum(1)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found.attribution, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    torch.testing.assert_close(found.mass, z.clamp_min(0).sum(1) * sae.W_dec.norm(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.n_on, (z != 0).float().sum(1), atol=0, rtol=0)


@pytest.mark.parametrize(("kind", "norm"), [("topk", TokenNorm.layer_norm), ("signed", TokenNorm.none)])
def test_with_groups_gradients_are_those_halfway_to_the_tokens_without_the_group(
    clip: OpenClipBackbone, head: ZeroShotHead, kind: str, norm: TokenNorm
) -> None:
    """A loop over images and groups, by autograd of a factor of each latent."""
    inputs = make_inputs(clip, kind, norm)
    sae, tokens = inputs.sae, inputs.load(np.arange(3))
    plain, found = attribute(inputs, head, tokens), attribute(inputs, head, tokens, n_groups=4)
    group, z, factor = group_latents(plain.mass, 4), sae.encode(tokens.patches), sae.token_factor(tokens.patches)
    for image in range(3):
        whole = Tokens(tokens.prefix[image, None].clone(), tokens.patches[image, None].clone())
        for number in group[image].unique():
            kept = torch.where(group[image] == number, 0.5, 1.0).requires_grad_()
            removed = ((1 - kept) * z[image]) @ sae.W_dec / sae.scale * (1 if factor is None else factor[image])
            read = whole.patches - removed
            (slope,) = torch.autograd.grad(compute_cosines(inputs, head, read, whole, plain.classes[image, None]), kept)
            own = group[image] == number
            assert_close(found.attribution[image, own], slope[own], atol=1e-5 * float(slope.abs().max()), rtol=1e-4)
    assert (found.attribution - plain.attribution).abs().max() > 1e-3 * plain.attribution.abs().max()
    for name in ("classes", "embeddings", "mass", "n_on"):
        assert_close(getattr(found, name), getattr(plain, name))


def test_groups_have_about_equal_mass_and_begin_with_the_heaviest() -> None:
    mass = torch.tensor([[1.0, 8.0, 0.0, 2.0, 1.0, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert group_latents(mass, 2).tolist() == [[1, 0, 1, 1, 1, 1], [0] * 6]
    assert group_latents(mass, 4).tolist()[0] == [3, 1, 3, 3, 3, 2]


def test_a_small_share_of_an_edit_costs_as_much_of_the_cosine(clip: OpenClipBackbone, head: ZeroShotHead) -> None:
    """Finite differences along the edits that predictions are made with, of an SAE with a norm of its own."""
    inputs = make_inputs(clip, norm=TokenNorm.layer_norm)
    tokens = inputs.load(np.arange(N_IMAGES))
    found, share = attribute(inputs, head, tokens), 1e-2
    editor, checked = TokenEditor(inputs, tokens), 0
    largest = found.attribution.abs().amax(0)
    for latent in largest.argsort(descending=True)[:5]:
        without = editor.edit(torch.arange(D_SAE) == latent, EditMode.error_preserving).patches
        step = share * (without - tokens.patches)
        ends = [compute_cosines(inputs, head, tokens.patches + sign * step, tokens, found.classes) for sign in (1, -1)]
        slope = (ends[1] - ends[0]).detach() / (2 * share)
        torch.testing.assert_close(
            found.attribution[:, latent], slope, atol=0.01 * float(largest[latent]), rtol=0.01, check_device=False
        )
        checked += int((slope.abs() > 1e-4).sum())
    assert checked > 5


def test_tokens_of_inference_mode_and_any_grad_mode_will_do(clip: OpenClipBackbone, head: ZeroShotHead) -> None:
    inputs = make_inputs(clip)
    tokens = clip.tokens(make_images(3), 1)
    assert tokens.patches.is_inference()  # as live tokens come
    expected = attribute(inputs, head, tokens).attribution
    with torch.inference_mode():
        inner = attribute(inputs, head, tokens).attribution.clone()
    with torch.no_grad():
        outer = attribute(inputs, head, tokens).attribution
    assert expected.abs().max() > 0
    torch.testing.assert_close(inner, expected)
    torch.testing.assert_close(outer, expected)
    assert not clip.embed_tokens(tokens, 1).requires_grad
    assert clip.embed_tokens(tokens, 1).is_inference()


def test_towards_a_class_that_is_given(clip: OpenClipBackbone, head: ZeroShotHead) -> None:
    inputs = make_inputs(clip)
    tokens = inputs.load(np.arange(N_IMAGES))
    predicted = attribute(inputs, head, tokens)
    log_p = head.log_probabilities(clip.embed_tokens(tokens, 1))
    assert torch.equal(predicted.classes, log_p.argmax(-1))
    other = (predicted.classes + 1) % 3
    found = attribute(inputs, head, tokens, other)
    assert torch.equal(found.classes, other)
    assert not torch.allclose(found.attribution, predicted.attribution, atol=1e-4)
    torch.testing.assert_close(attribute(inputs, head, tokens, predicted.classes).attribution, predicted.attribution)


def test_of_a_whole_image_there_is_nothing_left_to_run(clip: OpenClipBackbone, head: ZeroShotHead) -> None:
    """d cos / dx = (text - cos x / |x|) / |x| of the pooled embedding x."""
    pooled = EmbeddedBackbone(clip, POOLED)
    sae = make_sae("topk", TokenNorm.none, torch.float32, 24, D_SAE)
    cache = PrefixedTokens(pooled.tokens(make_images(3), -1))
    inputs = PredictInputs(sae, cache, pooled, -1, check_origin=False)  # pyright: ignore[reportArgumentType]
    tokens = inputs.load(np.arange(3))
    found = attribute(inputs, head, tokens)
    x = tokens.patches[:, 0].clone()
    norm, text = x.norm(dim=-1, keepdim=True), head.weights[found.classes]
    gradient = (text - (x * text).sum(-1, keepdim=True) / norm * x / norm) / norm
    expected = sae.encode(x) * (gradient @ sae.W_dec.T) / sae.scale
    torch.testing.assert_close(found.attribution, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(embed_rows(pooled, sae), F.normalize(sae.W_dec.detach(), dim=-1))


def test_the_logit_lens_is_the_final_norm_and_the_projection_of_a_row(clip: OpenClipBackbone) -> None:
    sae = make_inputs(clip).sae
    expected = F.normalize(clip.visual.ln_post(sae.W_dec) @ clip.visual.proj, dim=-1)
    torch.testing.assert_close(embed_rows(clip, sae), expected, atol=1e-5, rtol=1e-4)


# -- what tests attributions ---------------------------------------------------------------------------------------


def make_wanted(inputs: PredictInputs, head: ZeroShotHead) -> AttributionInputs:
    return AttributionInputs(inputs, head, n_top=2, n_tested=4, n_steps=5)


@pytest.fixture(scope="module")
def wanted(clip: OpenClipBackbone, head: ZeroShotHead) -> AttributionInputs:
    inputs = make_inputs(clip)

    def embed_texts(texts: list[str]) -> Tensor:
        assert texts == [""]
        return head.weights[:1]

    inputs.backbone.embed_texts = embed_texts  # pyright: ignore[reportAttributeAccessIssue]
    return make_wanted(inputs, head)


@pytest.fixture(scope="module")
def result(wanted: AttributionInputs) -> AttributionResult:
    return measure_attribution(wanted, CONFIG)


def test_curves_end_with_nothing_and_all_removed(wanted: AttributionInputs, result: AttributionResult) -> None:
    inputs = wanted.inputs
    assert result.curves.shape == (2, len(METHODS), 6, 4, 2)
    for place, position in enumerate(result.tested):
        tokens = inputs.load(np.array([N_IMAGES - 1 - position]))
        own = int(attribute(inputs, wanted.head, tokens).classes[0])
        empty = TokenEditor(inputs, tokens).edit(torch.ones(D_SAE, dtype=torch.bool), EditMode.error_preserving)
        for step, edited in ((0, tokens), (-1, empty)):
            embedded = inputs.backbone.embed_tokens(edited, inputs.layer)[0]
            ends = wanted.head.log_probabilities(embedded[None])[0, own].exp(), embedded @ wanted.head.weights[own]
            for what, value in zip((PROB, COSINE), ends, strict=True):
                for way, at in ((DELETION, step), (INSERTION, -1 - step)):
                    np.testing.assert_allclose(result.curves[way, :, at, place, what], float(value), atol=1e-6)
    assert (np.abs(np.diff(result.curves[DELETION, :, [0, -1], :, COSINE], axis=0)) > 1e-3).all()  # it does delete


def test_steps_remove_the_first_latents_of_an_order(wanted: AttributionInputs, result: AttributionResult) -> None:
    inputs, place = wanted.inputs, 1
    tokens = inputs.load(np.array([N_IMAGES - 1 - result.tested[place]]))
    one = attribute(inputs, wanted.head, tokens)
    firing = one.n_on[0].nonzero()[:, 0]
    assert len(firing) == result.n_ranked[place]
    order = firing[one.attribution[0, firing].argsort(descending=True)]
    editor = TokenEditor(inputs, tokens)
    for step in (1, 3):
        first = torch.isin(torch.arange(D_SAE), order[: round(len(order) * step / 5)])
        for way, removed in ((DELETION, first), (INSERTION, ~first)):
            edited = editor.edit(removed, EditMode.error_preserving)
            embedded = inputs.backbone.embed_tokens(edited, inputs.layer)[0]
            value = float(embedded @ wanted.head.weights[int(one.classes[0])])
            assert result.curves[way, PLACES[GRADIENT], step, place, COSINE] == pytest.approx(value, abs=1e-5)


def test_agreement_is_with_the_loss_of_each_latent_alone(wanted: AttributionInputs, result: AttributionResult) -> None:
    inputs = wanted.inputs
    tokens = inputs.load(np.array([N_IMAGES - 1 - result.tested[0]]))
    one, editor = attribute(inputs, wanted.head, tokens), TokenEditor(inputs, tokens)
    firing, text = one.n_on[0].nonzero()[:, 0], wanted.head.weights[int(one.classes[0])]
    losses = [
        float((inputs.backbone.embed_tokens(of, inputs.layer)[0] * text).sum())
        for of in [
            tokens,
            *(editor.edit(torch.arange(D_SAE) == latent, EditMode.error_preserving) for latent in firing),
        ]
    ]
    expected = correlate(one.attribution[0, firing].numpy(), losses[0] - np.array(losses[1:]))
    assert result.agreement[PLACES[GRADIENT], 0] == pytest.approx(expected, abs=0.01)
    np.testing.assert_allclose(result.agreement[PLACES[ABLATION]], 1, atol=1e-6)
    assert result.agreement[PLACES[GRADIENT]].mean() > 0.8
    assert abs(result.agreement[PLACES[RANDOM]].mean()) < 0.3


def test_integrated_gradients_sum_to_what_all_latents_do(wanted: AttributionInputs, result: AttributionResult) -> None:
    place = 0
    tokens = wanted.inputs.load(np.array([N_IMAGES - 1 - result.tested[place]]))
    one = attribute(wanted.inputs, wanted.head, tokens)
    found = latent_orders.EditedImage(wanted.inputs, wanted.head, tokens, int(one.classes[0]), 4).integrate()
    before, after = result.curves[DELETION, 0, [0, -1], place, COSINE]
    assert float(found.sum()) == pytest.approx(before - after, rel=0.02)
    assert float(one.attribution.sum()) != pytest.approx(before - after, rel=0.1)
    assert (found[one.n_on[0] == 0] == 0).all()


def test_sums_over_images_and_classes(wanted: AttributionInputs, result: AttributionResult) -> None:
    one = attribute(wanted.inputs, wanted.head, wanted.inputs.load(np.arange(N_IMAGES)))
    assert result.towards == "predicted"
    np.testing.assert_array_equal(result.n_firing, (one.n_on > 0).sum(0))
    np.testing.assert_allclose(result.signed, one.attribution.sum(0), atol=1e-6)
    for of_class in range(3):
        images = one.classes == of_class
        assert result.n_images[of_class] == images.sum()
        np.testing.assert_allclose(result.attribution[of_class], one.attribution[images].abs().sum(0), atol=1e-6)
        np.testing.assert_allclose(result.mass[of_class], one.mass[images].sum(0), rtol=1e-5)
    size = one.attribution.abs().sum(0) / (one.n_on > 0).sum(0)  # 0 / 0 where none fires
    np.testing.assert_allclose(result.mean_size(), size, rtol=1e-4)
    np.testing.assert_allclose(result.mean_signed() * result.n_firing, np.where(result.n_firing, result.signed, np.nan))
    assert np.isnan(result.mean_size()).any()
    assert result.share.sum() == pytest.approx(1)


def test_parts_batches_and_the_disk_change_nothing(
    wanted: AttributionInputs, result: AttributionResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_orders, "_PART_TESTED", 3)
    monkeypatch.setattr(attribution, "cut_images", lambda n: [slice(0, 4), slice(4, n)])
    monkeypatch.setattr(image_attribution, "_NUMBERS", 5 * WIDTH * 7)
    seen: list[tuple[str, int, int]] = []
    again = measure_attribution(wanted, PredictConfig(batch_images=3), lambda *of: seen.append(of), tmp_path)
    assert seen[-1] == ("testing", 4, 4)
    assert ("attributing", N_IMAGES, N_IMAGES) in seen
    again.save(tmp_path)
    loaded = AttributionResult.load(tmp_path)
    assert (loaded.class_names, loaded.towards, loaded.n_top) == (result.class_names, "predicted", 2)
    for name, value in vars(result).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(loaded, name), value, atol=2e-5, rtol=1e-4, err_msg=name)


def test_planted_classes_rest_on_their_latents_and_deletion_in_their_order_finds_them() -> None:
    planted = make_planted_inputs()
    labels = planted.classes[::-1].copy()  # by position
    wanted = AttributionInputs(
        planted.inputs, planted.head, n_top=4, n_tested=25, n_steps=4, labels=labels, towards_true=True
    )
    found = measure_attribution(wanted, CONFIG)
    assert found.towards == "true"
    for of_class in range(N_CLASSES):
        assert found.attribution[of_class].argmax() in (of_class, DEPTH_LATENT)  # which has most activation
        assert found.signed[of_class] > 0
    assert found.agreement[PLACES[GRADIENT]].mean() > 0.8
    areas = found.area(DELETION, PROB).mean(axis=1)
    assert areas[PLACES[GRADIENT]] < areas[PLACES[RANDOM]] - 0.1
    assert areas[PLACES[GRADIENT]] <= areas[PLACES["mass"]]
    insertion = found.area(INSERTION, PROB).mean(axis=1)
    assert insertion[PLACES[GRADIENT]] > insertion[PLACES[RANDOM]] + 0.1
    np.testing.assert_allclose(found.curves[DELETION, :, -1, :, PROB], 1 / N_CLASSES, atol=1e-3)
    carries = np.arange(D) < N_CLASSES
    shares = found.split({"low": carries, "high": ~carries})
    np.testing.assert_allclose(shares.by_class.sum(axis=1), 1, rtol=1e-5)
    assert (shares.by_class[:, 0] > shares.mass_by_class[:, 0]).all()
    own = found.aligned_class[:N_CLASSES]
    assert own.tolist() == [0, 1, 2]  # images in which class c's latent fires are of class c
    assert (found.alignment[:N_CLASSES] > 0.1).all()


def test_alignment_is_of_the_mean_top_image_with_the_class_that_has_most_activation(head: ZeroShotHead) -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.uniform(0.1, 1, (5, 9)).astype(np.float32), rng.integers(3, size=9)
    values[4, 2:] = 0  # fires in two images alone
    embeddings = F.normalize(torch.randn(9, 24, generator=torch.Generator().manual_seed(2)), dim=-1)
    empty = F.normalize(torch.randn(24, generator=torch.Generator().manual_seed(3)), dim=-1)
    top = TopImages(5, 3)
    for some in (slice(0, 2), slice(2, 9)):
        top.update(torch.arange(9)[some], torch.from_numpy(values[:, some]).T)
    found, classes = compute_alignment(top, embeddings, labels, head, empty)
    assert np.isnan(found[4])
    assert classes[4] == -1
    for latent in range(4):
        best = np.argsort(-values[latent])[:3]
        assert classes[latent] == np.argmax([values[latent, best[labels[best] == c]].sum() for c in range(3)])
        mean = F.normalize(embeddings[best].mean(0), dim=0)
        expected = mean @ head.weights[classes[latent]] - mean @ empty
        assert found[latent] == pytest.approx(float(expected), abs=1e-6)


def test_rank_correlation_is_that_of_ranks() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(4, size=20).astype(float)
    scores = np.stack([target, -target, rng.standard_normal(20), np.ones(20)])
    found = correlate_ranks(scores, target)
    np.testing.assert_allclose(found[:3], [1, -1, correlate(scores[2], target)], atol=1e-6)
    assert np.isnan(found[3])
    assert np.isnan(correlate_ranks(scores[:, :1], target[:1])).all()


def test_an_image_in_which_nothing_fires_changes_nowhere() -> None:
    planted = make_planted_inputs()
    silent = SampleCache(3, 2)
    silent.patches[:] = 0
    inputs = replace(planted.inputs, tokens=silent)  # pyright: ignore[reportArgumentType]
    silent.patches[:, :, -1] = -1.0  # below what the SAE's latents see
    inputs.sae.b_enc[:] = -100
    found = measure_attribution(make_wanted(inputs, planted.head), CONFIG)
    assert len(found.n_ranked) > 1
    assert not found.n_ranked.any()
    assert np.isnan(found.agreement).all()
    assert np.isnan(found.share).all()
    np.testing.assert_allclose(np.ptp(found.curves, axis=2), 0)


def test_nothing_to_predict_and_numbers_that_are_none_are_refused() -> None:
    class Empty(SampleCache):
        def __len__(self) -> int:
            return 0

    planted = make_planted_inputs()
    inputs = replace(planted.inputs, tokens=Empty(3, 0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="Expected test images to predict, got none"):
        measure_attribution(make_wanted(inputs, planted.head), CONFIG)
    broken = ZeroShotHead(planted.head.class_names, torch.full((N_CLASSES, D), torch.nan), 10.0)
    with pytest.raises(InputError, match="gradients hold NaN"):
        measure_attribution(make_wanted(planted.inputs, broken), CONFIG)
