"""Ablations of an experiment: groups, all latents, random controls, groups thinned out to equal firing frequency."""

from __future__ import annotations

from infoscope.pipeline.context import Context
from infoscope.scope.ablations import Ablation, make_ablations, make_matched_ablations
from infoscope.stages.rank import Rank
from infoscope.stages.score.stage import partition_of


def ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the ablations of a seed, the original tokens first: groups, all latents, random controls."""
    ranking, partition, probe = Rank.at(ctx, seed).load(), partition_of(ctx, seed), ctx.config.probe
    return make_ablations(
        dict(partition.groups),
        drawable=~partition.unscored & (ranking.mean_act > 0),
        mass=ranking.mean_act,
        n_draws=probe.n_draws,
        seed=probe.seed,
    )


def matched_ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the groups thinned out until they fire equally often; none for bands."""
    ranking, groups = Rank.at(ctx, seed).load(), dict(partition_of(ctx, seed).groups)
    return make_matched_ablations(groups, ranking.firing_rate, ranking.mean_act, ctx.config.probe.seed)
