"""stage=curve: what probes lose as more of the mass is removed, from either end of the scores and at random."""

from __future__ import annotations

from infoscope.config.tree import to_tree
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key
from infoscope.report.section import ReportSection
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, make_ablations
from infoscope.scope.curve import make_curve_ablations
from infoscope.stages.curve.section import make_curve_section
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.run import Probed
from infoscope.stages.probe.stage import ProbesOfVariants, probe_with_others, read_probed
from infoscope.stages.publish import Published
from infoscope.stages.rank import mass_of
from infoscope.stages.score.stage import measure_of


class Curve(Published, ProbesOfVariants):
    """Probes on tokens without a share of the mass; before them the original tokens, and those without any feature."""

    def describe(self, ctx: Context, seed: int) -> str:
        return f"curve, seed {seed}"

    def make(self, ctx: Context, seed: int) -> Probed:
        return probe_curve(ctx, seed)

    def variants(self, ctx: Context, seed: int) -> list[Ablation]:
        return curve_variants_of(ctx, seed)

    def count_nominal(self, ctx: Context) -> int:
        return 2 + len(ctx.config.curve.mass_shares) * (2 + ctx.config.probe.n_draws)

    def section(self, ctx: Context) -> ReportSection:
        return make_curve_section(read_curve(ctx), ctx.config.curve.mass_shares, ctx.config.partition.by)

    def report_key(self, ctx: Context) -> Key:
        by = ctx.config.partition.cache_key_of_measure
        return {"probes": self.hash_probes(ctx), "curve": to_tree(ctx.config.curve), **by}


@once
def curve_variants_of(ctx: Context, seed: int) -> list[Ablation]:
    """Return the original tokens, those without any feature, and those without a share of the mass."""
    config, mass = ctx.config, mass_of(ctx, seed)
    scores = measure_of(ctx, seed)
    whole = make_ablations({}, mass > 0, mass, modes=[EditMode.error_preserving])
    return whole + make_curve_ablations(scores, mass, config.curve.mass_shares, config.probe.n_draws, config.probe.seed)


@once
def probe_curve(ctx: Context, seed: int) -> Probed:
    """Return the probes of every variant of a seed; what is missing is trained."""
    return probe_with_others(ctx, seed, curve_variants_of)


def read_curve(ctx: Context) -> list[Result]:
    """Return what the probes read from every variant of every seed; what is missing is trained."""
    return read_probed(ctx, Curve().probe_seeds(ctx))
