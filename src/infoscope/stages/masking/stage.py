"""stage=masking: zero-shot predictions with the top latents of each image's class alone, or without them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from infoscope.analyses.masking import MaskingInputs, MaskingResult, make_curves, measure_masking
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import PERCENT, Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.edit import EditMode
from infoscope.stages.backbone import hook_of
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import advise_classes, knows, open_split
from infoscope.stages.masking.section import make_masking_section, name_mask
from infoscope.stages.predict.stage import (
    EmbeddedClasses,
    Predict,
    count_predicted,
    key_of_inputs,
    make_inputs,
    prompts_of,
)
from infoscope.stages.publish import Published
from infoscope.stages.sae import count_latents, has_free_scale
from infoscope.stages.score.stage import needs_of_groups, partition_of, summarise_seed
from infoscope.stages.tokens import Tokens, find_sizes


class Masking(Published, SeedStage[MaskingResult]):
    """What the model's own zero-shot head predicts under masks that the true class of each image chooses."""

    kind, holds = "masking", MaskingResult
    report_version = 1
    columns = (
        Column("n_chosen", "latents", digits=1, is_count=True),
        Column("top1", "top-1", **PERCENT),
        Column("true_prob", "probability of the true class", **PERCENT),
    )

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(
            head=EmbeddedClasses.at(ctx),
            tokens=Tokens.at(ctx, "test"),
            codes=Codes.at(ctx, seed, ctx.config.masking.rank_split.name),
            **vars(needs_of_groups(ctx, seed)),
        )

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config, groups = ctx.config, partition_of(ctx, seed).groups
        return {
            **key_of_inputs(ctx, up),
            **{name: getattr(config.predict, name) for name in ("target", "n_images", "seed")},
            "masking": config.masking.cache_key_fields(),
            "modes": [mode.name for mode in _choose_modes(ctx)],
            "groups": {name: hashlib.sha256(np.packbits(of).tobytes()).hexdigest() for name, of in groups.items()},
        }

    def check(self, ctx: Context, seed: int) -> None:
        if not knows(ctx, Truth.labels, ctx.config.data):
            raise InputError(
                "stage=masking keeps the latents of each image's true class, but"
                f" data={ctx.config.data.kind.name} knows no classes here: give {advise_classes(ctx.config.data)}, or"
                " stage=predict, which needs none."
            )
        Predict().check(ctx, seed)
        if ctx.config.masking.sae_bias and EditMode.reconstruct not in _choose_modes(ctx):
            raise InputError(
                "masking.sae_bias is added to decoded tokens, and of this SAE, whose decoder gives directions alone, no"
                " tokens are decoded: drop it."
            )

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> MaskingResult:
        config, codes, head, labels = ctx.config.masking, up.codes.load(), up.head.load(), prompts_of(ctx).labels
        assert labels is not None, "check refuses data without labels"
        ranked_on = config.rank_split.name
        of_rows = open_split(ctx, ranked_on).labels(ctx.config.predict.target)[codes.image_index]
        groups, n_classes = partition_of(ctx, seed).groups, len(head.class_names)
        curves = make_curves(codes, of_rows, n_classes, config.n_latents, groups, config.n_draws, config.seed)
        masking = MaskingInputs(
            make_inputs(ctx, up),
            head,
            curves,
            config.n_latents,
            labels,
            _choose_modes(ctx),
            config.sae_bias,
            ranked_on,
        )
        with ctx.display.bar(f"masking, seed {seed}") as advance:
            return measure_masking(
                masking, ctx.config.predict, lambda what, done, of: advance(done, of, what), work.progress
            )

    def work(self, ctx: Context, seed: int) -> Work:
        config, d_sae, sizes = ctx.config, count_latents(ctx), find_sizes(ctx)
        k, n_classes = getattr(config.sae, "k", None) or d_sae, len(prompts_of(ctx).class_names)
        n_numbers = 1 + sum(n < d_sae for n in config.masking.n_latents)
        n_curves = 3 + config.masking.n_draws
        per_image = 4 * d_sae + sizes.n_patches * (16 * k + 8 * 4 * sizes.d_in)  # places, entries, tokens
        orders = n_curves * n_classes * 8 * max((n for n in config.masking.n_latents if n < d_sae), default=0)
        return Work(
            count_predicted(ctx),
            [config.model.name, hook_of(ctx).layer, d_sae, n_curves, n_numbers, len(_choose_modes(ctx))],
            memory_bytes=orders + config.predict.batch_images * per_image,
            is_bound=True,
        )

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, scope = self.at(ctx, seed), summarise_seed(ctx, seed)
        result = made.load()
        for place, mask in enumerate(result.masks):
            found = {"top1": result.top1(place), "true_prob": result.true_prob(place)}
            yield {
                **name_artifacts(made.get()),
                "variant": name_mask(mask, result.d_sae),
                **asdict(mask),
                **scope,
                **found,
            }

    def section(self, ctx: Context) -> ReportSection:
        found = {seed: self.at(ctx, seed).load() for seed in ctx.config.seeds}
        return make_masking_section(found, ctx.config.masking.n_latents)


def _choose_modes(ctx: Context) -> list[EditMode]:
    """Return both ways, or the one that an SAE allows whose decoder gives a direction alone."""
    return [EditMode.error_preserving] if has_free_scale(ctx) else list(EditMode)
