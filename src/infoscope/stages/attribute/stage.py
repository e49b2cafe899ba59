"""stage=attribute: which latents the model's zero-shot predictions rest on."""

from __future__ import annotations

from collections.abc import Iterator

from infoscope.analyses.attribution import AttributionResult, measure_attribution
from infoscope.analyses.config import Towards
from infoscope.analyses.image_attribution import AttributionInputs
from infoscope.analyses.latent_orders import METHODS, N_INTEGRATED, PLACES
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column, compute_stat
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.stages.attribute.numbers import Found
from infoscope.stages.attribute.section import AREAS, make_attribution_section
from infoscope.stages.backbone import hook_of
from infoscope.stages.images import advise_classes, fingerprint_images, knows
from infoscope.stages.predict.stage import (
    EmbeddedClasses,
    Predict,
    count_predicted,
    has_prompts,
    key_of_inputs,
    make_inputs,
    prompts_of,
)
from infoscope.stages.publish import Published
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.score.stage import find_groups, list_scores
from infoscope.stages.tokens import Tokens, find_sizes

N_HELD = 16
"""Numbers of a token's width that a block keeps for its backward: inputs of norms and products, the four-fold MLP."""


class Attribute(Published, SeedStage[AttributionResult]):
    """What each latent does for the classes of the test images, and what tests it."""

    kind, holds = "attribution", AttributionResult
    version = 1
    report_version = 1
    is_optional, is_without_maps = True, True
    columns = (
        Column("agreement", "rank correlation with exact ablation", signed=True),
        *(Column(key, f"area, {key.replace('_', ', ')}", digits=4) for key in AREAS),
    )

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(head=EmbeddedClasses.at(ctx), sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "test"))

    def goals(self, ctx: Context) -> list[Node]:
        return [*super().goals(ctx), *list_scores(ctx)]

    def applies(self, ctx: Context) -> bool:
        return has_prompts(ctx)

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config = ctx.config
        return {
            **key_of_inputs(ctx, up),
            "images": fingerprint_images(ctx, "test"),
            **{name: getattr(config.predict, name) for name in ("target", "n_images", "seed")},
            "attribution": config.attribution.cache_key_fields(),
            "n_top": config.describe.n_clarity_images,
        }

    def check(self, ctx: Context, seed: int) -> None:
        if ctx.config.attribution.towards is Towards.label and not knows(ctx, Truth.labels, ctx.config.data):
            raise InputError(
                "attribution.towards=label attributes towards each image's true class, but"
                f" data={ctx.config.data.kind.name} knows no classes here: give {advise_classes(ctx.config.data)}, or"
                " drop it, for the predicted class."
            )
        Predict().check(ctx, seed)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> AttributionResult:
        config = ctx.config.attribution
        wanted = AttributionInputs(
            make_inputs(ctx, up),
            up.head.load(),
            n_top=ctx.config.describe.n_clarity_images,
            n_tested=config.n_tested,
            n_steps=config.n_steps,
            labels=prompts_of(ctx).labels,
            towards_true=config.towards is Towards.label,
            n_groups=config.n_groups,
            seed=config.seed,
        )
        with ctx.track(self.kind, seed) as tracker, ctx.display.bar(f"attributing, seed {seed}") as advance:
            found = measure_attribution(
                wanted, ctx.config.predict, lambda what, done, of: advance(done, of, what), work.progress
            )
            tracker.log(_measure(found, "gradient"))
        return found

    def work(self, ctx: Context, seed: int) -> Work:
        config, d_sae, sizes = ctx.config, count_latents(ctx), find_sizes(ctx)
        n, n_classes = count_predicted(ctx), len(prompts_of(ctx).class_names)
        n_tokens, n_tested = sizes.n_patches + sizes.n_prefix, min(n, config.attribution.n_tested)
        # a backward is two forwards; of the tested images, a forward for each latent that fires, and the curves
        n_firing = min(d_sae, (getattr(config.sae, "k", None) or d_sae) * n_tokens)
        n_curves = 2 * len(METHODS) * (config.attribution.n_steps + 1)
        n_gradients = 1 + (config.attribution.n_groups or 0)
        n_forwards = 3 * n * n_gradients + n_tested * (n_firing + n_curves + 3 * (N_INTEGRATED + n_gradients - 1))
        n_blocks = max(1, -1 - hook_of(ctx).layer)  # behind the hooked one
        held = config.predict.batch_images * (4 * N_HELD * n_blocks * n_tokens * sizes.d_in + 6 * 4 * d_sae)
        tables = 2 * 8 * n_classes * d_sae
        n_top = config.describe.n_clarity_images
        return Work(
            n_forwards,
            [config.model.name, hook_of(ctx).layer, d_sae],
            disk_bytes=tables // 2 + 8 * n_tested * n_curves + 5 * 8 * d_sae,
            memory_bytes=held + 2 * tables + 4 * n_tokens * d_sae + 2 * 12 * n_top * d_sae,
            is_bound=True,
        )

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found = self.at(ctx, seed).load()
        to = f"to the {found.towards} class"
        size = f"size of its attribution {to}: mean over test images in which it fires"
        yield LatentColumn("attribution", found.mean_size(), size, "cosine")
        signed = f"attribution {to}: mean over test images in which it fires"
        yield LatentColumn("attribution_signed", found.mean_signed(), signed, "cosine")
        share = f"share of attribution {to}: of the sizes of all"
        yield LatentColumn("attribution_share", found.share, share, "1")
        heading = f"semantic alignment: mean of its top {found.n_top} test images with the text of their class"
        yield LatentColumn("semantic_alignment", found.alignment, heading, "cosine")

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made = self.at(ctx, seed)
        found = made.load()
        for name, words in METHODS.items():
            yield {**name_artifacts(made.get()), "variant": words, "method": name, **_measure(found, name)}

    def section(self, ctx: Context) -> ReportSection:
        return make_attribution_section([find_seed(ctx, seed) for seed in ctx.config.seeds])


def find_seed(ctx: Context, seed: int) -> Found:
    """Return what was found of a seed."""
    return Found(find_groups(ctx, seed), Attribute.at(ctx, seed).load())


def _measure(found: AttributionResult, method: str) -> dict[str, float]:
    """Return what an order of latents is worth, mean over images."""
    place = PLACES[method]
    areas = {key: float(found.area(*of)[place].mean()) for key, of in AREAS.items()}
    return {"agreement": compute_stat(found.agreement[place]).mean, **areas}
