"""stage=name: what latents are called, and what their names are good for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from infoscope.analyses.config import Reading
from infoscope.analyses.name_result import NameResult
from infoscope.analyses.named_latents import (
    Split,
    Sweep,
    choose_concept,
    collect_named,
    search_all,
    show_search,
    sweep_all,
)
from infoscope.analyses.readings import Compared, compare_rows, compare_top_images, name_by_all
from infoscope.analyses.top_sets import find_top
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.runtime.errors import InputError, list_some, suggest
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import count_images, find_known, fingerprint_images, open_split, scenes_of
from infoscope.stages.judge import Judge
from infoscope.stages.name.numbers import Found, summarise
from infoscope.stages.name.section import COLUMNS, make_name_section
from infoscope.stages.name.vocabulary import EmbeddedWords, find_values, has_words, list_values, vocabulary_of
from infoscope.stages.publish import Published
from infoscope.stages.quality.head import TrainedHead, why_no_head
from infoscope.stages.sae import count_latents, list_level_ends, sae_of
from infoscope.stages.score.stage import find_groups, list_scores
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.config import ModelKind
from infoscope.vision.hooks import AT_END, POOLED


class Name(Published, SeedStage[NameResult]):
    """The names of the latents of a seed."""

    kind, holds = "name", NameResult
    version = 1
    is_shared = False
    is_optional, is_without_maps = True, True
    report_version = 3
    columns = COLUMNS

    def applies(self, ctx: Context) -> bool:
        is_own = ctx.config.judge.kind is ModelKind.own
        return has_words(ctx) and is_own and count_images(ctx, "test") > 0

    def needs(self, ctx: Context, seed: int) -> Needs:
        more: dict[str, Node] = {}
        if _edits(ctx):
            more["tokens"] = Tokens.at(ctx, "test")
            if not why_no_head(ctx):
                more["head"] = TrainedHead.at(ctx)
        else:
            more |= {f"judge_{split}": Judge.at(ctx, split) for split in ("train", "test")}
        return Needs(
            words=EmbeddedWords.at(ctx),
            sae=sae_of(ctx, seed),
            codes_train=Codes.at(ctx, seed, "train"),
            codes_test=Codes.at(ctx, seed, "test"),
            **more,
            **vars(scenes_of(ctx, ctx.config.data)),
        )

    def goals(self, ctx: Context) -> list[Node]:
        return [*super().goals(ctx), *list_scores(ctx)]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        vocabulary = vocabulary_of(ctx)
        read = {role: node.hash for role, node in vars(up).items() if not role.startswith("scenes")}
        return {
            **read,
            "images": {split: fingerprint_images(ctx, split) for split in ("train", "test")},
            "concepts": [list(vocabulary.concepts), vocabulary.concept_of.tolist()],
            "name": ctx.config.name.cache_key_fields(),
        }

    def check(self, ctx: Context, seed: int) -> None:
        config = ctx.config
        vocabulary = vocabulary_of(ctx)
        if config.judge.kind is not ModelKind.own:
            raise InputError(
                "stage=name compares the model's own embeddings of images with those of words, and no other model's:"
                " drop judge=..."
            )
        if config.name.reading is Reading.row and not _reads_embeddings(ctx):
            raise InputError(
                "name.reading=row compares decoder rows with texts, and those of an SAE within the tower are no"
                " embeddings: choose centred or shifted, which compare the images on which a feature fires, or"
                " model.site=pooled."
            )
        if config.name.concept is not None and config.name.concept not in vocabulary.concepts:
            raise InputError(
                f"Expected name.concept to be one of the {len(vocabulary.concepts)} concepts of the vocabulary"
                f" ({list_some(vocabulary.concepts, 20)}), got"
                f" {config.name.concept!r}{suggest(config.name.concept.lower(), vocabulary.concepts)}: choose one."
            )
        for split in ("train", "test"):
            if (n := count_images(ctx, split)) < config.name.n_top_images:
                raise InputError(
                    f"Features are named and tested on their top {config.name.n_top_images} images, but the {split}"
                    f" split has {n}: use more images, or a lower name.n_top_images."
                )

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> NameResult:
        config, vocabulary = ctx.config.name, vocabulary_of(ctx)
        sae, texts = up.sae.load(), up.words.load().weights.double().cpu().numpy()
        train, test = (_read_split(ctx, up, split) for split in ("train", "test"))
        by_latent = csr_array(train.codes.matrix("means").T)
        n_firing = np.diff(np.asarray(by_latent.indptr)).astype(np.int64)
        value_names = list(list_values(find_known(ctx, ctx.config.data)[0]))
        places = {name: i for i, name in enumerate(value_names)}
        value_of = np.array([places.get(concept, -1) for concept in vocabulary.concepts])
        with ctx.display.bar(f"naming, seed {seed}"):
            if _reads_embeddings(ctx):
                readings = compare_rows(sae, texts)
            else:
                readings = compare_top_images(find_top(by_latent, config.n_top_images), train.embeddings, texts)
            known = test.codes, test.values, value_of
            names = name_by_all(readings, vocabulary.concept_of, config, n_firing, *known)
            return _make_result(ctx, up, seed, (train, test), readings, names, n_firing, value_names, value_of)

    def work(self, ctx: Context, seed: int) -> Work:
        n, d_sae, sizes = count_images(ctx, "train") + count_images(ctx, "test"), count_latents(ctx), find_sizes(ctx)
        # embeddings; directions of three readings and random ones; cosines; codes by image and by latent
        entries = sum(Codes.at(ctx, seed, split).work().disk_bytes for split in ("train", "test"))
        held = 8 * 2 * n * sizes.d_in + 8 * 5 * d_sae * sizes.d_in + 8 * 3 * 2**23 + 3 * entries
        return Work(n, [d_sae, len(vocabulary_of(ctx).words)], memory_bytes=held, is_bound=True)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found = self.at(ctx, seed).load()
        of = found.place
        yield LatentColumn("name", found.names, f"name, by name.reading={found.reading}: the word that it is most like")
        yield LatentColumn("name_cosine", found.cosines[of, :, 0], "cosine with its name", "cosine")
        ratio = "cosine with its name, over that with the next word: infinite if that is not above 0"
        yield LatentColumn("name_ratio", found.ratio[of], ratio, "1")
        valid = np.where(found.is_named, found.valid[of], np.nan)
        yield LatentColumn("name_valid", valid, "name is valid: by the largest cosine and that ratio", "share")

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made = self.at(ctx, seed)
        for reading, numbers in summarise(made.load()).items():
            yield {**name_artifacts(made.get()), "variant": reading, **numbers}

    def section(self, ctx: Context) -> ReportSection:
        found = [find_seed(ctx, seed) for seed in ctx.config.seeds]
        images = open_split(ctx, "test")
        pictures = {}
        if not images.is_text:
            wanted = {int(i) for i in found[0].result.shown.ravel() if i >= 0}
            pictures = {i: images.load(i, 96) for i in wanted}
        return make_name_section(found, ctx.config.name, pictures, _why_no_sweep(ctx))

    def report_key(self, ctx: Context) -> Key:
        return {**super().report_key(ctx), "levels": list_level_ends(ctx)}


def find_seed(ctx: Context, seed: int) -> Found:
    """Return what was found of a seed."""
    return Found(
        Name.at(ctx, seed).load(), find_groups(ctx, seed), tuple(list_level_ends(ctx)), ctx.config.probe.target
    )


def _edits(ctx: Context) -> bool:
    """Whether the SAE reads the embeddings of whole images, so that these can be edited."""
    return ctx.config.model.site == POOLED


def _reads_embeddings(ctx: Context) -> bool:
    """Whether decoder rows lie where texts do."""
    return ctx.config.model.site in AT_END


def _why_no_sweep(ctx: Context) -> str:
    """Return in a sentence why no classifier is swept; empty: one is."""
    if not _edits(ctx):
        return (
            "No classifier is swept, and no embedding edited: this SAE does not read the embeddings of whole images"
            " (model.site=pooled)."
        )
    return f"No classifier is swept: {reason}" if (reason := why_no_head(ctx)) else ""


def _read_split(ctx: Context, up: Needs, split: str) -> Split:
    codes = getattr(up, f"codes_{split}").load()
    index = np.asarray(codes.image_index)
    if not _edits(ctx):
        vectors = getattr(up, f"judge_{split}").load().of_images(index)
    elif split == "test":
        tokens = up.tokens.load()
        vectors = tokens.tokens(slice(None)).patches[:, 0].float().cpu().numpy()
        assert np.array_equal(np.asarray(tokens.image_index), index), "codes are of these tokens"
    else:
        vectors = np.zeros((len(index), 0))  # what rows say needs no training image
    return Split(codes, vectors.astype(np.float64), find_values(open_split(ctx, split), index))


def _make_result(
    ctx: Context,
    up: Needs,
    seed: int,
    splits: tuple[Split, Split],
    readings: dict[Reading, Compared],
    names: dict[str, np.ndarray],
    n_firing: np.ndarray,
    value_names: list[str],
    value_of: np.ndarray,
) -> NameResult:
    """Return the names with what those of the reading that is asked for are good for."""
    config, vocabulary, (train, test) = ctx.config.name, vocabulary_of(ctx), splits
    place = list(readings).index(config.reading)
    valid, concepts = names["valid"][place], names["best"][place, :, 0]
    named = collect_named(up.sae.load(), concepts, valid, test, _edits(ctx))
    shown_concept = choose_concept(config, vocabulary.concepts, named, names["cosines"][place, :, 0], seed)
    sweep = _make_sweep(ctx, up, splits, value_names, value_of)
    nothing: dict[str, Any] = {"shown_by": [], "shown": np.zeros((0, 1), dtype=np.int64)}
    return NameResult(
        reading=config.reading.name,
        readings=[reading.name for reading in readings],
        concepts=list(vocabulary.concepts),
        n_words=len(vocabulary.words),
        n_top=config.n_top_images,
        n_firing=n_firing,
        value_names=value_names,
        **names,
        searches=search_all(named, train, test, value_of, config),
        shown_concept=shown_concept,
        **(nothing if shown_concept < 0 else show_search(named, shown_concept, train, test)),
        **sweep_all(named, train, test, value_of, sweep, config.seed),
    )


def _make_sweep(
    ctx: Context, up: Needs, splits: tuple[Split, Split], value_names: list[str], value_of: np.ndarray
) -> Sweep:
    """Return what is swept; without a head no classes."""
    if not hasattr(up, "head"):
        nothing = np.zeros(0, dtype=np.int64)
        return Sweep(None, nothing, nothing, [], nothing)
    images, target = open_split(ctx, "train"), ctx.config.probe.target
    known = list_values(find_known(ctx, ctx.config.data)[0])
    labels, test_labels = (
        open_split(ctx, split).labels(target)[of.codes.image_index]
        for split, of in zip(("train", "test"), splits, strict=True)
    )
    n_classes = images.n_target_classes(target)
    class_names = list(images.class_names) if target == "class" else [str(i) for i in range(n_classes)]
    class_concepts = np.full(n_classes, -1)
    for place, name in enumerate(value_names):
        for of, label in known[name]:
            if of == target:
                class_names[label] = name
                class_concepts[label] = next(iter(np.flatnonzero(value_of == place)), -1)
                if images.attributes:
                    class_names[0] = f"no {name}"
    return Sweep(up.head.load(), labels, test_labels, class_names, class_concepts)
