"""stage=quality: how good SAEs are by MSAE's measures, on test tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infoscope.analyses.quality import MAX_COMPARED, HeadTest, QualityResult, measure_quality
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.sae.model import MAX_PRE_ACTS
from infoscope.stages.describe.alignment import alignments_of
from infoscope.stages.describe.fidelity import Fidelity, why_no_predictions
from infoscope.stages.images import check_split, count_images, open_split
from infoscope.stages.publish import Published
from infoscope.stages.quality.head import TrainedHead, why_no_head
from infoscope.stages.quality.numbers import COLUMNS, Measured
from infoscope.stages.quality.section import make_quality_section
from infoscope.stages.sae import choose_tokens, count_latents, sae_of
from infoscope.stages.tokens import Tokens, find_sizes


class Quality(Published, SeedStage[QualityResult]):
    """What MSAE measures of the SAE of a seed beside its fidelity."""

    kind, holds = "quality", QualityResult
    report_version = 1
    shows_scores, is_shared = False, False
    is_optional, is_without_maps = True, True
    columns = COLUMNS

    def applies(self, ctx: Context) -> bool:
        return count_images(ctx, "test") > 0

    def needs(self, ctx: Context, seed: int) -> Needs:
        head = {} if why_no_head(ctx) else {"head": TrainedHead.at(ctx)}
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "test"), **head)

    def goals(self, ctx: Context) -> list[Node]:
        fidelities = (Fidelity.at(ctx, seed) for seed in ctx.config.seeds)
        return [*super().goals(ctx), *fidelities, *alignments_of(ctx).values()]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        key = {"sae": up.sae.hash, "tokens": up.tokens.hash, "quality": ctx.config.quality.cache_key_fields()}
        return key | ({"head": up.head.hash} if hasattr(up, "head") else {})

    def check(self, ctx: Context, seed: int) -> None:
        check_split(ctx, "test", ctx.config.data)
        config, d_sae = ctx.config.quality, count_latents(ctx)
        n = min(config.n_tokens, count_images(ctx, "test") * count_read(ctx))
        if n <= (least := max(config.n_neighbours, 3)):
            raise InputError(
                f"stage=quality needs more than {least} test tokens, each of which has {config.n_neighbours} nearest"
                f" neighbours among the others, got {n:,}: use more test images, a larger quality.n_tokens, or a"
                " smaller quality.n_neighbours."
            )
        if not config.choose_ks(d_sae):
            raise InputError(
                f"Expected quality.k_levels to hold a number up to {d_sae}, that of the latents, got {config.k_levels}."
            )

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> QualityResult:
        tokens, probe = up.tokens.load(), None
        if hasattr(up, "head"):
            labels = open_split(ctx, "test").labels(ctx.config.probe.target)
            probe = HeadTest(up.head.load(), np.asarray(labels)[tokens.image_index])
        with ctx.display.bar(f"quality, seed {seed}", len(tokens), "images") as advance:
            return measure_quality(
                up.sae.load(),
                tokens,
                ctx.config.quality,
                choose_tokens(ctx),
                probe,
                ctx.config.predict.batch_images,
                advance,
            )

    def work(self, ctx: Context, seed: int) -> Work:
        n, sizes, is_stored = count_images(ctx, "test"), find_sizes(ctx), ctx.config.data.store_tokens
        d_sae, n_read = count_latents(ctx), count_read(ctx)
        n_drawn = min(ctx.config.quality.n_tokens, n * n_read)
        n_batch = ctx.config.predict.batch_images * n_read
        # the tokens that are drawn, three times; a batch and its reconstruction; two means of each image;
        # pre-activations; the nearest neighbours of each token, a value and its place, four times in two forms
        held = 4 * sizes.d_in * (3 * n_drawn + 4 * n_batch + 2 * n) + 4 * min(MAX_PRE_ACTS, n_drawn * d_sae)
        held += 8 * 16 * n_drawn * ctx.config.quality.n_neighbours
        return Work(n, [ctx.config.model.name, d_sae, is_stored], forwards=0 if is_stored else n, memory_bytes=held)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        if count_latents(ctx) <= MAX_COMPARED:
            nearest = self.at(ctx, seed).load().nearest_row
            yield LatentColumn("nearest_row", nearest, "largest cosine of its decoder row with another", "1")

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        yield {
            **name_artifacts(self.at(ctx, seed).get(), Fidelity.at(ctx, seed).get()),
            **measured_of(ctx, seed).summary,
        }

    def section(self, ctx: Context) -> ReportSection:
        measured = {seed: measured_of(ctx, seed) for seed in ctx.config.seeds}
        pairs = {pair: handle.load() for pair, handle in alignments_of(ctx).items()}
        return make_quality_section(measured, pairs, why_no_head(ctx), why_no_predictions(ctx))


def count_read(ctx: Context) -> int:
    """Return how many tokens of an image the SAE reads, known before there is one."""
    sizes = find_sizes(ctx)
    return choose_tokens(ctx).count_read(sizes.n_patches, sizes.n_prefix)


def measured_of(ctx: Context, seed: int) -> Measured:
    """Return all that is known of how good the SAE of a seed is."""
    pairs = alignments_of(ctx, seed)
    return Measured(
        Quality.at(ctx, seed).load(),
        Fidelity.at(ctx, seed).load(),
        count_latents(ctx),
        find_sizes(ctx).d_in,
        [handle.load().mean("decoder") for handle in pairs.values()],
    )
