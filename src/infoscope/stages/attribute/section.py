"""The section on attributions: tables, figures, and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from infoscope.analyses.attribution import GroupShares
from infoscope.analyses.latent_orders import COSINE, DELETION, GRADIENT, INSERTION, METHODS, PROB, RANDOM
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
from infoscope.scope.cds import mean_of_known
from infoscope.scope.partition import name_group
from infoscope.stages.attribute.figures import draw_curves, draw_groups
from infoscope.stages.attribute.numbers import Found, join_images, join_seeds

AREAS = {
    "deletion_prob": (DELETION, PROB),
    "insertion_prob": (INSERTION, PROB),
    "deletion_cosine": (DELETION, COSINE),
    "insertion_cosine": (INSERTION, COSINE),
}
"""The areas under curves, by the key of their column."""
AGREES = 0.8
"""Rank correlation from which gradients are said to agree with exact ablation."""
MAX_CLASSES = 20
"""In the table of groups: of more, those in which the first group has most and least attribution for its activation."""


def make_attribution_section(found: Sequence[Found]) -> ReportSection:
    """Return the section on some SAE seeds, which all have the same test images."""
    shares = [one.result.split(one.groups) for one in found]
    tables = {"attribution": _make_table(found)}
    findings = [_tell_agreement(found), *_tell_deletion(found)]
    figures = {
        "attribution_curves": SectionFigure(
            lambda: draw_curves([one.result for one in found]),
            "Probability (above) and cosine (below) of the image's class while the first latents of an order are"
            " removed (left: lower is better), or while they alone are kept (right: higher is better); the SAE's error"
            " and tokens that it does not read stay. Means over test images and SAE seeds, shades are ± one standard"
            " deviation over seeds.",
        )
    }
    if found[0].groups:
        ratio, names = _compare_classes(shares), found[0].result.class_names
        shown = {of_class: names[of_class] for of_class in _choose_classes(ratio)}
        tables["attribution_groups"] = _make_group_table(found, shares, ratio)
        findings += _tell_groups(shares, ratio, names)
        figures["attribution_groups"] = SectionFigure(
            lambda: draw_groups(shares, shown),
            "What share each group of features has in the size of all attributions towards a class (filled), and in the"
            " activation in the same images (open): means over SAE seeds.",
        )
    return ReportSection(
        name="attribution",
        title="What predictions rest on",
        findings=(*findings, *_tell_alignment(found)),
        tables=tables,
        figures=figures,
        summary=_summarise(found, shares),
    )


def _make_table(found: Sequence[Found]) -> Table:
    first, areas = found[0].result, {key: [one.result.area(*of) for one in found] for key, of in AREAS.items()}
    agreements = [one.result.agreement for one in found]
    table = Table(
        "attribution",
        f"Orders of the latents of an image by what they do for its {first.towards} class",
        [
            Column("order", "by", Align.left),
            Column("agreement", "rank correlation with exact ablation", signed=True),
            Column("deletion_prob", "deletion, probability", digits=3),
            Column("insertion_prob", "insertion, probability", digits=3),
            Column("deletion_cosine", "deletion, cosine", digits=4, optional=True),
            Column("insertion_cosine", "insertion, cosine", digits=4, optional=True),
            *(
                Column(f"{key}_{end}", f"{key}, {end} end of the interval over images", csv_only=True)
                for key in ("agreement", "deletion_prob")
                for end in ("low", "high")
            ),
        ],
        notes=list(_note(found)),
    )
    for name, words in METHODS.items():
        intervals = [compute_stat(join_images(of, name)).interval for of in (agreements, areas["deletion_prob"])]
        table.add_row(
            words,
            join_seeds(agreements, name),
            *(join_seeds(of, name) for of in areas.values()),
            *(end for interval in intervals for end in interval),
        )
    return table


def _note(found: Sequence[Found]) -> Iterator[str]:
    first = found[0].result
    n_ranked = compute_stat(one.result.n_ranked.mean() for one in found).mean
    yield (
        f"{len(first.tested):,} test images, {count_names(first.class_names, 'classes')}, {len(found)} SAE"
        f" seed{'s' * (len(found) != 1)}; in the mean"
        f" {format_number(n_ranked, 0)} latents fire in an image. Deletion: area under the curve of what is left of the"
        " class while the first latents are removed in equal shares, on all tokens that the SAE reads (low: the order"
        " finds what matters); insertion: while they alone are kept (high). The SAE's error stays."
    )
    yield (
        "Gradient x activation: sum over tokens of activation times the derivative of the cosine of image and class by"
        " it; integrated gradients: the same by the mean derivative on the way from tokens without any latent. Exact"
        " ablation: what the cosine loses without the latent alone. Logit lens: cosine of the class's text with the"
        " decoder row as the tower's end would embed it. Activation: sum over tokens, times the norm of the decoder"
        " row. Random order: the gradient attributions shuffled."
    )
    if first.n_groups is not None:
        yield (
            f"Gradients are not those at the tokens as they are: latents of an image are in {first.n_groups} groups of"
            " equal activation, and each has the gradient halfway to the tokens without its group (ours)."
        )


def _make_group_table(
    found: Sequence[Found], shares: Sequence[GroupShares], ratio: Float[np.ndarray, " n_classes"]
) -> Table:
    first, groups = found[0].result, shares[0].groups
    table = Table(
        "attribution_groups",
        f"What groups of features do for the {first.towards} class, and how active they are",
        [
            Column("class", "class", Align.left),
            Column("n_images", "images", digits=0, is_count=True),
            *(
                Column(f"{key}_{group.replace(' ', '_')}", f"{name_group(group)}, {key}", **PERCENT)
                for group in groups
                for key in ("attribution", "activation")
            ),
        ],
    )
    for label, n, key in (
        ("all", first.n_images.sum(), "attribution"),
        ("all, integrated gradients", len(first.tested), "integrated"),
    ):
        numbers = [
            None if of == "mass" and key == "integrated" else compute_stat(getattr(one, of)[i] for one in shares)
            for i in range(len(groups))
            for of in (key, "mass")
        ]
        table.add_row(label, Stat(n, math.nan, 1), *numbers)
    table.add_section()
    for of_class in (chosen := _choose_classes(ratio)):
        numbers = [
            compute_stat(getattr(one, table_of)[of_class, i] for one in shares)
            for i in range(len(groups))
            for table_of in ("by_class", "mass_by_class")
        ]
        table.add_row(first.class_names[of_class], Stat(first.n_images[of_class], math.nan, 1), *numbers)
    table.notes.append(
        "Attribution: share of the group in the sum of the sizes of all attributions towards the class, over the test"
        " images of that class; activation: its share of activation times norm of the decoder row in the same images."
    )
    if (n_left_out := int(np.isfinite(ratio).sum()) - len(chosen)) > 0:
        table.notes.append(
            f"{n_left_out:,} classes are left out: shown are those in which the {name_group(groups[0])} features have"
            " most, and least, attribution for their activation."
        )
    return table


def _compare_classes(shares: Sequence[GroupShares]) -> Float[np.ndarray, " n_classes"]:
    """Return the first group's share of attribution over its share of activation, of each class; NaN without images."""
    attribution, mass = (
        mean_of_known(np.stack([of[:, 0] for of in many]), axis=0)
        for many in ([one.by_class for one in shares], [one.mass_by_class for one in shares])
    )
    return np.divide(attribution, mass, out=np.full(len(mass), np.nan), where=mass > 0)


