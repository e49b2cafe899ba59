"""Where an SAE comes from: everything after training asks for *an SAE* here, and does not care."""

from __future__ import annotations

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Work
from infoscope.sae.model import SparseAutoencoder
from infoscope.stages.images import count_images
from infoscope.stages.tokens import find_sizes
from infoscope.stages.train_sae import TrainSAE


def sae_of(ctx: Context, seed: int) -> Handle[SparseAutoencoder]:
    """Return the SAE of a seed: so far, always one that is trained here."""
    return TrainSAE.at(ctx, seed)


def count_latents(ctx: Context) -> int:
    """Return the number of latents, known before there is an SAE."""
    return ctx.config.sae.expansion_factor * find_sizes(ctx).d_in


def work_of_pass(ctx: Context) -> Work:
    """Return what measuring an SAE on all training tokens costs; tokens that are not stored are encoded for it."""
    n, is_stored = count_images(ctx, "train"), ctx.config.data.store_tokens
    return Work(n, [ctx.config.model.name, count_latents(ctx), is_stored], forwards=0 if is_stored else n)
