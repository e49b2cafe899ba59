"""SAEs as other toolkits have them: every activation and token norm, rows of any length, biases, an own mean."""

from __future__ import annotations

import torch

from infoscope.sae.activations import Activation, Capped, Gated, GroupMax, ReLU, TanhReLU, Threshold, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.model import SparseAutoencoder

D_IN, D_SAE = 8, 24
NORMS = list(TokenNorm)
ACTIVATIONS = ("topk", "signed", "relu", "threshold", "one_threshold", "gated", "groupmax", "tanh_relu", "capped")


def make_activation(name: str) -> Activation:
    """Return one of `ACTIVATIONS` for `D_SAE` latents; thresholds are above 0, 0 and below."""
    generator = torch.Generator().manual_seed(7)
    a, b, c = torch.randn(3, D_SAE, generator=generator)
    made = {
        "topk": TopK(5),
        "signed": TopK(16, signed=True),
        "relu": ReLU(),
        "threshold": Threshold(a.where(torch.arange(D_SAE) % 3 > 0, 0)),
        "one_threshold": Threshold(torch.tensor(0.4)),
        "gated": Gated(a, 0.3 * b, (0.5 * c).exp()),
        "groupmax": GroupMax(6),
        "tanh_relu": TanhReLU(),
        "capped": Capped(TopK(16, signed=True), 1.5),
    }
    return made[name]


def make_sae(name: str, token_norm: TokenNorm, dtype: torch.dtype = torch.float64) -> SparseAutoencoder:
    """Return an SAE with that activation whose tensors are all random; latent 3 is dead, its decoder row 0."""
    generator = torch.Generator().manual_seed(3)
    W_enc, W_dec = torch.randn(2, D_SAE, D_IN, generator=generator)
    b_enc, b_dec, mean = (torch.randn(n, generator=generator) for n in (D_SAE, D_IN, D_IN))
    W_dec[3], W_enc[3], b_enc[3] = 0, 0, -100
    sae = SparseAutoencoder.of(W_enc.T, 0.3 * b_enc, W_dec, 0.3 * b_dec, make_activation(name), mean, 2.5, token_norm)
    return sae.to(dtype).requires_grad_(False)


def make_tokens(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return raw tokens [*shape, D_IN], off centre, of which some are far longer than others."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(*shape, D_IN, generator=generator, dtype=dtype)
    return 0.7 + tokens * torch.randn(*shape, 1, generator=generator, dtype=dtype).exp()
