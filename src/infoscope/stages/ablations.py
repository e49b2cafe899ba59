"""Ablations of an experiment: groups, all latents, random controls, groups thinned out to equal firing frequency."""

from __future__ import annotations

from infoscope.pipeline.context import Context, once
from infoscope.scope.ablations import Ablation, make_ablations, make_matched_ablations
from infoscope.stages.rank import Rank, mass_of
from infoscope.stages.score.stage import partition_of


def ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the ablations of a seed, the original tokens first: groups, all latents, random controls."""
    partition, mass, probe = partition_of(ctx, seed), mass_of(ctx, seed), ctx.config.probe
    drawable = ~partition.unscored & (mass > 0)
    return make_ablations(partition.groups, drawable, mass, n_draws=probe.n_draws, seed=probe.seed)


@once
def all_ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return all that is probed: `ablations_of`, and the groups thinned out until they fire equally often, if any."""
    firing_rate, groups = Rank.at(ctx, seed).load().firing_rate, partition_of(ctx, seed).groups
    matched = make_matched_ablations(groups, firing_rate, mass_of(ctx, seed), ctx.config.probe.seed)
    return ablations_of(ctx, seed) + matched
