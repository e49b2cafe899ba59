"""stage=select: what probes read from a few features alone, by the rule that chose them."""

from __future__ import annotations

import numpy as np

from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs
from infoscope.probes.results import load_results
from infoscope.probes.selection import LOGITS, SCORES, compute_probe_importance, make_selection_ablations
from infoscope.report.section import ReportSection
from infoscope.runtime.errors import InputError
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, make_ablations
from infoscope.scope.config import PartitionConfig
from infoscope.scope.partition import make_partition
from infoscope.stages.describe.stage import Describe
from infoscope.stages.probe.artifacts import AblationProbes
from infoscope.stages.probe.run import Probed, list_probe_groups, probe_variants
from infoscope.stages.probe.stage import ProbesOfVariants, read_probed
from infoscope.stages.publish import Published
from infoscope.stages.rank import Rank, mass_of
from infoscope.stages.sae import count_latents, has_free_scale, has_unit_rows, sae_of
from infoscope.stages.score.stage import check_count, measure_of
from infoscope.stages.select.section import make_selection_section
from infoscope.stages.select.worth import check_weights, predicted_worth_of, say_worth, weights_of

IMPORTED = (
    "Mean activations count what is above 0, in the SAE's own units: the rules leave out activations below 0, and by"
    " how much a norm of each token scales what is written into it."
)


class Select(Published, ProbesOfVariants):
    """Probes on n kept latents; before them the original tokens, all latents kept, and none."""

    report_version = 1

    def describe(self, ctx: Context, seed: int) -> str:
        return f"select, seed {seed}"

    def check(self, ctx: Context, seed: int) -> None:
        super().check(ctx, seed)
        config, n_latents = ctx.config.select, count_latents(ctx)
        if has_free_scale(ctx):
            raise InputError(
                "stage=select decodes tokens from a few latents, and the scale of this SAE's decoder means nothing:"
                " choose stage=probe, where its error stays."
            )
        check_count("select.n_bands", config.n_bands, n_latents)
        check_count("select.n_kept[0]", config.n_kept[0], n_latents)
        check_weights(ctx)

    def make(self, ctx: Context, seed: int) -> Probed:
        return probe_kept(ctx, seed)

    def needs_of_variants(self, ctx: Context, seed: int) -> Needs:
        described = {} if weights_of(ctx) is None else {"describe": Describe.at(ctx, seed)}
        return Needs(**vars(super().needs_of_variants(ctx, seed)), **described)

    def variants(self, ctx: Context, seed: int) -> list[Ablation]:
        return [*whole_variants_of(ctx, seed), *selection_variants_of(ctx, seed)]

    def count_nominal(self, ctx: Context) -> int:
        select, heads, weights = ctx.config.select, ctx.config.probe.heads, weights_of(ctx)
        of_tasks = len({*LOGITS, *SCORES} & heads)
        of_tasks += sum(len(tasks.keys() & heads) for tasks in weights.rules.values()) if weights else 0
        return 3 + len(select.n_kept) * (select.n_bands + 1 + select.n_draws + of_tasks)

    def section(self, ctx: Context) -> ReportSection:
        notes = [*say_worth(ctx), *([] if has_unit_rows(ctx) else [IMPORTED])]
        return make_selection_section(read_probed(ctx, self.probe_seeds(ctx)), notes, ctx.config.partition.by)

    def report_key(self, ctx: Context) -> Key:
        weights = weights_of(ctx)
        said = {} if weights is None else {"fitted_on": weights.fitted_on}
        said |= ctx.config.partition.cache_key_of_measure
        return {"probes": self.hash_probes(ctx), "select": ctx.config.select.cache_key_fields(), **said}


@once
def probe_kept(ctx: Context, seed: int) -> Probed:
    """Return the probes of every variant that keeps some latents, after those of the whole tokens."""
    whole = whole_variants_of(ctx, seed)
    probed = probe_variants(ctx, seed, whole)
    return probed | probe_variants(ctx, seed, [whole[0], *selection_variants_of(ctx, seed)])


def whole_variants_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the original tokens, and those decoded from all latents and from none."""
    mass = mass_of(ctx, seed)
    return make_ablations({}, mass > 0, mass, modes=[EditMode.reconstruct])


def selection_variants_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the variants that keep n latents; the weights of the original's probes choose some of them."""
    config = ctx.config
    scores, ranking = measure_of(ctx, seed), Rank.at(ctx, seed).load()
    mass, original = mass_of(ctx, seed), whole_variants_of(ctx, seed)[0]
    probed = [AblationProbes.at(ctx, seed, group, original) for group in list_probe_groups(ctx)]
    heads = load_results([ctx.store.get(one.spec).folder for one in probed], original).heads
    W_dec = sae_of(ctx, seed).load().W_dec.detach().cpu().double().numpy()
    return make_selection_ablations(
        make_partition(scores, mass, PartitionConfig(config.partition.by, n_bands=config.select.n_bands)).groups,
        ~np.isnan(scores) & (mass > 0),
        mass,
        compute_probe_importance(heads, W_dec, ranking.mean_act) | predicted_worth_of(ctx, seed),
        config.select,
        config.probe.seed,
    )
