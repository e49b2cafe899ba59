"""What fires in each image of a split: what stage=describe and others are arithmetic on."""

from __future__ import annotations

from dataclasses import replace

from infoscope.analyses.image_codes import ENTRY_BYTES, ImageCodes, measure_image_codes
from infoscope.pipeline.context import Context
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Work, name_of_seed
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_reads_patches
from infoscope.sae.passes import Measurement
from infoscope.stages.images import check_split, count_images
from infoscope.stages.sae import count_latents, origin_of, sae_of, work_of_pass
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.tokens.source import TokenSource


class Codes(PassStage[ImageCodes]):
    """What fires in each image of a split; an item is (SAE seed, split)."""

    kind, holds = "image_codes", ImageCodes

    def name(self, ctx: Context, seed: int, split: str) -> str:
        return f"{name_of_seed(ctx, seed)}-{split}"

    def describe(self, ctx: Context, seed: int, split: str) -> str:
        return f"image codes, {split}, seed {seed}"

    def needs(self, ctx: Context, seed: int, split: str) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, split))

    def key(self, ctx: Context, up: Needs, seed: int, split: str) -> Key:
        return {"sae": up.sae.hash, "tokens": up.tokens.hash, "strong_above": ctx.config.describe.strong_above}

    def check(self, ctx: Context, seed: int, split: str) -> None:
        check_reads_patches(origin_of(ctx))
        check_split(ctx, split, ctx.config.data)

    def measure(
        self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int, split: str
    ) -> Measurement:
        return measure_image_codes(sae, ctx.config.describe.strong_above)

    def work(self, ctx: Context, seed: int, split: str) -> Work:
        # at most: each active latent of each patch is another one
        config, d_sae = ctx.config, count_latents(ctx)
        n, k = count_images(ctx, split), getattr(config.sae, "k", None) or d_sae
        n_bytes = n * min(k * find_sizes(ctx).n_patches, d_sae) * ENTRY_BYTES
        return replace(work_of_pass(ctx, split), disk_bytes=n_bytes, memory_bytes=2 * n_bytes, is_bound=True)
