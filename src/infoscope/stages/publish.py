"""Stages that end with a report: an artifact of tables, figures and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from infoscope.data.config import DataKind
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Count, Handle, Key, Node, NotBuiltYet, Stage, Work
from infoscope.report.page import Page, ReportFiles, print_report, write_report
from infoscope.runtime.environment import describe_environment
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.read_only import MissingArtifact
from infoscope.runtime.store import Workspace
from infoscope.scope.config import By
from infoscope.stages.backbone import find_model_facts
from infoscope.stages.images import open_split
from infoscope.stages.sae import describe_sae, has_maps, say_imported
from infoscope.stages.score.stage import Score, key_of_groups, say_ungrouped
from infoscope.stages.tokens import Tokens
from infoscope.vision.hooks import POOLED, PROJECTED

OF_CAPTIONS = "Images: here captions, each of which the text tower embeds in the place of an image."
"""The note on a page about captions, whose sections speak of images."""

PAGE_VERSION = 1
"""Part of the keys of pages about scores: raise it when all of them tell the experiment in another way."""


class Published(Stage):
    """A stage that ends with a report of its own; by default of its section alone."""

    shows_scores: ClassVar[bool] = True
    """Whether its report is about scores too, so that it reads them."""

    def reads(self, ctx: Context) -> list[Node]:
        scores = Score().reads(ctx) if self._has_scores(ctx) else []
        return [Tokens.at(ctx, "train"), *scores, _Report.at(ctx, self)]

    def report_name(self, ctx: Context) -> str:
        """Return what the report's folder is called."""
        return f"{ctx.title}-{ctx.config.stage.name}"

    def report_sources(self, ctx: Context) -> Mapping[str, Handle]:
        """Return what the report is made from, by role: the artifacts that are goals, or else the scores."""
        made = [node for node in self.goals(ctx) if isinstance(node, Handle)]
        made = made or [Score.at(ctx, seed) for seed in ctx.config.seeds]
        return {"_seed".join(map(str, (node.stage.kind, *node.item))): node for node in made}

    def report_key(self, ctx: Context) -> Key:
        """Return what determines the report."""
        groups = {**key_of_groups(ctx), "page_version": PAGE_VERSION} if self._has_scores(ctx) else {}
        return {**{role: handle.hash for role, handle in self.report_sources(ctx).items()}, **groups}

    def _has_scores(self, ctx: Context) -> bool:
        return self.shows_scores and has_maps(ctx)

    def make_page(self, ctx: Context) -> Page:
        """Return what the report shows."""
        section = self.section(ctx)
        assert section is not None
        title = f"{section.title}: {ctx.config.model.name} on {ctx.config.data.kind.name}"
        note = OF_CAPTIONS if ctx.config.data.kind is DataKind.captions else ""
        facts = describe_experiment(ctx, self._has_scores(ctx))
        if self._has_scores(ctx) and (ungrouped := say_ungrouped(ctx)):
            facts["scope"] += f"; {ungrouped}"
        return Page(title, facts, note, sections=[section])

    def end(self, ctx: Context) -> ReportFiles:
        """Write the report, unless the same exists, and print it."""
        page = self.make_page(ctx)

        def build(work: Workspace) -> None:
            name = ctx.config.stage.name
            with ctx.track(name) as tracker, ctx.display.bar("writing the report"), ctx.recorded(name):
                made = write_report(page, work.folder)
                for name, table in page.tables.items():
                    if records := table.records():
                        tracker.log_table(name, list(records[0]), [list(record.values()) for record in records])
                for name, figures in made.figures.items():
                    tracker.log_figure(name, figures["png"])
            _Report.at(ctx, self).note(work)

        upstream = {role: handle.get() for role, handle in self.report_sources(ctx).items()}
        made = ReportFiles.find(ctx.store.get(self.report_spec(ctx), build, shared=False, **upstream).folder)
        print_report(page, made, ctx.display.console)
        for said in say_imported(ctx):
            ctx.display.say(said)
        return made

    def find_last(self, ctx: Context) -> Artifact:
        for node in self.goals(ctx):  # a report outlives what it was made from
            node.make()
        return ctx.store.get(self.report_spec(ctx))

    def report_spec(self, ctx: Context) -> Spec:
        """Return what determines the report, and its name."""
        key = {**self.report_key(ctx), "report_version": self.report_version}
        return Spec(_Report.kind, self.report_name(ctx), key)


class PublishedPart(Published):
    """A stage whose section is a part of stage=report, and by itself the report of the stage."""

    in_report = True

    def report_key(self, ctx: Context) -> Key:
        return {**super().report_key(ctx), "interval": ctx.config.stability.interval}


class _Report(Stage):
    """The report that a stage ends with, as a plan counts it; an item is that stage."""

    kind = "report"

    def identify(self, published: Published) -> str:
        return type(published).__name__

    def count(self, ctx: Context, published: Published) -> Count:
        try:
            found = ctx.store.find(published.report_spec(ctx))
        except (NotBuiltYet, MissingArtifact):
            found = None
        return Count(1, 0) if found is None else Count(0, 1)

    def work(self, ctx: Context, published: Published) -> Work:
        return Work(1, [ctx.config.stage.name, len(ctx.config.seeds)])


def describe_experiment(ctx: Context, with_scope: bool = True) -> dict[str, str]:
    """Return model, data, SAE, scope (if wanted), software and hardware, in words."""
    config, tokens = ctx.config, Tokens.at(ctx, "train")
    meta, environment = tokens.read_json("tokens.json"), describe_environment()
    hardware, versions = environment["hardware"], environment["versions"]
    weights = Path(config.model.pretrained or config.model.kind.name).name
    grid = f"{meta['grid']} x {meta['grid']} patches"
    behind = {
        POOLED: "a vector per image, in the place of its tokens",
        PROJECTED: f"{grid}, each as the model would embed it",
    }
    read = behind.get(config.model.site, f"block {meta['layer']}, {grid}")
    scope = f"k_CDS {config.scope.k_cds}, shift {config.scope.shift_patches}, EMD {config.scope.emd.name}"
    if config.partition.by is not By.cds:
        scope += f", groups by {config.partition.by.words} (donor {config.scope.extent.donor.name})"
    what = "captions" if config.data.kind is DataKind.captions else "images"
    context = {
        "model": f"{config.model.name} ({weights}), {read}, d_in {meta['d_in']}",
        "data": f"{config.data.kind.name}, {meta['n_images']} training {what}",
        "SAE": describe_sae(ctx),
        **({"scope": scope} if with_scope else {}),
        "software": f"infoscope {versions['infoscope']}, torch {versions['torch']}",
        "hardware": f"{hardware['cpu']}, {hardware['cores']} cores" + "".join(f", {gpu}" for gpu in hardware["gpus"]),
    }
    if (facts := find_model_facts(ctx)) is not None:
        context["model"] += f", {facts.words}"
    if config.data.kind is DataKind.scenes:
        context["data"] += f", {config.data.n_test} test images"
    if config.model.pretrained == "random":
        context["model"] += "; random weights, so nothing here is about a trained model"
    if n_skipped := len(tokens.read_json("skipped.json")):
        context["data"] += f", {n_skipped} of {len(open_split(ctx, 'train'))} files skipped"
    return context
