"""Latents that raise a word by a known amount, and levels and edits against loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infoscope.analyses import steering as module
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.steering import (
    LATENT,
    RANDOM,
    Steerer,
    SteeringInputs,
    SteeringResult,
    choose_latents,
    draw_direction,
    find_levels,
    measure_steering,
)
from infoscope.predictions.inputs import PredictInputs, put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenNorm
from tests.support.clip_samples import WIDTH, make_backbone, make_images
from tests.support.imported_samples import make_sae
from tests.support.memory_tokens import PrefixedTokens
from tests.support.prediction_samples import LinearClip
from tests.support.probe_samples import GRID, N_CLASSES, D, SampleCache, make_identity_sae

N_IMAGES, SCALE, LEVEL = 25, 10.0, 3.0
CLASS_LATENT, NOISE_LATENT = 1, 9


def make_linear() -> tuple[PredictInputs, ZeroShotHead, SampleCache]:
    cache = SampleCache(N_IMAGES, 2)
    inputs = PredictInputs(make_identity_sae(), cache, LinearClip())  # pyright: ignore[reportArgumentType]
    return inputs, ZeroShotHead(("a", "b", "c"), torch.eye(D)[:N_CLASSES], SCALE), cache


def steer_linear(latents: list[int], **settings: float) -> SteeringResult:
    inputs, head, _ = make_linear()
    levels = np.full(len(latents), LEVEL)
    return measure_steering(SteeringInputs(inputs, head, np.array(latents), levels, N_IMAGES, **settings), 7)  # pyright: ignore[reportArgumentType]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_latent_that_writes_a_word_is_steerable_by_the_known_amount() -> None:
    inputs, _, cache = make_linear()
    found = steer_linear([CLASS_LATENT, NOISE_LATENT])
    logits = SCALE * cache.patches.mean(1)[:, :N_CLASSES].astype(np.float64)
    z = inputs.sae.encode(torch.from_numpy(cache.patches))[..., CLASS_LATENT].numpy()
    steered = logits.copy()
    steered[:, CLASS_LATENT] += SCALE * (LEVEL - z).mean(1) / 2  # the SAE writes z / scale
    before, after = log_softmax(logits), log_softmax(steered)
    gains = (after - before)[:, CLASS_LATENT]
    entropy = [-(np.exp(of) * of).sum(1) / np.log(N_CLASSES) for of in (before, after)]
    assert found.word[LATENT].tolist()[0] == CLASS_LATENT
    np.testing.assert_allclose(found.effect[LATENT], [gains.mean(), 0], atol=1e-5)
    np.testing.assert_allclose(found.consistency[LATENT], [(gains > 1).mean(), 0])
    np.testing.assert_allclose(found.specificity[LATENT], [(entropy[0] - entropy[1]).mean(), 0], atol=1e-5)
    np.testing.assert_allclose(found.before, entropy[0].mean(), atol=1e-5)
    np.testing.assert_allclose(found.taken[LATENT][0], (after.argmax(1) == CLASS_LATENT).mean())
    np.testing.assert_allclose(found.taken_before[LATENT][0], (cache.classes == CLASS_LATENT).mean())
    assert 0.5 < found.consistency[LATENT][0] < 1  # images of the class itself gain little
    assert steer_linear([CLASS_LATENT], min_share=0.5).is_steerable[LATENT].tolist() == [True]
    assert steer_linear([CLASS_LATENT], min_share=0.99).is_steerable[LATENT].tolist() == [False]
    assert found.spread(found.effect[LATENT])[CLASS_LATENT] == found.effect[LATENT][0]
    assert np.isnan(found.spread(found.effect[LATENT])).sum() == D - 2


def test_random_directions_are_as_long_and_the_same_for_the_same_seed() -> None:
    row = torch.arange(1.0, 9.0)
    first, again, other = (draw_direction(row, 3, latent) for latent in (5, 5, 6))
    torch.testing.assert_close(first, again)
    assert float(first.norm()) == pytest.approx(float(row.norm()), rel=1e-5)
    assert not torch.allclose(first, other)
    found = steer_linear([CLASS_LATENT])
    assert found.effect[RANDOM][0] != pytest.approx(found.effect[LATENT][0])


@pytest.mark.parametrize(
    ("kind", "norm", "edits_prefix"),
    [
        ("topk", TokenNorm.none, False),
        ("topk", TokenNorm.layer_norm, True),
        ("signed", TokenNorm.constant_norm, False),
    ],
)
def test_one_latent_is_set_on_all_patches_and_nothing_else(kind: str, norm: TokenNorm, edits_prefix: bool) -> None:
    clip = make_backbone()
    tokens = clip.tokens(make_images(3), 1)
    sae = make_sae(kind, norm, torch.float32, WIDTH, 96)
    inputs = PredictInputs(sae, PrefixedTokens(tokens), clip, 1, edits_prefix=edits_prefix, check_origin=False)  # pyright: ignore[reportArgumentType]
    head = ZeroShotHead(("a", "b"), F.normalize(torch.randn(2, 24, generator=torch.Generator().manual_seed(1))), 10.0)
    steerer = Steerer(inputs, head, np.arange(3), 2)
    torch.testing.assert_close(
        steerer.predict(), head.log_probabilities(clip.embed_tokens(tokens, 1)).double(), atol=1e-5, rtol=1e-5
    )
    x = take_tokens(tokens, inputs.reads)
    z = sae.encode(x)
    latent = int((z != 0).sum((0, 1)).argmax())
    changed = z.clone()
    for image in range(3):
        for token in range(int(edits_prefix) * tokens.prefix.shape[1], x.shape[1]):
            changed[image, token, latent] = 2.5
    factor = sae.token_factor(x)
    edited = x + (changed - z) @ sae.W_dec / sae.scale * (1 if factor is None else factor)
    expected = head.log_probabilities(clip.embed_tokens(put_tokens(tokens, edited, inputs.reads), 1)).double()
    found = steerer.predict(latent, 2.5)
    assert (found - steerer.predict()).abs().max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def make_codes(seed: int = 0, n: int = 40, d_sae: int = 7) -> tuple[np.ndarray, ImageCodes]:
    """Peaks [n, d_sae] of which a third are 0; the last latent never fires."""
    rng = np.random.default_rng(seed)
    peaks = (rng.uniform(0.1, 2, (n, d_sae)) * (rng.random((n, d_sae)) > 1 / 3)).astype(np.float32)
    peaks[:, -1] = 0
    rows, latents = peaks.nonzero()
    starts = np.searchsorted(rows, np.arange(n + 1))
    values, ones = peaks[rows, latents], np.ones(len(rows), dtype=np.uint16)
    return peaks, ImageCodes(
        starts, latents.astype(np.int32), values, values, ones, ones, np.arange(n), d_sae, GRID**2, 0.2
    )


def test_levels_are_quantiles_of_the_peaks_of_images_in_which_a_latent_fires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", 17)
    peaks, codes = make_codes()
    assert choose_latents(codes, None, 0).tolist() == [0, 1, 2, 3, 4, 5]
    drawn = choose_latents(codes, 3, 1)
    assert len(drawn) == 3
    assert (np.diff(drawn) > 0).all()
    expected = [np.quantile(peaks[:, j][peaks[:, j] > 0].astype(np.float64), 0.9) for j in drawn]
    np.testing.assert_allclose(find_levels(codes, drawn, 0.9), expected)
    silent = replace(codes, starts=np.zeros_like(codes.starts), latents=codes.latents[:0])
    assert len(find_levels(silent, choose_latents(silent, None, 0), 0.9)) == 0


def test_parts_and_files_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = steer_linear([0, 1, 2, 9])
    monkeypatch.setattr(module, "_PART_LATENTS", 3)
    parts = steer_linear([0, 1, 2, 9])
    parts.save(tmp_path)
    read = SteeringResult.load(tmp_path)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(read, name), value)
    with pytest.raises(InputError, match="fire in some training image, got none"):
        steer_linear([])
