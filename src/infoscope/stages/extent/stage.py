"""stage=extent: what is left of each latent's activation when all but a window around it is replaced."""

from __future__ import annotations

from collections.abc import Iterator

from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.extent.design import Design, choose_design, key_of_design, say_design, wish_design
from infoscope.scope.extent.measure import MAX_ACTS, measure_extent
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.extent.windows import check_donors
from infoscope.stages.backbone import compile_backbone, fingerprint_model, hook_of, load_backbone
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.extent.corners import read_corners
from infoscope.stages.extent.numbers import ALL, MEASURES, SCORES, Found, separate_seeds, summarise_groups
from infoscope.stages.extent.section import make_extent_section
from infoscope.stages.images import count_images, fingerprint_images, open_split, scenes_of
from infoscope.stages.latents import join_latents
from infoscope.stages.publish import PublishedPart
from infoscope.stages.rank import Rank
from infoscope.stages.sae import count_latents, sae_of
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import find_sizes


class Extent(PublishedPart, SeedStage[ExtentResult]):
    """The activations of each latent of a seed under windows that are kept or replaced."""

    kind, holds = "extent", ExtentResult
    version = 2
    report_version = 4
    is_optional = in_report_at_hand = True
    columns = (
        *(Column(f"median_{key}", f"median {name}", digits=3) for key, name in MEASURES.items()),
        *(Column(f"auroc_{key}", f"AUROC, {name}") for key, name in SCORES.items()),
    )

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        return Needs(sae=sae_of(ctx, seed), ranking=Rank.at(ctx, seed), **vars(scenes))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "sae": up.sae.hash,
            "ranking": up.ranking.hash,
            "model": fingerprint_model(ctx),
            **hook_of(ctx).key(),
            "images": fingerprint_images(ctx, "train"),
            "extent": _key_of_windows(ctx),
        }

    def hashes(self, ctx: Context) -> list[str]:
        return [*super().hashes(ctx), describe_design(ctx)]

    def report_key(self, ctx: Context) -> Key:
        return {**super().report_key(ctx), "design": describe_design(ctx)}  # which tells what the budget has left out

    def goals(self, ctx: Context) -> list[Node]:
        others = (stage.at(ctx, seed) for stage in (Score, Confounds) for seed in ctx.config.seeds)
        return [*super().goals(ctx), *others]

    def check(self, ctx: Context, seed: int) -> None:
        design_of(ctx)
        check_donors(count_images(ctx, "train"), ctx.config.scope.extent)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> ExtentResult:
        backbone, scope = load_backbone(ctx), ctx.config.scope
        backbone.check_layer(ctx.config.model.layer)
        compile_backbone(ctx, self.work(ctx, seed).forwards)
        with ctx.display.bar(f"measuring extents, seed {seed}", unit="images") as advance:
            return measure_extent(
                backbone,
                up.sae.load(),
                open_split(ctx, "train"),
                up.ranking.load(),
                scope.extent,
                layer=ctx.config.model.layer,
                batch_images=_count_batch(ctx),
                n_readers=ctx.config.data.n_workers,
                progress=advance,
                progress_folder=work.progress,
            )

    def work(self, ctx: Context, seed: int) -> Work:
        design, sizes, name = design_of(ctx), find_sizes(ctx), ctx.config.model.name
        n_bytes = design.n_bytes * count_latents(ctx) * design.n_images
        n_batch = _count_batch(ctx)
        n_pictures = n_batch + (design.n_pool or n_batch)  # of a batch, and the donors
        n_acts = min(MAX_ACTS, design.n_latents * design.n_images * design.n_donors * count_latents(ctx))
        held = n_bytes + n_pictures * sizes.n_patches * (3 * sizes.patch_px**2 + 4 * sizes.d_in)
        return Work(
            design.n_latents * design.n_images,
            [name, design.n_latents, design.n_images, design.n_donors, list(design.radii)],
            forwards=design.n_forwards,
            disk_bytes=n_bytes,
            memory_bytes=held + 2 * 4 * n_acts,  # pre-activations, and what is made of them
            is_bound=True,
            says=f"Windows: {describe_design(ctx)}",
        )

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        return list_columns(self.at(ctx, seed).load())

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, found = self.at(ctx, seed).get(), [self._find(ctx, seed)]
        aurocs = separate_seeds(found)["all"].auroc if found[0].confounds.has_truth else {}
        for group, of in summarise_groups(found).items():
            medians = {f"median_{measure}": getattr(of, measure).mean for measure in MEASURES}
            known = {f"auroc_{score}": auroc.mean for score, auroc in aurocs.items()} if group == ALL else {}
            yield {**name_artifacts(made), "variant": group, "n_features": int(of.n.mean), **medians, **known}

    def section(self, ctx: Context) -> ReportSection:
        seeds, sizes = [self._find(ctx, seed) for seed in ctx.config.seeds], find_sizes(ctx)
        corners = read_corners(seeds[0], open_split(ctx, "train"), sizes.grid * sizes.patch_px)
        return make_extent_section(seeds, describe_design(ctx), corners)

    def _find(self, ctx: Context, seed: int) -> Found:
        table = join_latents(ctx, seed, (Rank, Score, Confounds, Extent))
        return Found(self.at(ctx, seed).load(), scope_of(ctx, seed), Confounds.at(ctx, seed).load(), table)


def _count_batch(ctx: Context) -> int:
    """Return how many pictures are encoded at a time, twice as many as images are scored."""
    return 2 * ctx.config.scope.choose_batch(ctx.device.type)


def design_of(ctx: Context) -> Design:
    """Return which windows are measured of each SAE seed.

    Raises:
        InputError: as `choose_design`.
    """
    scope = ctx.config.scope
    return choose_design(count_latents(ctx), find_sizes(ctx).grid, scope.n_ranks, scope.extent)


def describe_design(ctx: Context) -> str:
    """Return in a sentence which windows are measured, and what the budget has left out.

    Raises:
        InputError: as `choose_design`.
    """
    scope, d_sae = ctx.config.scope, count_latents(ctx)
    wanted = wish_design(d_sae, find_sizes(ctx).grid, scope.n_ranks, scope.extent)
    return say_design(d_sae, wanted, design_of(ctx), scope.extent)


def _key_of_windows(ctx: Context) -> Key:
    try:
        return key_of_design(count_latents(ctx), design_of(ctx), ctx.config.scope.extent)
    except InputError as error:  # `check` says so; who only asks whether there are extents goes on without them
        return {"refused": str(error)}


def list_columns(found: ExtentResult) -> Iterator[LatentColumn]:
    """Return what windows tell of each latent."""
    kept = "of the whole picture's, 0 being the donor's"
    heading = "evidence extent: how wide a window keeps half of the response"
    yield LatentColumn("extent", found.extent, heading, "share of the grid's side")
    heading = "mean extent: the share of the response that windows lose, mean over their sizes"
    yield LatentColumn("mean_extent", found.mean_extent, heading, "share of the grid's side")
    heading = "context effect: variance of a patch's activation that its surroundings make"
    yield LatentColumn("context_effect", found.context_effect, heading, "share of variance")
    yield LatentColumn("own_patch", found.response[0], "response to its own patch among donors", f"share {kept}")
    heading = "response to its surroundings without its own patch"
    yield LatentColumn("without_patch", found.response_without[0], heading, f"share {kept}")
    yield LatentColumn("n_extent_images", found.n_measured, "images from which its extent is read", "images")
