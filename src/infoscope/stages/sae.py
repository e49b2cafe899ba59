"""Where an SAE comes from: everything after training asks for *an SAE* here, and does not care."""

from __future__ import annotations

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle
from infoscope.sae.model import SparseAutoencoder
from infoscope.stages.tokens import find_sizes
from infoscope.stages.train_sae import TrainSAE


def sae_of(ctx: Context, seed: int) -> Handle[SparseAutoencoder]:
    """Return the SAE of a seed: so far, always one that is trained here."""
    return TrainSAE.at(ctx, seed)


def count_latents(ctx: Context) -> int:
    """Return the number of latents, known before there is an SAE."""
    return ctx.config.sae.expansion_factor * find_sizes(ctx).d_in
