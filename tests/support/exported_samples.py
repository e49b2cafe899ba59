"""SAEs of every kind that is exported as it is: those that infoscope trains, thresholds, gates."""

from __future__ import annotations

import torch

from infoscope.sae.activations import ACTIVATIONS, Activation, BatchTopK, JumpReLU
from infoscope.sae.config import KINDS, TokenChoice, TokenNorm
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from tests.support import imported_samples
from tests.support.imported_samples import D_SAE

EXPORTED = (*KINDS, "threshold", "gated")


def make_sae(kind: str, token_norm: TokenNorm = TokenNorm.none) -> SparseAutoencoder:
    """Return an SAE with mean, scale (without a token norm) and biases, of one of ours or of an imported kind."""
    sae = imported_samples.make_sae("gated" if kind == "gated" else "threshold", token_norm, torch.float32)
    if kind in KINDS:
        sae.activation = make_activation(kind)
    if token_norm is not TokenNorm.none:
        sae.mean.zero_()
        sae.scale.fill_(1)
    fingerprint = {"kind": "open_clip", "weights": "tag:ViT-B-16:openai"}
    sae.origin = Origin(3, fingerprint, 224, TokenChoice.patch)
    return sae.requires_grad_(False)


def make_activation(kind: str, d_sae: int = D_SAE) -> Activation:
    activation = ACTIVATIONS[kind].from_settings({"jumprelu": {"d_sae": d_sae}, "relu": {}}.get(kind, {"k": 5}))
    if isinstance(activation, JumpReLU):
        torch.nn.init.normal_(activation.log_threshold, -1, 0.5, generator=torch.Generator().manual_seed(0))
    if isinstance(activation, BatchTopK):
        activation.threshold.fill_(0.3)
    return activation
