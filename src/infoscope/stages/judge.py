"""The judge: the backbone that says how alike images are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from infoscope.analyses.judge import JudgedImages, judge_images
from infoscope.config.unread import name_place
from infoscope.data.config import DataKind
from infoscope.data.images import ImageBatch
from infoscope.data.reader import iterate_images
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import ArtifactStage, Handle, Key, Needs, NotBuiltYet, Work
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.stages.backbone import check_captions, fingerprint_model, load_backbone, load_tower, say_model
from infoscope.stages.images import count_images, fingerprint_images, open_split, scenes_of
from infoscope.stages.train_clip import needs_trained
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.tokens.source import choose_batch_images


class Judge(ArtifactStage[JudgedImages]):
    """The images of a split as the judge sees them; an item is (split,)."""

    kind, holds = "judge", JudgedImages

    @classmethod
    def at(cls, ctx: Context, split: str = "train") -> Handle[JudgedImages]:
        return super().at(ctx, split)

    def name(self, ctx: Context, split: str) -> str:
        return f"{judge_of(ctx).name}-{split}"

    def describe(self, ctx: Context, split: str) -> str:
        return f"judge, {split}"

    def needs(self, ctx: Context, split: str) -> Needs:
        return Needs(**vars(scenes_of(ctx, ctx.config.data)), **needs_trained(ctx, judge_of(ctx)))

    def key(self, ctx: Context, up: Needs, split: str) -> Key:
        with _naming_judge(ctx):
            model = fingerprint_model(ctx, _given(ctx))
        return {"model": model, "images": fingerprint_images(ctx, split)}

    def check(self, ctx: Context, split: str) -> None:
        if _given(ctx) is None:
            return
        with _naming_judge(ctx):
            say_model(ctx, _given(ctx), "judge")
            if self.at(ctx, split).find() is None:
                with suppress(NotBuiltYet):
                    load_backbone(ctx, _given(ctx))  # weights that will not do are refused now
                    if ctx.config.data.kind is DataKind.captions:
                        check_captions(ctx, open_split(ctx, split), _given(ctx))

    def build(self, ctx: Context, up: Needs, work: Workspace, split: str) -> JudgedImages:
        images, data = open_split(ctx, split), ctx.config.data
        with _naming_judge(ctx):
            backbone = load_tower(ctx, images, _given(ctx))

        def read(positions: np.ndarray) -> Iterator[ImageBatch]:
            n_at_once = choose_batch_images(ctx.device.type)
            for batch in iterate_images(
                images, backbone.image_px, n_at_once, positions, data.on_error, data.n_workers, ctx.device
            ):
                yield batch
                advance(int(batch.index[-1]) + 1)

        with ctx.display.bar(f"judging {split} images", len(images), "images") as advance:
            return judge_images(backbone, read, len(images), work.progress / self.kind)

    def work(self, ctx: Context, split: str) -> Work:
        n = count_images(ctx, split)
        return Work(n, [judge_of(ctx).name], forwards=n, disk_bytes=n * 4 * 1024, is_bound=True)


def judge_of(ctx: Context) -> ModelConfig:
    """Return the model that judges: the one of `judge`, or the experiment's own."""
    return _given(ctx) or ctx.config.model


def name_others(ctx: Context) -> str:
    """Return which models may judge in the place of the experiment's own; captions need one with a text tower."""
    is_text = ctx.config.data.kind is DataKind.captions
    return f"judge={'clip_b16, clip_l14' if is_text else 'dinov2_s14, clip_b16'}, ..."


def _given(ctx: Context) -> ModelConfig | None:
    return None if ctx.config.judge.kind is ModelKind.own else ctx.config.judge


@contextmanager
def _naming_judge(ctx: Context) -> Iterator[None]:
    """State errors in a judge's own settings as such.

    Raises:
        InputError: what was raised inside.
    """
    try:
        yield
    except InputError as error:
        if _given(ctx) is None or type(error) is not InputError:
            raise
        words = re.sub(r"\bmodel=(scenes_clip|clip_b16)\b", r"judge=\1", name_place(str(error), "judge"))
        raise InputError(words) from error