def _choose_classes(ratio: Float[np.ndarray, " n_classes"]) -> list[int]:
    """Return the classes of the table of groups, most attribution for their activation first."""
    order = [int(i) for i in np.argsort(-ratio, kind="stable") if np.isfinite(ratio[i])]
    half = MAX_CLASSES // 2
    return order if len(order) <= MAX_CLASSES else order[:half] + order[-half:]


def _tell_agreement(found: Sequence[Found]) -> str:
    first, agreements = found[0].result, [one.result.agreement for one in found]
    gradient, shuffled = (compute_stat(join_images(agreements, name)) for name in (GRADIENT, RANDOM))
    if not gradient.n:
        return (
            "Whether gradient attributions agree with exact ablation cannot be told: in no test image do two latents"
            " differ in both."
        )
    if gradient.n == 1:
        return "Whether gradient attributions agree with exact ablation cannot be told from a single test image."
    mean, low, high = format_interval(gradient)
    other, other_low, other_high = format_interval(shuffled)
    if gradient.sign != 1:
        verb = "do not agree with"
    else:
        verb = "agree with" if gradient.mean >= AGREES else "agree only in part with"
    n_ranked = format_number(compute_stat(one.result.n_ranked.mean() for one in found).mean, 0)
    return (
        f"Gradient attributions {verb} exact ablation: over the {n_ranked} latents that fire in an image they rank as"
        f" their ablation does by {mean} (Spearman, mean of {len(first.tested):,} test images, 95% interval over images"
        f" {low} to {high}), shuffled by {other} ({other_low} to {other_high})."
    )


