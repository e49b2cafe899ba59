"""stage=rank: the training images on which every latent fires most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from infoscope.pipeline.context import Context
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Row, Shown, Work, name_artifacts
from infoscope.sae.latent_table import LatentColumn
from infoscope.sae.metrics import compute_mass
from infoscope.sae.model import MAX_PRE_ACTS, SparseAutoencoder
from infoscope.sae.origin import check_has_maps
from infoscope.sae.passes import BATCH_IMAGES, Measurement
from infoscope.scope.config import RankBy
from infoscope.scope.ranking import Ranking, check_enough_images, measure_ranking
from infoscope.stages.images import count_images
from infoscope.stages.sae import (
    UNIT,
    count_latents,
    has_unit_rows,
    name_unit,
    origin_of,
    row_norms_of,
    sae_of,
    say_imported,
    work_of_pass,
)
from infoscope.stages.score.tables import Ranked, make_ranking_table
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.tokens.source import TokenSource


class Rank(PassStage[Ranking]):
    """The training images ranked by each latent's activation, with firing rate and mean activation."""

    kind, holds = "rank", Ranking

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        scope = ctx.config.scope
        return {
            "sae": up.sae.hash,
            "tokens": up.tokens.hash,
            "k_max": scope.n_ranks,
            "rank_by": scope.rank_by.name,
        }

    def check(self, ctx: Context, seed: int) -> None:
        check_has_maps(origin_of(ctx))
        check_enough_images(count_images(ctx, "train"), ctx.config.scope.k_cds)

    def measure(self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int) -> Measurement:
        scope = ctx.config.scope
        check_enough_images(len(tokens), scope.k_cds)
        return measure_ranking(sae, scope.n_ranks, scope.rank_by)

    def log(self, found: Ranking) -> Mapping[str, float]:
        return {"n_images": found.n_images, "silent_latents": int((found.firing_rate == 0).sum())}

    def work(self, ctx: Context, seed: int) -> Work:
        d_sae = count_latents(ctx)
        n_bytes = d_sae * ctx.config.scope.n_ranks * 12
        held = 3 * n_bytes  # of a part, of what this process has ranked, of all
        # pre-activations, and what is made of them
        held += 2 * 4 * min(BATCH_IMAGES * find_sizes(ctx).n_patches * d_sae, MAX_PRE_ACTS)
        return replace(work_of_pass(ctx), disk_bytes=n_bytes, memory_bytes=held)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found, norms = self.at(ctx, seed).load(), row_norms_of(ctx, seed)
        unit, mass = name_unit(norms), mass_of(ctx, seed)
        yield LatentColumn("firing_rate", found.firing_rate, "firing frequency", "share of patch tokens")
        yield LatentColumn("mean_act", found.mean_act, "mean activation", f"{UNIT} per patch token")
        yield LatentColumn("mass", mass, "mean activation x norm of the decoder row", f"{unit} per patch token")
        if found.rank_by is not RankBy.drawn:
            of = {RankBy.max: "largest activation", RankBy.mean: "mean activation"}[found.rank_by]
            yield LatentColumn("top_value", found.top_values[:, 0] * norms, f"{of} in its top image", unit)

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, ranking = self.at(ctx, seed).get(), self.at(ctx, seed).load()
        found = {"n_images": ranking.n_images, "n_silent": int((ranking.firing_rate == 0).sum())}
        yield {**name_artifacts(made), **sae_of(ctx, seed).read_json("metrics.json"), **found}

    def closing(self, ctx: Context) -> Shown:
        ranked = {seed: Ranked(self.at(ctx, seed).load(), mass_of(ctx, seed)) for seed in ctx.config.seeds}
        return [make_ranking_table(ranked), *say_imported(ctx)]


def mass_of(ctx: Context, seed: int) -> Float[np.ndarray, " d_sae"]:
    """Return the activation mass of each latent per token: the mean of z * |W_dec row|."""
    mean_act = Rank.at(ctx, seed).load().mean_act
    return mean_act if has_unit_rows(ctx) else compute_mass(mean_act, sae_of(ctx, seed).load().W_dec)
