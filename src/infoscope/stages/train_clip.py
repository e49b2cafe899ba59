"""stage=train_clip: a CLIP of captioned scenes, from a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from infoscope.config.tree import to_tree
from infoscope.data.config import DataKind, Planted
from infoscope.data.scenes.factors import PLACES, vocabulary
from infoscope.data.scenes.marks import WORDS
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Node, Row, Shown, SingleStage, Work, name_artifacts
from infoscope.report.tables import PERCENT, Column, Table
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import write_json
from infoscope.runtime.store import Workspace
from infoscope.stages.images import Scenes
from infoscope.vision.config import ModelConfig


class TrainClip(SingleStage[None]):
    """A CLIP trained on captioned scenes of its own stream; its folder is what a backbone is loaded from."""

    kind = "train_clip"
    is_shared, is_seeded = False, False
    columns = (
        Column("image_to_text_top1", "captions found for pictures", **PERCENT),
        Column("text_to_image_top1", "pictures found for captions", **PERCENT),
    )

    def name(self, ctx: Context) -> str:
        return "scenes_clip"

    def needs(self, ctx: Context) -> Needs:
        clip, data = ctx.config.clip, ctx.config.data
        if data.kind is not DataKind.scenes:
            raise InputError(f"stage=train_clip learns from captioned scenes: use data=scenes, not {data.kind.name}.")
        return Needs(**{split: Scenes.at(ctx, split, n, data) for split, n in clip.sets.items()})

    def key(self, ctx: Context, up: Needs) -> Key:
        return {
            "clip": ctx.config.clip.cache_key_fields(),
            "scenes": [getattr(up, split).spec.key for split in ctx.config.clip.sets],
        }

    def check(self, ctx: Context) -> None:
        place = ctx.config.clip.place
        if place is not None and place not in PLACES:
            raise InputError(f"Expected clip.place to be a place of the scenes ({', '.join(PLACES)}), got {place!r}.")

    def build(self, ctx: Context, up: Needs, work: Workspace) -> None:
        from infoscope.vision.open_clip.contrastive import compute_retrieval, train_clip
        from infoscope.vision.open_clip.tokenizer import WordTokenizer

        clip, words = ctx.config.clip, [*vocabulary(), *(WORDS if ctx.config.data.planted is Planted.marks else ())]
        train, test = (getattr(up, split).load() for split in clip.sets)
        with ctx.track(self.kind) as tracker, ctx.display.bar("training CLIP", unit="steps") as advance:
            options = ctx.trainer_options(advance, tracker)
            rows = None if clip.place is None else _find_place(train, clip.place)
            trained = train_clip(clip, train, words, work.folder, work.progress, options, rows)
            captions = [test.caption(i) for i in range(len(test))]
            tokenizer = WordTokenizer(words, clip.context_length)
            metrics = compute_retrieval(trained.cpu(), test.images, captions, tokenizer)
            tracker.log(metrics)
        write_json(work.folder / "training.json", {"config": to_tree(clip), "held_out": metrics})

    def work(self, ctx: Context) -> Work:
        clip = ctx.config.clip
        return Work(clip.n_steps, [clip.width, clip.layers, clip.grid, clip.batch_size])

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made = self.at(ctx).get()
        yield {**name_artifacts(made), **made.read_json("training.json")["held_out"]}

    def closing(self, ctx: Context) -> Shown:
        held_out = self.at(ctx).read_json("training.json")["held_out"]
        columns = {column.key: column for column in (*self.columns, Column("among", "among", digits=0))}
        table = Table("clip", "CLIP, on held-out scenes", [columns.get(key, Column(key, key)) for key in held_out])
        table.add_row(*held_out.values())
        return [table]


def _find_place(scenes: SceneSet, place: str) -> Int64[np.ndarray, " n"]:
    """Return the scenes of a place.

    Raises:
        InputError: there are none.
    """
    rows = np.flatnonzero(scenes.labels("place") == PLACES.index(place))
    if len(rows) == 0:
        raise InputError(f"None of {len(scenes)} training scenes is of clip.place={place}: raise clip.n_images.")
    return rows


def needs_trained(ctx: Context, model: ModelConfig | None = None) -> dict[str, Node]:
    """Return the CLIP of stage train_clip if a model, by default the experiment's own, is that one."""
    return {"clip": TrainClip.at(ctx)} if (model or ctx.config.model).pretrained == "train_clip" else {}
