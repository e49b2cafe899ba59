"""stage=cross: how all that is known of the latents goes with their scope."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from infoscope.analyses.cross import CrossResult, Quantities, compute_cross
from infoscope.config.tree import to_tree
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Row, SingleStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column
from infoscope.runtime.store import Workspace
from infoscope.sae.origin import check_has_maps
from infoscope.stages.cross.quantities import join_crossed, list_quantities
from infoscope.stages.cross.section import make_cross_section
from infoscope.stages.latents import Latents
from infoscope.stages.publish import PublishedPart
from infoscope.stages.sae import count_latents, origin_of
from infoscope.stages.score.stage import check_count, partition_of


class Cross(PublishedPart, SingleStage[CrossResult]):
    """The CDS against every column of the tables of latents, over all SAE seeds; arithmetic on these tables."""

    kind, holds = "cross", CrossResult
    version = 2
    is_shared = False
    columns = (
        Column("spearman", "Spearman with CDS", signed=True),
        Column("within_strata", "at like frequency", signed=True),
        Column("n_latents", "features", digits=0, is_count=True),
    )

    def needs(self, ctx: Context) -> Needs:
        return Needs(**{f"seed_{seed}": Latents.at(ctx, seed) for seed in ctx.config.seeds})

    def key(self, ctx: Context, up: Needs) -> Key:
        latents = {str(seed): Latents.at(ctx, seed).hash for seed in ctx.config.seeds}
        return {"latents": latents, "cross": to_tree(ctx.config.cross)}

    def check(self, ctx: Context) -> None:
        check_has_maps(origin_of(ctx))
        for name in ("n_bands", "n_strata"):
            check_count(f"cross.{name}", getattr(ctx.config.cross, name), count_latents(ctx))

    def build(self, ctx: Context, up: Needs, work: Workspace) -> CrossResult:
        tables = [Latents.at(ctx, seed).load() for seed in ctx.config.seeds]
        names = [column.name for column in list_quantities(tables)]
        seeds = [
            Quantities(
                table["cds"],
                table["firing_rate"],
                np.stack([np.asarray(table[name], dtype=np.float64) for name in names], axis=1),
            )
            for table in tables
        ]
        with ctx.display.bar("what goes with scope", unit="quantities") as advance:
            return compute_cross(names, seeds, ctx.config.cross, advance)

    def work(self, ctx: Context) -> Work:
        cross, n = ctx.config.cross, count_latents(ctx) * len(ctx.config.seeds)
        # terms of the correlations of some thirty quantities, and a block of draws, one seed at a time
        return Work(n, [cross.n_draws, cross.n_permutations], memory_bytes=8 * (6 * 30 * count_latents(ctx) + 2**23))

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, found, place = self.at(ctx).get(), self.at(ctx).load(), ctx.config.seeds.index(seed)
        crossed = join_crossed(found, Latents.at(ctx, seed).load())
        for name, rho, within, n in zip(
            found.names, found.rho[place], found.within[place], found.n[place], strict=True
        ):
            numbers = {"spearman": float(rho), "within_strata": float(within), "n_latents": int(n)}
            of = crossed[name]
            quantity = f"{of.label} ({of.unit})" if of.unit else of.label
            yield {**name_artifacts(made), "variant": name, "quantity": quantity, **numbers}

    def section(self, ctx: Context) -> ReportSection:
        tables = [Latents.at(ctx, seed).load() for seed in ctx.config.seeds]
        groups = list(partition_of(ctx, ctx.config.seeds[0]).groups)
        return make_cross_section(self.at(ctx).load(), tables, groups, ctx.config.cross)
