"""The mass of a latent is the sum of z * |W_dec row|, whatever the lengths of the rows, and wherever it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoscope.sae.activations import TopK
from infoscope.sae.edit import GroupEditor
from infoscope.sae.metrics import UNIT_TOLERANCE, compute_mass
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import make_ablations
from infoscope.scope.editing import AblationShares
from tests.support.memory_tokens import MemoryTokens
from tests.support.scope_samples import rank

N_IMAGES, N_PATCHES, D_IN, D_SAE = 9, 4, 16, 64


def make_tokens() -> torch.Tensor:
    return torch.randn(N_IMAGES, N_PATCHES, D_IN, generator=torch.Generator().manual_seed(0))


def make_sae(lengths: torch.Tensor | float) -> SparseAutoencoder:
    sae = SparseAutoencoder(D_IN, D_SAE, TopK(5), scale=1.7, seed=1)
    with torch.no_grad():
        sae.normalise_decoder()
        sae.W_dec.mul_(torch.as_tensor(lengths).reshape(-1, 1))
    return sae.requires_grad_(False)


def test_it_is_what_brute_force_finds_for_rows_of_any_length() -> None:
    sae, tokens = make_sae(torch.linspace(0.5, 3, D_SAE)), make_tokens()
    ranking = rank(sae, MemoryTokens(tokens), 3)
    acts = sae.encode(tokens).double().flatten(0, 1)
    written = torch.stack([(acts[:, i, None] * sae.W_dec[i].double()).norm(dim=1).sum() for i in range(D_SAE)])
    found = compute_mass(ranking.mean_act, sae.W_dec)
    np.testing.assert_allclose(found, written / len(acts), rtol=1e-5)
    assert found.dtype == ranking.mean_act.dtype

    groups = {"high": np.arange(D_SAE) < 20, "low": np.arange(D_SAE) >= 20}
    variants = make_ablations(groups, found > 0, found, n_draws=1)
    shares = AblationShares(sae, variants)
    shares.update(GroupEditor(sae, tokens.flatten(0, 1)))
    for variant, (mass, _) in zip(variants, shares.compute(), strict=True):
        assert variant.mass_share_train == pytest.approx(mass, rel=1e-5)


def test_rows_of_unit_norm_leave_mean_activations_as_they_are() -> None:
    mean_act = torch.rand(D_SAE, generator=torch.Generator().manual_seed(2)).numpy()
    sae = make_sae(1.0)
    assert (sae.W_dec.double().norm(dim=1) != 1).any()  # they are off by rounding
    np.testing.assert_array_equal(compute_mass(mean_act, sae.W_dec), mean_act)
    longer = compute_mass(mean_act, make_sae(1 + 3 * UNIT_TOLERANCE).W_dec)
    assert (longer > mean_act).all()
