"""The section on steering and suppression: tables, figures, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from infoscope.analyses.steering import LATENT
from infoscope.analyses.suppression import CHOSEN, CONTROL, SuppressionResult
from infoscope.predictions.prompts import count_names
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import (
    PERCENT,
    Align,
    Column,
    Stat,
    Table,
    compute_stat,
    format_interval,
    format_number,
    format_percent,
    format_signed,
)
from infoscope.stages.steer.figures import draw_effects, draw_removals
from infoscope.stages.steer.numbers import (
    ALL,
    EQUAL_WITHIN,
    Found,
    Removal,
    Spurious,
    compare_removals,
    count_words,
    join_groups,
    join_removals,
    leaves_choice,
    name_sizes,
)

MAX_WORDS = 20
"""In the table of words: of more, those to which most features steer."""


def make_steering_section(found: Sequence[Found], min_images: int, spurious: Spurious | None = None) -> ReportSection:
    """Return the section on some SAE seeds, which all have the same test images.

    Args:
        min_images: that a group must have to be called the worst.
        spurious: how what misleads is spoken of; None where nothing does.
    """
    tables = {"steering": _make_table(found), "steering_words": _make_word_table(found)}
    figures = {
        "steering": SectionFigure(
            lambda: draw_effects(found),
            "Effect of each measured feature (rise of the log probability of the word that rises most, mean over test"
            f" images){' by its CDS' if found[0].scope is not None else ''}, all SAE seeds together; and how many"
            " features, and pushes of the same length along random directions, have less than an effect. The line is"
            " what counts as steerable.",
        )
    }
    findings, summary = [*_find(found)], _summarise(found)
    if removed := [one.suppression for one in found if one.suppression is not None]:
        assert spurious is not None, "what misleads has a name"
        removals = join_removals(removed, min_images)
        tables["suppression"] = _make_removal_table(removed, removals, min_images, spurious)
        figures["suppression"] = SectionFigure(
            lambda: draw_removals(removals, spurious),
            f"Zero-shot top-1 without the features that carry most of {spurious.carried} among training images of one"
            " class, and without random features of equal activation mass (dashed); the SAE's error stays. Means over"
            " SAE seeds, shades are ± one standard deviation.",
        )
        findings += _tell_removals(removed, removals, spurious)
        summary["suppression"] = {"spurious": removed[0].spurious, "removals": [one._asdict() for one in removals]}
    return ReportSection(
        name="steering",
        title="Steering predictions",
        findings=tuple(findings),
        tables=tables,
        figures=figures,
        summary=summary,
    )


def _make_table(found: Sequence[Found]) -> Table:
    first = found[0].result
    table = Table(
        "steering",
        "Features set to a high value",
        [
            Column("features", "", Align.left),
            Column("n_latents", "measured", digits=0, is_count=True),
            Column("steerable", "steerable", **PERCENT),
            Column("steerable_random", "random direction", **PERCENT),
            Column("effect", "effect, median", digits=2, unit="nats"),
            Column("effect_random", "random direction", digits=2, unit="nats"),
            Column("specificity", "entropy lost", digits=3, signed=True),
            Column("taken", "word predicted", **PERCENT),
            Column("taken_before", "word predicted before", **PERCENT),
            Column("specificity_random", "entropy lost, random direction", csv_only=True),
            Column("taken_random", "word predicted, random direction", csv_only=True),
        ],
        notes=[
            f"{first.n_images:,} test images, {count_names(first.words, 'words')}, {len(found)} SAE"
            f" seed{'s' * (len(found) != 1)}; {len(first.measured):,} of the {first.d_sae:,} features are measured,"
            " drawn at random from those that fire in a training image, the others have no value. A feature is set to a"
            f" high quantile of its own peaks in training images, {found[0].where}; the SAE's error stays.",
            f"Steerable: the log probability of one word rises by more than {first.min_effect:g} nats in at least"
            f" {100 * first.min_share:g}% of the images. Effect: that rise, mean over images, of the word that rises"
            " most. Entropy lost: of the prediction, as a share of the largest possible. Word predicted: share of"
            " images in which it is the prediction then. Random direction: the same push of the same images along a"
            " random direction of the decoder row's length.",
        ],
    )
    for name, numbers in join_groups(found).items():
        table.add_row(name, *(numbers[column.key] for column in table.columns[1:]))
    return table


def _make_word_table(found: Sequence[Found]) -> Table:
    words, (counts, directions) = found[0].result.words, count_words(found)
    order = sorted(range(len(words)), key=lambda i: -counts[i].mean)[:MAX_WORDS]
    table = Table(
        "steering_words",
        "The words to which features steer",
        [
            Column("word", "word", Align.left),
            Column("n_latents", "steerable features", digits=1),
            Column("n_directions", "random directions", digits=1),
            Column("latent", "strongest feature, first seed", digits=0, is_count=True),
            Column("effect", "its effect", digits=2, unit="nats"),
        ],
        notes=[f"{len(words) - len(order):,} words with fewer are left out."] if len(order) < len(words) else [],
    )
    first = found[0].result
    for place in order:
        own = np.flatnonzero((first.word[LATENT] == place) & first.is_steerable[LATENT])
        best = own[first.effect[LATENT][own].argmax()] if len(own) else None
        table.add_row(
            words[place],
            counts[place],
            directions[place],
            None if best is None else int(first.measured[best]),
            None if best is None else float(first.effect[LATENT][best]),
        )
    return table


def _make_removal_table(
    removed: Sequence[SuppressionResult], removals: Sequence[Removal], min_images: int, spurious: Spurious
) -> Table:
    first = removed[0]
    sizes = first.group_sizes()
    n_small = int(((sizes > 0) & (sizes < min_images)).sum())
    table = Table(
        "suppression",
        f"Zero-shot top-1 without the features that carry {spurious.carried}",
        [
            Column("removed", "removed", Align.left),
            Column("n_latents", "features", digits=1, is_count=True),
            Column("mass", "of the mass", **PERCENT),
            Column("accuracy", "all images", **PERCENT),
            Column("typical", spurious.typical.removeprefix("the "), **PERCENT),
            Column("others", spurious.other.removeprefix("the "), **PERCENT),
            Column("worst", "worst group", **PERCENT),
        ],
        notes=[
            f"{len(first.classes):,} test images, {int((~first.is_typical).sum()):,} of them with {spurious.other}."
            f" {spurious.explained} Groups are (class, typical or not); the worst is that of lowest accuracy among"
            f" {int((sizes >= min_images).sum())} groups with at least {min_images:,} images"
            + (f" ({n_small} have fewer)" if n_small else "")
            + ".",
            "The features are chosen on training images alone: those whose"
            f" activation varies most with {spurious.carried} among images of one class, beyond how it varies with the"
            " class among images that are alike in that. Random features: as much activation mass (in the mean over"
            f" draws within {EQUAL_WITHIN:.0%} of it; else, or where they are all the others, they are left out), none"
            " of the chosen ones; their numbers are means over draws. The SAE's error stays.",
        ],
    )
    named = name_sizes(removals)
    having = {one.size for one in removals if one.kind == CONTROL}
    lacking = [named[one.size] for one in removals if one.kind == CHOSEN and one.size not in having]
    if lacking and any(one.kind == CONTROL for of in removed for one in of.variants):
        table.notes.append(f"Random features are left out beside the chosen {', '.join(lacking)}.")
    for one in removals:
        size = named[one.size]
        label = {"": "nothing", CHOSEN: f"chosen, {size}", CONTROL: f"random, mass of {size}"}[one.kind]
        table.add_row(label, one.n_latents, one.mass, one.accuracy, one.typical, one.others, one.worst)
    return table


def _find(found: Sequence[Found]) -> Iterator[str]:
    joined, first = join_groups(found), found[0].result
    every = joined.pop(ALL)
    steerable, by_chance = (format_percent(every[key]) for key in ("steerable", "steerable_random"))
    yield (
        f"{steerable} of {len(first.measured):,} features are steerable (one of"
        f" {count_names(first.words, 'words')} rises by more than {first.min_effect:g} nats in at least"
        f" {100 * first.min_share:g}% of {first.n_images:,} test images"
        f" when the feature is set to a high value {found[0].where}), and {by_chance} of random directions of the same"
        f" length; the median effect is {every['effect'].mean:.2f} nats, and {every['effect_random'].mean:.2f} along"
        " random directions."
    )
    yield (
        f"A word that rises need not be predicted: it is in {format_percent(every['taken'])} of the images, before in"
        f" {format_percent(every['taken_before'])}; along random directions in"
        f" {format_percent(every['taken_random'])}, before in {format_percent(every['taken_before_random'])}."
    )
    if joined:
        told = ", ".join(
            f"{name} {format_percent(of['steerable'])} (random directions {format_percent(of['steerable_random'])})"
            for name, of in joined.items()
        )
        yield f"By scope, steerable: {told}."
    counts, _ = count_words(found)
    reached = [word for word, of in zip(first.words, counts, strict=True) if of.mean > 0]
    most = int(np.argmax([of.mean for of in counts]))
    if reached:
        yield (
            f"Features steer to {len(reached):,} of the {len(first.words):,} words, most of them to {first.words[most]}"
            f" ({format_number(counts[most].mean, 1)})."
        )
    lost = every["specificity"].mean
    change = "as decided as" if round(lost, 3) == 0 else f"{'more' if lost > 0 else 'less'} decided than"
    yield (
        f"Predictions are {change} before: of an entropy of {first.before:.3f} of the largest possible one"
        f" {format_signed(lost, 3)} is lost ({format_signed(every['specificity_random'].mean, 3)} along random"
        " directions)."
    )


def _tell_removals(
    removed: Sequence[SuppressionResult], removals: Sequence[Removal], spurious: Spurious
) -> Iterator[str]:
    nothing = removals[0]
    gap = nothing.typical.mean - nothing.others.mean
    yield (
        f"Zero-shot top-1 is {format_percent(nothing.accuracy)}; {format_percent(nothing.typical)} of images with"
        f" {spurious.typical}, {format_percent(nothing.others)} of images with {spurious.other}"
        f" ({format_signed(100 * gap, 1)} points), {format_percent(nothing.worst)} in the worst group."
    )
    for size in dict.fromkeys(one.size for one in removals if one.kind == CHOSEN):
        of = {one.kind: one for one in removals if one.size == size}
        chosen, control = of[CHOSEN], of.get(CONTROL)
        gain = compare_removals(removed, size, "")
        change = {1: "raises", -1: "lowers", 0: "is not seen to change"}[gain.sign]
        n_latents = format_number(chosen.n_latents.mean, 0 if chosen.n_latents.mean % 1 == 0 else 1)
        if not chosen.n_latents.mean:
            yield f"No feature carries {spurious.carried} more than the class, so that none of {size:,} is removed."
            continue
        features = "feature that carries" if n_latents == "1" else f"{n_latents} features that carry"
        sentence = (
            f"Removing the {features} most of {spurious.carried} {change} top-1 on images with"
            f" {spurious.other}: {format_percent(chosen.others)} ({_say_points(gain)});"
            f" {format_percent(chosen.accuracy)} of all, {format_percent(chosen.worst)} in the worst group"
        )
        if control is None:
            if any(one.kind == CONTROL for of_seed in removed for one in of_seed.variants):
                sentence += ". No random features are held against that: "
                if all(leaves_choice(of_seed, size) for of_seed in removed):
                    sentence += f"none drawn have about its mass ({format_percent(chosen.mass)})"
                else:
                    sentence += f"beside its mass ({format_percent(chosen.mass)}) there is none to choose them from"
            yield f"{sentence}."
            continue
        beyond = compare_removals(removed, size, CONTROL)
        verdict = {1: "above", -1: "below", 0: "not told from"}[beyond.sign]
        yield (
            f"{sentence}. That is {verdict} random features of about equal mass ({format_percent(control.mass)},"
            f" chosen {format_percent(chosen.mass)}; {_say_points(beyond)}), without which they are"
            f" {format_percent(control.others)}, {format_percent(control.accuracy)} and"
            f" {format_percent(control.worst)}."
        )


def _summarise(found: Sequence[Found]) -> dict[str, object]:
    first = found[0].result
    return {
        "n_images": first.n_images,
        "n_words": len(first.words),
        "n_measured": len(first.measured),
        "groups": join_groups(found),
        "entropy_before": compute_stat(one.result.before for one in found),
    }


def _say_points(one: Stat) -> str:
    mean, low, high = format_interval(one, 1, 100)
    return f"{mean} points, 95% interval over images {low} to {high}"
