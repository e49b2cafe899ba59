"""An SAE of another program on tokens of ours: what is taken from them, and how well it reconstructs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import MAX_PRE_ACTS, SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.token_sets import TokenSet, make_token_set
from infoscope.sae.train import choose_held_out, make_normalisation
from infoscope.vision.tokens.extract import TokenCache
from infoscope.vision.tokens.source import LiveTokens

EVAL_TOKENS = 65_536
"""On which an SAE is measured, of the images that are held out where one is trained."""
BATCH_TOKENS = 4096


@torch.no_grad()
def fit_to_tokens(
    sae: SparseAutoencoder, tokens: TokenCache | LiveTokens, choice: TokenChoice, *, estimate: bool = False
) -> dict[str, float]:
    """Let an SAE know the tokens that it is used on, in place, and return its metrics on some of them.

    Its shares of variance and energy count from the tokens' mean (`centre`). A decoder whose scale means nothing gets
    the one that fits best. What is taken from the tokens stands among the facts of `origin.source`.

    Args:
        choice: which of the tokens it reads.
        estimate: whether mean and scale, which an SAE's file does not hold, are those of the tokens (ours).

    Raises:
        InputError: as `make_normalisation`; or the reconstruction is 0 everywhere, where a scale is to be fitted.
    """
    everything = make_token_set(tokens, choice)
    some = make_token_set(tokens, choice, choose_held_out(everything, EVAL_TOKENS))
    device = sae.mean.device
    mean, scale = make_normalisation(tokens, everything, choice, BATCH_TOKENS)
    source, facts = sae.origin.source, dict[str, Any]()
    sae.data_mean = mean.to(device)
    if estimate:
        sae.mean, sae.scale = mean.to(device, copy=True), torch.tensor(scale, device=device)
        facts["statistics"] = (
            f"mean and scale estimated on the training tokens of {everything.n_images:,} images (ours)"
        )
    if has_free_scale(sae.origin):
        facts["fitted_scale"] = _fit_scale(sae, some)
        sae.W_dec.mul_(facts["fitted_scale"])
    if source is not None and facts:
        known = {name: value for name, value in source.facts.items() if name != "needs_statistics" or not estimate}
        sae.origin = replace(sae.origin, source=replace(source, facts={**known, **facts}))
    return compute_sae_metrics(sae, _iterate(sae, some))


def has_free_scale(origin: Origin) -> bool:
    """Whether an SAE's decoder gives a direction alone, whose scale is to be fitted."""
    return origin.source is not None and bool(origin.source.facts.get("scale_is_free"))


def _iterate(sae: SparseAutoencoder, tokens: TokenSet) -> Iterator[Float[Tensor, "n d_in"]]:
    """Return the tokens on which an SAE is measured, so many at a time that their pre-activations stay within bounds.

    (Joined entries of many tokens take as much as their fullest one each.)
    """
    return tokens.iterate(min(BATCH_TOKENS, max(1, MAX_PRE_ACTS // sae.d_sae)), EVAL_TOKENS)


def _fit_scale(sae: SparseAutoencoder, tokens: TokenSet) -> float:
    """Return the factor of the reconstruction that brings it nearest to the tokens (least squares)."""
    along, length = 0.0, 0.0
    for batch in _iterate(sae, tokens):
        x = batch.to(sae.mean.device)
        x_hat = sae(x).x_hat
        along += float((x * x_hat).sum(dtype=torch.float64))
        length += float(x_hat.square().sum(dtype=torch.float64))
    if not along > 0:
        raise InputError(
            "The decoder of this SAE gives a direction alone, and no scale brings it near the tokens of this run: it"
            " was trained on other tokens."
        )
    return along / length
