"""Progressive k: what an SAE reconstructs when only the k largest activations of a token are kept (MSAE).

Of SAEs that choose a number of latents per token, TopK and Matryoshka over k, k stands in the place of their own
number, so that it may exceed it: MSAE is trained for that, and others are not. Of all others the k largest of their own
activations are kept, so that nothing changes beyond the fullest token's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from infoscope.analyses.fidelity import ReconstructionMeter
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.activation import Activation, SparseActs
from infoscope.sae.activations import Capped, TopK
from infoscope.sae.model import SparseAutoencoder, sum_decoder_rows

MEASURES = ("fvu", "fvu_per_token", "cosine_raw", "cosine_centred", "l0")
"""What is measured at each k, as in `FidelityResult`."""
MAX_ACTS = 2**23
"""Activations that are sorted at a time (100 MB of values and places)."""
WIDE = 1 / 16
"""Share of the latents from which on more of a token's are decoded as a dense product, which is faster then."""


def has_own_k(activation: Activation) -> bool:
    """Whether an activation chooses a number of latents per token, in whose place another can stand."""
    return isinstance(activation, TopK) or (isinstance(activation, Capped) and has_own_k(activation.inner))


def widen(activation: Activation, k: int) -> Activation:
    """Return an activation that keeps k latents of a token, where it chooses by their number; else itself."""
    if isinstance(activation, TopK):
        return TopK(k, activation.signed)
    if isinstance(activation, Capped) and has_own_k(activation):
        return Capped(widen(activation.inner, k), activation.cap)
    return activation


@torch.no_grad()
def measure_progressive(
    sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], ks: Sequence[int]
) -> dict[str, Float64[np.ndarray, " n_ks"]]:
    """Return `MEASURES` by name at each k: one encoding, sorted, and decoded further from k to k.

    Of activations that may be below 0 the largest are the least negative, as their TopK chooses.

    Args:
        x: raw tokens.
        ks: how many activations of a token are kept, ascending, at most d_sae.
    """
    activation = widen(sae.activation, ks[-1])
    meters, n_active = [ReconstructionMeter(sae.centre) for _ in ks], [0] * len(ks)
    for part in x.split(max(1, MAX_ACTS // sae.d_sae)):
        with spent_on(Kind.encoder):
            values, order = activation.sparse(pre_acts := sae.pre_acts(part))
            values, places = values.sort(dim=-1, descending=True, stable=True)
            latents = order.gather(-1, places)
        del pre_acts
        written, start = torch.zeros_like(part), 0
        for number, (k, meter) in enumerate(zip(ks, meters, strict=True)):
            written += _decode(SparseActs(values[:, start:k], latents[:, start:k]), sae.W_dec)
            meter.update(part, sae.denormalise(written + sae.b_dec, part))
            n_active[number] += int((values[:, :k] != 0).sum())
            start = k
    found = [{**meter.compute(), "l0": n / len(x)} for meter, n in zip(meters, n_active, strict=True)]
    return {name: np.array([one[name] for one in found]) for name in MEASURES}


def _decode(acts: SparseActs, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"] | float:
    """Return z W_dec from some entries of z."""
    if not acts.values.any():
        return 0.0
    if acts.values.shape[1] <= WIDE * len(W_dec):
        return sum_decoder_rows(acts, W_dec)
    dense = acts.values.new_zeros(len(acts.values), len(W_dec))
    return dense.scatter_add_(1, acts.indices, acts.values) @ W_dec  # adds: padding has a latent of the token's own
