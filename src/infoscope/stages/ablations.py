"""Ablations of an experiment: groups, all latents, random controls, groups thinned out until they are alike."""

from __future__ import annotations

from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Needs
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, make_ablations, make_matched_ablations
from infoscope.scope.config import Control
from infoscope.scope.matching import Pair, match_groups
from infoscope.scope.partition import find_ends
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.energy import Sample, energy_of
from infoscope.stages.rank import Rank, mass_of
from infoscope.stages.sae import has_free_scale
from infoscope.stages.score.stage import needs_of_groups, partition_of


def needs_of_ablations(ctx: Context, seed: int) -> Needs:
    """Return what `ablations_of` reads."""
    groups = vars(needs_of_groups(ctx, seed))
    return Needs(**groups | ({"sample": Sample.at(ctx, seed)} if _has_energy(ctx) else {}))


def _has_energy(ctx: Context) -> bool:
    """Whether random groups are drawn by their energy."""
    return Control.energy in ctx.config.probe.controls and ctx.config.probe.n_draws > 0


@once
def ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the ablations of a seed, the original tokens first: groups, all latents, random controls."""
    partition, mass, probe = partition_of(ctx, seed), mass_of(ctx, seed), ctx.config.probe
    return make_ablations(
        partition.groups,
        ~partition.unscored & (mass > 0),
        mass,
        n_draws=probe.n_draws,
        seed=probe.seed,
        controls=probe.controls,
        energy=energy_of(ctx, seed) if _has_energy(ctx) else None,
        modes=[mode for mode in EditMode if mode is EditMode.error_preserving or not has_free_scale(ctx)],
    )


@once
def matched_groups_of(ctx: Context, seed: int) -> dict[str, Pair]:
    """Return {matching: the groups of `find_ends` thinned out until they are alike in it}; nothing for bands."""
    groups, firing_rate = partition_of(ctx, seed).groups, Rank.at(ctx, seed).load().firing_rate
    support = Confounds.at(ctx, seed).load().properties.support
    return match_groups(groups, firing_rate, support, mass_of(ctx, seed), ctx.config.probe.seed)


@once
def all_ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return all that is probed: `ablations_of`, and the groups thinned out until they are alike, if there are any."""
    return ablations_of(ctx, seed) + matched_ablations_of(ctx, seed)


def matched_ablations_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return those of `matched_groups_of`."""
    ends = find_ends(partition_of(ctx, seed).groups)
    return [] if ends is None else make_matched_ablations(matched_groups_of(ctx, seed), mass_of(ctx, seed), ends)
