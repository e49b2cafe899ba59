"""stage=segment: how well the map of a single latent is the mask of a label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from infoscope.analyses.config import Normalise
from infoscope.analyses.segment_result import Segmentation, choose_segmenters, find_examples
from infoscope.analyses.segmentation import (
    MAX_PAIRS,
    LabelScreen,
    PatchLabels,
    count_candidates,
    measure_overlap,
    measure_pixels,
    measure_screen,
)
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import PERCENT, Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps
from infoscope.sae.passes import Measurement, measure_one, run_pass
from infoscope.stages.backbone import load_backbone
from infoscope.stages.images import (
    check_maps,
    check_split,
    count_images,
    find_known,
    fingerprint_images,
    knows,
    open_split,
    scenes_of,
)
from infoscope.stages.publish import Published
from infoscope.stages.sae import count_latents, origin_of, sae_of, work_of_pass
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.segment.section import Found, make_segment_section
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.tokens.source import TokenSource


class LabelScreens(PassStage[LabelScreen]):
    """The range of each latent's activations, and the labels that it goes with."""

    kind, holds = "label_screen", LabelScreen

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "train"), **vars(scenes))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "sae": up.sae.hash,
            "tokens": up.tokens.hash,
            "images": fingerprint_images(ctx, "train"),
            "normalise": ctx.config.segment.normalise.name,
            "max_pairs": MAX_PAIRS,
        }

    def check(self, ctx: Context, seed: int) -> None:
        check_has_maps(origin_of(ctx))
        if not knows(ctx, Truth.label_maps, ctx.config.data):
            raise InputError(
                "stage=segment compares latents with label maps, which these images do not have: choose data that have"
                " them, data=scenes or data=ade20k."
            )
        check_maps(ctx, ctx.config.data)

    def measure(self, ctx: Context, up: Needs, sae: SparseAutoencoder, tokens: TokenSource, seed: int) -> Measurement:
        return measure_screen(sae, patch_labels_of(ctx, "train"), ctx.config.segment.normalise)

    def work(self, ctx: Context, seed: int) -> Work:
        # two tables in float64: of a part, of what this process has read, of all
        return replace(work_of_pass(ctx), memory_bytes=3 * 2 * 8 * count_latents(ctx) * _count_labels(ctx))


class Segment(Published, SeedStage[Segmentation]):
    """Patches and pixels that the maps of latents share with labels, on training and on test images."""

    kind, holds = "segment", Segmentation
    is_optional = True
    columns = (
        Column("iou_train", "IoU, train", **PERCENT),
        Column("iou_test", "IoU, test", **PERCENT),
        Column("iou_pixels", "in pixels", **PERCENT),
    )

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        tokens = {split: Tokens.at(ctx, split) for split in ("train", "test")}
        return Needs(sae=sae_of(ctx, seed), screen=LabelScreens.at(ctx, seed), **tokens, **vars(scenes))

    def goals(self, ctx: Context) -> list[Node]:
        return [*super().goals(ctx), *(Score.at(ctx, seed) for seed in ctx.config.seeds)]

    def applies(self, ctx: Context) -> bool:
        return knows(ctx, Truth.label_maps, ctx.config.data)

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "screen": up.screen.hash,
            "test": up.test.hash,
            "images": fingerprint_images(ctx, "test"),
            "segment": ctx.config.segment.cache_key_fields(),
        }

    def check(self, ctx: Context, seed: int) -> None:
        check_split(ctx, "test", ctx.config.data)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> Segmentation:
        config, sae, screen = ctx.config.segment, up.sae.load(), up.screen.load()
        train, test, images = up.train.load(), up.test.load(), open_split(ctx, "test")
        ranges = screen.ranges if config.normalise is Normalise.split else None
        thresholds = np.array(config.thresholds, dtype=np.float32)

        def count(split: str) -> Measurement[Any]:
            labels = patch_labels_of(ctx, split)
            wanted = measure_overlap(sae, screen, labels, config.normalise, config.thresholds)
            return wanted.kept_in(work.progress / split)

        with ctx.display.bar(f"comparing maps with labels, seed {seed}, train", len(train), "images") as advance:
            on_train = measure_one(train, count("train"), advance).compute()
        chosen = choose_segmenters(screen.candidates, on_train, config.thresholds)
        pixels: Measurement[Any] = measure_pixels(sae, chosen, ranges, images).kept_in(work.progress / "pixels")
        with ctx.display.bar(f"comparing maps with labels, seed {seed}, test", len(test), "images") as advance:
            on_test = run_pass(test, {"patches": count("test"), "pixels": pixels}, advance)
        patches, in_pixels = on_test["patches"].compute(), on_test["pixels"].compute()
        labels = patch_labels_of(ctx, "test").of(test.image_index)
        found = Segmentation(
            images.label_names,
            thresholds,
            screen.candidates,
            on_train,
            patches,
            chosen,
            in_pixels,
            find_examples(test, sae, chosen, ranges, labels),
        )
        with ctx.track(self.kind, seed) as tracker:
            tested = [one.test for one in found.tell({}) if np.isfinite(one.test)]
            if tested:
                tracker.log({"mean_iou_test": float(np.mean(tested))})
        return found

    def work(self, ctx: Context, seed: int) -> Work:
        d_sae, n_thresholds = count_latents(ctx), ctx.config.segment.n_thresholds
        n_cells = d_sae * count_candidates(d_sae, _count_labels(ctx)) * n_thresholds
        n_test = count_images(ctx, "test")
        return replace(
            work_of_pass(ctx),
            n=count_images(ctx, "train") + n_test,
            forwards=0 if ctx.config.data.store_tokens else count_images(ctx, "train") + n_test,
            disk_bytes=2 * 4 * n_cells,
            memory_bytes=3 * 8 * n_cells,  # of a part, of what this process has read, of all
            is_bound=True,  # what is 0 takes no room on the disk
        )

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found = self.at(ctx, seed).load()
        best, iou = found.best_labels
        names = np.array([*found.label_names, ""])[best]
        yield LatentColumn("best_label", names, "label that its map masks best on training images")
        yield LatentColumn(
            "best_label_iou", iou, "IoU of its map with its best label", "share of the union, in patches"
        )

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, scope = self.at(ctx, seed), scope_of(ctx, seed)
        found = made.load()
        for one in found.tell(scope.partition.groups):
            yield {
                **name_artifacts(made.get()),
                "label": found.label_names[one.label],
                "latent": one.latent,
                "threshold": one.threshold,
                "cds": float(scope.cds[one.latent]),
                "iou_train": one.train,
                "iou_test": one.test,
                "iou_pixels": one.pixels,
                "iou_everywhere": one.everywhere,
                **{f"iou_{name}": iou for name, iou in one.groups.items()},
            }

    def section(self, ctx: Context) -> ReportSection:
        found = [Found(scope_of(ctx, seed), self.at(ctx, seed).load()) for seed in ctx.config.seeds]
        return make_segment_section(found, open_split(ctx, "test"), load_backbone(ctx).image_px)


@once
def patch_labels_of(ctx: Context, split: str) -> PatchLabels:
    """Return the labels of a split's patches, which all passes and SAE seeds of a command share."""
    return PatchLabels(open_split(ctx, split), find_sizes(ctx).grid)


def _count_labels(ctx: Context) -> int:
    return len(find_known(ctx, ctx.config.data)[0].label_names)
