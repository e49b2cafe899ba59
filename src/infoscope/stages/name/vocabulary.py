"""The words that latents are named by, and what the data know of the images in these words."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from infoscope.analyses.config import NameText
from infoscope.data.images import ImageSet, Truth
from infoscope.data.scenes import factors
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs, NotBuiltYet, SingleStage, Work
from infoscope.predictions.prompts import Prompts, choose_templates, read_words
from infoscope.predictions.zero_shot import ZeroShotHead, check_prompts, make_zero_shot_head
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.stages.backbone import fingerprint_model, load_backbone
from infoscope.stages.images import find_known
from infoscope.stages.train_clip import needs_trained

SCENE_TARGETS = {
    "class": factors.KINDS,
    "colour": tuple(factors.COLOURS),
    "texture": factors.TEXTURES,
    "place": factors.PLACES,
    "weather": factors.WEATHERS,
    "light": factors.LIGHTS,
}
"""What scenes are named by; of objects it is that of the nearest one."""


class Vocabulary(NamedTuple):
    """concepts: their names. words: of all concepts, in their order. concept_of: the place of each word's concept."""

    concepts: tuple[str, ...]
    words: tuple[str, ...]
    concept_of: Int64[np.ndarray, " n_words"]


def has_words(ctx: Context) -> bool:
    """Return whether there are words to name latents by: a file of them is given, or the data know two classes."""
    return ctx.config.name.vocabulary is not None or len(list_values(find_known(ctx, ctx.config.data)[0])) > 1


@once
def vocabulary_of(ctx: Context) -> Vocabulary:
    """Return the words that latents are named by.

    Raises:
        InputError: a file that cannot be read, with a word twice, or of embeddings; fewer than two concepts; data that
            know no classes, and no file.
    """
    known, file = find_known(ctx, ctx.config.data)[0], ctx.config.name.vocabulary
    is_scenes = known is SceneSet
    synonyms = factors.SYNONYMS if is_scenes else {}
    if file is not None:
        given = read_words(Path(file), "name.vocabulary")
    else:
        names = list(list_values(known))
        if not names:
            raise InputError(
                f"data={ctx.config.data.kind.name} knows no classes to name features by: give name.vocabulary=FILE,"
                " with a word on each line."
            )
        given = [word for name in names for word in (name, *synonyms.get(name, ()))]
    head_of = {word: name for name in (list_values(known) if is_scenes else ()) for word in synonyms.get(name, ())}
    concepts = tuple(dict.fromkeys(head_of.get(word, word) for word in given))
    if len(concepts) < 2:
        raise InputError(
            f"Expected at least two concepts to choose names from, got {len(concepts)}: give more words in"
            " name.vocabulary."
        )
    place = {concept: i for i, concept in enumerate(concepts)}
    of_words = np.array([place[head_of.get(word, word)] for word in given])
    order = np.argsort(of_words, kind="stable")
    return Vocabulary(concepts, tuple(given[i] for i in order), of_words[order])


def list_values(known: ImageSet | type[SceneSet]) -> dict[str, list[tuple[str, int]]]:
    """Return what data know of their images: a word -> (target, label) of the images that have it; mostly one."""
    if known is SceneSet or isinstance(known, SceneSet):
        return {word: [(target, i)] for target, words in SCENE_TARGETS.items() for i, word in enumerate(words)}
    if Truth.labels not in known.truths:
        return {}
    if known.attributes:  # one of which is the class too, whose presence is the last of its names
        words = {name.replace("_", " ").lower(): (name, 1) for name in known.attributes}
        return {word: [of, *([("class", 1)] if word == known.class_names[-1] else [])] for word, of in words.items()}
    found: dict[str, list[tuple[str, int]]] = {}
    for label, name in enumerate(known.class_names):
        found.setdefault(name, []).append(("class", label))  # ImageNet has two of its names twice
    return found


def find_values(images: ImageSet, index: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, "n n_values"]:
    """Return which images have which values, in the order of `list_values`."""
    known = list_values(images)
    labels = {target: images.labels(target)[index] for of in known.values() for target, _ in of}
    columns = [np.any([labels[target] == label for target, label in of], axis=0) for of in known.values()]
    return np.stack(columns, axis=1) if columns else np.zeros((len(index), 0), dtype=bool)


class EmbeddedWords(SingleStage[ZeroShotHead]):
    """The words of the vocabulary as the model's text tower embeds them, of unit norm."""

    kind, holds = "vocabulary", ZeroShotHead
    is_shared = False

    def needs(self, ctx: Context) -> Needs:
        return Needs(**needs_trained(ctx))

    def key(self, ctx: Context, up: Needs) -> Key:
        return {"model": fingerprint_model(ctx), "prompts": _make_prompts(ctx).cache_key_fields()}

    def check(self, ctx: Context) -> None:
        """Refuse a model without texts, and words that it does not know or cannot read to their ends.

        Raises:
            InputError: such a model, or such words.
        """
        prompts = _make_prompts(ctx)
        try:
            backbone = load_backbone(ctx)
        except NotBuiltYet:
            return
        check_prompts(backbone, prompts, "words (name.vocabulary=FILE)")

    def build(self, ctx: Context, up: Needs, work: Workspace) -> ZeroShotHead:
        prompts, backbone = _make_prompts(ctx), load_backbone(ctx)
        with ctx.display.bar("embedding words", len(prompts.class_names), "words") as advance:
            return make_zero_shot_head(backbone, prompts, advance, work.progress)

    def work(self, ctx: Context) -> Work:
        prompts = _make_prompts(ctx)
        return Work(len(prompts.class_names) * len(prompts.templates), [ctx.config.model.name])


def _make_prompts(ctx: Context) -> Prompts:
    is_alone = ctx.config.name.text is NameText.word
    return Prompts(vocabulary_of(ctx).words, ("{}",) if is_alone else choose_templates(ctx.config.predict))
