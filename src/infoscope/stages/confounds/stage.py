"""stage=confounds: what a score could be mistaken for."""

from __future__ import annotations

from pathlib import Path

from infoscope.pipeline.context import Context
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Node, Work
from infoscope.report.section import ReportSection
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import Measurement
from infoscope.scope.confounds import ConfoundMeter, ConfoundResult, measure_confounds
from infoscope.stages.confounds.section import make_confound_section
from infoscope.stages.images import fingerprint_images, open_split
from infoscope.stages.probe.stage import Probe, read_probed
from infoscope.stages.sae import sae_of, work_of_pass
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import Tokens
from infoscope.vision.tokens.source import TokenSource


class Confounds(PassStage[ConfoundResult]):
    """How often, how strongly and how widely the latents of a seed fire, and on what."""

    kind = "confounds"
    in_report = True

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"))

    def goals(self, ctx: Context) -> list[Node]:
        return [*super().goals(ctx), *(Score.at(ctx, seed) for seed in ctx.config.seeds)]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "sae": up.sae.hash,
            "tokens": up.tokens.hash,
            "images": fingerprint_images(ctx, "train"),
            "k_max": ctx.config.scope.n_ranks,
        }

    def measure(
        self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int
    ) -> Measurement[ConfoundMeter]:
        return measure_confounds(sae, open_split(ctx, "train"), ctx.config.scope.n_ranks)

    def load(self, ctx: Context, folder: Path, seed: int) -> ConfoundResult:
        return ConfoundResult.load(folder)

    def work(self, ctx: Context, seed: int) -> Work:
        return work_of_pass(ctx)

    def section(self, ctx: Context) -> ReportSection:
        scopes = [scope_of(ctx, seed) for seed in ctx.config.seeds]
        by_seed = {seed: self.at(ctx, seed).load() for seed in ctx.config.seeds}
        is_probed = any(isinstance(goal.stage, Probe) for goal in ctx.goals)
        return make_confound_section(scopes, by_seed, read_probed(ctx) if is_probed else [])
