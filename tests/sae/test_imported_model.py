"""Token norms and the activations of other toolkits: encoding, decoding, removal and metrics, by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae import model
from infoscope.sae.activations import Gated, GroupMax, ReLU, Threshold
from infoscope.sae.config import TokenNorm
from infoscope.sae.edit import EditMode, GroupEditor, RemovedShareMeter
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import SparseAutoencoder
from tests.support.imported_samples import (
    ACTIVATIONS,
    D_IN,
    D_SAE,
    DEAD,
    NORMS,
    SCALE,
    SIGNED,
    activate_by_hand,
    make_sae,
    make_tokens,
    measure_by_hand,
)

each_kind = pytest.mark.parametrize("name", ACTIVATIONS)
each_norm = pytest.mark.parametrize("token_norm", NORMS)
N = 40


def encode_by_hand(sae: SparseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return z, shift and factor of raw tokens [n, D_IN]."""
    y = SCALE * (x - sae.mean)
    shift, factor = measure_by_hand(sae.token_norm, y)
    eps = 1e-5 if sae.token_norm is TokenNorm.layer_norm else 0
    x_n = (y - shift) / (factor + eps)
    return activate_by_hand(sae.activation, (x_n - sae.b_dec) @ sae.W_enc + sae.b_enc), shift, factor


def decode_by_hand(sae: SparseAutoencoder, z: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    return sae.mean + ((z @ sae.W_dec + sae.b_dec) * factor + shift) / SCALE


@each_norm
@each_kind
def test_it_computes_the_definition(name: str, token_norm: TokenNorm) -> None:
    sae, x = make_sae(name, token_norm), make_tokens(N)
    z, shift, factor = encode_by_hand(sae, x)
    out, acts = sae(x.view(5, -1, D_IN)), sae.encode_sparse(x)
    torch.testing.assert_close(out.latent_acts.flatten(0, 1), z)
    torch.testing.assert_close(out.x_hat.flatten(0, 1), decode_by_hand(sae, z, shift, factor))
    torch.testing.assert_close(torch.zeros_like(z).scatter_add(1, acts.indices, acts.values), z)
    torch.testing.assert_close(sae.decode_sparse(acts, x), sae.decode(z, x))
    assert (sae.activation.is_signed, bool((z < 0).any())) == (name in SIGNED,) * 2
    assert not z[:, DEAD].any() or name in SIGNED
    if token_norm is TokenNorm.none:
        assert sae.written(acts, x) is acts
        assert sae.token_factor(x) is None
        torch.testing.assert_close(sae.decode(z), out.x_hat.flatten(0, 1))
    else:
        torch.testing.assert_close(sae.token_factor(x), factor)
        for decode in (lambda: sae.decode(z), lambda: sae.decode_sparse(acts), lambda: sae.denormalise(x)):
            with pytest.raises(InputError, match=r"normalises each token .*decode\(z, x\) or sae\(x\)"):
                decode()


@each_norm
def test_a_token_without_length_or_spread_gives_numbers(token_norm: TokenNorm) -> None:
    sae = make_sae("relu", token_norm, torch.float32)
    x = sae.mean + torch.tensor([[0.0], [2.0]])
    out = sae(x)
    for values in (*out, GroupEditor(sae, x).edit(torch.ones(D_SAE) > 0, EditMode.reconstruct)):
        assert values.isfinite().all()
    if token_norm is not TokenNorm.none:
        torch.testing.assert_close(out.x_hat[0], sae.mean)  # it has no length to give to what is decoded


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(ACTIVATIONS), st.sampled_from(NORMS), st.integers(0, 2**24 - 1), st.integers(0, 2**24 - 1))
def test_removal_is_what_the_group_wrote(name: str, token_norm: TokenNorm, group: int, other: int) -> None:
    sae, x = make_sae(name, token_norm), make_tokens(5, 8)
    masks = [torch.tensor([bool(bits >> j & 1) for j in range(D_SAE)]) for bits in (group, other & ~group)]
    z, shift, factor = encode_by_hand(sae, x.flatten(0, 1))
    editor = GroupEditor(sae, x)
    for removed in masks:
        taken = (factor * (z * removed) @ sae.W_dec / SCALE).view_as(x)
        torch.testing.assert_close(editor.contribution(removed), taken)
        torch.testing.assert_close(editor.edit(removed, EditMode.error_preserving), x - taken)
        kept = decode_by_hand(sae, z * ~removed, shift, factor).view_as(x)
        torch.testing.assert_close(editor.edit(removed, EditMode.reconstruct), kept)
    # disjoint groups add up, and what a token norm took from the token comes back
    together = editor.contribution(masks[0]) + editor.contribution(masks[1])
    torch.testing.assert_close(editor.contribution(masks[0] | masks[1]), together)
    nothing, everything = torch.zeros(D_SAE) > 0, torch.ones(D_SAE) > 0
    assert torch.equal(editor.edit(nothing, EditMode.error_preserving), x)
    torch.testing.assert_close(editor.edit(nothing, EditMode.reconstruct), sae(x).x_hat)
    bias = sae.mean + (factor * sae.b_dec + shift) / SCALE
    torch.testing.assert_close(editor.edit(everything, EditMode.reconstruct), bias.view_as(x))


