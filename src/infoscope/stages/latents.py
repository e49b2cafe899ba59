"""stage=latents: what is known of each latent in one table, with columns from every stage that has some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from infoscope import registry
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Row, SeedStage, Shown, Stage, Work, name_artifacts
from infoscope.report.tables import Align, Column, Table
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import FILE, LatentColumn, LatentTable
from infoscope.stages.recalled import shows_past
from infoscope.stages.sae import count_latents, has_maps, has_unit_rows, list_level_ends, sae_of
from infoscope.stages.score.stage import divides, key_of_partition, summarise_seed


class Latents(SeedStage[LatentTable]):
    """The latents of a seed; arithmetic on what others have measured."""

    kind, holds = "latents", LatentTable
    version = 4
    is_shared = False

    def needs(self, ctx: Context, seed: int) -> Needs:
        sources = load_sources(ctx, seed)
        more = [one for stage in sources for one in stage().latents_read(ctx, seed)]
        read = {"_".join(map(str, (one.stage.kind, *one.item))): one for one in more}
        return Needs(**{stage.kind: stage.at(ctx, seed) for stage in sources}, **read)

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "sources": {kind: node.hash for kind, node in vars(up).items()},
            "k_cds": ctx.config.scope.k_cds,
            **key_of_partition(ctx, seed),
            "interval": ctx.config.stability.interval,
            **({} if has_unit_rows(ctx) else {"activations": "times row norms"}),
            **({"levels": ends} if (ends := list_level_ends(ctx)) else {}),
        }

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> LatentTable:
        return join_latents(ctx, seed, [type(node.stage) for role, node in up if role == node.stage.kind])

    def work(self, ctx: Context, seed: int) -> Work:
        return Work(count_latents(ctx))

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        scope = summarise_seed(ctx, seed) if has_maps(ctx) else {}
        yield {**name_artifacts(self.at(ctx, seed).get()), **scope}

    def closing(self, ctx: Context) -> Shown:
        handles = [self.at(ctx, seed) for seed in ctx.config.seeds]
        files = (f"SAE seed {handle.item[0]}: {handle.folder / FILE}" for handle in handles)
        return [make_column_table(handles[0].load()), *files]


def load_sources(ctx: Context, seed: int) -> list[type[SeedStage]]:
    """Return the stages whose artifact of a seed tells something of each latent; optional ones where it is at hand, or
    the groups follow from it.

    Of scores that exist (`explore.of`) all are optional: what they would measure may be gone.
    """
    stages = [entry.load() for entry in registry.STAGES]
    known = [stage for stage in stages if issubclass(stage, SeedStage) and stage.latents is not Stage.latents]
    return [
        stage
        for stage in known
        if (stage.is_without_maps or has_maps(ctx))
        and stage().applies(ctx)
        and (
            not (stage.is_optional or shows_past(ctx))
            or divides(ctx, stage)
            or stage.is_goal(ctx)
            or stage.at(ctx, seed).find()
        )
    ]


def join_latents(ctx: Context, seed: int, stages: Iterable[type[Stage]]) -> LatentTable:
    """Return what some stages know of each latent of a seed, and its level where the SAE has levels."""
    table = LatentTable(seed)
    for stage in stages:
        table.add(stage.kind, stage().latents(ctx, seed))
    if ends := list_level_ends(ctx):
        sizes = [round(end * len(table)) for end in ends]
        level = np.repeat(np.arange(len(sizes)), np.diff([0, *sizes]))
        heading = "Matryoshka level, 0 for the first latents"
        table.add(sae_of(ctx, seed).stage.kind, [LatentColumn("level", level, heading, "1")])
    return table


def make_column_table(latents: LatentTable) -> Table:
    """Return which columns there are, and how many latents have a value."""
    headings = {"name": "column", "heading": "", "unit": "unit", "source": "from"}
    columns = [Column(key, heading, Align.left) for key, heading in headings.items()]
    columns.append(Column("n", "latents with a value", digits=0))
    table = Table("latents", f"What is known of each of {len(latents):,} latents", columns)
    for column in latents:
        table.add_row(*(getattr(column, key) for key in headings), column.n_known)
    return table