def _tell_deletion(found: Sequence[Found]) -> Iterator[str]:
    areas = {key: [one.result.area(*of) for one in found] for key, of in AREAS.items()}
    deletion = areas["deletion_prob"]
    ranked = sorted(METHODS, key=lambda name: join_seeds(deletion, name).mean)
    told = ", ".join(f"{METHODS[name]} {join_seeds(deletion, name).mean:.3f}" for name in ranked)
    yield f"Area under the deletion curve of the probability, the order that finds most first: {told}."
    for key, words, better in (("deletion_cosine", "Deletion", -1), ("insertion_cosine", "Insertion", 1)):
        worse, alike, best = [], [], []
        own = join_images(areas[key], GRADIENT)
        for name in METHODS:
            if name == GRADIENT:
                continue
            sign = compute_stat(better * (own - join_images(areas[key], name))).sign
            {1: best, 0: alike, -1: worse}[sign].append(METHODS[name])
        parts = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("beat", best), ("are not told from", alike), ("lose to", worse))
            if names
        ]
        yield (
            f"{words}, by the area under the curve of the cosine (95% intervals of differences over images): gradients"
            f" {'; '.join(parts)}."
        )


def _tell_groups(
    shares: Sequence[GroupShares], ratio: Float[np.ndarray, " n_classes"], names: Sequence[str]
) -> Iterator[str]:
    for place, group in enumerate(shares[0].groups):
        attribution, integrated, mass = (
            np.array([getattr(one, key)[place] for one in shares]) for key in ("attribution", "integrated", "mass")
        )
        difference = compute_stat(attribution - mass)
        ends = "{} points, 95% interval over SAE seeds {} to {}; ".format(*format_interval(difference, 1, 100))
        yield (
            f"{name_group(group).capitalize()} features have {format_percent(attribution.mean())} of the attribution"
            f" and {format_percent(mass.mean())} of the activation ({ends * (len(shares) > 1)}by integrated gradients"
            f" {format_percent(integrated.mean())} of the attribution)."
        )
    known = np.isfinite(ratio)
    if not known.any():
        return
    most, least = int(np.nanargmax(ratio)), int(np.nanargmin(ratio))
    yield (
        f"By class, the attribution of {name_group(shares[0].groups[0])} features is {ratio[least]:.2f}"
        f" ({names[least]}) to {ratio[most]:.2f} ({names[most]}) times what their share of the activation says; more"
        f" than that share in {int((ratio[known] > 1).sum())} of {int(known.sum())} classes."
    )


def _tell_alignment(found: Sequence[Found]) -> Iterator[str]:
    n_known = compute_stat(np.isfinite(one.result.alignment).sum() for one in found).mean
    if not n_known:
        yield f"No feature fires in {found[0].result.n_top} test images, so none has a semantic alignment."
        return
    groups = found[0].groups or {"": np.ones(found[0].result.d_sae, dtype=bool)}
    told = ", ".join(
        f"{format_signed(compute_stat(_find_median(one, name) for one in found).mean, 3)} {name_group(name)}".strip()
        for name in groups
    )
    yield (
        f"Semantic alignment (cosine of the mean of a feature's {found[0].result.n_top} top test images with the text"
        f" of their class, minus that with the empty text) is known of {format_number(n_known, 0)} features; median:"
        f" {told}."
    )


def _find_median(one: Found, group: str) -> float:
    """Return the median semantic alignment of a group, or of all features; NaN: none has one."""
    values = one.result.alignment
    known = values[one.groups.get(group, np.ones(len(values), dtype=bool)) & np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def _summarise(found: Sequence[Found], shares: Sequence[GroupShares]) -> dict[str, object]:
    first = found[0].result
    areas = {key: [one.result.area(*of) for one in found] for key, of in AREAS.items()}
    agreements = [one.result.agreement for one in found]
    return {
        "towards": first.towards,
        "n_images": int(first.n_images.sum()),
        "n_tested": len(first.tested),
        "methods": {
            name: {
                "agreement": join_seeds(agreements, name),
                **{key: join_seeds(of, name) for key, of in areas.items()},
            }
            for name in METHODS
        },
        "groups": {
            group: {
                "attribution": compute_stat(one.attribution[i] for one in shares),
                "integrated": compute_stat(one.integrated[i] for one in shares),
                "activation": compute_stat(one.mass[i] for one in shares),
            }
            for i, group in enumerate(shares[0].groups)
        },
    }
