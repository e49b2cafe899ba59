"""stage=effects: the change of each task's loss without each latent alone."""

from __future__ import annotations

from collections.abc import Iterator

from infoscope.config.tree import to_tree
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs, Node, SeedStage, Work
from infoscope.probes.latent_effects import LatentEffects, measure_latent_effects
from infoscope.probes.results import load_result
from infoscope.report.section import ReportSection
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.ablations import Ablation, make_original
from infoscope.scope.matching import MATCHINGS
from infoscope.stages.ablations import matched_ablations_of, matched_groups_of
from infoscope.stages.backbone import hook_of
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.effects.section import UNITS, make_effect_section, name_column
from infoscope.stages.images import count_images, knows, probe_data, scenes_of
from infoscope.stages.latents import join_latents
from infoscope.stages.probe.artifacts import AblationProbes
from infoscope.stages.probe.features import make_probe_inputs
from infoscope.stages.probe.run import TRUTHS, Probed, list_probe_groups, probe_variants
from infoscope.stages.probe.stage import Probe, ProbesOfVariants, check_probe_inputs, probe_with_others, read_probed
from infoscope.stages.publish import PublishedPart
from infoscope.stages.rank import Rank
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import Tokens


class Effects(PublishedPart, SeedStage[LatentEffects]):
    """The effect of each latent of a seed on each task, under the head of the original tokens."""

    kind, holds = "effects", LatentEffects
    is_optional = True

    def applies(self, ctx: Context) -> bool:
        tasks = [(task, probe_data(ctx, task)) for task in ctx.config.probe.tasks]
        return all(knows(ctx, TRUTHS[task], data) and count_images(ctx, "test", data) > 0 for task, data in tasks)

    def needs(self, ctx: Context, seed: int) -> Needs:
        needs: dict[str, Node] = {"sae": sae_of(ctx, seed)}
        if not Probe.is_goal(ctx):  # else the original tokens are among what is
            needs["heads"] = _MatchedProbes.at(ctx, seed)
        for number, group in enumerate(list_probe_groups(ctx)):
            needs |= {f"{name}_{number}": of for name, of in scenes_of(ctx, group.data)}
            needs[f"tokens_{number}"] = Tokens.at(ctx, "test", group.data)
        return Needs(**needs)

    def goals(self, ctx: Context) -> list[Node]:
        scores = [stage.at(ctx, seed) for stage in (Score, Confounds) for seed in ctx.config.seeds]
        return [*scores, *super().goals(ctx)]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        probes = [AblationProbes.at(ctx, seed, group, make_original()) for group in list_probe_groups(ctx)]
        return {
            "sae": up.sae.hash,
            "probes": [probe.hash for probe in probes],
            "effects": to_tree(ctx.config.effects),
        }

    def check(self, ctx: Context, seed: int) -> None:
        check_probe_inputs(ctx)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> LatentEffects:
        found, ((_, probed),) = [], probe_variants(ctx, seed, [make_original(count_latents(ctx))]).items()
        for number, (group, artifact) in enumerate(zip(list_probe_groups(ctx), probed, strict=True)):
            inputs, heads = make_probe_inputs(ctx, seed, group.data), load_result(artifact.folder).heads
            folder = work.progress / f"group-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            with ctx.display.bar(f"effects of single features, seed {seed}") as advance:
                found.append(
                    measure_latent_effects(
                        inputs,
                        group.probe,
                        ctx.config.effects,
                        heads,
                        folder,
                        lambda what, done, of: advance(done, of, what),
                    )
                )
        return LatentEffects.join(found)

    def work(self, ctx: Context, seed: int) -> Work:
        counts = [count_images(ctx, "test", group.data) for group in list_probe_groups(ctx)]
        n = sum(min(count, ctx.config.effects.n_images or count) for count in counts)
        heads = sorted(ctx.config.probe.heads)
        return Work(n, [ctx.config.model.name, hook_of(ctx).layer, count_latents(ctx), heads])

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        for task, effect in self.at(ctx, seed).load().effects.items():
            heading = f"change of the loss without it, {task}"
            yield LatentColumn(name_column(task), effect, heading, UNITS[task.partition("/")[0]])

    def report_key(self, ctx: Context) -> Key:
        return {**super().report_key(ctx), "probes": _MatchedProbes().hash_probes(ctx)}

    def section(self, ctx: Context) -> ReportSection:
        tables = [join_latents(ctx, seed, (Rank, Score, Confounds, Effects)) for seed in ctx.config.seeds]
        probed = None if Probe.is_goal(ctx) else _MatchedProbes().probe_seeds(ctx)
        return make_effect_section(
            [self.at(ctx, seed).load() for seed in ctx.config.seeds],
            tables,
            [scope_of(ctx, seed) for seed in ctx.config.seeds],
            read_probed(ctx, probed),
            [matched_groups_of(ctx, seed) for seed in ctx.config.seeds],
        )


class _MatchedProbes(ProbesOfVariants):
    """The probes of the original tokens, whose heads read the edited ones, and those of matched groups."""

    def describe(self, ctx: Context, seed: int) -> str:
        return f"probe, matched groups, seed {seed}"

    def variants(self, ctx: Context, seed: int) -> list[Ablation]:
        return _matched_variants_of(ctx, seed)

    def needs_of_variants(self, ctx: Context, seed: int) -> Needs:
        return Needs(**vars(super().needs_of_variants(ctx, seed)), confounds=Confounds.at(ctx, seed))

    def count_nominal(self, ctx: Context) -> int:
        return 1 + 2 * len(MATCHINGS)

    def make(self, ctx: Context, seed: int) -> Probed:
        return _probe_matched(ctx, seed)


@once
def _matched_variants_of(ctx: Context, seed: int) -> list[Ablation]:
    return [make_original(count_latents(ctx)), *matched_ablations_of(ctx, seed)]


@once
def _probe_matched(ctx: Context, seed: int) -> Probed:
    """Return the probes of every variant of a seed; what is missing is trained."""
    return probe_with_others(ctx, seed, _matched_variants_of)
