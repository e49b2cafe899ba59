"""SAEs as other toolkits have them: every activation and token norm, rows of any length, biases, an own mean."""

from __future__ import annotations

import torch
from torch import Tensor

from infoscope.sae.activations import Activation, Capped, Gated, GroupMax, ReLU, TanhReLU, Threshold, TopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.model import SparseAutoencoder

D_IN, D_SAE, SCALE, DEAD = 8, 24, 2.5, 3
NORMS = list(TokenNorm)
ACTIVATIONS = ("topk", "signed", "relu", "threshold", "one_threshold", "gated", "groupmax", "tanh_relu", "capped")
SIGNED = ("signed", "capped")


def make_activation(name: str, d_sae: int = D_SAE) -> Activation:
    """Return one of `ACTIVATIONS`; thresholds are above 0, 0 and below."""
    a, b, c = torch.randn(3, d_sae, generator=torch.Generator().manual_seed(7))
    made = {
        "topk": TopK(5),
        "signed": TopK(d_sae * 2 // 3, signed=True),
        "relu": ReLU(),
        "threshold": Threshold(a.where(torch.arange(d_sae) % 3 > 0, 0)),
        "one_threshold": Threshold(torch.tensor(0.4)),
        "gated": Gated(a, 0.3 * b, (0.5 * c).exp()),
        "groupmax": GroupMax(d_sae // 4),
        "tanh_relu": TanhReLU(),
        "capped": Capped(TopK(d_sae * 2 // 3, signed=True), 1.5),
    }
    return made[name]


def make_sae(
    name: str, token_norm: TokenNorm, dtype: torch.dtype = torch.float64, d_in: int = D_IN, d_sae: int = D_SAE
) -> SparseAutoencoder:
    """Return an SAE with that activation whose tensors are all random; latent `DEAD` never fires, its rows are 0."""
    generator = torch.Generator().manual_seed(3)
    rows, W_dec = torch.randn(2, d_sae, d_in, generator=generator) / d_in**0.5
    b_enc, b_dec, mean = (0.3 * torch.randn(n, generator=generator) for n in (d_sae, d_in, d_in))
    W_dec[DEAD], rows[DEAD], b_enc[DEAD] = 0, 0, -100
    sae = SparseAutoencoder.of(rows.T, b_enc, W_dec, b_dec, make_activation(name, d_sae), mean, SCALE, token_norm)
    return sae.to(dtype).requires_grad_(False)


def make_tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return raw tokens [*shape, D_IN], off centre, of which some are far longer than others."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(*shape, D_IN, generator=generator, dtype=dtype)
    return 0.7 + tokens * torch.randn(*shape, 1, generator=generator, dtype=dtype).exp()


def activate_by_hand(activation: Activation, a: Tensor) -> Tensor:
    """Return z of pre-activations [n, d_sae], latent by latent as its definition says."""
    match activation:
        case Capped():
            return activation.cap * torch.tanh(activate_by_hand(activation.inner, a) / activation.cap)
        case TopK():
            kept = torch.zeros_like(a)
            for row, place in zip(a, kept, strict=True):
                for j in row.argsort(descending=True)[: activation.k].tolist():
                    place[j] = row[j] if activation.signed else max(row[j], 0)
            return kept
        case Threshold():
            return torch.relu(a) * (a > activation.threshold)
        case Gated():
            return (a + activation.gate_bias > 0) * torch.relu(a * activation.mag_scale + activation.mag_bias)
        case GroupMax():
            runs = torch.relu(a).unflatten(1, (activation.k, -1))
            return (runs * (runs == runs.amax(-1, keepdim=True))).flatten(1)
        case TanhReLU():
            return torch.tanh(torch.relu(a))
    return torch.relu(a)


def measure_by_hand(token_norm: TokenNorm, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and factor of each of some tokens c (x - mu) [n, d_in], as [n, 1]."""
    if token_norm is TokenNorm.none:
        return torch.zeros_like(y[:, :1]), torch.ones_like(y[:, :1])
    if token_norm is TokenNorm.constant_norm:
        return torch.zeros_like(y[:, :1]), (y.square().sum(1, keepdim=True) / y.shape[1]).sqrt()
    mean = y.mean(1, keepdim=True)
    return mean, ((y - mean).square().sum(1, keepdim=True) / (y.shape[1] - 1)).sqrt()
