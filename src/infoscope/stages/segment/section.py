"""The section on latents as masks of labels: tables, figures, what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from infoscope.analyses.segment_result import N_DRAWS, N_SIMILAR, LabelResult, Segmentation
from infoscope.data.images import ImageSet
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Column, Stat, Table, compute_stat, format_percent
from infoscope.scope.partition import find_extremes, name_group
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.segment.figures import MAX_LABELS, draw_label_ious, draw_masks, pick_shown

GROUPED = "best_{}"


class Found(NamedTuple):
    """What was found of one SAE seed."""

    scope: ScopeResult
    segmentation: Segmentation

    @property
    def told(self) -> list[LabelResult]:
        """What is told of each label."""
        return self.segmentation.tell(self.scope.partition.groups)

    def find_group(self, latent: int) -> str:
        """Return the name of a latent's group."""
        groups = self.scope.partition.groups
        return next((name_group(name) for name, members in groups.items() if members[latent]), "unscored")


def make_segment_section(found: Sequence[Found], images: ImageSet, size_px: int) -> ReportSection:
    """Return the section on some SAE seeds.

    Args:
        images: the test images, for the figure of masks.
        size_px: side at which they are shown.
    """
    told, first = [one.told for one in found], found[0]
    names = first.segmentation.label_names
    by_label = {
        label: [one for of_seed in told for one in of_seed if one.label == label]
        for label in sorted({one.label for of_seed in told for one in of_seed})
    }
    groups = _list_groups(found)
    shown = pick_shown(told[0])
    seed = first.scope.sae_seed
    figures = {
        "label_iou": SectionFigure(
            lambda: draw_label_ious(by_label, names, groups),
            "IoU on test images of the latent that is the best mask of each label on training images, of all latents"
            f" and of each group (mean over SAE seeds; at most {MAX_LABELS} labels, those of largest IoU). Similar:"
            " other latents of the same firing rate.",
        ),
        "label_masks": SectionFigure(
            lambda: draw_masks(first.segmentation, shown, images, size_px),
            f"The latents that mask a label best (SAE seed {seed}) on the test images with most of it, whatever their"
            " maps are like there. Outlined: the label; red: where the latent fires, the redder the more strongly.",
        ),
    }
    return ReportSection(
        name="segment",
        title="Latents as masks of labels",
        findings=_make_findings(found, told, by_label, groups),
        tables={
            "segment": _make_table(found, by_label, names, groups),
            "segment_groups": _make_group_table(found, told, groups),
            "segment_latents": _make_latent_table(first, told[0]),
        },
        figures=figures if told[0] else {},
        summary=_summarise(found, by_label, names, groups),
    )


def _list_groups(found: Sequence[Found]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one.scope.partition.groups))


def _stats(results: Sequence[LabelResult], groups: Sequence[str]) -> dict[str, Stat]:
    """Return the numbers of the table over some results; a group's are NaN where it is empty."""
    return {
        "everywhere": compute_stat(one.everywhere for one in results),
        "iou_train": compute_stat(one.train for one in results),
        "iou_test": compute_stat(one.test for one in results),
        "iou_pixels": compute_stat(one.pixels for one in results),
        "similar": compute_stat(one.similar.mean for one in results),
        **{GROUPED.format(name): compute_stat(one.groups.get(name, math.nan) for one in results) for name in groups},
    }


def average_labels(told: Sequence[LabelResult], groups: Sequence[str]) -> dict[str, float]:
    """Return the mean over labels of each number of the table, of one SAE seed."""
    return {key: stat.mean for key, stat in _stats(told, groups).items()}


def _make_table(
    found: Sequence[Found],
    by_label: dict[int, list[LabelResult]],
    names: Sequence[str],
    groups: Sequence[str],
) -> Table:
    columns = [
        Column("label", "label", Align.left),
        Column("everywhere", "everywhere", optional=True, **PERCENT),
        Column("iou_train", "train", optional=True, **PERCENT),
        Column("iou_test", "IoU", **PERCENT),
        Column("iou_pixels", "in pixels", **PERCENT),
        Column("similar", "similar", **PERCENT),
        *(Column(GROUPED.format(name), f"best {name_group(name)}", **PERCENT) for name in groups),
    ]
    n_labels, n_lacking = len(names), len(names) - len(by_label)
    lacking = f" {n_lacking} of {n_labels} labels have no latent." if n_lacking else ""
    table = Table(
        "segment",
        "IoU of the best latent's thresholded map with each label",
        columns,
        notes=[
            f"Latent and threshold are chosen on training images; all but 'train' is measured on test images. IoU: sum"
            f" of intersections over sum of unions, of the patches of all images; mean over SAE seeds.{lacking}",
            "Everywhere: of a mask that covers every picture. Similar: mean of the"
            f" {N_SIMILAR} other latents whose firing rate is nearest, each at its own best threshold.",
        ],
    )
    means = [average_labels(one.told, groups) for one in found]
    table.add_row("mean over labels", *(compute_stat(one[key] for one in means) for key in means[0]))
    table.add_section()
    for label, results in by_label.items():
        table.add_row(names[label], *_stats(results, groups).values())
    return table


