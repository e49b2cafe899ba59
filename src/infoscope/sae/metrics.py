"""How well an SAE reconstructs tokens, how many latents it uses, and how much each writes into the tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.large_tensors import row_norms
from infoscope.sae.model import SparseAutoencoder

UNIT_TOLERANCE = 1e-5
"""How far from 1 the norm of a row of W_dec may be to count as 1: rows that training sets to unit norm in float32 are
off by about 1e-7, and nothing should hang on that."""


@torch.no_grad()
def compute_sae_metrics(sae: SparseAutoencoder, batches: Iterable[Float[Tensor, "n d_in"]]) -> dict[str, float]:
    """Return metrics over raw tokens, best held-out ones.

    fvu: squared error / squared deviation from the data-set mean (the SAE's `centre`). mse: squared error per
    component, raw units. cosine: mean cosine of both deviations from that mean (ours: without it, the mean direction
    alone would make it high). l0: mean number of latents that write into a token. dead_share: share of latents that
    fire, with an activation above 0, on none of these tokens. Of signed activations alone, negative_share: the share of
    the sum of |z| that is below 0.

    Raises:
        InputError: if there are no tokens.
    """
    device = sae.mean.device
    totals = torch.zeros(6, dtype=torch.float64, device=device)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
    n_tokens = 0
    for x in batches:
        x = x.to(device, sae.mean.dtype)
        acts = sae.encode_sparse(x)
        x_hat = sae.decode_sparse(acts, x)
        deviation = x - sae.centre
        cosine = torch.cosine_similarity(deviation, x_hat - sae.centre, dim=-1)
        parts = ((x - x_hat).square(), deviation.square(), cosine, acts.values != 0)
        if sae.activation.is_signed:
            parts += (acts.values.clamp_max(0).abs(), acts.values.abs())
        totals[: len(parts)] += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        fired[acts.indices[acts.values > 0]] = True
        n_tokens += len(x)
    if n_tokens == 0:
        raise InputError("Expected at least one token to measure the SAE on, got none.")
    error, total, cosine, n_active, below, either = totals.tolist()
    negative = {"negative_share": below / max(either, sys.float_info.min)} if sae.activation.is_signed else {}
    return {
        "fvu": error / total if total > 0 else float("nan"),
        "l0": n_active / n_tokens,
        "dead_share": 1 - fired.double().mean().item(),
        "cosine": cosine / n_tokens,
        "mse": error / (n_tokens * sae.d_in),
        **negative,
    }


@torch.no_grad()
def compute_row_norms(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[np.ndarray, " d_sae"]:
    """Return the norm of each latent's decoder row; those within `UNIT_TOLERANCE` of 1 are 1."""
    norms = row_norms(W_dec.detach()).cpu().numpy()
    return np.where(np.abs(norms - 1) <= UNIT_TOLERANCE, 1.0, norms)


def compute_mass(
    mean_act: Float[np.ndarray, " d_sae"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[np.ndarray, " d_sae"]:
    """Return the activation mass of each latent per token: its mean activation times the norm of its decoder row.

    In the SAE's own units: what a token norm divides a token by does not count. Signed activations count above 0 alone.
    Rows of unit norm give `mean_act` itself, bit for bit; SAEs of other toolkits may have rows of any length.

    Args:
        mean_act: mean activation per token, silent tokens included, as `Ranking` holds it.
    """
    return (mean_act * compute_row_norms(W_dec)).astype(mean_act.dtype)
