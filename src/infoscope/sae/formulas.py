"""What an SAE computes, in words: its activation, and the norm of each token."""

from __future__ import annotations

from typing import NamedTuple

import torch

from infoscope.sae.activations import Activation, Capped
from infoscope.sae.config import TokenNorm

MEETS = "meets_threshold"
"""The fact of an SAE whose latents fire where they meet their threshold too: ours is the float just below it."""
_ACTIVATIONS = {
    "relu": "ReLU(a)",
    "topk": "the {k} largest of ReLU(a), else 0",
    "matryoshka_k": "the {k} largest of ReLU(a), else 0",
    "signed": "the {k} largest of a, negative ones among them, else 0",
    "threshold": "a where a {above} {threshold}, else 0",
    "gated": "ReLU(a mag_scale + mag_bias) where a + gate_bias > 0, else 0",
    "groupmax": "the largest of ReLU(a) in each of {k} groups of neighbours, else 0",
    "tanh_relu": "tanh(ReLU(a))",
}


class Norm(NamedTuple):
    """What becomes of a token x, what of z W_dec + b_dec, and what the letters stand for."""

    x_n: str
    back: str
    where: str = ""


NORMS = {
    TokenNorm.none: Norm("x", ""),
    TokenNorm.layer_norm: Norm(
        "(x - m) / (s + 1e-5)",
        "s + m",
        "with the mean m and the standard deviation s (over d_in - 1) of the token's components",
    ),
    TokenNorm.constant_norm: Norm("x sqrt(d_in) / |x|", "|x| / sqrt(d_in)"),
}


def describe_activation(activation: Activation, is_met: bool = False) -> str:
    """Return what makes z of the pre-activations a.

    Args:
        is_met: a latent fires where it meets its threshold too, see `MEETS`.
    """
    if isinstance(activation, Capped):
        cap = activation.cap
        return f"{cap:g} tanh(z' / {cap:g}) of z' = {describe_activation(activation.inner, is_met)}"
    threshold = getattr(activation, "threshold", None)
    if not isinstance(threshold, torch.Tensor):
        kind = "signed" if activation.is_signed else activation.kind
        return _ACTIVATIONS.get(kind, kind).format(k=activation.settings().get("k"))
    if threshold.ndim == 0 and threshold <= 0:
        return _ACTIVATIONS["relu"]
    said = "its threshold" if threshold.ndim else f"{float(threshold):.4g}"
    return _ACTIVATIONS["threshold"].format(threshold=said, above=">=" if is_met else ">")
