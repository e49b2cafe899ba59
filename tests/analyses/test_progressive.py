"""Reconstruction from the k largest activations: against an SAE that keeps k of a token from the start."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from infoscope.analyses import progressive
from infoscope.analyses.fidelity import ReconstructionMeter
from infoscope.analyses.progressive import MEASURES, has_own_k, measure_progressive, widen
from infoscope.sae.activation import Activation
from infoscope.sae.activations import BatchTopK, Capped, JumpReLU, MatryoshkaK, ReLU, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.imported_activations import GroupMax
from infoscope.sae.model import SparseAutoencoder

D_IN, D_SAE, KS = 6, 32, [1, 2, 4, 8, 16, 32]


def make_sae(activation: Activation, token_norm: TokenNorm = TokenNorm.none) -> SparseAutoencoder:
    """An SAE with biases, a mean and a scale, and rows of any length."""
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(D_IN, D_SAE, activation, torch.full((D_IN,), 0.3), 1.7, 0, token_norm)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(D_SAE, 1, generator=generator) + 0.5)
        sae.b_enc.copy_(0.2 * torch.randn(D_SAE, generator=generator))
        sae.b_dec.copy_(0.2 * torch.randn(D_IN, generator=generator))
    return sae.requires_grad_(False)


def make_tokens(n: int = 40) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1))


def keep_largest(acts: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, the others 0."""
    return torch.zeros_like(acts).scatter_(1, (top := acts.topk(k)).indices, top.values)


def measure(sae: SparseAutoencoder, x: torch.Tensor, acts: torch.Tensor) -> list[float]:
    meter = ReconstructionMeter(sae.centre)
    meter.update(x, sae.decode(acts, x))
    return [*meter.compute().values(), (acts != 0).sum().item() / len(x)]


@pytest.mark.parametrize("make", [lambda k: TopK(k), lambda k: TopK(k, signed=True), lambda k: MatryoshkaK(k)])
@pytest.mark.parametrize("token_norm", [TokenNorm.none, TokenNorm.layer_norm])
@pytest.mark.parametrize("wide", [0, 1])
def test_each_k_is_an_sae_of_that_k(
    make: Callable[[int], TopK], token_norm: TokenNorm, wide: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progressive, "WIDE", wide)  # dense products throughout, or none
    monkeypatch.setattr(progressive, "MAX_ACTS", 7 * D_SAE)  # tokens in parts
    sae, x = make_sae(make(4), token_norm), make_tokens()
    found = measure_progressive(sae, x, KS)
    for place, k in enumerate(KS):
        other = make_sae(make(k), token_norm)
        expected = measure(other, x, other.encode(x))
        assert [found[name][place] for name in MEASURES] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("activation", [ReLU(), BatchTopK(4), JumpReLU(D_SAE, 0.4), GroupMax(8)])
def test_of_all_others_the_largest_of_their_own_are_kept(activation: Activation) -> None:
    if isinstance(activation, BatchTopK):
        activation.threshold.fill_(0.5)
    sae, x = make_sae(activation), make_tokens()
    acts, found = sae.encode(x), measure_progressive(sae, x, KS)
    for place, k in enumerate(KS):
        expected = measure(sae, x, keep_largest(acts, k))
        assert [found[name][place] for name in MEASURES] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found["l0"][-1] == pytest.approx((acts != 0).sum().item() / len(x))
    assert not has_own_k(activation)
    assert widen(activation, 9) is activation


def test_a_cap_stays_where_k_grows() -> None:
    inner = TopK(3)
    wider = widen(Capped(inner, 0.8), 5)
    assert isinstance(wider, Capped)
    assert (wider.cap, wider.max_active, inner.k) == (0.8, 5, 3)
    assert widen(capped := Capped(ReLU(), 0.8), 5) is capped


def test_more_of_a_topk_code_explain_more_until_noise_is_added() -> None:
    """Of orthogonal rows that tokens are made of, k = 1, 2, ... are what is there; beyond, there is nothing."""
    sae = SparseAutoencoder(8, 8, TopK(2))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(8))
        sae.W_enc.copy_(torch.eye(8))
    x = torch.zeros(8, 8) + torch.eye(8) * 4 + torch.eye(8).roll(1, 0) * 2 + torch.eye(8).roll(2, 0)
    found = measure_progressive(sae.requires_grad_(False), x, [1, 2, 3, 8])
    np.testing.assert_allclose(found["fvu"], np.array([5, 1, 0, 0]) / 21, atol=1e-6)
    np.testing.assert_allclose(found["l0"], [1, 2, 3, 3])
