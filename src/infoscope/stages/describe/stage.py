"""stage=describe: what each latent is, by PatchSAE's, sae-for-vlm's and Attributing CLIP's measures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from infoscope.analyses.description import Description, Labels, describe_latents
from infoscope.analyses.hierarchy import Hierarchy, make_family_hierarchy, read_hierarchy
from infoscope.analyses.image_codes import ENTRY_BYTES
from infoscope.data.images import Truth
from infoscope.data.scenes.factors import FAMILIES
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Handle, Key, Needs, Node, Row, SeedStage, Work, name_artifacts
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn
from infoscope.scope.partition import name_group
from infoscope.stages.describe.alignment import (
    alignments_of,
    make_alignment_columns,
    make_alignment_table,
    say_alignment,
)
from infoscope.stages.describe.fidelity import Fidelity, make_fidelity_table, say_fidelity, why_no_predictions
from infoscope.stages.describe.numbers import MEASURES, Found, compute_median, get_members, list_groups, list_measures
from infoscope.stages.describe.section import make_describe_section
from infoscope.stages.describe.top_images import TopFeature, choose_most_monosemantic, read_top_feature
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import (
    advise_classes,
    count_images,
    find_known,
    fingerprint_images,
    knows,
    open_split,
    scenes_of,
)
from infoscope.stages.judge import Judge, judge_of, name_others
from infoscope.stages.latents import join_latents
from infoscope.stages.publish import PublishedPart
from infoscope.stages.rank import Rank
from infoscope.stages.sae import count_latents, has_maps, name_unit, row_norms_of
from infoscope.stages.score.example_figure import Example
from infoscope.stages.score.examples import make_example
from infoscope.stages.score.stage import Score, find_scope
from infoscope.stages.tokens import Tokens

N_EXAMPLES = 3
"""Of each group."""
BIASED = ("label_entropy", "label_entropy_all", "top_class_share")
"""Measures by labels that also tell in how few images, and how unequally, a latent fires: so the table of latents has
them beyond chance as well."""


class Describe(PublishedPart, SeedStage[Description]):
    """What each latent of a seed is, on the training images."""

    kind, holds = "describe", Description
    version = 1
    report_version = 2
    is_without_maps = True
    is_shared = False
    columns = tuple(Column(name, of.name, digits=of.digits, scale=of.scale) for name, of in MEASURES.items())

    def needs(self, ctx: Context, seed: int) -> Needs:
        scenes = scenes_of(ctx, ctx.config.data)
        return Needs(codes=Codes.at(ctx, seed, "train"), judge=Judge.at(ctx, "train"), **vars(scenes))

    def goals(self, ctx: Context) -> list[Node]:
        others = [*([Score] if has_maps(ctx) else []), *([Fidelity] if _has_test_images(ctx) else [])]
        of_seeds = (stage.at(ctx, seed) for stage in others for seed in ctx.config.seeds)
        return [*super().goals(ctx), *of_seeds, *alignments_of(ctx).values()]

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        return {
            "codes": up.codes.hash,
            "judge": up.judge.hash,
            "images": fingerprint_images(ctx, "train"),
            "describe": ctx.config.describe.cache_key_fields(),
            **({} if ctx.config.describe.tree is None else {"tree": _make_fingerprint(ctx)}),
        }

    def check(self, ctx: Context, seed: int) -> None:
        if knows(ctx, Truth.labels, ctx.config.data):
            find_hierarchy(ctx)
        elif ctx.config.describe.tree is not None:
            raise InputError(
                f"describe.tree holds a hierarchy of classes, but data={ctx.config.data.kind.name} knows no classes:"
                f" drop it, or give {advise_classes(ctx.config.data)}."
            )

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> Description:
        codes = up.codes.load()
        index = np.asarray(codes.image_index)
        labels = None
        if knows(ctx, Truth.labels, ctx.config.data):
            images = open_split(ctx, "train")
            labels = Labels(images.labels("class")[index], images.class_names, find_hierarchy(ctx))
        return describe_latents(codes, up.judge.load().of_images(index), ctx.config.describe, labels)

    def work(self, ctx: Context, seed: int) -> Work:
        n, d_sae = count_images(ctx, "train"), count_latents(ctx)
        entries = Codes.at(ctx, seed, "train").work().disk_bytes // ENTRY_BYTES
        like = [d_sae, judge_of(ctx).name, ctx.config.describe.n_top_images]
        config = ctx.config.describe
        n_top = max(config.n_label_images, config.n_top_images, config.n_clarity_images)
        # by image and by latent, a value and its place each; the judge's vectors in two precisions; top images, a value
        # and its place each, and a set of them
        held = 3 * 12 * entries + n * 1024 * 12 + 2 * 16 * n_top * d_sae
        return Work(n, like, memory_bytes=held, is_bound=True)

    def latents(self, ctx: Context, seed: int) -> Iterator[LatentColumn]:
        found, norms = self.at(ctx, seed).load(), row_norms_of(ctx, seed)
        config, judge = ctx.config.describe, judge_of(ctx).name
        places, share = ("patches", "share of patch tokens") if has_maps(ctx) else ("images", "share of images")
        firing = f"mean activation on {places} on which it fires"
        yield LatentColumn("mean_firing", found.mean_firing * norms, firing, name_unit(norms))
        above = f"{places} on which its activation is above {found.strong_above:g} SAE units"
        yield LatentColumn("strong_rate", found.strong_rate, above, share)
        yield LatentColumn("ms", found.ms, f"monosemanticity, judged by {judge}", "1")
        clarity = f"clarity of its top {config.n_clarity_images} images, judged by {judge}"
        yield LatentColumn("clarity", found.clarity, clarity, "1")
        overlap = f"overlap of its top {config.n_top_images} images with those of other latents"
        yield LatentColumn("top_overlap", found.top_overlap, overlap, "Jaccard index")
        yield from _list_label_columns(found, config.n_top_images, places)
        yield from make_alignment_columns(ctx, seed)

    def latents_read(self, ctx: Context, seed: int) -> Sequence[Handle]:
        return list(alignments_of(ctx, seed).values())

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made, found = self.at(ctx, seed).get(), [find_seed(ctx, seed)]
        for group in list_groups(found):
            n = int(get_members(found[0], group).sum())
            medians = {name: compute_median(found, name, group).mean for name in list_measures(found)}
            yield {**name_artifacts(made), "variant": group, "n_features": n, **medians}

    def section(self, ctx: Context) -> ReportSection:
        found = [find_seed(ctx, seed) for seed in ctx.config.seeds]
        judge, examples = judge_of(ctx), _read_examples(ctx, found[0])
        shown, others = _read_top_features(ctx, found[0]), name_others(ctx) if judge == ctx.config.model else ""
        section = make_describe_section(found, ctx.config.describe, judge.name, others, examples, shown)
        findings, tables = [*section.findings], {**section.tables}
        pairs = {pair: handle.load() for pair, handle in alignments_of(ctx).items()}
        findings += say_alignment(pairs)
        if pairs:
            tables["alignment"] = make_alignment_table(pairs)
        if _has_test_images(ctx):
            results = {seed: Fidelity.at(ctx, seed).load() for seed in ctx.config.seeds}
            findings += say_fidelity(results, why_no_predictions(ctx))
            tables["fidelity"] = make_fidelity_table(results)
        return replace(section, findings=tuple(findings), tables=tables)


def _has_test_images(ctx: Context) -> bool:
    """Whether there are images on which fidelity can be measured."""
    return count_images(ctx, "test") > 0


def find_seed(ctx: Context, seed: int) -> Found:
    """Return what was found of a seed."""
    table = join_latents(ctx, seed, (Score, Describe) if has_maps(ctx) else (Describe,))
    return Found(Describe.at(ctx, seed).load(), find_scope(ctx, seed), table)


def _read_examples(ctx: Context, found: Found) -> list[Example]:
    """Return the most monosemantic features of each group with their top pictures, the groups of low scores first."""
    scope, ms = found.scope, found.table["ms"]
    if scope is None:
        return []
    chosen = [
        (int(latent), group)
        for group, members in reversed(list(scope.partition.groups.items()))
        for latent in np.argsort(-np.where(members, ms, np.nan), kind="stable")[:N_EXAMPLES]
        if members[latent] and np.isfinite(ms[latent])
    ]
    ranking, images = Rank.at(ctx, scope.sae_seed).load(), open_split(ctx, "train")
    patch_px = Tokens.at(ctx, "train").read_json("tokens.json")["patch_px"]
    return [
        replace(
            make_example(scope, latent, group, scope.scores, ranking, images, patch_px),
            note=f"monosemanticity {ms[latent]:.2f}"
            + (f", the {name_group(group)} group" if scope.undecided[latent] else ""),
        )
        for latent, group in chosen
    ]


def _read_top_features(ctx: Context, found: Found) -> list[TopFeature]:
    """Return the most monosemantic features with what excites them most, where they have no maps."""
    if found.scope is not None:
        return []
    codes, images = Codes.at(ctx, ctx.config.seeds[0], "train").load(), open_split(ctx, "train")
    by_latent, index = codes.matrix("means").tocsc(), np.asarray(codes.image_index)
    return [
        read_top_feature(
            latent, float(found.table["ms"][latent]), by_latent[:, [latent]].toarray()[:, 0], images, index
        )
        for latent in choose_most_monosemantic(found.table)
    ]


def _list_label_columns(found: Description, n_top: int, places: str) -> Iterator[LatentColumn]:
    """Yield what labels say of each latent, which fires on patches or images; nothing where there are none."""
    columns = {
        "label_entropy": (f"label entropy of its top {found.n_label_images} images: weighted by activation", "nats"),
        "label_entropy_all": ("label entropy of all images: weighted by activation", "nats"),
        "label_entropy_share": ("label entropy of all images, share of the largest: weighted by activation", "1"),
        "top_class_share": (f"strong {places} in its top class: in images of that class", f"share of strong {places}"),
        "n_classes_held": ("classes of which it is a class-level latent", "classes"),
        "tree_depth": (
            f"depth of its top {n_top} images: where two meet in the hierarchy of classes",
            "levels",
        ),
    }
    if found.top_class is not None:
        names = np.array([*(found.class_names or []), ""])  # -1: none
        often = (
            "most patches with a strong activation per image"
            if places == "patches"
            else "a strong activation most often"
        )
        yield LatentColumn("top_class", names[found.top_class], f"top class: on whose images it has {often}")
    if found.class_latents is not None:
        yield LatentColumn("classes_held", _join_classes(found), "classes of which it is a class-level latent, by name")
    for name, (heading, unit) in columns.items():
        if (values := getattr(found, name)) is not None:
            yield LatentColumn(name, values, heading, unit)
    for name in BIASED:
        if (values := found.beyond_chance(name)) is not None:
            heading, unit = columns[name]
            explained = f"{heading.partition(':')[0]}, beyond chance: less its mean with permuted labels"
            yield LatentColumn(f"{name}_excess", values, explained, unit)


def _join_classes(found: Description) -> np.ndarray:
    """Return of each latent the names of the classes that it is a class-level latent of, joined by "; "."""
    assert found.class_latents is not None, "there are no labels"
    held: dict[int, list[str]] = {}
    for name, latents in zip(found.class_names or [], found.class_latents.tolist(), strict=True):
        for latent in latents:
            held.setdefault(latent, []).append(name)
    return np.array(["; ".join(held.get(latent, [])) for latent in range(len(found.ms))])


@once
def find_hierarchy(ctx: Context) -> Hierarchy | None:
    """Return the hierarchy of the classes: the scenes' own, or that of `describe.tree`; None: there is none.

    Raises:
        InputError: as `read_hierarchy`.
    """
    known, tree = find_known(ctx, ctx.config.data)[0], ctx.config.describe.tree
    if tree is not None:
        names = known.class_ids or known.class_names
        return read_hierarchy(Path(tree), names)
    return make_family_hierarchy(FAMILIES, known.class_names) if known is SceneSet else None


def _make_fingerprint(ctx: Context) -> str:
    """Return what determines the depths at which classes meet."""
    hierarchy = find_hierarchy(ctx)
    return "" if hierarchy is None else hashlib.sha256(hierarchy.meeting.tobytes()).hexdigest()[:16]
