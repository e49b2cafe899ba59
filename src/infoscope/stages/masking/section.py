"""The section on masking: the table, the figure, and what the curves say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from infoscope.analyses.masking import CLASS, RANDOM, Mask, MaskingResult
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Cell, Column, Stat, Table, format_number, format_percent
from infoscope.scope.partition import find_extremes, name_group
from infoscope.stages.masking.figure import draw_masking
from infoscope.stages.masking.numbers import Point, Points, join_masks
from infoscope.stages.probe.against_random import Excess
from infoscope.stages.probe.results import Metric

STATS = ("top1", "true_prob", "n_chosen", "n_distinct")
TOP1 = Metric("masking", "top1", Column("top1", "top-1", **PERCENT))
ERRORS = {True: "the SAE's error stays", False: "decoded"}
NEAR = 0.01
"""How far below another a top-1 is still near it."""
SENTENCE_NUMBER = 10
"""Latents that sentences are about, where there are as many."""


def make_masking_section(results: Mapping[int, MaskingResult], n_latents: Sequence[int] = ()) -> ReportSection:
    """Return the table, the figure and the findings.

    Args:
        results: by SAE seed.
        n_latents: the numbers that were asked for.
    """
    points, first = join_masks(results), next(iter(results.values()))
    return ReportSection(
        name="masking",
        title="Top latents of the true class",
        findings=tuple(_find(points, results)),
        tables={"masking": _make_table(points, results, n_latents)},
        figures={
            "masking": SectionFigure(
                lambda: draw_masking(points, first.d_sae),
                "Zero-shot top-1 while the n top latents of each image's true class are kept alone (above) or dropped"
                " (below): means over SAE seeds (and draws of random latents), shades are ± one standard deviation."
                " Left: the SAE's error stays in the token; right: the decoding of the latents that are kept replaces"
                " it. True labels choose the latents: none of this is the accuracy of a classifier.",
            )
        },
        summary={
            "n_images": int(first.n_images.sum()),
            "n_classes": len(first.class_names),
            "ranked_on": first.ranked_on,
            "points": [
                {**vars(point), **{name: getattr(stats, name) for name in STATS}} for point, stats in points.items()
            ],
        },
    )


def name_curve(curve: str) -> str:
    """Return a curve for display: "the class's", "random", "its high-scope", ..."""
    return {CLASS: "the class's", RANDOM: "random"}.get(curve) or f"its {name_group(curve)}"


def name_mask(mask: Mask, d_sae: int) -> str:
    """Return a mask in words: "10 latents kept (the class's, error kept)"."""
    n = "all latents" if mask.n_latents == d_sae else f"{mask.n_latents} latent{'s' * (mask.n_latents != 1)}"
    error = "error kept" if mask.error_kept else "error dropped"
    return f"{n} {'kept' if mask.keeps else 'dropped'} ({name_curve(mask.curve)}, {error})"


def _make_table(points: Points, results: Mapping[int, MaskingResult], n_latents: Sequence[int]) -> Table:
    first = next(iter(results.values()))
    curves = list(dict.fromkeys(point.curve for point in points))
    keys = {curve: curve.replace(" ", "_") for curve in curves}
    table = Table(
        "masking",
        "Zero-shot top-1 with the top latents of the true class alone, or without them",
        [
            Column("latents", "latents", Align.right, is_count=True),
            *(Column(f"top1_{keys[one]}", name_curve(one), **PERCENT) for one in curves),
            *(Column(f"true_prob_{keys[one]}", f"{one}, probability", csv_only=True) for one in curves),
            *(Column(f"n_chosen_{keys[one]}", f"{one}, latents", csv_only=True) for one in curves),
            *(Column(f"n_distinct_{keys[one]}", f"{one}, latents of all classes", csv_only=True) for one in curves),
        ],
        notes=list(_note(first, len(results), n_latents)),
    )
    numbers = list(dict.fromkeys(point.n_latents for point in points))
    for keeps in (True, False):
        for error_kept in dict.fromkeys(point.error_kept for point in points):
            table.add_section(f"{'kept alone' if keeps else 'dropped'}, {ERRORS[error_kept]}")
            for n in numbers:
                of = [points.get(Point(curve, n, keeps, error_kept)) for curve in curves]
                table.add_row(
                    "all" if n == first.d_sae else format_number(n, 0),
                    *(Cell(None if one is None else one.top1) for one in of),
                    *(Cell(None if one is None else one.true_prob) for one in of),
                    *(Cell(None if one is None else one.n_chosen) for one in of),
                    *(Cell(None if one is None else one.n_distinct) for one in of),
                )
    return table


def _note(first: MaskingResult, n_seeds: int, n_latents: Sequence[int]) -> Iterator[str]:
    n_draws = len({mask.draw for mask in first.masks if mask.curve == RANDOM})
    yield (
        f"{int(first.n_images.sum()):,} test images, {len(first.class_names):,} classes, {n_seeds} SAE"
        f" seed{'s' * (n_seeds != 1)}, {n_draws} draws of random latents. The latents of an image are those of its true"
        " class: this measures where the information on classes lies, and is no classifier. Tokens that the SAE does"
        " not read, such as CLS, stay as they are."
    )
    yield (
        f"Latents of a class: those that fire strongly on most patches of its {first.ranked_on} images, most first,"
        " whether or not they do so in other classes; of a group (its ...) the first of these that are in the group."
        " All: every latent, or every one of the group; all latents kept are the original tokens where the SAE's error"
        " stays, else the SAE's reconstruction. Equal numbers of latents are not equal mass."
    )
    if left_out := [f"{n:,}" for n in n_latents if n >= first.d_sae]:
        yield (
            f"Left out of masking.n_latents, for the SAE has {first.d_sae:,} latents: {', '.join(left_out)}; all"
            " latents are in the last row."
        )
    if first.sae_bias:
        yield f"{first.sae_bias:g} is added to each coordinate of decoded tokens (masking.sae_bias)."
    if short := [
        f"{mask.n_short:,} class{'es' * (mask.n_short != 1)} at {mask.n_latents:,} ({name_curve(mask.curve)})"
        for mask in first.masks
        if mask.n_short and mask.keeps and mask.error_kept and mask.curve != RANDOM
    ]:
        yield (
            "A class with fewer latents than a row asks for uses all that it has. In the first seed these are"
            f" {', '.join(short)}. Random latents are as many as the class's."
        )
    if n_empty := int((first.n_images == 0).sum()):
        yield f"{_count_classes(n_empty)} no image among these and {'is' if n_empty == 1 else 'are'} left out."


def _count_classes(n: int) -> str:
    return "1 class has" if n == 1 else f"{n:,} classes have"


def _find(points: Points, results: Mapping[int, MaskingResult]) -> Iterator[str]:
    first = next(iter(results.values()))
    d_sae, commonest = first.d_sae, first.n_images.max() / first.n_images.sum()
    if first.ranked_on == "test":
        yield (
            "Warning: the latents of each class were ranked on the images that are predicted (masking.rank_split=test,"
            " as PatchSAE does), so that their labels leak twice; masking.rank_split=train ranks on other images."
        )
    original, none = (points[Point(CLASS, d_sae, keeps, True)].top1 for keeps in (True, False))
    decoded = points.get(Point(CLASS, d_sae, True, False))
    without = points.get(Point(CLASS, d_sae, False, False))
    yield (
        f"Zero-shot top-1 is {format_percent(original)} on the original tokens"
        + (f", {format_percent(decoded.top1)} on the SAE's reconstruction" if decoded else "")
        + f", {format_percent(none)} without any latent"
        + (f" ({format_percent(without.top1)} if the SAE's error is dropped too)" if without else "")
        + f"; guessing gives {100 / len(first.class_names):.1f}%, the commonest class alone {100 * commonest:.1f}%. The"
        " latents below are those of each image's true class: they tell where the information on classes lies, and are"
        " no classifier."
    )
    numbers = sorted({point.n_latents for point in points} - {d_sae})
    if not numbers:
        return
    n = SENTENCE_NUMBER if SENTENCE_NUMBER in numbers else numbers[len(numbers) // 2]
    curves = list(dict.fromkeys(point.curve for point in points if point.n_latents == n))
    for keeps in (True, False):
        yield _tell(points, n, keeps, curves)
    distinct = [points[Point(curve, n, True, True)].n_distinct.mean for curve in curves]
    told = [f"{format_number(one, 0)} ({name_curve(curve)})" for one, curve in zip(distinct, curves, strict=True)]
    yield (
        f"The {n:,} latents of each of the {len(first.class_names):,} classes are together so many different ones:"
        f" {', '.join(told)}. The fewer, the more classes share them."
    )
    if original.mean > max(commonest, 1 / len(first.class_names)):
        yield from _tell_reach(points, numbers, original)
    else:
        yield (
            "On the original tokens already the head is no better than naming one class for all images, so that nothing"
            " is told of what its latents are worth."
        )
    yield from _compare(points, numbers, curves)
    yield _tell_classes(first, n)


def _tell(points: Points, n: int, keeps: bool, curves: Sequence[str]) -> str:
    """Say what top-1 is when n latents are kept alone, or dropped, whichever they are."""
    whose = {curve: f"{name_curve(curve)} ones" for curve in curves} | {CLASS: "the class's own"}
    kept, decoded = (
        {curve: points[point].top1 for curve in curves if (point := Point(curve, n, keeps, error)) in points}
        for error in (True, False)
    )
    parts = [f"{format_percent(top1)} if they are {whose[curve]}" for curve, top1 in kept.items()]
    said = f"With {n:,} latent{'s' * (n != 1)} {'kept alone' if keeps else 'dropped'}, top-1 is {', '.join(parts)}."
    if decoded:
        shares = ", ".join(format_percent(top1) for top1 in decoded.values())
        said += f" Without the SAE's error it is, in the same order, {shares}."
    return said


def _tell_reach(points: Points, numbers: Sequence[int], original: Stat) -> Iterator[str]:
    """Say with how many latents of the class alone top-1 comes near that of the original tokens."""
    parts = []
    for error_kept, words in ERRORS.items():
        of = {n: points.get(Point(CLASS, n, True, error_kept)) for n in numbers}
        if any(of.values()):
            reached = next((n for n, one in of.items() if one and one.top1.mean >= original.mean - NEAR), None)
            parts.append(f"{'none of these' if reached is None else f'{reached:,}'} ({words})")
    yield (
        f"Fewest of the class's latents that, kept alone, come within {100 * NEAR:g} point of the top-1 of the original"
        f" tokens: {', '.join(parts)}."
    )


def _compare(points: Points, numbers: Sequence[int], curves: Sequence[str]) -> Iterator[str]:
    """Say at which numbers the class's latents tell more than random ones, and low scope more than high scope."""
    groups = [curve for curve in curves if curve not in (CLASS, RANDOM)]
    pairs = [(CLASS, RANDOM)] * (RANDOM in curves)
    if len(groups) > 1:
        high, low = find_extremes(groups)
        pairs.append((low, high))
    for one, other in pairs:
        parts = []
        for keeps in (True, False):
            signs = {n: _find_sign(points, n, keeps, one, other) for n in numbers}
            if any(sign is None for sign in signs.values()):
                return  # one SAE seed
            more, less = ([f"{n:,}" for n, sign in signs.items() if sign == wanted] for wanted in (1, -1))
            verb = "kept alone" if keeps else "dropped"
            parts.append(f"{verb}, top-1 is higher at {_list(more)} and lower at {_list(less)}")
        name, against = name_curve(one), "as many random" if other == RANDOM else name_curve(other)
        yield (
            f"{name[0].upper()}{name[1:]} latents against {against} ones, the SAE's error kept (95% intervals over SAE"
            f" seeds): {'; '.join(parts)}."
        )


def _find_sign(points: Points, n: int, keeps: bool, one: str, other: str) -> int | None:
    a, b = (points[Point(curve, n, keeps, True)].top1_by_seed for curve in (one, other))
    return Excess(TOP1, one, other, {seed: a[seed] - b[seed] for seed in a}).sign


def _list(numbers: Sequence[str]) -> str:
    return f"n = {', '.join(numbers)}" if numbers else "no number"


def _tell_classes(first: MaskingResult, n: int) -> str:
    """Say which classes the class's latents alone tell best and worst, of the first seed."""
    places = {(mask.curve, mask.n_latents, mask.keeps, mask.error_kept): i for i, mask in enumerate(first.masks)}
    by_class = first.class_top1(places[CLASS, n, True, True])
    worst, best = int(np.nanargmin(by_class)), int(np.nanargmax(by_class))
    low, high = (f"{100 * by_class[one]:.1f}% ({first.class_names[one]})" for one in (worst, best))
    return f"By class, with its {n:,} kept alone and the SAE's error kept: from {low} to {high} (first seed)."
