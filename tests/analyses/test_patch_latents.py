"""What fires on a patch: against the SAE's own encoding and decoding, of every kind of activation and token norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoscope.analyses.patch_latents import attribute_patch
from infoscope.sae.model import TokenNorm
from tests.support import imported_samples

N_PATCHES, PLACE = 9, 5


def make_patches(d_in: int) -> torch.Tensor:
    return torch.randn(N_PATCHES, d_in, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", [TokenNorm.none, TokenNorm.layer_norm])
@pytest.mark.parametrize("name", list(imported_samples.ACTIVATIONS))
def test_the_latents_of_a_patch_are_those_of_encode(name: str, norm: TokenNorm) -> None:
    sae = imported_samples.make_sae(name, norm)
    patches = make_patches(sae.d_in)
    found = attribute_patch(sae, patches, PLACE, 3)
    z = sae.encode(patches)
    contributions = z[PLACE].clamp_min(0) * sae.W_dec.norm(dim=1)
    best = contributions.argsort(descending=True, stable=True)[: min(3, int((z[PLACE] > 0).sum()))]
    assert found.latents.tolist() == best.tolist()
    assert found.n_active == int((z[PLACE] > 0).sum()) > 0
    torch.testing.assert_close(found.activations, z[PLACE, best])
    torch.testing.assert_close(found.contributions, contributions[best].float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.maps, z[:, best].T.clamp_min(0))
    x_hat = sae.decode(z, patches)  # of signed codes all take part
    error, deviation = ((patches - of)[PLACE].square().sum() for of in (x_hat, sae.centre))
    assert found.explained == pytest.approx(float(1 - error / deviation), rel=1e-3, abs=1e-4)


def test_where_nothing_fires_there_is_nothing_to_show() -> None:
    sae = imported_samples.make_sae("relu", TokenNorm.none)
    sae.b_enc.data.fill_(-1000)
    patches = make_patches(sae.d_in)
    found = attribute_patch(sae, patches, PLACE, 3)
    assert found.n_active == len(found.latents) == 0
    assert found.maps.shape == (0, N_PATCHES)
    patches[PLACE] = sae.centre
    assert np.isnan(attribute_patch(sae, patches, PLACE, 3).explained)
