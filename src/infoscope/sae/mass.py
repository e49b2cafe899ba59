"""The activation mass of a latent: how much it writes into the tokens, the sum of z * |W_dec row|."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

UNIT_TOLERANCE = 1e-5
"""How far from 1 the norm of a row of W_dec may be to count as 1: rows that training sets to unit norm in float32 are
off by about 1e-7, and nothing should hang on that."""


@torch.no_grad()
def compute_mass(
    mean_act: Float[np.ndarray, " d_sae"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """Return the activation mass of each latent per token: its mean activation times the norm of its decoder row.

    Rows of unit norm give `mean_act` itself, bit for bit; SAEs of other toolkits may have rows of any length.

    Args:
        mean_act: mean activation per token, silent tokens included, as `Ranking` holds it.
    """
    norms = W_dec.detach().double().norm(dim=1).cpu().numpy()
    norms = np.where(np.abs(norms - 1) <= UNIT_TOLERANCE, 1.0, norms)
    return (mean_act * norms).astype(mean_act.dtype)
