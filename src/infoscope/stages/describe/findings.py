"""What the numbers on features say, in sentences: what is found, and what the data cannot give."""

from __future__ import annotations

import math

from infoscope.analyses.config import DescribeConfig
from infoscope.report.tables import compute_stat, format_number
from infoscope.scope.partition import find_extremes, name_group
from infoscope.stages.describe.numbers import (
    ALL,
    Seeds,
    compute_chance,
    compute_median,
    compute_permuted,
    compute_uniqueness,
    count_class_latents,
    is_by_labels,
    list_scored,
    name_highest,
    name_measure,
    name_places,
)


def say_features(seeds: Seeds, config: DescribeConfig, judge: str, others: str = "") -> list[str]:
    """Say what features are: how alike their images, of which labels, how unique; and what is not known.

    Args:
        judge: the name of the model that says how alike images are. others: as of `make_describe_section`.
    """
    first = seeds[0].description
    if not any(found.description.fires_enough.any() for found in seeds):
        return [
            f"No feature fires in at least {first.n_label_images} of the {first.n_images:,} training images, so that"
            " none can be described."
        ]
    findings = [_say_alike(seeds, judge, others)]
    if first.label_entropy is None:
        findings.append(
            "The data know no classes, so there are no label entropies, no class-level latents and no hierarchy."
        )
    else:
        findings += [_say_entropy(seeds), _say_class_latents(seeds, config)]
        if first.tree_depth is None:
            findings.append(
                "There is no hierarchy of the classes: describe.tree=FILE gives one, with a line `parent child` for"
                " each edge."
            )
        else:
            findings.append(f"{_compare(seeds, 'tree_depth', 2)}; 0: two images have no more than the root in common.")
    return [*findings, _say_unique(seeds, config)]


def _compare(seeds: Seeds, measure: str, digits: int = 3) -> str:
    """Say the medians of a measure, of the groups at both ends of the scores and of all, beside chance."""
    groups, shown = list_scored(seeds), [ALL]
    if groups:
        shown = [*find_extremes(groups), ALL]
    by_labels = is_by_labels(seeds, measure)
    parts = []
    for group in shown:
        text = f"{name_group(group)} {'' if group == ALL else 'features '}"
        text += format_number(compute_median(seeds, measure, group).mean, digits)
        if by_labels:
            text += f" (labels permuted {format_number(compute_permuted(seeds, measure, group).mean, digits)})"
        parts.append(text)
    name = name_measure(seeds, measure)
    random = compute_chance(seeds, measure)
    text = f"{name[0].upper()}{name[1:]}, median: {', '.join(parts)}"
    return text if random is None else f"{text}; images at random {format_number(random, digits)}"


def _say_alike(seeds: Seeds, judge: str, others: str) -> str:
    text = f"{_compare(seeds, 'ms')}, judged by {judge}."
    if others:
        text += f" So the model judges its own features; another one ({others}) judges from outside."
    return text


def _say_entropy(seeds: Seeds) -> str:
    if max(seeds[0].description.class_images or [0]) < 2:
        return "No class has two training images, so that labels say what permuted ones do: nothing is told of classes."
    return (
        f"{_compare(seeds, 'label_entropy', 2)}. The further it is below that with permuted labels, the more the"
        " images on which a feature fires most are of one class."
    )


def _say_class_latents(seeds: Seeds, config: DescribeConfig) -> str:
    group = name_highest(seeds) if list_scored(seeds) else None
    counts = [count_class_latents(found, group) for found in seeds]
    n_held = compute_stat(of.n_held for of in counts).mean
    n_everywhere = compute_stat(of.n_everywhere for of in counts).mean
    n_classes = sum(n > 0 for n in seeds[0].description.class_images or [])
    share = compute_stat(compute_stat(of.share).mean for of in counts)
    expected = compute_stat(of.by_patches for of in counts)
    if not n_held:
        return (
            f"Classes have no latents: no activation is above describe.strong_above={config.strong_above:g}, in the"
            " SAE's own units."
        )
    text = (
        f"The {config.n_class_latents} latents of each of the {n_classes} classes, those that fire strongly on most of"
        f" its {name_places(seeds)}, are {format_number(n_held, 0)} different ones,"
        f" {format_number(n_everywhere, 0)} of which every class has."
    )
    if group is not None and math.isfinite(share.mean) and math.isfinite(expected.mean):
        text += (
            f" {share.mean:.0%} of a class's are {name_group(group)}, against {expected.mean:.0%} expected of latents"
            " that are drawn by the patches on which they fire strongly."
        )
    return text


def _say_unique(seeds: Seeds, config: DescribeConfig) -> str:
    overlap, shares = compute_uniqueness(seeds)
    if not math.isfinite(overlap.mean):
        return "There are no two features whose top images could be compared."
    random = compute_chance(seeds, "top_overlap") or 0.0
    return (
        f"Uniqueness: the top {config.n_top_images} images of two features overlap by {overlap.mean:.2%} in the mean"
        f" (Jaccard index; sets at random {random:.2%}), by more than half in {shares[5].mean:.2%} of pairs;"
        f" {1 - shares[0].mean:.0%} share no image."
    )
