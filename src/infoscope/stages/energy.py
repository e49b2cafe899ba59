"""What the energy of groups is read from: the activations of a fixed random sample of training tokens."""

from __future__ import annotations

from infoscope.pipeline.context import Context, once
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Work
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import Measurement
from infoscope.scope.energy import Cumulate, Energy, TokenSample, measure_sample
from infoscope.stages.sae import sae_of, work_of_pass
from infoscope.stages.tokens import Tokens
from infoscope.vision.tokens.source import TokenSource

N_TOKENS = 4096
"""Ours: two groups are compared on the same tokens, which may be few."""


class Sample(PassStage[TokenSample]):
    """The activations of a sample of training tokens, for an SAE seed."""

    kind, holds = "sample", TokenSample

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {"sae": up.sae.hash, "tokens": up.tokens.hash, "n_tokens": N_TOKENS}

    def measure(self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int) -> Measurement:
        n_patches = up.tokens.read_json("tokens.json")["grid"] ** 2
        return measure_sample(sae, len(tokens), n_patches, N_TOKENS)

    def work(self, ctx: Context, seed: int) -> Work:
        return work_of_pass(ctx)


@once
def energy_of(ctx: Context, seed: int) -> Cumulate:
    """Return what computes the energy of latents removed together, from a sample of training tokens."""
    sample, sae = Sample.at(ctx, seed).load(), sae_of(ctx, seed).load()
    return Energy(sample, sae.W_dec.detach().cpu().numpy()).cumulate
