"""What each latent does in a sample of the training images, and its maps on some of them: what explorers show."""

from __future__ import annotations

from dataclasses import replace

from infoscope.analyses.image_codes import ENTRY_BYTES
from infoscope.analyses.levels import N_SLOTS, Levels, measure_levels
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, SeedStage, Work
from infoscope.runtime.store import Workspace
from infoscope.sae.origin import check_has_maps
from infoscope.scope.sparse_maps import count_bytes
from infoscope.stages.images import check_split, count_images, open_split
from infoscope.stages.recalled import list_gone, shows_past
from infoscope.stages.sae import count_latents, origin_of, sae_of, work_of_pass
from infoscope.stages.tokens import Tokens, find_sizes


class LevelMaps(SeedStage[Levels]):
    """Levels of activation of the latents of a seed.

    They are measured on a sample (`explore.n_level_images`), not on all training images as `Codes` are: of a large data
    set an explorer costs no further pass, and no table of all that fires in every image.
    """

    kind, holds = "levels", Levels

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config = ctx.config.explore
        return {
            "sae": up.sae.hash,
            "tokens": up.tokens.hash,
            "n_images": config.n_level_images,
            "seed": config.seed,
        }

    def check(self, ctx: Context, seed: int) -> None:
        check_has_maps(origin_of(ctx))
        check_split(ctx, "train", ctx.config.data)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> Levels:
        config = ctx.config.explore
        sae, tokens = up.sae.load(), up.tokens.load()
        return measure_levels(sae, tokens, config.n_level_images, config.seed, work.progress, ctx.display.bar)

    def work(self, ctx: Context, seed: int) -> Work:
        n_all, d_sae, sizes = count_images(ctx, "train"), count_latents(ctx), find_sizes(ctx)
        n = min(n_all, ctx.config.explore.n_level_images or n_all)
        k = getattr(ctx.config.sae, "k", None) or d_sae
        code_bytes = n * min(k * sizes.n_patches, d_sae) * ENTRY_BYTES  # at most: each active latent is another one
        map_bytes = count_bytes(N_SLOTS * d_sae, sizes.grid) // 2  # one map of an image, not two
        of_pass = work_of_pass(ctx)
        return replace(
            of_pass,
            n=n,
            forwards=2 * min(n, of_pass.forwards),
            disk_bytes=code_bytes + map_bytes,
            memory_bytes=2 * (code_bytes + map_bytes),
            is_bound=True,
        )


def has_levels(ctx: Context, seed: int) -> bool:
    """Whether levels are there or can be measured: not of scores that exist (`explore.of`) whose tokens were not stored
    and of whose images some are gone."""
    if not shows_past(ctx) or ctx.config.data.store_tokens or LevelMaps.at(ctx, seed).find() is not None:
        return True
    return not len(list_gone(open_split(ctx, "train")))
