"""stage=steer: predictions with single latents at a high value, and without those that carry what misleads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from infoscope.analyses.steering import (
    LATENT,
    SteeringInputs,
    SteeringResult,
    choose_latents,
    find_levels,
    measure_steering,
)
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs, Node, NotBuiltYet, Row, SeedStage, Work, name_artifacts
from infoscope.predictions.prompts import Prompts, choose_templates, read_words
from infoscope.predictions.zero_shot import check_prompts, make_zero_shot_head
from infoscope.report.section import ReportSection
from infoscope.report.tables import PERCENT, Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.stages.backbone import hook_of, load_backbone
from infoscope.stages.image_codes import Codes
from infoscope.stages.predict.stage import (
    EmbeddedClasses,
    Predict,
    count_predicted,
    has_prompts,
    key_of_inputs,
    make_inputs,
)
from infoscope.stages.publish import Published
from infoscope.stages.sae import count_latents, has_maps, sae_of
from infoscope.stages.score.stage import find_scope, list_scores
from infoscope.stages.steer.numbers import Found, describe_groups
from infoscope.stages.steer.section import make_steering_section
from infoscope.stages.steer.suppress import Suppress, name_spurious, spurious_of, tell_none
from infoscope.stages.tokens import Tokens, find_sizes

_OF_STEERING = ("n_latents", "n_images", "quantile", "min_effect", "min_share", "seed")


class Steer(Published, SeedStage[SteeringResult]):
    """What each of some latents does to the predictions of test images when it is set to a high value."""

    kind, holds = "steering", SteeringResult
    is_optional, is_without_maps = True, True
    report_version = 6
    columns = (
        Column("n_latents", "features", digits=0, is_count=True),
        Column("steerable", "steerable", **PERCENT),
        Column("steerable_random", "steerable, random direction", **PERCENT),
        Column("effect", "effect, median", digits=2, unit="nats"),
        Column("effect_random", "effect, random direction", digits=2, unit="nats"),
        Column("specificity", "entropy lost", digits=3, signed=True),
        Column("taken", "word predicted", **PERCENT),
        Column("accuracy", "top-1", **PERCENT),
        Column("worst_group", "top-1, worst group", **PERCENT),
    )

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(
            head=EmbeddedClasses.at(ctx),
            sae=sae_of(ctx, seed),
            codes=Codes.at(ctx, seed, "train"),
            tokens=Tokens.at(ctx, "test"),
        )

    def goals(self, ctx: Context) -> list[Node]:
        removed = [Suppress.at(ctx, seed) for seed in ctx.config.seeds if spurious_of(ctx) is not None]
        return [*super().goals(ctx), *removed, *list_scores(ctx)]

    def applies(self, ctx: Context) -> bool:
        return has_prompts(ctx)

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            **key_of_inputs(ctx, up),
            "words": None if (prompts := _prompts_of_words(ctx)) is None else list(prompts.class_names),
            "steer": {name: getattr(ctx.config.steer, name) for name in _OF_STEERING},
        }

    def check(self, ctx: Context, seed: int) -> None:
        Predict().check(ctx, seed)
        spurious_of(ctx)
        if (prompts := _prompts_of_words(ctx)) is not None:
            with suppress(NotBuiltYet):
                check_prompts(load_backbone(ctx), prompts, "words (steer.words=FILE)")

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> SteeringResult:
        config, codes, prompts = ctx.config.steer, up.codes.load(), _prompts_of_words(ctx)
        latents = choose_latents(codes, config.n_latents, config.seed)
        wanted = SteeringInputs(
            make_inputs(ctx, up),
            up.head.load() if prompts is None else make_zero_shot_head(load_backbone(ctx), prompts),
            latents,
            find_levels(codes, latents, config.quantile),
            config.n_images,
            config.min_effect,
            config.min_share,
            config.seed,
        )
        with ctx.track(self.kind, seed) as tracker, ctx.display.bar(f"steering, seed {seed}") as advance:
            found = measure_steering(
                wanted,
                ctx.config.predict.batch_images,
                lambda what, done, of: advance(done, of, what),
                work.progress,
            )
            tracker.log({"steerable": float(found.is_steerable[LATENT].mean())})
        return found

    def work(self, ctx: Context, seed: int) -> Work:
        config, d_sae, sizes = ctx.config.steer, count_latents(ctx), find_sizes(ctx)
        n_images = min(config.n_images, count_predicted(ctx))
        n_latents = min(config.n_latents or d_sae, d_sae)
        n_tokens = sizes.n_patches + sizes.n_prefix
        return Work(
            n_images * (1 + 2 * n_latents),
            [ctx.config.model.name, hook_of(ctx).layer, d_sae],
            disk_bytes=2 * 6 * 8 * n_latents,
            memory_bytes=n_images * n_tokens * (8 * sizes.d_in + 12 * (getattr(ctx.config.sae, "k", None) or d_sae)),
            is_bound=True,
        )

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found = self.at(ctx, seed).load()
        where = "on all patches" if has_maps(ctx) else "in the embedding"
        of = f"set high {where} of {found.n_images} test images"
        heading = f"steering: log probability of the word that rises most, {of}"
        yield LatentColumn("steering_effect", found.spread(found.effect[LATENT]), heading, "nats")
        heading = f"steering consistency: images in which this word rises by over {found.min_effect:g} nats, {of}"
        yield LatentColumn("steering_consistency", found.spread(found.consistency[LATENT]), heading, "1")
        heading = f"steering specificity: entropy of the prediction that is lost, of the largest, {of}"
        yield LatentColumn("steering_specificity", found.spread(found.specificity[LATENT]), heading, "1")

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, found = self.at(ctx, seed), find_seed(ctx, seed)
        for name, numbers in describe_groups(found):
            yield {**name_artifacts(made.get()), "variant": name, **numbers}
        if (removed := found.suppression) is None:
            return
        worst, accuracy = removed.worst_group(ctx.config.steer.min_group_images), removed.accuracy()
        for place, one in enumerate(removed.variants):
            variant = f"without {one.n_latents} ({one.kind})" if one.kind else "nothing removed"
            yield {
                **name_artifacts(Suppress.at(ctx, seed).get()),
                "variant": variant,
                **vars(one),
                "accuracy": float(accuracy[place]),
                "worst_group": float(worst[place]),
            }

    def section(self, ctx: Context) -> ReportSection:
        found = [find_seed(ctx, seed) for seed in ctx.config.seeds]
        removed = found[0].suppression
        spurious = None if removed is None else name_spurious(ctx, removed)
        section = make_steering_section(found, ctx.config.steer.min_group_images, spurious)
        untold = tell_none(ctx)
        return section if untold is None else replace(section, findings=(*section.findings, untold))

    def report_key(self, ctx: Context) -> Key:
        return {**super().report_key(ctx), "min_group_images": ctx.config.steer.min_group_images}


def find_seed(ctx: Context, seed: int) -> Found:
    """Return what was found of a seed."""
    return Found(
        find_scope(ctx, seed),
        Steer.at(ctx, seed).load(),
        None if spurious_of(ctx) is None else Suppress.at(ctx, seed).load(),
    )


@once
def _prompts_of_words(ctx: Context) -> Prompts | None:
    """Return the words that are asked for, in the sentences of the classes; None: the classes themselves.

    Raises:
        InputError: as `read_words`, or fewer than two words.
    """
    if (file := ctx.config.steer.words) is None:
        return None
    words = read_words(Path(file), "steer.words")
    if len(words) < 2:
        raise InputError(f"Expected at least two words in steer.words, got {len(words)} in {file}.")
    return Prompts(words, choose_templates(ctx.config.predict))
