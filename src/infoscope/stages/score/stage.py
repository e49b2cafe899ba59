"""stage=score: how far every latent moves between two shifted crops, and the groups that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from infoscope import registry
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Handle, Key, Needs, Node, Row, SeedStage, Shown, Stage, Work, name_artifacts
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.agreement import partition_scores
from infoscope.scope.config import By, Diagonal, EMDMethod, Rule
from infoscope.scope.crops import check_shift
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.partition import Partition, make_partition
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import score_latents
from infoscope.scope.sparse_maps import count_bytes
from infoscope.stages.backbone import compile_backbone, fingerprint_model, hook_of, load_backbone
from infoscope.stages.energy import Sample, energy_of
from infoscope.stages.images import count_images, fingerprint_images, open_split, scenes_of
from infoscope.stages.rank import Rank, mass_of
from infoscope.stages.sae import count_latents, has_maps, sae_of, say_imported
from infoscope.stages.score.example_figure import Example, draw_examples
from infoscope.stages.score.examples import count_locked, read_examples, say_locked
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.result import ScopeResult, list_columns
from infoscope.stages.score.tables import make_scope_table, summarise_scope, tell_ungrouped
from infoscope.stages.tokens import find_sizes


class Score(SeedStage[Scores]):
    """The distances between the maps of shifted crops, for every latent and each of its top images."""

    kind, holds = "score", Scores
    in_report = True

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        return Needs(sae=sae_of(ctx, seed), ranking=Rank.at(ctx, seed), **vars(scenes))

    def reads(self, ctx: Context) -> list[Node]:
        return [node for seed in ctx.config.seeds for _, node in needs_of_groups(ctx, seed)]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        scope = ctx.config.scope
        key = {
            "sae": up.sae.hash,
            "ranking": up.ranking.hash,
            "model": fingerprint_model(ctx),
            **hook_of(ctx).key(),
            "images": fingerprint_images(ctx, "train"),
            "shift_patches": scope.shift_patches,
            "emd": scope.emd.name if scope.emd is EMDMethod.exact else [scope.emd.name, scope.sinkhorn_blur],
        }
        if scope.diagonal is not Diagonal.main:
            key["diagonal"] = scope.diagonal.name
        return key

    def check(self, ctx: Context, seed: int) -> None:
        config, n_latents = ctx.config, count_latents(ctx)
        check_shift(find_sizes(ctx).grid, config.scope.shift_patches)
        rule, n_bands = config.partition.chosen
        if rule is Rule.bands and n_bands is not None:
            check_count("partition.n_bands", n_bands, n_latents)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> Scores:
        scope, ranking, backbone = ctx.config.scope, up.ranking.load(), load_backbone(ctx)
        backbone.check_layer(ctx.config.model.layer)
        compile_backbone(ctx, self.work(ctx, seed).forwards)
        maps_bytes = count_bytes(ranking.d_sae * ranking.k_max, backbone.grid)
        ctx.check_disk(2 * maps_bytes - work.progress_bytes)  # in parts, and joined
        with ctx.track(self.kind, seed) as tracker, ctx.display.bar(f"scoring, seed {seed}") as advance:
            scores = score_latents(
                backbone,
                up.sae.load(),
                open_split(ctx, "train"),
                ranking,
                scope,
                layer=ctx.config.model.layer,
                n_readers=ctx.config.data.n_workers,
                progress=advance,
                progress_folder=work.progress,
            )
            cds = scores.cds(scope.k_cds).values
            if not np.isnan(cds).all():
                tracker.log({"mean_cds": float(np.nanmean(cds)), "scored_share": float((~np.isnan(cds)).mean())})
        return scores

    def work(self, ctx: Context, seed: int) -> Work:
        scope, sizes, d_sae = ctx.config.scope, find_sizes(ctx), count_latents(ctx)
        n_pairs = d_sae * scope.n_ranks
        maps_bytes = count_bytes(n_pairs, sizes.grid)
        n_images, ranked = min(count_images(ctx, "train"), n_pairs), Rank.at(ctx, seed)
        if ranked.find() is not None:
            images = ranked.load().top_images
            images = images[images >= 0]  # -1 is no image
            n_pairs, n_images = len(images), len(np.unique(images))
        return Work(
            2 * n_pairs,
            [ctx.config.model.name, d_sae, scope.n_ranks, scope.shift_patches, scope.emd.name],
            forwards=2 * n_images,
            naive_forwards=2 * n_pairs,
            distances=2 * n_pairs,
            disk_bytes=maps_bytes,
            scratch_bytes=maps_bytes,
            memory_bytes=maps_bytes * (1 if ctx.device.type == "cpu" else 2),  # those who solve ahead have their own
            is_bound=ranked.find() is None,
        )

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        return list_columns(scope_of(ctx, seed))

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        yield {**name_artifacts(self.at(ctx, seed).get()), **summarise_seed(ctx, seed)}

    def closing(self, ctx: Context) -> Shown:
        return [make_scope_table([scope_of(ctx, seed) for seed in ctx.config.seeds]), *say_imported(ctx)]

    def section(self, ctx: Context) -> ReportSection:
        scopes = [scope_of(ctx, seed) for seed in ctx.config.seeds]
        return make_scope_section(scopes, read_examples(ctx, scopes[0]))


def make_scope_section(scopes: Sequence[ScopeResult], examples: Sequence[Example]) -> ReportSection:
    """Return the section of some SAE seeds' scores.

    Args:
        examples: features to show, in the order to show them in.
    """
    by = scopes[0].by
    told = "Pale: undecided features." if by is By.cds else f"Colours: groups by {by.words}."
    settled = "; none is undecided where there are others" if by is By.cds else ""
    return ReportSection(
        "scope",
        "Information scope",
        tables={"scope": make_scope_table(scopes)},
        figures={
            "cds_histogram": SectionFigure(
                lambda: draw_cds_histograms({"": scopes}),
                "How far the features' activations move between two crops that share all but one border of"
                f" patches. {told} Chance: the same maps compared between two different images."
                " Right: features that fire and have too few valid pairs for a score, with their share of the"
                " activation mass; those that never fire on these images.",
            ),
            "examples": SectionFigure(
                lambda: draw_examples(examples, scopes[0].scores.shift_patches),
                f"Features of each group on the training images that excite them most{settled}. {say_locked(scopes)}",
            ),
        },
        summary=[{**summarise_scope(scope), "n_locked": count_locked(scope)} for scope in scopes],
        is_lead=True,
    )


def check_count(setting: str, count: float, n_latents: int) -> None:
    """Refuse more groups than there are latents to put into them.

    Raises:
        InputError: so many.
    """
    if count > n_latents:
        raise InputError(f"Expected {setting} to be at most {n_latents}, the number of latents, got {count}.")


def needs_of_groups(ctx: Context, seed: int) -> Needs:
    """Return what `partition_of` and `scope_of` read."""
    more: dict[str, Node] = {"sample": Sample.at(ctx, seed)} if _is_by_energy(ctx) else {}
    if ctx.config.partition.by is not By.cds:
        more["extent"] = _extent_at(ctx, seed)
    return Needs(sae=sae_of(ctx, seed), ranking=Rank.at(ctx, seed), scores=Score.at(ctx, seed), **more)


def divides(ctx: Context, stage: type[Stage]) -> bool:
    """Whether the groups follow from what a stage makes."""
    return has_maps(ctx) and any(type(node.stage) is stage for _, node in needs_of_groups(ctx, ctx.config.seeds[0]))


def _extent_at(ctx: Context, seed: int) -> Handle[ExtentResult]:
    return registry.find_entry("extent").load().at(ctx, seed)  # that stage shows scores, and so imports this module


def _is_by_energy(ctx: Context) -> bool:
    return ctx.config.partition.chosen[0] is Rule.energy


def key_of_groups(ctx: Context) -> Key:
    """Return what the groups of all SAE seeds depend on besides scores and mass."""
    partition = ctx.config.partition
    key = {"k_cds": ctx.config.scope.k_cds, **key_of_partition(ctx, *ctx.config.seeds)}
    return {**key, "interval": ctx.config.stability.interval} if partition.decided_only else key


def key_of_partition(ctx: Context, *seeds: int) -> Key:
    """Return how the latents of SAE seeds are divided, and what by where that is not the CDS."""
    partition = ctx.config.partition
    is_scored = partition.by is By.cds or not has_maps(ctx)
    measured = {} if is_scored else {"measured": [_extent_at(ctx, seed).hash for seed in seeds]}
    return {"partition": partition.cache_key_fields(), **measured}


def measure_of(ctx: Context, seed: int) -> Float[np.ndarray, " d_sae"]:
    """Return what the latents are divided by, see `By`: 0..1, NaN where it is not known."""
    by = ctx.config.partition.by
    if by is By.cds:
        return Score.at(ctx, seed).load().cds(ctx.config.scope.k_cds).values
    return getattr(_extent_at(ctx, seed).load(), by.name)


@once
def partition_of(ctx: Context, seed: int) -> Partition:
    """Divide the latents by what is measured on the training split: arithmetic on that artifact."""
    config, mass = ctx.config, mass_of(ctx, seed)
    energy = energy_of(ctx, seed) if _is_by_energy(ctx) else None
    if config.partition.by is not By.cds:
        return make_partition(measure_of(ctx, seed), mass, config.partition, energy)
    emd = Score.at(ctx, seed).load().emd
    return partition_scores(emd, config.scope.k_cds, mass, config.partition, energy, config.stability)


@once
def scope_of(ctx: Context, seed: int) -> ScopeResult:
    """Return the scores and the groups of one SAE as tables and figures read them."""
    config, scores, mass = ctx.config, Score.at(ctx, seed).load(), mass_of(ctx, seed)
    cds = scores.cds(config.scope.k_cds).values
    return ScopeResult(
        sae_seed=seed,
        k_cds=config.scope.k_cds,
        cds=cds,
        scores=scores,
        mass=mass,
        firing_rate=Rank.at(ctx, seed).load().firing_rate,
        partition=partition_of(ctx, seed),
        rule=config.partition.rule_in_words,
        sae_metrics=sae_of(ctx, seed).read_json("metrics.json"),
        stability=config.stability,
        by=config.partition.by,
        measured=None if config.partition.by is By.cds else measure_of(ctx, seed),
    )


def say_ungrouped(ctx: Context) -> str:
    """Return what `tell_ungrouped` does, of groups that are at hand; else nothing."""
    needed = [node for seed in ctx.config.seeds for _, node in needs_of_groups(ctx, seed)]
    if any(isinstance(node, Handle) and node.find() is None for node in needed):
        return ""
    return tell_ungrouped([scope_of(ctx, seed) for seed in ctx.config.seeds])


def find_scope(ctx: Context, seed: int) -> ScopeResult | None:
    """Return what `scope_of` does; None where features have no maps, such as pooled embeddings', and so no score."""
    return scope_of(ctx, seed) if has_maps(ctx) else None


def find_groups(ctx: Context, seed: int) -> Mapping[str, Bool[np.ndarray, " d_sae"]]:
    """Return the groups by score; none where features have no maps and so no score."""
    return partition_of(ctx, seed).groups if has_maps(ctx) else {}


def list_scores(ctx: Context) -> list[Node]:
    """Return the scores of each SAE seed; none where features have no maps."""
    return [Score.at(ctx, seed) for seed in ctx.config.seeds if has_maps(ctx)]


def summarise_seed(ctx: Context, seed: int) -> Row:
    """Return the scores and the groups of a seed in a few numbers, and its SAE's own metrics."""
    return {key: value for key, value in summarise_scope(scope_of(ctx, seed)).items() if key != "sae_seed"}