def _make_group_table(found: Sequence[Found], told: Sequence[Sequence[LabelResult]], groups: Sequence[str]) -> Table:
    columns = [
        Column("group", "group", Align.left),
        Column("n_latents", "latents", digits=0, is_count=True),
        Column("firing_rate", "median firing rate", digits=2, scale=100, unit="%", optional=True),
        Column("iou_test", "IoU of its best latent", **PERCENT),
        Column("iou_equal", "of the best of equally many", **PERCENT),
        Column("iou_matched", "that fire equally often", **PERCENT),
        Column("n_best", "labels whose best latent it holds", digits=1),
    ]
    table = Table(
        "segment_groups",
        "Labels by the best latent of each group",
        columns,
        notes=[
            "IoU on test images, mean over labels. The best of more latents is better by chance alone, and firing rates"
            " differ between the groups. Equally many: as many of each group, drawn at random, as the smallest one has."
            " That fire equally often: as many of either group in every bin of firing rate. Both are means of"
            f" {N_DRAWS} draws.",
        ],
    )
    for name in groups:
        members = [one.scope.partition.groups.get(name, np.zeros(len(one.scope.cds), dtype=bool)) for one in found]
        table.add_row(
            name_group(name),
            compute_stat(of.sum() for of in members),
            compute_stat(
                np.median(one.segmentation.firing_rate[of]) if of.any() else math.nan
                for one, of in zip(found, members, strict=True)
            ),
            compute_stat(compute_stat(one.groups.get(name) for one in of_seed).mean for of_seed in told),
            compute_stat(compute_stat(one.equal.get(name) for one in of_seed).mean for of_seed in told),
            compute_stat(compute_stat(one.matched.get(name) for one in of_seed).mean for of_seed in told),
            compute_stat(
                sum(bool(of[one.latent]) for one in of_seed) for of, of_seed in zip(members, told, strict=True)
            ),
        )
    return table


def _make_latent_table(found: Found, told: Sequence[LabelResult]) -> Table:
    columns = [
        Column("label", "label", Align.left),
        Column("latent", "latent", digits=0, is_count=True),
        Column("threshold", "threshold", digits=3),
        Column("cds", "CDS", digits=4),
        Column("group", "group", Align.left),
        Column("firing_rate", "firing rate", digits=2, scale=100, unit="%", optional=True),
        Column("iou_test", "IoU", **PERCENT),
    ]
    table = Table("segment_latents", f"The best latents, SAE seed {found.scope.sae_seed}", columns)
    for one in told:
        cds, rate = (float(of[one.latent]) for of in (found.scope.cds, found.segmentation.firing_rate))
        name, group = found.segmentation.label_names[one.label], found.find_group(one.latent)
        table.add_row(name, Stat(one.latent, math.nan, 1), one.threshold, cds, group, rate, one.test)
    return table


def _make_findings(
    found: Sequence[Found],
    told: Sequence[Sequence[LabelResult]],
    by_label: dict[int, list[LabelResult]],
    groups: Sequence[str],
) -> tuple[str, ...]:
    if not by_label:
        return ("No label has a latent that fires on it in a training image.",)
    names = found[0].segmentation.label_names
    means = [average_labels(of_seed, groups) for of_seed in told]
    test, pixels, similar, everywhere = (
        compute_stat(one[key] for one in means).mean for key in ("iou_test", "iou_pixels", "similar", "everywhere")
    )
    stats = {label: compute_stat(one.test for one in results).mean for label, results in by_label.items()}
    known = {label: iou for label, iou in stats.items() if math.isfinite(iou)}
    findings = [
        f"Chosen on training images, the best latent of a label has on test images an IoU of {format_percent(test)}"
        f" with it ({format_percent(pixels)} in pixels; mean over labels), against {format_percent(similar)} of latents"
        f" of the same firing rate and {format_percent(everywhere)} of a mask that covers everything."
    ]
    if len(known) > 1:
        best, worst = max(known, key=lambda label: known[label]), min(known, key=lambda label: known[label])
        findings.append(
            f"{names[best].capitalize()} is masked best (IoU {format_percent(known[best])}), {names[worst]} worst"
            f" ({format_percent(known[worst])})."
        )
    no_better = [
        names[label] for label in known if known[label] <= compute_stat(one.everywhere for one in by_label[label]).mean
    ]
    if no_better:
        of = f"({len(no_better)} of {len(known)} labels)"
        findings.append(f"No better than a mask that covers everything: {', '.join(no_better)} {of}.")
    return (*findings, *_compare_groups(told, groups))


def _compare_groups(told: Sequence[Sequence[LabelResult]], groups: Sequence[str]) -> list[str]:
    """Say which end of the scores holds the better masks, among latents that fire equally often if there are any."""
    high, low = find_extremes(groups)
    results = [one for of_seed in told for one in of_seed]
    for which, words in (
        ("matched", "Of equally many latents of either group that fire equally often"),
        ("equal", "Of equally many latents of either group"),
    ):
        found = [(getattr(one, which).get(low, math.nan), getattr(one, which).get(high, math.nan)) for one in results]
        pairs = [pair for pair in found if math.isfinite(sum(pair))]
        if low == high or not pairs:
            continue
        of_low, of_high = (float(np.mean(values)) for values in zip(*pairs, strict=True))
        n_low = sum(a > b for a, b in pairs)
        return [
            f"{words}, the best {name_group(low)} one has an IoU of {format_percent(of_low)} and the best"
            f" {name_group(high)} one {format_percent(of_high)} (mean over labels); the {name_group(low)} one is better"
            f" for {n_low} of {len(pairs)} labels{' and SAE seeds' if len(told) > 1 else ''}."
        ]
    return ["Which scope masks labels better is not known: a group is empty."]


def _summarise(
    found: Sequence[Found],
    by_label: dict[int, list[LabelResult]],
    names: Sequence[str],
    groups: Sequence[str],
) -> dict[str, object]:
    means = [average_labels(one.told, groups) for one in found]
    return {
        "mean": {key: compute_stat(one[key] for one in means) for key in means[0]},
        "labels": {names[label]: _stats(results, groups) for label, results in by_label.items()},
        "thresholds": found[0].segmentation.thresholds.tolist(),
    }
