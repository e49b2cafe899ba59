"""The SAE's forward, against the definition written out; activations; training figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.source import Source


def make_sae(activation: Activation, d_in: int = 8, d_sae: int = 24) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(3)
    sae = SparseAutoencoder(d_in, d_sae, activation, torch.randn(d_in, generator=generator), scale=2.5, seed=1)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.3, generator=generator)
        sae.b_dec.normal_(0, 0.3, generator=generator)
    return sae


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(0))


def test_forward_is_the_definition(x: torch.Tensor) -> None:
    sae = make_sae(ReLU())
    x_n = 2.5 * (x - sae.mean)
    z = ((x_n - sae.b_dec) @ sae.W_enc + sae.b_enc).clamp(min=0)
    expected = sae.mean + (z @ sae.W_dec + sae.b_dec) / 2.5
    out = sae(x)
    torch.testing.assert_close(out.latent_acts, z)
    torch.testing.assert_close(out.x_hat, expected)


def test_topk_keeps_the_k_largest_and_nothing_negative(x: torch.Tensor) -> None:
    sae = make_sae(TopK(20))  # more than half: some of the 20 largest are negative
    flat = x.view(-1, 8)
    pre_acts = sae.pre_acts(flat)
    z = sae.encode(flat)
    assert (z >= 0).all()
    for row, acts in zip(pre_acts, z, strict=True):
        kept = row.argsort(descending=True)[:20]
        expected = torch.zeros(24)
        expected[kept] = row[kept].clamp(min=0)
        assert torch.equal(acts, expected)
    assert (pre_acts.topk(20).values < 0).any()


@pytest.mark.parametrize("activation", [TopK(3), ReLU()])
def test_sparse_form_equals_dense(activation: Activation, x: torch.Tensor) -> None:
    sae = make_sae(activation)
    flat = x.view(-1, 8)
    acts = sae.encode_sparse(flat)
    dense = torch.zeros(len(flat), 24).scatter_add(1, acts.indices, acts.values)
    assert torch.equal(dense, sae.encode(flat))
    assert acts.values.shape[1] == (3 if isinstance(activation, TopK) else int((dense > 0).sum(1).max()))
    torch.testing.assert_close(sae.decode_sparse(acts), sae.decode(dense))


def test_relu_with_nothing_active_decodes_to_the_bias() -> None:
    sae = make_sae(ReLU())
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    acts = sae.encode_sparse(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert acts.values.shape == (4, 1)
    torch.testing.assert_close(sae.decode_sparse(acts), (sae.mean + sae.b_dec / 2.5).expand(4, 8))


def test_new_sae_has_unit_rows_and_zero_biases() -> None:
    sae = SparseAutoencoder(8, 24, TopK(3), seed=5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))
    assert not sae.b_dec.any()
    assert not sae.b_enc.any()
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.shape == (8, 24)
    assert not torch.equal(sae.W_dec, SparseAutoencoder(8, 24, TopK(3), seed=6).W_dec)


def test_projected_gradient_is_orthogonal_to_the_rows() -> None:
    sae = make_sae(TopK(3))
    sae.W_dec.grad = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    sae.project_decoder_grad()
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(24), atol=1e-6, rtol=0)


def test_k_above_d_sae_is_refused() -> None:
    with pytest.raises(InputError, match=r"sae\.k in 1\.\.24"):
        SparseAutoencoder(8, 24, TopK(25))


@pytest.mark.parametrize(
    ("tokens", "got"),
    [
        (np.zeros((3, 4), np.float32), r"torch\.Tensor, got numpy\.ndarray: give torch\.as_tensor"),
        (torch.zeros(3, 5), r"width 4, got a tensor \[3, 5\]"),
        (torch.zeros(4, 3), r"width 4, got a tensor \[4, 3\]"),
        (torch.tensor(1.0), r"width 4, got a tensor \[\]"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_sparse", "encode_entries", "normalise", "pre_acts", "forward"])
def test_other_tokens_are_refused(method: str, tokens: object, got: str) -> None:
    with pytest.raises(InputError, match=got):
        getattr(SparseAutoencoder(4, 8, TopK(1)), method)(tokens)


def test_its_sizes_and_settings_are_shown() -> None:
    sae = SparseAutoencoder(4, 8, TopK(2))
    sae.origin = Origin(3)
    assert "d_in=4, d_sae=8, of block 3\n" in repr(sae)
    assert "TopK(k=2)" in repr(sae)


def test_metrics_are_the_definitions(x: torch.Tensor) -> None:
    sae = make_sae(TopK(3)).requires_grad_(False)
    flat = x.view(-1, 8)
    out = sae(flat)
    metrics = compute_sae_metrics(sae, flat.split(10))
    error, deviation = flat - out.x_hat, flat - sae.mean
    assert metrics["fvu"] == pytest.approx(float(error.square().sum() / deviation.square().sum()), rel=1e-5)
    assert metrics["mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert metrics["l0"] == pytest.approx(float((out.latent_acts > 0).sum(1).float().mean()))
    assert metrics["dead_share"] == pytest.approx(float((out.latent_acts.sum(0) == 0).float().mean()))
    cosine = torch.cosine_similarity(deviation, out.x_hat - sae.mean, dim=1).mean()
    assert metrics["cosine"] == pytest.approx(float(cosine), rel=1e-5)
    with pytest.raises(InputError, match="at least one token"):
        compute_sae_metrics(sae, [])


def test_a_notebook_shows_what_describe_sae_says() -> None:
    sae = make_sae(TopK(4))
    sae.origin = Origin(2, source=Source("saelens", "topk", "<img src=x>", backbone="$a<b$", warnings=("one", "two")))
    shown = sae._repr_html_()
    assert "<b>SparseAutoencoder</b>: 24 latents of tokens of width 8" in shown
    assert "&lt;img src=x&gt;, sha256" in shown
    assert "<img" not in shown
    assert "$a&lt;b$" in shown
    assert shown.startswith('<div class="tex2jax_ignore mathjax_ignore">')  # no formulas
    assert ">one<br>two</td>" in shown
    assert "block 2" in shown
    assert repr(sae).startswith("SparseAutoencoder(\n  d_in=8, d_sae=24")
