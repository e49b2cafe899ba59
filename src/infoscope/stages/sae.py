"""Where an SAE comes from: everything after it asks for *an SAE* here, and does not care."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Work
from infoscope.sae.config import MatryoshkaPrefixConfig, TokenChoice, TrainedConfig
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.metrics import compute_row_norms
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.stages.images import count_images
from infoscope.stages.import_sae import ImportSAE, describe_imported, inspect_sae, tokens_read
from infoscope.stages.tokens import find_sizes
from infoscope.stages.train_sae import TrainSAE
from infoscope.vision.hooks import POOLED

UNIT = "SAE units"
"""Of z, as the SAE's own encode returns it."""


def sae_of(ctx: Context, seed: int) -> Handle[SparseAutoencoder]:
    """Return the SAE of a seed, trained here or imported."""
    return ImportSAE.at(ctx, seed) if _is_imported(ctx) else TrainSAE.at(ctx, seed)


def count_latents(ctx: Context) -> int:
    """Return the number of latents, known before there is an SAE."""
    config = ctx.config.sae
    return (
        config.expansion_factor * find_sizes(ctx).d_in if isinstance(config, TrainedConfig) else inspect_sae(ctx).d_sae
    )


def list_level_ends(ctx: Context) -> list[float]:
    """Return which share of all latents each Matryoshka level and those before it make up, ascending to 1.

    Empty where the SAE has no levels, or the file of an imported one does not say where they end.
    """
    if isinstance(ctx.config.sae, MatryoshkaPrefixConfig):
        return ctx.config.sae.prefixes
    found = inspect_sae(ctx) if _is_imported(ctx) else None
    return [] if found is None else [size / found.d_sae for size in found.prefix_sizes]


def choose_tokens(ctx: Context) -> TokenChoice:
    """Return which tokens the SAE reads, known before there is one."""
    config = ctx.config.sae
    return config.tokens if isinstance(config, TrainedConfig) else tokens_read(ctx)


def has_unit_rows(ctx: Context) -> bool:
    """Whether training has set every row of the decoder to unit norm, so that the SAE need not be read to know."""
    return not _is_imported(ctx)


def row_norms_of(ctx: Context, seed: int) -> Float[np.ndarray, " d_sae"] | float:
    """Return by what activations are multiplied before those of several latents are compared or added: the norms of
    the decoder's rows; 1.0 where training has made all of them 1."""
    return 1.0 if has_unit_rows(ctx) else compute_row_norms(sae_of(ctx, seed).load().W_dec)


def name_unit(row_norms: Float[np.ndarray, " d_sae"] | float) -> str:
    """Return the unit of activations that are multiplied by what `row_norms_of` gives, for tables."""
    return UNIT if np.all(row_norms == 1) else f"{UNIT} x norm of the decoder row"


def has_maps(ctx: Context) -> bool:
    """Whether the features have a place in the picture, so that they can be ranked and scored."""
    return ctx.config.model.site != POOLED and choose_tokens(ctx) is not TokenChoice.cls


def has_free_scale(ctx: Context) -> bool:
    """Whether the decoder gives a direction alone, so that decoding without a group says nothing of its own."""
    return _is_imported(ctx) and inspect_sae(ctx).has_free_scale


def origin_of(ctx: Context) -> Origin:
    """Return what is known of the tokens that the SAE reads, before there is one: those of the run."""
    known = inspect_sae(ctx).origin if _is_imported(ctx) else Origin()
    return replace(known, tokens=choose_tokens(ctx), site=ctx.config.model.site)


def describe_sae(ctx: Context) -> str:
    """Return what the SAEs are, in words."""
    words = f"{ctx.config.sae.kind}, {count_latents(ctx)} latents{', bf16 products' if ctx.precision.is_bf16 else ''}"
    if _is_imported(ctx):
        return f"{words}. {' '.join(say_imported(ctx))}"
    return f"{words}, seeds {', '.join(map(str, ctx.config.seeds))}"


def say_imported(ctx: Context) -> list[str]:
    """Return what is to be known of an imported SAE, in sentences; nothing of those that are trained here."""
    return describe_imported(ctx) if _is_imported(ctx) else []


def work_of_pass(ctx: Context, split: str = "train") -> Work:
    """Return what measuring an SAE on all tokens of a split costs; tokens that are not stored are encoded for it."""
    n, is_stored = count_images(ctx, split), ctx.config.data.store_tokens
    return Work(n, [ctx.config.model.name, count_latents(ctx), is_stored], forwards=0 if is_stored else n)


def _is_imported(ctx: Context) -> bool:
    return isinstance(ctx.config.sae, ImportedConfig)
