"""stage=predict: the model's own zero-shot predictions without a group of features."""

from __future__ import annotations

from collections.abc import Iterator

from infoscope.data.images import ImageSet, Truth
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs, NotBuiltYet, Row, SeedStage, SingleStage, Work, name_artifacts
from infoscope.predictions.inputs import PredictInputs, check_predictions
from infoscope.predictions.prompts import Prompts, choose_class_names, choose_templates, has_class_names, make_prompts
from infoscope.predictions.results import PredictionResult
from infoscope.predictions.run import run_predictions
from infoscope.predictions.zero_shot import ZeroShotHead, check_prompts, make_zero_shot_head
from infoscope.report.section import ReportSection
from infoscope.report.tables import PERCENT, Column
from infoscope.runtime.store import Workspace
from infoscope.sae.config import TokenChoice
from infoscope.stages.ablations import ablations_of, needs_of_ablations
from infoscope.stages.backbone import fingerprint_model, hook_of, load_backbone
from infoscope.stages.images import check_split, count_images, find_known, open_split
from infoscope.stages.predict.section import make_prediction_section
from infoscope.stages.probe.stage import describe_variant
from infoscope.stages.publish import Published
from infoscope.stages.sae import choose_tokens, count_latents
from infoscope.stages.score.stage import summarise_seed
from infoscope.stages.tokens import Tokens
from infoscope.stages.train_clip import needs_trained


@once
def prompts_of(ctx: Context) -> Prompts:
    """Return class names and the sentences they are put into."""
    return make_prompts(ctx.config.predict, open_split(ctx, "test"))


def key_of_prompts(ctx: Context) -> Key:
    """Return what decides the head; no image is rendered, and no weights are loaded for it.

    Raises:
        InputError: as `prompts_of`.
    """
    labelled = _find_labelled(ctx)
    return _find_prompts(ctx).cache_key_fields() | {"target": None if labelled is None else ctx.config.predict.target}


def has_prompts(ctx: Context) -> bool:
    """Return whether there are classes to predict, see `has_class_names`."""
    return has_class_names(ctx.config.predict, _find_labelled(ctx))


def _find_labelled(ctx: Context) -> ImageSet | type[SceneSet] | None:
    known = find_known(ctx, ctx.config.data)[1]
    return known if Truth.labels in known.truths else None


def _find_prompts(ctx: Context) -> Prompts:
    """Return what is asked, without the labels of images, which need not be rendered for it."""
    return Prompts(choose_class_names(ctx.config.predict, _find_labelled(ctx)), choose_templates(ctx.config.predict))


def make_inputs(ctx: Context, up: Needs) -> PredictInputs:
    """Return what predictions are made from, of a stage that needs an SAE (`sae`) and the test tokens (`tokens`)."""
    return PredictInputs(
        up.sae.load(),
        up.tokens.load(),
        load_backbone(ctx),
        hook_of(ctx).layer,
        edits_patches=choose_tokens(ctx) is not TokenChoice.cls,
        edits_prefix=choose_tokens(ctx) is not TokenChoice.patch,
    )


def key_of_inputs(ctx: Context, up: Needs) -> Key:
    """Return what determines `make_inputs`, the zero-shot head (`head`) and, where they are needed, `codes`."""
    made = {role: of for role, of in vars(up).items() if role in ("head", "sae", "tokens", "codes")}
    return {"model": fingerprint_model(ctx), **hook_of(ctx).key(), **{role: of.hash for role, of in made.items()}}


def count_predicted(ctx: Context) -> int:
    """Return on how many test images predictions are made."""
    n_images = count_images(ctx, "test")
    return min(n_images, ctx.config.predict.n_images or n_images)


class EmbeddedClasses(SingleStage[ZeroShotHead]):
    """The class names as the model's text tower embeds them."""

    kind, holds = "zero_shot_head", ZeroShotHead

    def needs(self, ctx: Context) -> Needs:
        return Needs(**needs_trained(ctx))

    def key(self, ctx: Context, up: Needs) -> Key:
        return {"model": fingerprint_model(ctx), "prompts": key_of_prompts(ctx)}

    def build(self, ctx: Context, up: Needs, work: Workspace) -> ZeroShotHead:
        prompts, backbone = prompts_of(ctx), load_backbone(ctx)
        check_predictions(backbone, ctx.config.model.layer)
        with ctx.display.bar("embedding class names", len(prompts.class_names), "classes") as advance:
            return make_zero_shot_head(backbone, prompts, advance, work.progress)

    def work(self, ctx: Context) -> Work:
        prompts = prompts_of(ctx)
        return Work(len(prompts.class_names) * len(prompts.templates), [ctx.config.model.name])


class Predict(Published, SeedStage[PredictionResult]):
    """What the model's own zero-shot head predicts under each ablation and control."""

    kind, holds = "predict", PredictionResult
    columns = (
        Column("top1", "top-1", **PERCENT),
        Column("changed", "changed", **PERCENT),
        Column("max_prob", "confidence", **PERCENT),
        Column("entropy", "entropy", digits=3, optional=True),
        Column("ece", "ECE", digits=3, optional=True),
    )

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(
            head=EmbeddedClasses.at(ctx),
            tokens=Tokens.at(ctx, "test"),
            **vars(needs_of_ablations(ctx, seed)),
        )

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config = ctx.config
        return {
            "model": fingerprint_model(ctx),
            "head": up.head.hash,
            "tokens": up.tokens.hash,
            **hook_of(ctx).key(),
            "predict": config.predict.cache_key_fields(),
            "target": config.predict.target,
            "variants": [[variant.name, variant.key(up.sae.hash)] for variant in ablations_of(ctx, seed)],
        }

    def check(self, ctx: Context, seed: int) -> None:
        data = ctx.config.data
        check_split(ctx, "test", data)
        prompts = _find_prompts(ctx)
        try:
            backbone = load_backbone(ctx)
        except NotBuiltYet:
            return
        check_predictions(backbone, ctx.config.model.layer)
        if EmbeddedClasses.at(ctx).find() is None:
            check_prompts(backbone, prompts)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> PredictionResult:
        with ctx.track(self.kind, seed) as tracker, ctx.display.bar(f"predicting, seed {seed}") as advance:
            found = run_predictions(
                ablations_of(ctx, seed),
                make_inputs(ctx, up),
                up.head.load(),
                ctx.config.predict,
                prompts_of(ctx).labels,
                lambda what, done, of: advance(done, of, what),
                work.progress,
            )
            tracker.log({name: value for name, value in found.metrics(0).items() if value is not None})
        return found

    def work(self, ctx: Context, seed: int) -> Work:
        config = ctx.config
        return Work(count_predicted(ctx), [config.model.name, count_latents(ctx), config.partition.cache_key_fields()])

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, scope = self.at(ctx, seed), summarise_seed(ctx, seed)
        result = made.load()
        for place, variant in enumerate(result.variants):
            yield {**name_artifacts(made.get()), **describe_variant(variant), **scope, **result.metrics(place)}

    def section(self, ctx: Context) -> ReportSection:
        found = {seed: self.at(ctx, seed).load() for seed in ctx.config.seeds}
        images, size_px = open_split(ctx, "test"), load_backbone(ctx).image_px
        shown = {image.image_index for image in found[min(found)].changed}
        return make_prediction_section(found, {index: images.load(index, size_px) for index in shown})
