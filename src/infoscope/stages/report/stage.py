"""stage=report: every table and figure of the experiment, from the sections of the stages that have a part in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from infoscope import registry
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Key, Node, Row, Stage
from infoscope.report.page import Page
from infoscope.scope.outliers import compute_norm_summary
from infoscope.stages.explore.stage import Explore, find_page
from infoscope.stages.images import scenes_of
from infoscope.stages.latents import Latents
from infoscope.stages.probe.stage import Probe, is_probed
from infoscope.stages.publish import Published, describe_experiment
from infoscope.stages.report.tokens import make_token_section
from infoscope.stages.score.stage import Score, divides, key_of_partition
from infoscope.stages.stability.stage import READ_AT_HAND, make_section_at_hand
from infoscope.stages.tokens import Tokens
from infoscope.vision.tokens.source import TokenFacts

NO_PROBES = "No probes: the data set has no labels, so nothing was measured with features removed."
NO_EXPLORER = "To look at every feature with its images and maps in a browser: the same command with stage=explore."


def load_parts(ctx: Context) -> dict[str, Stage]:
    """Return the stages that have a part in the report, by name, in the order of the registry."""
    stages = {entry.name: entry.load()() for entry in registry.STAGES if entry.name != ctx.config.stage.name}
    return {
        name: stage
        for name, stage in stages.items()
        if stage.in_report
        and stage.applies(ctx)
        and (
            not stage.in_report_at_hand
            or divides(ctx, type(stage))
            or all(stage.at(ctx, seed).find() for seed in ctx.config.seeds)
        )
    }


class Report(Published):
    """What an experiment ends with unless another stage is asked for."""

    report_version = 6

    def goals(self, ctx: Context) -> list[Node]:
        nodes = [node for part in load_parts(ctx).values() for node in part.goals(ctx)]
        return [*nodes, *Latents().goals(ctx)]

    def reads(self, ctx: Context) -> list[Node]:
        return [*vars(scenes_of(ctx, ctx.config.data)).values(), *super().reads(ctx)]

    def report_name(self, ctx: Context) -> str:
        return ctx.title

    def report_sources(self, ctx: Context) -> Mapping[str, Handle]:
        return {f"score_seed{seed}": Score.at(ctx, seed) for seed in ctx.config.seeds}

    def report_key(self, ctx: Context) -> Key:
        return {
            "parts": {name: [*part.hashes(ctx), part.report_version] for name, part in load_parts(ctx).items()},
            "tokens": Tokens.at(ctx, "train").hash,
            "k_cds": ctx.config.scope.k_cds,
            **key_of_partition(ctx, *ctx.config.seeds),
            "stability": {name: getattr(ctx.config.stability, name) for name in READ_AT_HAND},
            **({} if find_page(ctx) is None else {"explorer": Explore.at(ctx).hash}),
        }

    def make_page(self, ctx: Context) -> Page:
        found = [section for part in load_parts(ctx).values() if (section := part.section(ctx)) is not None]
        outliers, tokens = ctx.config.outliers, TokenFacts(Tokens.at(ctx, "train").folder)
        about_tokens = make_token_section(compute_norm_summary(tokens.norms, outliers), outliers.rule_in_words)
        explorer = find_page(ctx)
        notes = (*(() if is_probed(ctx) else (NO_PROBES,)), *(() if explorer else (NO_EXPLORER,)))
        return Page(
            f"Information scope of {ctx.config.model.name} on {ctx.config.data.kind.name}",
            describe_experiment(ctx),
            " ".join(notes),
            [*(section for section in reversed(found) if section.is_lead), about_tokens],
            [*(section for section in found if not section.is_lead), make_section_at_hand(ctx)],
            explorer,
        )

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        return (Probe() if is_probed(ctx) else Score()).rows(ctx, seed)