def test_layer_norms_mean_of_a_token_stays_where_decoder_rows_are_centred() -> None:
    sae, x = make_sae("relu", TokenNorm.layer_norm), make_tokens(N)
    removed = torch.arange(D_SAE) % 2 == 0

    def shift() -> Tensor:
        return (GroupEditor(sae, x).edit(removed, EditMode.error_preserving) - x).mean(1).abs()

    assert shift().max() > 0.1  # rows that have a mean move that of the token
    sae.W_dec -= sae.W_dec.mean(1, keepdim=True)
    assert shift().max() < 1e-12


@each_norm
@each_kind
def test_metrics_and_shares_count_from_the_mean_of_the_data(name: str, token_norm: TokenNorm) -> None:
    sae, x = make_sae(name, token_norm), make_tokens(N)
    z, shift, factor = encode_by_hand(sae, x)
    error = x - decode_by_hand(sae, z, shift, factor)
    removed = torch.arange(D_SAE) % 2 == 0
    taken = factor * (z * removed) @ sae.W_dec / SCALE
    for data_mean in (None, x.mean(0)):
        sae.data_mean = data_mean
        deviation = x - (sae.mean if data_mean is None else data_mean)
        metrics = compute_sae_metrics(sae, x.split(16))
        assert metrics["fvu"] == pytest.approx(float(error.square().sum() / deviation.square().sum()))
        assert metrics["l0"] == pytest.approx(float((z != 0).sum(1).double().mean()))
        assert metrics["dead_share"] == pytest.approx(float((z <= 0).all(0).double().mean()))
        meter = RemovedShareMeter(sae, removed[None])
        meter.update(GroupEditor(sae, x))
        mass, energy = meter.compute()
        masses = (z.clamp_min(0) * sae.W_dec.norm(dim=1)).sum(0)
        assert float(mass) == pytest.approx(float(masses[removed].sum() / masses.sum()))
        assert float(energy) == pytest.approx(float(taken.square().sum() / deviation.square().sum()))
        negative = float(-z.clamp_max(0).sum() / z.abs().sum())
        assert metrics.get("negative_share", 0) == pytest.approx(negative)
        assert ("negative_share" in metrics) == (name in SIGNED)


def test_it_takes_the_tensors_themselves() -> None:
    tensors = torch.rand(D_IN, D_SAE), torch.rand(D_SAE), torch.rand(D_SAE, D_IN), torch.rand(D_IN)
    sae = SparseAutoencoder.of(*tensors, ReLU())
    for name, tensor in zip(("W_enc", "b_enc", "W_dec", "b_dec"), tensors, strict=True):
        assert getattr(sae, name).data_ptr() == tensor.data_ptr()
    assert not sae.training
    assert "data_mean" not in sae.state_dict()


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (Threshold(torch.zeros(D_SAE - 1)), "24 thresholds, one per latent, got 23"),
        (Gated(*torch.zeros(2, D_SAE), torch.zeros(D_SAE, 1)), "24 values of mag_scale, one per latent, got 24 x 1"),
        (Gated(torch.tensor(0.0), *torch.zeros(2, D_SAE)), "24 values of gate_bias, one per latent, got one"),
        (GroupMax(5), "fall into 5 groups of one size, got 24"),
        (GroupMax(48), r"sae\.k in 1\.\.24"),
    ],
)
def test_an_activation_of_other_latents_is_refused(activation, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SparseAutoencoder(D_IN, D_SAE, activation)


@each_kind
def test_entries_of_many_tokens_are_found_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = make_sae(name, TokenNorm.none), make_tokens(N)
    whole = sae.decode_sparse(sae.encode_sparse(x))
    monkeypatch.setattr(model, "MAX_PRE_ACTS", 7 * D_SAE)
    acts = sae.encode_sparse(x)
    torch.testing.assert_close(sae.decode_sparse(acts), whole)
    assert len(acts.values) == N
    assert len(sae.encode_sparse(x[:0]).values) == 0
