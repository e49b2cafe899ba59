"""stage=adapt: the same SAE on the tokens of the model and of the model with other weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from infoscope.analyses.adaptation import Adaptation, compare_codes
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Handle, Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.predictions.prompts import choose_class_names
from infoscope.report.section import ReportSection
from infoscope.report.tables import PERCENT, Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.stages.adapt.model import AdaptedCodes, AdaptedFidelity, adapted_of, check_adapted, naming_settings
from infoscope.stages.adapt.numbers import Found, summarise_found
from infoscope.stages.adapt.section import make_adapt_section
from infoscope.stages.describe.fidelity import Fidelity, why_no_predictions
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import find_known, knows, open_split, scenes_of
from infoscope.stages.publish import Published
from infoscope.stages.score.stage import Score, scope_of


class Adapt(Published, SeedStage[Adaptation]):
    """What the SAE of a seed sees of both models in the training images."""

    kind, holds = "adapt", Adaptation
    is_shared, is_optional = False, True
    report_version = 1
    columns = (
        Column("rate_correlation", "rates, Spearman"),
        Column("jaccard", "Jaccard"),
        Column("jaccard_halves", "of halves"),
        Column("jaccard_across", "across halves"),
        Column("divergence", "KL, nats", optional=True),
        Column("n_remapped", "remapped", digits=0),
        Column("n_new", "new", digits=0),
        Column("n_gone", "gone", digits=0),
        Column("fvu", "FVU", digits=3, optional=True),
        Column("fvu_adapted", "FVU, adapted", digits=3),
        Column("top1", "top-1", **PERCENT),
        Column("top1_adapted", "top-1, adapted", **PERCENT),
    )

    def goals(self, ctx: Context) -> list[Node]:
        others = (Score, Fidelity, AdaptedFidelity)
        return [*super().goals(ctx), *(stage.at(ctx, seed) for stage in others for seed in ctx.config.seeds)]

    def applies(self, ctx: Context) -> bool:
        return ctx.config.adapt.pretrained is not None

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        return Needs(codes=Codes.at(ctx, seed, "train"), adapted=AdaptedCodes.at(ctx, seed, "train"), **vars(scenes))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        classes = {"target": ctx.config.predict.target, "k": ctx.config.describe.n_class_latents}
        return {
            "codes": up.codes.hash,
            "adapted": up.adapted.hash,
            "classes": {**classes, **ctx.config.adapt.cache_key_fields()}
            if knows(ctx, Truth.labels, ctx.config.data)
            else None,
        }

    def check(self, ctx: Context, seed: int) -> None:
        with naming_settings():
            check_adapted(ctx)
        if knows(ctx, Truth.labels, ctx.config.data):
            find_known(ctx, ctx.config.data)[0].n_target_classes(ctx.config.predict.target)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> Adaptation:
        codes, labels, n_classes = up.codes.load(), None, 0
        if knows(ctx, Truth.labels, ctx.config.data):
            target = ctx.config.predict.target
            images = open_split(ctx, "train")
            labels, n_classes = images.labels(target)[codes.image_index], images.n_target_classes(target)
        config, k = ctx.config.adapt, ctx.config.describe.n_class_latents
        with ctx.track(self.kind, seed) as tracker, ctx.display.bar(f"comparing both models, seed {seed}"):
            found = compare_codes(codes, up.adapted.load(), labels, n_classes, k, config.n_draws, config.seed)
            tracker.log({"changed_rates": float(np.nanmean(np.abs(np.log2(found.rate_ratio))))})
        return found

    def work(self, ctx: Context, seed: int) -> Work:
        # of both: counts in float64 with their places, and their product with the classes
        counted = Codes().work(ctx, seed, "train")
        return replace(counted, forwards=0, disk_bytes=0, memory_bytes=3 * counted.disk_bytes)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found = self.at(ctx, seed).load()
        heading = "firing rate with the adapted model's weights / with the model's"
        yield LatentColumn("adapted_rate_ratio", found.rate_ratio, heading, "1")

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        yield {**name_artifacts(self.at(ctx, seed).get()), **summarise_found(found_of(ctx, seed))}

    def section(self, ctx: Context) -> ReportSection:
        found = [found_of(ctx, seed) for seed in ctx.config.seeds]
        section = make_adapt_section(found, why_no_predictions(ctx) or why_no_predictions(adapted_of(ctx)))
        return replace(section, title=f"{section.title} ({Path(str(ctx.config.adapt.pretrained)).name})")

    def report_sources(self, ctx: Context) -> Mapping[str, Handle]:
        both = {"fidelity": Fidelity, "adapted_fidelity": AdaptedFidelity}  # of one kind
        named = {f"{name}_seed{seed}": of.at(ctx, seed) for name, of in both.items() for seed in ctx.config.seeds}
        return {**super().report_sources(ctx), **named}

    def report_key(self, ctx: Context) -> Key:
        thresholds = {"factor": ctx.config.adapt.factor, "n_images": ctx.config.describe.n_label_images}
        shown = {"class_names": list(_name_classes(ctx))}
        return {**super().report_key(ctx), **thresholds, **shown}


def found_of(ctx: Context, seed: int) -> Found:
    """Return what was found of an SAE seed, as tables read it."""
    fidelity = Fidelity.at(ctx, seed).load(), AdaptedFidelity.at(ctx, seed).load()
    least, factor = ctx.config.describe.n_label_images, ctx.config.adapt.factor
    return Found(scope_of(ctx, seed), Adapt.at(ctx, seed).load(), fidelity, _name_classes(ctx), least, factor)


@once
def _name_classes(ctx: Context) -> Sequence[str]:
    """Return the names of the classes: the data's, those of predict.class_names, else their numbers."""
    if not knows(ctx, Truth.labels, ctx.config.data):
        return ()
    known = find_known(ctx, ctx.config.data)[0]
    try:
        return choose_class_names(ctx.config.predict, known)
    except InputError:  # another target, whose values have no names
        return [str(number) for number in range(known.n_target_classes(ctx.config.predict.target))]
