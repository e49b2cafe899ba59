"""The sparse TopK step against dense autograd, and what it allocates."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from infoscope.sae.losses import ReLUObjective, TopKObjective, compute_aux_loss
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.topk_step import compute_sparse_step, select_topk
from tests.support.sae_samples import AUX_K, D_IN, D_SAE, PARAMETERS, K, N, RecordShapes, compute_grads, make_case


def compute_dense_loss(sae: SparseAutoencoder, x_n: Tensor, dead: Tensor, aux_k: int, aux_coef: float) -> Tensor:
    """FVU + AuxK by plain autograd, written from the definitions with masks over dense codes."""
    pre_acts = (x_n - sae.b_dec) @ sae.W_enc + sae.b_enc
    kept = torch.zeros_like(pre_acts).scatter(1, pre_acts.topk(K, dim=1).indices, 1.0)
    x_hat_n = (pre_acts * kept).clamp(min=0) @ sae.W_dec + sae.b_dec
    fvu = (x_n - x_hat_n).pow(2).sum() / x_n.pow(2).sum()
    if aux_k == 0 or not dead.any():
        return fvu
    of_dead = pre_acts.masked_fill(~dead, -torch.inf)
    chosen = torch.zeros_like(pre_acts).scatter(1, of_dead.topk(min(aux_k, int(dead.sum())), dim=1).indices, 1.0)
    residual = (x_n - x_hat_n).detach()
    residual_hat = (pre_acts * chosen).clamp(min=0) @ sae.W_dec
    auxk = (residual - residual_hat).pow(2).sum() / (residual - residual.mean(0)).pow(2).sum()
    return fvu + aux_coef * auxk


@pytest.mark.parametrize("n_dead", [0, 3, 14])
def test_every_gradient_equals_dense_autograd(n_dead: int) -> None:
    sae, x_n, dead = make_case()
    dead = dead & (dead.cumsum(0) <= n_dead)
    out = TopKObjective(K, AUX_K, 1 / 32)(sae, x_n, dead)
    expected = compute_dense_loss(sae, x_n, dead, AUX_K, 1 / 32)
    torch.testing.assert_close(out.loss, expected)
    for name, ours, theirs in zip(PARAMETERS, compute_grads(sae, out.loss), compute_grads(sae, expected), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_auxk_alone_reaches_the_dead_encoder_columns_and_only_those() -> None:
    sae, x_n, dead = make_case()
    step = compute_sparse_step(x_n, sae, partial(select_topk, k=K), dead=dead, aux_k=AUX_K)
    assert step.error_hat is not None
    W_enc_grad, b_enc_grad, W_dec_grad, b_dec_grad = torch.autograd.grad(
        compute_aux_loss((x_n - step.x_hats_n[0]).detach(), step.error_hat),
        [sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec],
    )
    assert W_enc_grad[:, dead].abs().sum(0).gt(0).any()
    assert b_enc_grad[dead].ne(0).any()
    assert b_dec_grad.ne(0).all()
    assert not W_enc_grad[:, ~dead].any()
    assert not W_dec_grad[~dead].any()


def test_n_fired_counts_positive_entries_only() -> None:
    sae, x_n, dead = make_case()
    with torch.no_grad():
        sae.b_enc -= 2.0
    z = sae.encode(x_n)
    out = TopKObjective(K, 0, 0.0)(sae, x_n, dead)
    assert torch.equal(out.n_fired, (z > 0).sum(0).double())
    assert out.n_fired.sum() < N * K


def test_relu_loss_is_the_definition() -> None:
    sae, x_n, dead = make_case()
    z = ((x_n - sae.b_dec) @ sae.W_enc + sae.b_enc).clamp(min=0)
    x_hat_n = z @ sae.W_dec + sae.b_dec
    expected = (x_n - x_hat_n).pow(2).sum() / x_n.pow(2).sum() + 0.3 * z.sum(1).mean() / D_IN**0.5
    out = ReLUObjective(0.3)(sae, x_n, dead)
    torch.testing.assert_close(out.loss, expected)
    assert torch.equal(out.n_fired, (z > 0).sum(0).double())


@pytest.mark.parametrize("sparse", [True, False])
def test_no_dense_codes_in_the_backward(sparse: bool) -> None:
    sae, x_n, dead = make_case()
    loss = (
        TopKObjective(K, AUX_K, 1 / 32)(sae, x_n, dead).loss
        if sparse
        else compute_dense_loss(sae, x_n, dead, AUX_K, 1 / 32)
    )
    with RecordShapes() as recorder:
        compute_grads(sae, loss)
    dense = [shape for shape in recorder.shapes if N in shape and D_SAE in shape]
    assert bool(dense) is not sparse  # the dense loss shows that the recorder would see one
    assert max(torch.Size(shape).numel() for shape in recorder.shapes) <= N * D_SAE
    if sparse:
        assert max(torch.Size(shape).numel() for shape in recorder.shapes) < N * D_SAE


@pytest.mark.gpu
def test_gradients_on_cuda_equal_those_on_the_cpu() -> None:
    sae, x_n, dead = make_case()
    objective = TopKObjective(K, AUX_K, 1 / 32)
    expected = compute_grads(sae, objective(sae, x_n, dead).loss)
    sae, x_n, dead = sae.cuda(), x_n.cuda(), dead.cuda()
    for ours, theirs in zip(compute_grads(sae, objective(sae, x_n, dead).loss), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)
