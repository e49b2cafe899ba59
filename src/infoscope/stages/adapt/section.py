"""The section on a model and the adapted one: tables, the figure, what was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from infoscope.analyses.adaptation import ACROSS, ADAPTED, BASE, HALVES, MIN_SETTLED, MIXED, SAME
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Align, Column, Stat, Table, compute_stat, format_number, format_stat
from infoscope.scope.partition import find_extremes, name_group
from infoscope.stages.adapt.figures import draw_adaptation
from infoscope.stages.adapt.numbers import (
    CHANGES,
    Found,
    GroupChanges,
    compute_rate_change,
    compute_rate_correlation,
    count_group,
    count_moves,
    make_quantities,
    summarise_found,
)
from infoscope.stages.score.tables import make_seed_table

MAX_CLASSES = 25
"""Classes in the table and in the figure: those whose latents overlap least."""
MAX_MOVES = 15
"""Pairs of classes in the table of what is remapped."""
MAX_LATENTS = 10
"""Latents of each kind of change in the table."""


def make_adapt_section(found: Sequence[Found], why_no_predictions: str = "") -> ReportSection:
    """Return the section on some SAE seeds.

    Args:
        why_no_predictions: in a sentence, where no head was asked of one of the models.
    """
    groups = list(dict.fromkeys(name for one in found for name in one.scope.partition.groups))
    counted = {name: [count_group(one, one.group(name)) for one in found] for name in groups}
    shown = choose_classes(found)
    tables = {"adapt": make_adapt_table(found), "adapt_groups": _make_group_table(found, counted)}
    if shown:
        tables["adapt_classes"] = _make_class_table(found, shown)
        tables["adapt_moves"] = _make_move_table(found)
        tables["adapt_latents"] = _make_latent_table(found[0])
    seed = found[0].scope.sae_seed
    caption = (
        f"Left: the share of patch tokens on which each latent fires (SAE seed {seed}), in the model and in the adapted"
        " one; on the line nothing changed, rings are remapped latents."
    )
    if shown:
        caption += (
            " Right: the latents of a class in one half of its images against those in the other half (mean over SAE"
            " seeds and halvings): the model sees both, so that chance alone parts them, or the adapted model sees the"
            f" other. At most {MAX_CLASSES} classes, those whose latents overlap least on the same images first."
        )
    figure = SectionFigure(lambda: draw_adaptation(found, shown), caption)
    return ReportSection(
        name="adapt",
        title="The model and the adapted model",
        findings=tuple(_tell(found, counted, why_no_predictions)),
        tables=tables,
        figures={"adapted_rates": figure},
        summary=[{"sae_seed": one.scope.sae_seed, **summarise_found(one)} for one in found],
    )


def make_adapt_table(found: Sequence[Found]) -> Table:
    """Return the table: a row per quantity, a column per SAE seed."""
    first = found[0]
    notes = [
        f"One SAE, trained on the model's tokens, reads those of both models at the same block, of the same"
        f" {first.adaptation.n_images:,} training images; its mean and scale stay, and FVU is from the mean token of"
        " the model."
    ]
    if first.adaptation.has_labels:
        k = first.adaptation.class_latents.shape[2]
        notes.append(
            f"Latents of a class: the {k} that fire strongly on most of its patches. Jaccard: shared latents / latents"
            " in either. Halves: random halves of the images of each class; across: one half in the model, the other in"
            " the adapted one, to be held against halves of the model. Profile: share of each latent in all strong"
            f" firing on a class's patches, mixed with {100 * MIXED:g}% of the mean profile, so that latents new to a"
            " class do not make the KL infinite."
        )
        notes.append(
            f"Class of a latent: on whose patches it fires strongly most often per image. It can be compared where the"
            f" latent fires in {first.n_images} images at least of both models and two random halves of the images"
            f" agree on its class in {100 * MIN_SETTLED:.0f}% of the draws. New: among the latents of some class in the"
            f" adapted model and of none in the model, and it fires more than {first.factor:g} times as often as in the"
            f" model; gone: among those of some class in the model and of none in the adapted one, and it fires less"
            f" than 1/{first.factor:g} times as often, if at all."
        )
    seeds = {one.scope.sae_seed: one for one in found}
    return make_seed_table("adapt", "One SAE on two sets of weights", seeds, make_quantities(found), notes)


def choose_classes(found: Sequence[Found]) -> list[int]:
    """Return the classes that are shown, those whose latents overlap least first."""
    means = [compute_stat(values) for values in zip(*(one.adaptation.jaccard[SAME] for one in found), strict=True)]
    known = [of for of, stat in enumerate(means) if math.isfinite(stat.mean)]
    return sorted(known, key=lambda of: means[of].mean)[:MAX_CLASSES]


def _make_group_table(found: Sequence[Found], counted: dict[str, list[GroupChanges]]) -> Table:
    columns = [
        Column("group", "group", Align.left),
        Column("n", "latents that fire", digits=0, is_count=True),
        Column("rate_change", "change of the rate", digits=2),
    ]
    has_labels = found[0].adaptation.has_labels
    if has_labels:
        columns.append(Column("n_comparable", "comparable", digits=0, is_count=True))
        for name, heading in CHANGES.items():
            columns += [Column(f"n_{name}", heading, digits=1), Column(f"expected_{name}", "expected", digits=1)]
    notes = ["Change of the rate: median of |log2 ratio| of the firing rates in the adapted model and in the model."]
    if has_labels:
        notes.append(
            "Expected: if latents of every group changed alike, comparable ones for remapped, all that fire for new and"
            " gone. Groups differ in their firing rates too."
        )
    table = Table("adapt_groups", "What changed, by scope", columns, notes=notes)
    for name, of in counted.items():
        cells = [compute_stat(one.n for one in of), compute_stat(one.rate_change for one in of)]
        if has_labels:
            cells.append(compute_stat(one.n_comparable for one in of))
            for change in CHANGES:
                cells += [
                    compute_stat(one.found[change] for one in of),
                    compute_stat(one.expected[change] for one in of),
                ]
        table.add_row(name_group(name), *cells)
    return table


def _make_class_table(found: Sequence[Found], shown: Sequence[int]) -> Table:
    columns = [
        Column("class", "class", Align.left),
        Column("n_images", "images", digits=0, is_count=True),
        Column("jaccard", "Jaccard"),
        Column("jaccard_across", "across halves"),
        Column("jaccard_halves", "halves of the model"),
        Column("divergence", "KL"),
        Column("divergence_across", "across halves", optional=True),
        Column("divergence_halves", "halves of the model"),
    ]
    n_classes = len(found[0].adaptation.class_images)
    n_empty = int((found[0].adaptation.class_images == 0).sum())
    of = f"{len(shown)} of {n_classes} classes" + (f", {n_empty} without images" if n_empty else "")
    table = Table("adapt_classes", f"Classes by the overlap of their latents, least first ({of})", columns)
    for label in shown:
        values = {
            name: [
                compute_stat(getattr(one.adaptation, name)[row][label] for one in found)
                for row in (SAME, ACROSS, HALVES)
            ]
            for name in ("jaccard", "divergence")
        }
        n_images = Stat(float(found[0].adaptation.class_images[label]), math.nan, 1)
        table.add_row(found[0].class_names[label], n_images, *values["jaccard"], *values["divergence"])
    return table


def _make_move_table(found: Sequence[Found]) -> Table:
    columns = [
        Column("from", "class before", Align.left),
        Column("to", "after", Align.left),
        Column("n", "latents", digits=1),
        Column("n_of", "of comparable ones of the class before", digits=1, is_count=True),
    ]
    moves = [count_moves(one) for one in found]
    pairs = Counter({pair: n for pair, n in sum(moves, Counter()).items() if pair[0] != pair[1]}).most_common()
    table = Table(
        "adapt_moves",
        "From which class to which latents are remapped, most frequent first",
        columns,
        notes=[f"At most {MAX_MOVES} pairs; mean over SAE seeds."],
        instead="" if pairs else "No latent is remapped.",
    )
    for (before, after), _ in pairs[:MAX_MOVES]:
        of_class = [sum(n for (of, _), n in one.items() if of == before) for one in moves]
        names = (found[0].class_names[label] for label in (before, after))
        table.add_row(*names, compute_stat(one[before, after] for one in moves), compute_stat(of_class))
    return table


def _make_latent_table(found: Found) -> Table:
    columns = [
        Column("change", "change", Align.left),
        Column("latent", "latent", digits=0, is_count=True),
        Column("group", "group", Align.left),
        Column("cds", "CDS", digits=4),
        Column("from", "class before", Align.left),
        Column("to", "after", Align.left),
        Column("rate", "firing rate before", digits=2, scale=100, unit="%"),
        Column("rate_adapted", "after", digits=2, scale=100, unit="%"),
    ]
    table = Table(
        "adapt_latents",
        f"Latents that changed, SAE seed {found.scope.sae_seed}",
        columns,
        notes=[f"At most {MAX_LATENTS} of each kind, those that fire most."],
        instead="" if any(of.any() for of in found.changes) else "No latent is remapped, new or gone.",
    )
    for name, members in found.changes._asdict().items():
        for latent in _find_most(found, members):
            before, after = (_name_class(found, of, latent) for of in (BASE, ADAPTED))
            rates = found.adaptation.token_rate[:, latent].tolist()
            number, group = Stat(float(latent), math.nan, 1), _find_group(found, latent)
            table.add_row(CHANGES[name], number, group, float(found.scope.cds[latent]), before, after, *rates)
    return table


def _find_most(found: Found, members: np.ndarray) -> list[int]:
    latents = np.flatnonzero(members)
    return latents[np.argsort(-found.adaptation.tokens_on[:, latents].sum(0), kind="stable")][:MAX_LATENTS].tolist()


def _name_class(found: Found, of: int, latent: int) -> str:
    label = int(found.adaptation.top_class[of, latent])
    return "none" if label < 0 else found.class_names[label]


def _find_group(found: Found, latent: int) -> str:
    groups = found.scope.partition.groups
    return next((name_group(name) for name, members in groups.items() if members[latent]), "unscored")


def _tell(found: Sequence[Found], counted: dict[str, list[GroupChanges]], why_no_predictions: str) -> Iterator[str]:
    first, numbers = found[0], [summarise_found(one) for one in found]

    def write(key: str, digits: int = 2, scale: float = 1.0) -> str:
        return format_stat(compute_stat(one[key] for one in numbers), digits, scale)  # pyright: ignore[reportArgumentType]

    correlation = format_stat(compute_stat(map(compute_rate_correlation, found)), 2)
    change = 2 ** compute_stat(map(compute_rate_change, found)).mean
    yield (
        f"Half of the latents fire at most {format_number(change, 2)} times as often in one model as in the other (rank"
        f" correlation of the rates {correlation}); the SAE leaves {write('fvu_adapted', 1, 100)}% of the variance of"
        f" the adapted model's test tokens unexplained, and {write('fvu', 1, 100)}% of the model's."
    )
    if first.adaptation.has_labels:
        yield from _tell_classes(found, write)
        yield from _tell_moves(found)
        yield from _tell_groups(counted)
    else:
        yield "The images have no labels, so there are rates alone: no latents of classes, none that are remapped."
    if all(one.has_predictions for one in found):
        yield (
            f"Zero-shot top-1 on {len(first.fidelity[BASE].image_index):,} test images is {write('top1', 1, 100)}% with"
            f" the model and {write('top1_adapted', 1, 100)}% with the adapted one."
        )
    else:
        yield f"Zero-shot predictions were not compared: {why_no_predictions}"


def _tell_classes(found: Sequence[Found], say: Callable[..., str]) -> Iterator[str]:
    k = found[0].adaptation.class_latents.shape[2]
    yield (
        f"Of the {k} latents of a class, both models share a Jaccard index of {say('jaccard')} on the same images."
        f" Across halves of the images it is {say('jaccard_across')}, and {say('jaccard_halves')} where both halves are"
        " seen by the model, which is what chance alone leaves."
    )
    n_comparable, factor = say("n_comparable", 0), f"{found[0].factor:g}"
    remapped = (
        f"{say('n_remapped', 0)} of {n_comparable} latents whose class can be compared are remapped to another class"
        f" ({say('n_remapped_halves', 1)} between halves of the model's images)"
    )
    yield (
        f"{'No latent has a class that can be compared' if n_comparable == '0' else remapped}; {say('n_new', 0)} are"
        f" new (latents of a class in the adapted model alone, firing over {factor} times as often),"
        f" {say('n_gone', 0)} are gone (latents of a class in the model alone, firing under 1/{factor} times as often,"
        " if at all)."
    )


def _tell_moves(found: Sequence[Found]) -> Iterator[str]:
    """Say of which class most latents were before and are now, and whose profile changes most and least."""
    names, n = found[0].class_names, len(found)
    moved = Counter({pair: n for pair, n in sum(map(count_moves, found), Counter()).items() if pair[0] != pair[1]})
    if moved:
        before, after = Counter(), Counter()
        for (one, other), count in moved.items():
            before[one] += count
            after[other] += count
        (most_before, n_before), (most_after, n_after) = before.most_common(1)[0], after.most_common(1)[0]
        yield (
            f"Of the remapped ones most were of {names[most_before]} ({format_number(n_before / n, 1)} of"
            f" {format_number(sum(moved.values()) / n, 1)}), and most are now of {names[most_after]}"
            f" ({format_number(n_after / n, 1)})."
        )
    means = [compute_stat(of).mean for of in zip(*(one.adaptation.divergence[SAME] for one in found), strict=True)]
    known = [label for label, mean in enumerate(means) if math.isfinite(mean)]
    if len(known) > 1:
        most, least = max(known, key=lambda label: means[label]), min(known, key=lambda label: means[label])
        yield (
            f"The profile of {names[most]} changes most (KL {format_number(means[most], 3)} nats), that of"
            f" {names[least]} least ({format_number(means[least], 3)})."
        )


def _tell_groups(counted: dict[str, list[GroupChanges]]) -> Iterator[str]:
    """Say at which end of the scores latents are remapped more than their number lets expect."""
    if len(counted) < 2 or not any(one.n_comparable for of in counted.values() for one in of):
        return
    parts = []
    for name in reversed(find_extremes(counted)):
        n, expected = (
            compute_stat(of["remapped"] for of in values).mean
            for values in ([one.found for one in counted[name]], [one.expected for one in counted[name]])
        )
        parts.append(f"{format_number(n, 1)} {name_group(name)} ones ({format_number(expected, 1)} expected)")
    yield f"By scope, remapped are {' and '.join(parts)}, if all groups were remapped alike."
