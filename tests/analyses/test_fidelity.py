"""How faithfully an SAE gives back tokens, against loops over tokens and against SAEs whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infoscope.analyses.fidelity import VERSIONS, FidelityResult, ZeroShotTest, measure_fidelity
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import TopK
from infoscope.sae.config import TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.vision.backbone import Tokens
from tests.support.prediction_samples import PatchMeanClip
from tests.support.probe_samples import N_CLASSES, D, SampleCache, make_identity_sae

N_IMAGES = 25
CACHE = SampleCache(N_IMAGES, 2)
MEAN = torch.from_numpy(CACHE.patches.reshape(-1, D).mean(0))


class WholeClip(PatchMeanClip):
    """Its image embedding is the direction of CLS and the mean patch together."""

    def embed_tokens(self, tokens: Tokens, layer: int, with_gradient: bool = False) -> Tensor:
        return F.normalize(tokens.prefix[:, 0] + tokens.patches.mean(1), dim=-1)


def make_sae(W_dec: Tensor, mean: Tensor | None = None) -> SparseAutoencoder:
    """An SAE with an identity encoder for the first latents and this decoder."""
    sae = SparseAutoencoder(D, len(W_dec), TopK(3), mean, seed=1)
    with torch.no_grad():
        sae.W_dec.copy_(W_dec)
    return sae.eval().requires_grad_(False)


def make_test(backbone: PatchMeanClip, rows: np.ndarray | None = None) -> ZeroShotTest:
    """The head reads channel c for class c."""
    head = ZeroShotHead(("a", "b", "c"), torch.eye(D)[:N_CLASSES], 10.0)
    return ZeroShotTest(backbone, -2, head, np.arange(N_IMAGES) if rows is None else rows, CACHE.classes)


def measure(sae: SparseAutoencoder, **options) -> FidelityResult:
    return measure_fidelity([sae], CACHE, **options)[0]  # pyright: ignore[reportArgumentType]


def answer_directly(zero_shot: ZeroShotTest, row: int, tokens: Tokens) -> tuple[float, bool]:
    logits = zero_shot.head.logit_scale * zero_shot.backbone.embed_tokens(tokens, -2)[0].double().numpy()[:N_CLASSES]
    label = CACHE.classes[row]
    return float(np.log(np.exp(logits).sum()) - logits[label]), bool(logits.argmax() == label)


def test_a_perfect_sae_explains_all_and_recovers_all() -> None:
    found = measure(make_identity_sae(D), zero_shot=make_test(PatchMeanClip()))
    assert found.n_tokens == N_IMAGES * 16
    assert found.explained_variance == pytest.approx(1, abs=1e-12)
    assert found.fvu_per_token == pytest.approx(0, abs=1e-12)
    assert found.cosine_raw == found.cosine_centred == pytest.approx(1, abs=1e-6)
    assert found.l0 == pytest.approx((CACHE.patches > 0).sum(-1).mean())
    assert found.alive_share == 1
    for baseline in ("zeros", "mean"):
        assert found.recovered(baseline) == pytest.approx(1, abs=1e-6)
    assert found.top1("reconstruction") == found.top1("tokens") > found.top1("zeros")


def test_an_sae_that_gives_a_baseline_recovers_nothing_against_it() -> None:
    nothing = measure(make_sae(torch.zeros(D, D)), zero_shot=make_test(PatchMeanClip()))
    assert nothing.recovered("zeros") == 0
    assert nothing.mean_cross_entropy("reconstruction") == pytest.approx(np.log(N_CLASSES))
    mean = measure(make_sae(torch.zeros(D, D), MEAN), zero_shot=make_test(PatchMeanClip()))
    assert mean.recovered("mean") == 0
    assert mean.explained_variance == pytest.approx(0, abs=1e-6)
    assert mean.recovered("zeros") != 0


@pytest.mark.parametrize("reads", [TokenChoice.patch, TokenChoice.all, TokenChoice.cls])
def test_numbers_are_those_of_a_loop_over_tokens(reads: TokenChoice) -> None:
    sae = make_sae(torch.randn(40, D, generator=torch.Generator().manual_seed(3)) / 3, MEAN + 0.1)
    zero_shot, centre = make_test(WholeClip()), (MEAN + 0.1).double().numpy()
    found = measure(sae, reads=reads, zero_shot=zero_shot, batch_images=4)
    sums, ratios, cosines, n_active, fired = np.zeros(2), [], [], [], np.zeros(40, bool)
    for row in range(N_IMAGES):
        whole = torch.from_numpy(np.concatenate([CACHE.prefix[row], CACHE.patches[row]]))
        takes = slice(reads is TokenChoice.patch, 1 if reads is TokenChoice.cls else None)
        x_hat, acts = sae(whole[takes])
        for x, y, z in zip(whole[takes].double().numpy(), x_hat.double().numpy(), acts.numpy(), strict=True):
            sums += ((x - y) ** 2).sum(), ((x - centre) ** 2).sum()
            ratios.append(np.var(x - y) / np.var(x))
            cosines.append([_cosine(x, y), _cosine(x - centre, y - centre)])
            n_active.append((z != 0).sum())
            fired |= z > 0
        for version, new in zip(VERSIONS, (whole[takes], x_hat, 0, sae.centre), strict=True):
            edited = whole.clone()
            edited[takes] = new
            entropy, right = answer_directly(zero_shot, row, Tokens(edited[None, :1], edited[None, 1:]))
            place = VERSIONS.index(version)
            assert found.cross_entropy[place, row] == pytest.approx(entropy, rel=1e-4, abs=1e-6)
            assert found.is_right[place, row] == right
    assert found.fvu == pytest.approx(sums[0] / sums[1], rel=1e-5)
    assert found.fvu_per_token == pytest.approx(np.mean(ratios), rel=1e-5)
    assert [found.cosine_raw, found.cosine_centred] == pytest.approx(np.mean(cosines, axis=0), rel=1e-5)
    assert found.l0 == pytest.approx(np.mean(n_active))
    assert found.alive_share == fired.mean()
    tokens, reconstruction, zeros, _ = found.cross_entropy.mean(1, dtype=np.float64)
    recovered = (zeros - reconstruction) / (zeros - tokens) if zeros > tokens else np.nan  # CLS is noise here
    assert found.recovered() == pytest.approx(recovered, nan_ok=True)


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_some_images_are_asked_about_and_all_are_measured() -> None:
    rows = np.array([1, 5, 6, 24])
    every = measure(make_identity_sae(2), zero_shot=make_test(PatchMeanClip()))
    some = measure(make_identity_sae(2), zero_shot=make_test(PatchMeanClip(), rows), batch_images=3)
    np.testing.assert_array_equal(some.image_index, CACHE.image_index[rows])
    np.testing.assert_allclose(some.cross_entropy, every.cross_entropy[:, rows], rtol=1e-5)
    assert some.fvu == pytest.approx(every.fvu, rel=1e-6)


def test_what_costs_nothing_cannot_be_recovered() -> None:
    test = make_test(PatchMeanClip())
    blind = replace(test, head=replace(test.head, weights=torch.zeros(N_CLASSES, D)))
    found = measure(make_identity_sae(2), zero_shot=blind)
    assert found.mean_cross_entropy("tokens") == pytest.approx(np.log(N_CLASSES))
    assert np.isnan([found.recovered(baseline) for baseline in ("zeros", "mean")]).all()


def test_without_a_head_the_tokens_alone_are_measured_and_kept(tmp_path: Path) -> None:
    found = measure(make_identity_sae(2))
    assert not found.has_predictions
    assert np.isnan([found.recovered(), found.top1("tokens"), found.mean_cross_entropy("zeros")]).all()
    with_head = measure(make_identity_sae(2), zero_shot=make_test(PatchMeanClip()))
    assert with_head.fvu == found.fvu
    for result in (found, with_head):
        result.save(tmp_path)
        loaded = FidelityResult.load(tmp_path)
        for name, value in vars(result).items():
            np.testing.assert_array_equal(getattr(loaded, name), value)
            assert np.asarray(getattr(loaded, name)).dtype == np.asarray(value).dtype


def test_predictions_that_are_no_numbers_and_other_tokens_are_refused() -> None:
    broken = make_sae(torch.full((D, D), float("inf")))
    with pytest.raises(InputError, match="predictions hold NaN or Inf"):
        measure(broken, zero_shot=make_test(PatchMeanClip()))
    sae = make_identity_sae(2)
    sae.origin = replace(sae.origin, tokens=TokenChoice.all)
    with pytest.raises(InputError, match=r"trained with sae\.tokens=all"):
        measure(sae)
