"""stage=stability: the scores again with one choice made otherwise: shift, diagonal, images, k, solver, seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from infoscope.config.tree import to_tree
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Row, SingleStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column
from infoscope.runtime.store import Workspace
from infoscope.sae.passes import measure_one
from infoscope.scope.agreement import MAX_ASSIGNED
from infoscope.scope.config import By
from infoscope.scope.ranking import measure_ranking
from infoscope.scope.rescoring import ScoredSAE, compare_at_hand, compute_stability
from infoscope.scope.stability import StabilityResult
from infoscope.stages.backbone import load_backbone
from infoscope.stages.images import count_images, open_sets, scenes_of
from infoscope.stages.publish import Published
from infoscope.stages.rank import Rank
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.score.stage import Score, partition_of
from infoscope.stages.stability.section import make_stability_section
from infoscope.stages.tokens import Tokens

ELSEWHERE = "Other crops, other images, another solver: `infoscope stage=stability`."
READ_AT_HAND = ("n_draws", "level", "min_cosine", "seed")
"""The settings that `make_section_at_hand` reads."""


class Stability(Published, SingleStage[dict[int, StabilityResult]]):
    """The stability of the scores of all SAE seeds, which share the crops; `load` gives it by seed."""

    kind = "stability"
    columns = (Column("rank_correlation", "Spearman", digits=3),)

    def needs(self, ctx: Context) -> Needs:
        scores = {f"s{seed}": Score.at(ctx, seed) for seed in ctx.config.seeds}
        saes = {f"sae{seed}": sae_of(ctx, seed) for seed in ctx.config.seeds}
        rankings = {f"ranking{seed}": Rank.at(ctx, seed) for seed in ctx.config.seeds}
        held_out = {}
        if count_images(ctx, "test") >= ctx.config.scope.k_cds:
            held_out["held_out"] = Tokens.at(ctx, "test")
        return Needs(**scores, **saes, **rankings, **vars(scenes_of(ctx, ctx.config.data)), **held_out)

    def key(self, ctx: Context, up: Needs) -> Key:
        config, held_out = ctx.config, getattr(up, "held_out", None)
        partition = {"k_cds": config.scope.k_cds, "partition": config.partition.cache_key_fields()}
        return {
            "stability": to_tree(config.stability),
            "groups": [{"score": Score.at(ctx, seed).hash, **partition} for seed in config.seeds],
            "held_out": held_out.hash if held_out else None,
            "sinkhorn_blur": config.scope.sinkhorn_blur,
        }

    def build(self, ctx: Context, up: Needs, work: Workspace) -> None:
        saes = [self._find_scored(ctx, seed, up, work) for seed in ctx.config.seeds]
        with ctx.track(self.kind) as tracker:
            found = compute_stability(
                load_backbone(ctx),
                saes,
                *open_sets(ctx, ctx.config.data),
                ctx.config.scope,
                ctx.config.stability,
                layer=ctx.config.model.layer,
                show_bar=ctx.display.bar,
                n_readers=ctx.config.data.n_workers,
                progress_folder=work.progress,
            )
            for result in found:
                of_seed = f"seed{result.sae_seed}"
                result.save(work.folder / of_seed)
                rhos = {f"{of_seed}/{v.name}": result.compare(v).rank_correlation for v in result.variations}
                tracker.log({name: rho for name, rho in rhos.items() if np.isfinite(rho)})

    def _find_scored(self, ctx: Context, seed: int, up: Needs, work: Workspace) -> ScoredSAE:
        """Return what is known of one SAE, ranked on the held-out images too where there are any."""
        scope, known = ctx.config.scope, find_scored(ctx, seed)
        if not hasattr(up, "held_out"):
            return known
        tokens, place = up.held_out.load(), work.progress / f"held-out-{seed}"
        with ctx.display.bar(f"ranking held-out images, seed {seed}", len(tokens), "images") as advance:
            wanted = measure_ranking(known.sae, scope.n_ranks, scope.rank_by).kept_in(place)
            return replace(known, held_out=measure_one(tokens, wanted, advance).compute())

    def load(self, ctx: Context, folder: Path) -> dict[int, StabilityResult]:
        return {seed: StabilityResult.load(folder / f"seed{seed}") for seed in ctx.config.seeds}

    def work(self, ctx: Context) -> Work:
        n_latents = min(count_latents(ctx), ctx.config.stability.n_latents or count_latents(ctx))
        like = [ctx.config.model.name, to_tree(ctx.config.stability), ctx.config.scope.k_cds]
        return Work(n_latents * len(ctx.config.seeds), like, is_bound=True)

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, result = self.at(ctx), self.at(ctx).load()[seed]
        for variation in result.variations:
            comparison = result.compare(variation)._asdict()
            yield {**name_artifacts(made.get()), "variant": variation.name, **comparison}

    def section(self, ctx: Context) -> ReportSection:
        return make_stability_section(list(self.at(ctx).load().values()))


def find_scored(ctx: Context, seed: int) -> ScoredSAE:
    """Return what is known of one SAE without its ranking of held-out images."""
    ranking, scores = Rank.at(ctx, seed).load(), Score.at(ctx, seed).load()
    gamma = partition_of(ctx, seed).gamma if ctx.config.partition.by is By.cds else None  # else it divides no scores
    return ScoredSAE(seed, sae_of(ctx, seed).load(), ranking, scores, gamma)


def make_section_at_hand(ctx: Context) -> ReportSection:
    """Return the section of what needs no image encoded, for the report."""
    scored = [find_scored(ctx, seed) for seed in ctx.config.seeds]
    found = compare_at_hand(scored, ctx.config.scope, ctx.config.stability, max_latents=MAX_ASSIGNED)
    section = make_stability_section(found)
    return replace(section, findings=(*section.findings, ELSEWHERE))
