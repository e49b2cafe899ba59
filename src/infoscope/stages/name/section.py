"""The section on names: tables, figures, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from infoscope.analyses.concepts import MIN_COMPARED, QUANTILES, Search
from infoscope.analyses.config import NameConfig
from infoscope.analyses.name_result import NameResult
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Column, Table, compute_stat
from infoscope.scope.partition import name_group
from infoscope.stages.name.figures import draw_bias, draw_search
from infoscope.stages.name.findings import WORDS, say_names
from infoscope.stages.name.numbers import Found, compare_signs, join, mean_of, measure_bias, measure_misled, summarise

COLUMNS = (
    Column("n_named", "features with a name", digits=0, is_count=True),
    Column("n_valid", "valid", digits=1),
    Column("n_distinct", "different ones", digits=1),
    Column("n_permuted", "valid, words permuted", digits=1),
    Column("n_random", "valid, random directions", digits=1),
    Column("median_cosine", "cosine, median", digits=2, optional=True),
    Column("median_ratio", "ratio, median", digits=2, optional=True),
    Column("is_best", "right", **PERCENT),
    Column("is_best_random", "random names right", **PERCENT),
    Column("is_best_others", "names right that are not valid", **PERCENT, csv_only=True),
    Column("is_beyond", "beyond chance", **PERCENT, optional=True),
    Column("is_beyond_random", "random names beyond chance", **PERCENT, optional=True),
    Column("best_beyond", "any value beyond chance", **PERCENT, optional=True),
)
"""Of the table of readings and of the collected table."""
SEARCHES = {
    "plain": "images with it: nearest by embedding",
    "restricted": "   by its features alone",
    "zeroed": "   by embedding without its features",
    "plain_without": "images without it: nearest by embedding",
    "raised": "   with its features raised",
    "base": "all images",
}
MAX_LISTED = 40
"""Concepts in the table of names."""


def make_name_section(
    found: Sequence[Found],
    config: NameConfig,
    pictures: Mapping[int, UInt8[np.ndarray, "size size 3"]],
    why_no_sweep: str = "",
) -> ReportSection:
    """Return the section on some SAE seeds.

    Args:
        pictures: test images that the figure shows, by their number; none: no figure.
        why_no_sweep: in a sentence; empty: there is a sweep.
    """
    first = found[0].result
    tables = {"names": _make_table(found, config), "names_listed": _make_list(found)}
    figures = {}
    if found[0].groups or found[0].level_ends:
        tables["names_groups"] = _make_group_table(found)
    if any(np.isfinite(one.result.searches).any() for one in found):
        tables["names_search"] = _make_search_table(found, config)
    if pictures and first.shown_by:
        figures["names_search"] = SectionFigure(
            lambda: draw_search(first, pictures),
            f"Test images searched by {first.concepts[first.shown_concept]!r} (SAE seed of the first row of the table):"
            " at the left the one that is searched for, behind it the nearest ones. Above: the image in which the"
            " concept's features are most active; below: one in which they are least.",
        )
    if any(measure_bias(one.result).n_concepts for one in found):
        figures["names_bias"] = SectionFigure(
            lambda: draw_bias(found),
            "How the probability of each class changes when the features of a named concept are set from silent to the"
            f" {QUANTILES[-1]:.0%} quantile of their activation (least-squares slope, mean over test images), against"
            " how the training images couple concept and class; a mark for each concept, class and SAE seed.",
        )
    if any(math.isfinite(measure_bias(one.result).correlation) for one in found):
        tables["names_bias"] = _make_bias_table(found)
    if any(measure_misled(one.result).n_pairs for one in found):
        tables["names_misled"] = _make_misled_table(found)
    return ReportSection(
        name="name",
        title="What features are called",
        findings=(*say_names(found, config), *([why_no_sweep] if why_no_sweep else [])),
        tables=tables,
        figures=figures,
        summary=[{"readings": summarise(one.result), **_summarise(one.result)} for one in found],
    )


def _make_table(found: Sequence[Found], config: NameConfig) -> Table:
    first, summaries = found[0].result, [summarise(one.result) for one in found]
    table = Table(
        "names",
        f"Names from {len(first.concepts):,} concepts ({first.n_words:,} words), by what is compared",
        [
            Column("reading", "compared", Align.left),
            Column("key", "reading", Align.left, csv_only=True),
            *_fit_counts(COLUMNS, found),
        ],
        notes=[
            f"Valid: cosine above {config.min_cosine:g} and more than {config.min_ratio:g} times that with the next"
            f" concept. Of features that fire in at least {first.n_top} training images. Permuted words: the"
            " coordinates of all texts permuted alike; random directions: of the norms of the rows, or mean embeddings"
            f" of as many images at random; means of {config.n_draws} draws."
        ],
    )
    if first.value_names:
        table.notes.append(
            f"Right: no other of {len(first.value_names)} values exceeds what is expected at random by more standard"
            f" deviations among the feature's {first.n_top} top test images. Beyond chance: the value of its name is"
            " over-represented among them (p < .05 over the number of values); any value: whatever the name. Of valid"
            " names; random ones: the valid names permuted over their features."
        )
    for reading in first.readings:
        marks = " *" if reading == first.reading else ""
        numbers = (compute_stat(one[reading][column.key] for one in summaries) for column in COLUMNS)
        table.add_row(f"{WORDS[reading]}{marks}", reading, *numbers)
    table.notes.append("*: name.reading, which the other tables and the table of latents follow.")
    return table


def _make_group_table(found: Sequence[Found]) -> Table:
    groups = [*found[0].groups, *found[0].levels]
    table = Table(
        "names_groups",
        "Valid names by scope" if found[0].groups else "Valid names by Matryoshka level",
        _fit_counts(
            [
                Column("group", "features", Align.left),
                Column("n_named", "with a name", digits=0, is_count=True),
                Column("n_valid", "valid", digits=1),
                Column("share", "share valid", **PERCENT),
                Column("is_best", "right", **PERCENT),
            ],
            found,
        ),
    )
    for group in [*groups, "all"]:
        members = [{**one.groups, **one.levels}.get(group, np.ones(len(one.result.n_firing), bool)) for one in found]
        named = [int((of & one.result.is_named).sum()) for of, one in zip(members, found, strict=True)]
        valid = [of & one.result.valid[one.result.place] for of, one in zip(members, found, strict=True)]
        n_valid = [int(of.sum()) for of in valid]
        table.add_row(
            name_group(group),
            compute_stat(named),
            compute_stat(n_valid),
            compute_stat(n / of if of else math.nan for n, of in zip(n_valid, named, strict=True)),
            compute_stat(
                mean_of(one.result.is_best[one.result.place, of]) for of, one in zip(valid, found, strict=True)
            ),
        )
    return table


def _make_list(found: Sequence[Found]) -> Table:
    first = found[0].result
    place = first.place
    table = Table(
        "names_listed",
        "Valid names of the first SAE seed",
        [
            Column("concept", "name", Align.left),
            Column("n_valid", "features", digits=0, is_count=True),
            Column("latent", "the best one", digits=0, is_count=True),
            Column("cosine", "cosine", digits=2),
            Column("ratio", "ratio", digits=2),
            Column("is_best", "right", digits=0, scale=100, unit="%"),
            Column("rises", "class that rises most", Align.left, optional=True),
            Column("slope", "by", digits=3, signed=True, optional=True),
        ],
    )
    best = {one: _find_members(first, one) for one in first.find_distinct(place)}
    order = sorted(best, key=lambda one: -first.cosines[place, best[one][0], 0])
    for concept in order[:MAX_LISTED]:
        of = best[concept]
        rises, slope = "", math.nan
        if first.class_names and np.isfinite(first.slopes[concept]).all():
            rises, slope = first.class_names[int(first.slopes[concept].argmax())], first.slopes[concept].max()
        ratio = float(first.ratio[place, of[0]])
        table.add_row(
            first.concepts[concept],
            len(of),
            int(of[0]),
            float(first.cosines[place, of[0], 0]),
            ratio if math.isfinite(ratio) else None,
            mean_of(first.is_best[place, of]),
            rises,
            float(slope),
        )
    if not order:
        table.notes.append("No name is valid.")
    if any(not math.isfinite(first.ratio[place, best[one][0]]) for one in order):
        table.notes.append("No ratio: the cosine with the next concept is not above 0.")
    if any(not np.isfinite(first.is_best[place, best[one]]).any() for one in order):
        table.notes.append(
            "No number of right ones: the data do not know the word of their images, or none of these features fires in"
            f" {first.n_top} test images."
        )
    if len(order) > MAX_LISTED:
        table.notes.append(f"{len(order) - MAX_LISTED} more are left out.")
    return table


def _find_members(result: NameResult, concept: int) -> np.ndarray:
    """Return the latents that are validly called a concept, the one of the largest cosine first."""
    of = np.flatnonzero(result.valid[result.place] & (result.best[result.place, :, 0] == concept))
    return of[np.argsort(-result.cosines[result.place, of, 0], kind="stable")]


def _make_search_table(found: Sequence[Found], config: NameConfig) -> Table:
    table = Table(
        "names_search",
        f"Share of the {config.n_nearest} nearest test images that have a concept",
        [
            Column("search", "searched for", Align.left),
            Column("key", "search", Align.left, csv_only=True),
            Column("share", "have it", **PERCENT),
        ],
        notes=[
            "Means over named concepts that are known of the images, then over SAE seeds. Raised: to the"
            f" {QUANTILES[-1]:.0%} quantile of their activation where they fire."
        ],
    )
    for name, words in SEARCHES.items():
        value = join(found, lambda one, of=name: mean_of(one.get_searches(of)))
        if math.isfinite(value.mean):
            table.add_row(words, name, value)
    return table


def _make_bias_table(found: Sequence[Found]) -> Table:
    biases = [measure_bias(one.result) for one in found]
    table = Table(
        "names_bias",
        "Change of the probabilities of a linear classifier while a named concept is swept",
        _fit_counts(
            [
                Column("target", "classes of", Align.left),
                Column("n_concepts", "concepts", digits=1, is_count=True),
                Column("correlation", "correlation with the coupling in the data", signed=True),
                Column("n_coupled", "coupled concepts", digits=1, is_count=True),
                Column("slope_coupled", "change, coupled class", digits=3, signed=True),
                Column("slope_random", "random features instead", digits=3, signed=True),
                Column("slope_other", "any other class", digits=3, signed=True),
                Column("top", "coupled class rises most", **PERCENT),
                Column("by_chance", "by chance", **PERCENT, optional=True),
                Column("one_sign", "pairs of one sign in all seeds", **PERCENT, optional=True),
                Column("one_sign_random", "with random features", **PERCENT, optional=True),
            ],
            found,
        ),
        notes=[
            "Without concepts that are such classes themselves. Coupling: share of the class in training images of the"
            " concept, less its share in all; coupled: over twice that share. What changes is not the classifier's"
            " alone: a feature that is called by the concept may be of the class too."
        ],
    )
    signs = [compare_signs(found, of)[0] if len(found) > 1 else None for of in ("slopes", "slopes_random")]
    numbers = (compute_stat(getattr(one, column.key) for one in biases) for column in table.columns[1:-2])
    table.add_row(found[0].target, *numbers, *signs)
    return table


def _make_misled_table(found: Sequence[Found]) -> Table:
    table = Table(
        "names_misled",
        "What goes with a class in the data, in test images of other classes: change of the class's probability",
        _fit_counts(
            [
                Column("target", "classes of", Align.left),
                Column("n_pairs", "pairs", digits=1, is_count=True),
                Column("whole", "change", digits=3, signed=True),
                Column("without", "without the class's features", digits=3, signed=True),
                Column("without_random", "without random ones", digits=3, signed=True),
                Column("lower", "pairs that change less", **PERCENT),
                Column("others", "any other concept", digits=3, signed=True),
            ],
            found,
        ),
        notes=[
            "Change: mean probability of the class in test images of other classes that have the concept, less that in"
            " those without it. Pairs of a concept and a class: coupled as above, with at least"
            f" {MIN_COMPARED} such images, and the class is a valid name, whose features are taken from the embedding;"
            " random ones: as many others with a name."
        ],
    )
    runs = [measure_misled(one.result) for one in found]
    table.add_row(
        found[0].target, *(compute_stat(getattr(one, column.key) for one in runs) for column in table.columns[1:])
    )
    return table


def _fit_counts(columns: Sequence[Column], found: Sequence[Found]) -> list[Column]:
    """Return columns whose counts have a decimal where there are several SAE seeds alone."""
    counts = ("n_valid", "n_distinct", "n_concepts", "n_coupled", "n_pairs") if len(found) == 1 else ()
    return [replace(column, digits=0) if column.key in counts else column for column in columns]


def _summarise(result: NameResult) -> dict[str, object]:
    searches = {name: mean_of(result.get_searches(name)) for name in Search._fields}
    numbers = {"bias": measure_bias(result)._asdict(), "misled": measure_misled(result)._asdict()}
    return {"reading": result.reading, "search": searches, **numbers}
