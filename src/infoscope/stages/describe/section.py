"""The section on what features are: PatchSAE's, sae-for-vlm's and Attributing CLIP's measures by scope."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infoscope.analyses.config import DescribeConfig
from infoscope.analyses.description import N_PERMUTATIONS
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Cell, Column, Table, compute_stat
from infoscope.scope.config import By
from infoscope.scope.partition import name_group
from infoscope.stages.describe.findings import say_features
from infoscope.stages.describe.numbers import (
    MEASURES,
    Measure,
    Seeds,
    compute_chance,
    compute_median,
    compute_permuted,
    compute_permuted_mean,
    count_class_latents,
    count_without,
    get_members,
    is_by_labels,
    list_groups,
    list_measures,
    list_scored,
    name_highest,
    name_measure,
    name_places,
    summarise,
)
from infoscope.stages.describe.top_images import TopFeature, draw_top_images, make_caption_table
from infoscope.stages.sae import UNIT
from infoscope.stages.score.example_figure import Example, draw_examples

MAX_CLASSES = 20
"""With more classes than these, their table holds the ends of its order alone."""
N_ENDS = 5
ALL_STRONG = 0.95
"""Share of the activations from which on it is said."""


def make_describe_section(
    seeds: Seeds,
    config: DescribeConfig,
    judge: str,
    others: str = "",
    examples: Sequence[Example] = (),
    top_features: Sequence[TopFeature] = (),
) -> ReportSection:
    """Return the section.

    Args:
        judge: the name of the model that says how alike images are.
        others: where that is the measured one, those to choose instead.
        examples: features to show. top_features: those to show where features have no maps.
    """
    tables, figures = {"describe": _make_measure_table(seeds, config, judge)}, {}
    if "level" in seeds[0].table:
        tables["describe_levels"] = _make_level_table(seeds)
    if seeds[0].description.class_latents is not None and list_scored(seeds):
        tables["class_latents"] = _make_class_table(seeds, config)
    if examples and (scope := seeds[0].scope) is not None:
        figures["monosemantic"] = SectionFigure(
            lambda: draw_examples(examples, scope.scores.shift_patches),
            "The most monosemantic features of each group, on the training images that excite them most.",
        )
    if any(feature.captions for feature in top_features):
        tables["top_captions"] = make_caption_table(top_features)
    elif top_features:
        figures["monosemantic"] = SectionFigure(
            lambda: draw_top_images(top_features),
            "The most monosemantic features, on the training images that excite them most (the most at the left).",
        )
    return ReportSection(
        name="describe",
        title="What the features are",
        findings=tuple(say_features(seeds, config, judge, others)),
        tables=tables,
        figures=figures,
        summary=summarise(seeds),
    )


def _say_what_is_strong(seeds: Seeds) -> str:
    """Say what counts as strong, and where that tells nothing: 0.2, PatchSAE's, may lie below or above all activations
    of an SAE, whose units are its own."""
    above = seeds[0].description.strong_above
    strong = sum(float(found.description.strong_rate.sum()) for found in seeds)
    firing = sum(float(found.scope.firing_rate.sum()) for found in seeds if found.scope is not None)
    text = f"Strong: an activation above {above:g} {UNIT} (describe.strong_above)."
    if firing == 0 or 0 < strong < ALL_STRONG * firing:
        return text
    typical = np.nanmedian([found.description.mean_firing for found in seeds])
    if strong == 0:
        text += " None of these SAEs' activations is, so that no class has latents"
    else:
        text += f" {strong / firing:.0%} of these SAEs' activations are, so that a feature is strong wherever it fires"
    return f"{text}; the mean activation of the median feature, where it fires, is {typical:.3g} {UNIT}."


def _make_measure_table(seeds: Seeds, config: DescribeConfig, judge: str) -> Table:
    groups, first, first_table = list_groups(seeds), seeds[0].description, seeds[0].table
    columns = [Column("quantity", "", Align.left)]
    columns += [Column(group.replace(" ", "_"), name_group(group), optional=group == "unscored") for group in groups]
    columns += [Column("at_random", "images at random"), Column("n_without", "without a value", digits=0)]
    places = name_places(seeds)
    over, often = f" ({config.image_code.name} over the patches)", "most strong patches per image"
    if seeds[0].scope is None:
        over, often = "", "a strong activation most often"
    notes = [
        "Median over the features that have a value, mean over SAE seeds. Of a feature that fires in fewer than"
        f" {first.n_label_images} training images nothing is said but its activation and strong {places}.",
        f"{_say_what_is_strong(seeds)} Monosemanticity"
        f" (sae-for-vlm): mean cosine of two images to {judge}, each pair weighted by the product of the feature's"
        f" activations{over}, which are scaled to 0..1 first; a"
        " constant feature has none. Clarity (Attributing CLIP):"
        f" mean cosine of two of its top {config.n_clarity_images} images. Overlap: mean Jaccard index of its top"
        f" {config.n_top_images} images with those of every other feature.",
    ]
    if first.label_entropy is not None:
        notes.append(
            f"Label entropy (PatchSAE): of the classes of its top {first.n_label_images} images, weighted by"
            " activation; over all images, and its share of the entropy of equally frequent classes: ours. Top class:"
            f" on whose images it has {often}. Labels permuted (ours): the same median when the"
            f" labels of all images are permuted, mean over {N_PERMUTATIONS} permutations. It is what these very"
            " features have by chance, which is less entropy the fewer images they fire in, and the less equally."
        )
    if first.tree_depth is not None:
        notes.append(
            f"Depth: at which two of its top {config.n_top_images} images meet in the hierarchy of classes, mean over"
            " pairs (sae-for-vlm rounds it); 0: at the root."
        )
    title = "What the features are, by scope" if list_scored(seeds) else "What the features are"
    table = Table("describe", title, columns, notes)
    members = {group: [get_members(found, group) for found in seeds] for group in groups}
    enough = [found.description.fires_enough for found in seeds]
    counts = [compute_stat(int(of.sum()) for of in members[group]) for group in groups]
    few = [compute_stat(int((of & ~f).sum()) for of, f in zip(members[group], enough, strict=True)) for group in groups]
    table.add_section("features")
    table.add_row("number", *(Cell(count, digits=0) for count in counts), None, None)
    table.add_row(
        f"that fire in fewer than {first.n_label_images} images", *(Cell(n, digits=0) for n in few), None, None
    )
    table.add_section("median")
    units = {column.name: column.unit for column in first_table}
    for name in list_measures(seeds):
        _, digits, scale = MEASURES[name]
        heading = name_measure(seeds, name)
        if units[name].startswith(f"{UNIT} x"):  # rows of the decoder have lengths of their own
            heading = f"{heading} ({units[name]})"
        numbers = [compute_median(seeds, name, group) for group in groups]
        cells = [Cell(number, digits=digits, scale=scale) for number in (*numbers, compute_chance(seeds, name))]
        table.add_row(heading, *cells, count_without(seeds, name))
        if is_by_labels(seeds, name):
            numbers = [compute_permuted(seeds, name, group) for group in groups]
            cells = [Cell(number, digits=digits, scale=scale) for number in numbers]
            table.add_row(f"{heading}, labels permuted", *cells, None, None)
    return table


def _make_level_table(seeds: Seeds) -> Table:
    names = [name for name in ("tree_depth", "label_entropy", "ms", "top_overlap") if name in seeds[0].table]
    shown = {name: MEASURES[name] for name in names}
    if list_scored(seeds):
        shown["cds"] = Measure("CDS")
    columns = [Column("level", "level", digits=0, is_count=True), Column("n_latents", "features", digits=0)]
    columns += [Column(name, of.name, digits=of.digits, scale=of.scale) for name, of in shown.items()]
    note = "Mean over the features of a level that have a value, mean over SAE seeds. Level 0: the first features."
    by_labels = [name for name in names if is_by_labels(seeds, name)]
    columns += [
        Column(f"{name}_permuted", f"{shown[name].name}, labels permuted", digits=shown[name].digits)
        for name in by_labels
    ]
    table = Table("describe_levels", "What the features are, by Matryoshka level", columns, [note])
    for level in np.unique(seeds[0].table["level"]):
        members = [found.table["level"] == level for found in seeds]
        means = [
            compute_stat(compute_stat(found.table[name][of]).mean for found, of in zip(seeds, members, strict=True))
            for name in shown
        ]
        chances = [
            compute_stat(compute_permuted_mean(found, name, of) for found, of in zip(seeds, members, strict=True))
            for name in by_labels
        ]
        table.add_row(int(level), compute_stat(int(of.sum()) for of in members), *means, *chances)
    return table


def _make_class_table(seeds: Seeds, config: DescribeConfig) -> Table:
    group, first = name_highest(seeds), seeds[0].description
    assert first.class_names is not None, "there are no labels"
    assert first.class_images is not None, "there are no labels"
    found, scope = [count_class_latents(one, group) for one in seeds], seeds[0].scope
    in_group = "with a CDS" if scope is None or scope.by is By.cds else "in a group"
    columns = [
        Column("class", "class", Align.left),
        Column("n_images", "images", digits=0, is_count=True),
        Column("n_latents", "latents", digits=0, is_count=True),
        Column("share", f"{name_group(group)}", **PERCENT),
    ]
    table = Table(
        "class_latents",
        "Scope of the latents of each class",
        columns,
        notes=[
            f"The {config.n_class_latents} latents of a class that fire strongly on most patches of its images"
            " (PatchSAE's class-level latents; one may be of several classes); of those {in_group}, the share that is"
            f" {name_group(group)}. Drawn by patches: the share expected of latents that are drawn with probabilities"
            " as their numbers of strong patches, whatever the class. Mean over SAE seeds."
        ],
    )
    n_latents = [compute_stat(of) for of in zip(*(one.n.tolist() for one in found), strict=True)]
    shares = [compute_stat(of) for of in zip(*(one.share.tolist() for one in found), strict=True)]
    order = list(range(len(shares)))
    if len(order) > MAX_CLASSES:
        order.sort(key=lambda number: (np.isnan(shares[number].mean), -shares[number].mean))
        known = [number for number in order if np.isfinite(shares[number].mean)]
        order = known[:N_ENDS] + known[max(N_ENDS, len(known) - N_ENDS) :]
        table.notes.append(
            f"Of {len(shares):,} classes the {N_ENDS} with the largest and the {N_ENDS} with the smallest shares;"
            f" without a latent {in_group} a class has none."
        )
    if n_empty := sum(n == 0 for n in first.class_images):
        table.notes.append(f"Classes without training images: {n_empty}.")
    table.add_section("classes")
    for number in order:
        table.add_row(first.class_names[number], first.class_images[number], n_latents[number], shares[number])
    table.add_section("to compare with")
    table.add_row("all classes, mean", None, None, compute_stat(compute_stat(one.share).mean for one in found))
    table.add_row("latents drawn by patches", None, None, compute_stat(one.by_patches for one in found))
    table.add_row("all latents that fire strongly", None, None, compute_stat(one.everyone for one in found))
    return table
