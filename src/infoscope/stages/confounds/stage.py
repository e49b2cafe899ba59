"""stage=confounds: what a score could be mistaken for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from infoscope.pipeline.context import Context
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Node, Work
from infoscope.report.section import ReportSection
from infoscope.sae.latent_table import LatentColumn
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import Measurement
from infoscope.scope.confounds import ConfoundResult, measure_confounds
from infoscope.stages.confounds.section import make_confound_section
from infoscope.stages.images import fingerprint_images, open_split, scenes_of
from infoscope.stages.latents import join_latents
from infoscope.stages.publish import PublishedPart
from infoscope.stages.rank import Rank
from infoscope.stages.sae import name_unit, row_norms_of, sae_of, work_of_pass
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import Tokens
from infoscope.vision.tokens.source import TokenSource


class Confounds(PublishedPart, PassStage[ConfoundResult]):
    """How often, how strongly and how widely the latents of a seed fire, and on what."""

    kind, holds = "confounds", ConfoundResult

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"), **vars(scenes))

    def goals(self, ctx: Context) -> list[Node]:
        return [*super().goals(ctx), *(Score.at(ctx, seed) for seed in ctx.config.seeds)]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "sae": up.sae.hash,
            "tokens": up.tokens.hash,
            "images": fingerprint_images(ctx, "train"),
            "k_max": ctx.config.scope.n_ranks,
        }

    def measure(self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int) -> Measurement:
        return measure_confounds(sae, open_split(ctx, "train"), ctx.config.scope.n_ranks)

    def work(self, ctx: Context, seed: int) -> Work:
        return work_of_pass(ctx)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        return list_columns(self.at(ctx, seed).load(), ctx.config.scope.k_cds, row_norms_of(ctx, seed))

    def section(self, ctx: Context) -> ReportSection:
        pairs = [(scope_of(ctx, seed), self.at(ctx, seed).load()) for seed in ctx.config.seeds]
        latents = [join_latents(ctx, seed, (Rank, Score, Confounds)) for seed in ctx.config.seeds]
        return make_confound_section(pairs, latents)


def list_columns(
    found: ConfoundResult, k_cds: int, row_norms: Float[np.ndarray, " d_sae"] | float = 1.0
) -> Iterator[LatentColumn]:
    """Return what is known of each latent; effects are NaN for those that fire on too few images to have any.

    Args:
        row_norms: see `row_norms_of`; peaks are compared between latents.
    """
    of, units, grid = found.properties, name_unit(row_norms), "share of the grid"
    yield LatentColumn("image_rate", of.image_rate, "images in which it fires", "share of images")
    yield LatentColumn("peak", of.peak * row_norms, "peak activation", units)
    yield LatentColumn("peak_top", of.peak_top(k_cds) * row_norms, f"peak, mean of its top {k_cds} images", units)
    yield LatentColumn("support", of.support, "patches on which it fires, in images in which it does", grid)
    yield LatentColumn("participation", of.participation, "participation ratio", grid)
    effects = {
        f"image_effect_{name}": (f"effect of the {name}", effect) for name, effect in found.image_effects.items()
    }
    if effects:
        effects["image_effect"] = "largest effect of a global factor", found.image_effect
    for name, effect in found.fact_effects.items():
        effects[f"fact_effect_{name}"] = f"effect of the broad fact {name}", effect
    if found.fact_effects:
        effects["fact_effect"] = "largest effect of a broad fact", found.fact_effect
    if found.label_effect is not None:
        effects["label_effect"] = "effect of the patch labels", found.label_effect
    for name, (heading, effect) in effects.items():
        yield LatentColumn(name, np.where(found.fires_enough, effect, np.nan), heading, "share of variance")
    if found.has_truth:
        yield LatentColumn("known_global", found.known_global, "declared global")
        yield LatentColumn("known_local", found.known_local, "declared local")
    if found.fact_effects:
        yield LatentColumn("known_broad", found.known_broad, "declared broad")
