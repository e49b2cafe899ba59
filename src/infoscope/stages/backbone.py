"""The frozen backbone: its fingerprint, its facts, the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from infoscope.data.config import DataConfig, Planted
from infoscope.data.images import ImageSet
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import NotBuiltYet
from infoscope.runtime.errors import InputError
from infoscope.stages.train_clip import TrainClip
from infoscope.vision import load
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.embedded import CaptionTower
from infoscope.vision.hooks import HookPoint
from infoscope.vision.load import compute_model_fingerprint, find_facts, make_backbone
from infoscope.vision.tokens.source import choose_batch_images
from infoscope.vision.weights.facts import Facts


def _find_trained(ctx: Context, model: ModelConfig) -> Path | None:
    """Return where the CLIP of stage train_clip lies, if a model is that one.

    Raises:
        NotBuiltYet: there is none.
    """
    if model.pretrained != "train_clip":
        return None
    found = TrainClip.at(ctx).find()
    if found is None:
        raise NotBuiltYet("the CLIP of stage train_clip")
    return found.folder


def fingerprint_model(ctx: Context, model: ModelConfig | None = None) -> dict[str, Any]:
    """Return what determines a backbone, by default the experiment's own, known without building it.

    Raises:
        NotBuiltYet: it is a CLIP that has yet to be trained.
    """
    return _fingerprint(ctx, model or ctx.config.model)


@once
def _fingerprint(ctx: Context, model: ModelConfig) -> dict[str, Any]:
    with ctx.display.bar("reading the weights' checksum"):
        return compute_model_fingerprint(model, _find_trained(ctx, model))


@once
def find_model_facts(ctx: Context, model: ModelConfig | None = None) -> Facts | None:
    """Return a model's activation, mean and std, and who says so; None for planted backbones."""
    model = model or ctx.config.model
    return find_facts(model, _find_trained(ctx, model))


@once
def count_blocks(ctx: Context) -> int | None:
    """Return how many blocks the experiment's backbone has, known before it is loaded or trained; None as there.

    Raises:
        InputError: as `vision.load.count_blocks`.
    """
    return load.count_blocks(ctx.config.model, ctx.config.clip)


def hook_of(ctx: Context, layer: int | None = None) -> HookPoint:
    """Return where the experiment reads tokens, or where it would at another layer, counted from the end.

    So one block has one name in keys, whether the user calls it -2 or 2.

    Raises:
        InputError: the model has no such block.
    """
    hook = ctx.config.model.hook if layer is None else replace(ctx.config.model.hook, layer=layer)
    n_blocks = count_blocks(ctx)
    return hook if n_blocks is None else hook.count_from_end(n_blocks)


def load_backbone(ctx: Context, model: ModelConfig | None = None) -> Backbone:
    """Return a frozen backbone, by default the experiment's own: loaded when it has to encode, not before, and once."""
    return _load(ctx, model or ctx.config.model)


def load_tower(ctx: Context, images: ImageSet, model: ModelConfig | None = None) -> Backbone:
    """Return the backbone that embeds images, or the text tower that embeds captions in their place.

    Raises:
        InputError: captions, and a model without a text tower.
    """
    backbone = load_backbone(ctx, model)
    return CaptionTower(backbone, images.caption) if images.is_text else backbone


def check_captions(ctx: Context, images: ImageSet, model: ModelConfig | None = None) -> None:
    """Refuse captions that a model cannot read, and say how many it reads in part; images of every other kind pass.

    Raises:
        InputError: it has no text tower, or lacks one of their words.
    """
    if not images.is_text:
        return
    backbone, captions = load_backbone(ctx, model), [images.caption(i) for i in range(len(images))]
    backbone.check_texts(captions, "captions (data.root=FILE)")
    n_read, cut = backbone.find_cut(captions)
    if cut:
        ctx.display.say(
            f"{len(cut):,} of {len(captions):,} {images.split} captions are longer than the {n_read} tokens that the"
            f" text tower reads, which leaves out their ends (first {images.image_ids[cut[0]]})"
        )


@once
def say_unread_facts(ctx: Context, data: DataConfig) -> None:
    """Say that a model which reads facts from marks finds none in images without them, before anything is built."""
    if ctx.config.model.kind is ModelKind.planted_facts and data.planted is not Planted.marks:
        ctx.display.say(
            f"Warning: model=planted_facts reads its facts from marks, which data={data.kind.name} lacks, so that its"
            " features of facts say nothing: give data=scenes data.planted=marks."
        )


@once
def _load(ctx: Context, model: ModelConfig) -> Backbone:
    with ctx.display.bar("loading the backbone"):
        backbone = make_backbone(model, _find_trained(ctx, model)).to(ctx.device)
        backbone.cast_weights()
    if backbone.notes:
        ctx.display.say(backbone.notes)
    return backbone


COMPILING_PAYS = 2**51
"""A stage of so many products of weights (see `Backbone.n_products`) saves a large GPU about the time of compiling."""


def compile_backbone(ctx: Context, n_images: int) -> None:
    """Compile the backbone's blocks, as `trainer.compile` says, for a stage of so many images; a failure is said."""
    backbone, choice = load_backbone(ctx), ctx.config.trainer.compile
    pays = ctx.device.type == "cuda" and n_images * backbone.n_products >= COMPILING_PAYS
    if choice if choice is not None else pays:
        _compile(ctx)


@once
def _compile(ctx: Context) -> None:
    try:
        with ctx.display.bar("compiling the backbone's blocks"):
            load_backbone(ctx).compile_blocks(choose_batch_images(ctx.device.type))
    except InputError as error:
        ctx.display.say(f"Warning: {error} They run as they are, which takes longer.")


@once
def load_backbone_at(ctx: Context, image_px: int) -> Backbone:
    """Return the backbone for images of a side in pixels, its position embeddings interpolated if it is another.

    Raises:
        InputError: if the model takes images of its own size alone, or the side is no multiple of its patch.
    """
    own = load_backbone(ctx)
    if image_px == own.image_px:
        return own
    loaded = make_backbone(replace(ctx.config.model, image_px=image_px), _find_trained(ctx, ctx.config.model))
    if loaded.image_px != image_px:
        raise InputError(
            f"Expected a model that takes crops of {image_px} px, but {ctx.config.model.name} takes images of"
            f" {loaded.image_px} px alone: set crop_px to that, or probe whole images."
        )
    loaded.to(ctx.device).cast_weights()
    return loaded


def find_told_facts(ctx: Context, model: ModelConfig | None = None) -> Facts | None:
    """Return what `say_model` says, as `find_model_facts`; None also for a CLIP that has yet to be trained."""
    is_trained_here = (model or ctx.config.model).pretrained == "train_clip"
    return None if is_trained_here else find_model_facts(ctx, model)


@once
def say_model(ctx: Context, model: ModelConfig | None = None, setting: str = "model") -> None:
    """Say with which activation, mean and std a model is run, and who says so, before anything is built.

    Args:
        model: by default the experiment's own.
        setting: what it is called on the command line.

    Raises:
        InputError: if nobody says so, or the model's weights are not where they should be.
    """
    model = model or ctx.config.model
    if (facts := find_told_facts(ctx, model)) is not None:
        warning = "Warning: " if facts.is_contradicted else ""
        hint = f"; if it is of another origin, give its tag as {setting}.origin" if facts.is_assumed else ""
        ctx.display.say(f"{warning}{model.name} runs with {facts.words}{hint}.")
