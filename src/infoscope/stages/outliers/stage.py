"""stage=outliers: what outlier tokens do, and how strongly each group of features acts on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from infoscope.config.tree import to_tree
from infoscope.pipeline.context import Context
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Node, Row, SingleStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import Measurement
from infoscope.scope.group_activation import GroupActivation, OutlierActs, measure_outlier_acts
from infoscope.scope.token_outliers import MAPS, TokenOutliers, compute_token_outliers
from infoscope.stages.backbone import load_backbone
from infoscope.stages.images import count_images, open_split, scenes_of
from infoscope.stages.outliers.section import make_outlier_section
from infoscope.stages.publish import PublishedPart
from infoscope.stages.sae import name_unit, row_norms_of, sae_of, work_of_pass
from infoscope.stages.score.stage import Score, partition_of
from infoscope.stages.tokens import Tokens
from infoscope.vision.tokens.source import TokenFacts, TokenSource


class OutlierTokens(SingleStage[TokenOutliers]):
    """How far the outlier tokens move between shifted crops, and the norms block by block."""

    kind, holds = "outliers", TokenOutliers
    is_shared = False

    def needs(self, ctx: Context) -> Needs:
        return Needs(tokens=Tokens.at(ctx, "train"), **vars(scenes_of(ctx, ctx.config.data)))

    def key(self, ctx: Context, up: Needs) -> Key:
        scope = ctx.config.scope
        return {
            "tokens": up.tokens.hash,
            "outliers": to_tree(ctx.config.outliers),
            "shift_patches": scope.shift_patches,
            "emd": [scope.emd.name, scope.sinkhorn_blur],
        }

    def build(self, ctx: Context, up: Needs, work: Workspace) -> TokenOutliers:
        with ctx.display.bar("outlier tokens", unit="images") as advance:
            return compute_token_outliers(
                load_backbone(ctx),
                open_split(ctx, "train"),
                TokenFacts(up.tokens.folder),
                ctx.config.outliers,
                ctx.config.scope,
                n_readers=ctx.config.data.n_workers,
                progress=advance,
            )

    def work(self, ctx: Context) -> Work:
        config, n = ctx.config.outliers, count_images(ctx, "train")
        n_cropped, n_by_layer = min(n, config.n_images), min(n, config.n_layer_images)
        forwards = 2 * n_cropped + (load_backbone(ctx).n_layers - 1) * n_by_layer
        like = [ctx.config.model.name, config.n_layer_images, ctx.config.scope.emd.name]
        return Work(n_cropped, like, forwards=forwards, distances=2 * len(MAPS) * n_cropped, is_bound=True)


class Outliers(PublishedPart, PassStage[OutlierActs]):
    """How strongly each latent of a seed acts on outlier and on normal tokens; groups are arithmetic on it."""

    kind, holds = "group_activation", OutlierActs
    columns = (
        Column("on_outlier", "on outlier tokens", digits=2),
        Column("on_normal", "on normal tokens", digits=2),
        Column("activation_ratio", "ratio", digits=2),
    )

    def goals(self, ctx: Context) -> list[Node]:
        return [*super().goals(ctx), *(Score.at(ctx, seed) for seed in ctx.config.seeds)]

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"), outliers=OutlierTokens.at(ctx))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {"sae": up.sae.hash, "tokens": up.tokens.hash, "outliers": up.outliers.hash}

    def measure(self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int) -> Measurement:
        return measure_outlier_acts(sae, tokens, up.outliers.load().norms.threshold)

    def work(self, ctx: Context, seed: int) -> Work:
        return work_of_pass(ctx)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found, norms = self.at(ctx, seed).load(), row_norms_of(ctx, seed)
        unit = f"{name_unit(norms)} per token"
        none = np.full_like(found.on_normal, np.nan)
        outlier = found.on_outlier / found.n_outlier if found.n_outlier else none
        normal = found.on_normal / found.n_normal if found.n_normal else none
        ratio = np.divide(outlier, normal, out=none.copy(), where=normal > 0)
        yield LatentColumn("on_outlier", outlier * norms, "activation on outlier tokens", unit)
        yield LatentColumn("on_normal", normal * norms, "activation on normal tokens", unit)
        yield LatentColumn("outlier_ratio", ratio, "activation on outlier tokens / on normal ones", "1")

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, found = self.at(ctx, seed).get(), group_activation_of(ctx, seed)
        for group, acts in found.groups.items():
            counts = {"n_features": acts.n_features, "n_outlier_tokens": found.n_outlier}
            strengths = {"on_outlier": acts.on_outlier, "on_normal": acts.on_normal, "activation_ratio": acts.ratio}
            yield {**name_artifacts(made), "variant": group, **counts, **strengths}

    def section(self, ctx: Context) -> ReportSection:
        by_seed = {seed: group_activation_of(ctx, seed) for seed in ctx.config.seeds}
        unit = name_unit(row_norms_of(ctx, ctx.config.seeds[0]))
        return make_outlier_section(OutlierTokens.at(ctx).load(), by_seed, unit)


def group_activation_of(ctx: Context, seed: int) -> GroupActivation:
    """Return how strongly each group acts on outlier and on normal tokens, and the features without a score."""
    partition = partition_of(ctx, seed)
    unscored = {"unscored": partition.unscored} if partition.unscored.any() else {}
    acts, norms = Outliers.at(ctx, seed).load(), row_norms_of(ctx, seed)
    acts = replace(acts, on_outlier=acts.on_outlier * norms, on_normal=acts.on_normal * norms)
    return acts.of_groups({**partition.groups, **unscored})
