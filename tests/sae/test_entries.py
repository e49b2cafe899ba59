"""Entries of every kind of activation are what is not 0 in the dense latents, in order, and made without these."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infoscope.runtime.errors import InputError
from infoscope.sae import model
from infoscope.sae.activations import BatchTopK, Capped, JumpReLU, MatryoshkaK, MatryoshkaPrefix
from infoscope.sae.config import TokenNorm
from infoscope.sae.model import SparseAutoencoder
from tests.support.imported_samples import ACTIVATIONS, D_IN, D_SAE, SIGNED, make_sae, make_tokens

N = 30
OURS = {
    "batchtopk": BatchTopK(4),
    "matryoshka_k": MatryoshkaK(7),
    "matryoshka_prefix": MatryoshkaPrefix(4),
    "jumprelu": JumpReLU(D_SAE, 0.5),
    "capped_topk": Capped(MatryoshkaK(16), 0.8),
    "capped_gate": Capped(JumpReLU(D_SAE, 0.2), 0.8),
}
THRESHOLD = 0.3
WIDE = ("topk", "signed", "groupmax", "capped", "matryoshka_k", "capped_topk")  # known how wide: the others are gates
MADE_DENSE = ("gated", "tanh_relu")


def make(name: str, token_norm: TokenNorm = TokenNorm.none) -> SparseAutoencoder:
    if name in ACTIVATIONS:
        return make_sae(name, token_norm, torch.float32)
    sae = make_sae("relu", token_norm, torch.float32)
    sae.activation = OURS[name]
    if isinstance(sae.activation, BatchTopK):
        sae.activation.threshold.fill_(THRESHOLD)
    return sae.requires_grad_(False)


class CountDense(TorchDispatchMode):
    """Counts how often an operation returns new numbers as wide as all latents; masks are none."""

    n_dense = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and not out._is_view():
            self.n_dense += out.shape == (N, D_SAE)
        return out


def assert_lists(sae: SparseAutoencoder, x: Tensor, n_at_once: int = N) -> None:
    dense = torch.cat([sae.encode(part) for part in x.split(n_at_once)])
    tokens, latents, values = sae.encode_entries(x)
    expected = dense.nonzero(as_tuple=True)
    assert (tokens.dtype, latents.dtype, values.dtype) == (torch.int64, torch.int64, torch.float32)
    assert torch.equal(tokens, expected[0])
    assert torch.equal(latents, expected[1])
    assert torch.equal(values, dense[expected])


@pytest.mark.parametrize("token_norm", list(TokenNorm))
@pytest.mark.parametrize("name", [name for name in [*ACTIVATIONS, *OURS] if name not in WIDE])
def test_some_latents_of_a_gate_are_encoded_without_the_others(name: str, token_norm: TokenNorm) -> None:
    sae, x = make(name, token_norm), make_tokens(N)
    latents = torch.tensor([D_SAE - 1, 0, 7, 3])
    found, expected = sae.encode_latents(x, latents), sae.encode(x)[:, latents]
    assert 0 < (expected > 0).sum() < expected.numel()
    assert sae.activation.is_pointwise
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_depends_on_other_latents_is_no_gate() -> None:
    assert not any(make(name).activation.is_pointwise for name in WIDE)


@pytest.mark.parametrize("token_norm", list(TokenNorm))
@pytest.mark.parametrize("name", [*ACTIVATIONS, *OURS])
def test_entries_are_what_is_not_0(name: str, token_norm: TokenNorm, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = make(name, token_norm), make_tokens(N, dtype=torch.float32)
    values = sae.encode_entries(x).values
    assert 0 < len(values) < N * D_SAE
    assert bool((values < 0).any()) == (name in SIGNED)
    assert_lists(sae, x)
    with torch.no_grad():
        sae.b_enc[:] = torch.where(torch.arange(D_SAE) < 20, -1000, 0)  # on some tokens nothing fires
    assert_lists(sae, x)
    monkeypatch.setattr(model, "MAX_PRE_ACTS", 7 * D_SAE)  # in parts, of which the last is shorter
    assert_lists(sae, x, 7)


@pytest.mark.parametrize("name", [*ACTIVATIONS, *OURS])
def test_no_tokens_have_no_entries(name: str) -> None:
    assert_lists(make(name), torch.zeros(0, D_IN))


@pytest.mark.parametrize("name", [*ACTIVATIONS, *OURS])
def test_dense_latents_are_made_where_they_are_no_pre_activations(name: str) -> None:
    sae, x = make(name), make_tokens(N, dtype=torch.float32)
    with CountDense() as count:
        sae.encode_entries(x)
    assert (sae.activation.max_active is not None) == (name in WIDE)
    assert (count.n_dense > 1) == (name in MADE_DENSE)  # one: the pre-activations


def test_what_the_cap_makes_0_is_no_entry() -> None:
    sae = make_sae("relu", TokenNorm.none, torch.float32)
    sae.activation = Capped(sae.activation, 1e38)
    with torch.no_grad():
        sae.b_enc[:], sae.W_enc[:] = 1e-8, 0  # / 1e38 is less than the smallest number
    assert_lists(sae, torch.zeros(3, D_IN))
    assert len(sae.encode_entries(torch.zeros(3, D_IN)).values) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*ACTIVATIONS, *OURS])
def test_entries_on_cuda_are_what_is_not_0_there(name: str) -> None:
    sae, x = make(name).cuda(), make_tokens(N, dtype=torch.float32).cuda()
    assert sae.encode_entries(x).values.is_cuda
    assert_lists(sae, x)
    assert_lists(sae, x[:0])


def test_tokens_that_are_no_matrix_are_refused() -> None:
    sae = make_sae("topk", TokenNorm.none)
    for shape in ((), (2, 3)):
        with pytest.raises(InputError, match=rf"Expected tokens \[n, {D_IN}\], got .*: give x\.reshape"):
            sae.encode_entries(make_tokens(*shape))
