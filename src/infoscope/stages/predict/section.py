"""The section on CLIP's own predictions: the table, reliability, the images that change most, what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from infoscope.predictions.prompts import count_names
from infoscope.predictions.results import PredictionResult
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Cell, Column, Stat, Table, compute_stat, format_number, format_percent
from infoscope.stages.predict.figures import MIN_IMAGES, draw_changed_predictions, draw_reliability
from infoscope.stages.probe.results import (
    KEPT,
    AblationRow,
    Metric,
    Result,
    group_by_variant,
    is_empty,
    tell_unequal_mass,
)
from infoscope.stages.probe.tables import LABEL, MARKS, count_runs, fill_by_mode, summarise_runs

TASK = "predictions"
METRICS = (
    Metric(TASK, "top1", Column("top1", "top-1", **PERCENT)),
    Metric(TASK, "changed", Column("changed", "changed", **PERCENT), False),
    Metric(TASK, "max_prob", Column("max_prob", "confidence", **PERCENT)),
    Metric(TASK, "ece", Column("ece", "ECE", **PERCENT), False),
    Metric(TASK, "entropy", Column("entropy_nats", "entropy", digits=3, unit="nats"), False),
    Metric(TASK, "total_variation", Column("total_variation", "TV", digits=3, optional=True), False),
)
SHARES = (
    Column("n_latents", "latents removed", digits=0, optional=True),
    Column("mass_share_train", "mass", **PERCENT, optional=True),
    Column("energy_share", "energy", **PERCENT, optional=True),
)
ORIGINAL = AblationRow("original", "")


def make_prediction_section(
    results: Mapping[int, PredictionResult],
    pictures: Mapping[int, UInt8[np.ndarray, "size_px size_px 3"]] | None = None,
) -> ReportSection:
    """Return the section on zero-shot predictions.

    Args:
        results: by SAE seed.
        pictures: by position in the test images; the first seed's changed images are shown where they are among them.
    """
    runs = _make_runs(results)
    by_variant = {variant: [run for run in many if not is_empty(run)] for variant, many in runs.items()}
    first_seed = min(results)
    first = results[first_seed]
    figures = {}
    if first.has_labels:
        figures["reliability"] = SectionFigure(
            lambda: draw_reliability(list(results.values())),
            "How often predictions are right at each confidence, before and after a group's features are removed (the"
            " SAE's error kept): on the dashed line they are as right as they are sure. Shaded area: share of the"
            f" predictions; lines: 95% intervals. The 15 bins are joined until each holds {MIN_IMAGES} images.",
        )
    shown = [image for image in first.changed if pictures and image.image_index in pictures]
    if pictures and shown:
        figures["changed_predictions"] = SectionFigure(
            lambda: draw_changed_predictions(shown, first.class_names, pictures),
            f"Test images whose predicted class loses most probability without a group (SAE seed {first_seed}). Below"
            " each: the class before and after with its probability; then by how many nats the log-odds of the old"
            " class against its rival fall without the whole group, and without single features of it.",
        )
    return ReportSection(
        name="predictions",
        title="Predictions and confidence",
        findings=_make_findings(by_variant, first),
        tables={"predictions": _make_table(runs, results)},
        figures=figures,
        summary={
            "n_classes": len(first.class_names),
            "n_images": len(first.image_index),
            "logit_scale": first.logit_scale,
            "variants": [summarise_runs(variant, many, METRICS) for variant, many in runs.items()],
        },
    )


def _make_runs(results: Mapping[int, PredictionResult]) -> dict[AblationRow, list[Result]]:
    """The runs of each variant over seeds and draws, in the order of the table."""
    return group_by_variant(
        [
            {"sae_seed": seed, "variant": variant, "metrics": {TASK: result.metrics(place)}}
            for seed, result in results.items()
            for place, variant in enumerate(result.variants)
        ]
    )


def _make_table(runs: Mapping[AblationRow, Sequence[Result]], results: Mapping[int, PredictionResult]) -> Table:
    first = next(iter(results.values()))
    metrics = [metric for metric in METRICS if first.has_labels or metric.name not in ("top1", "ece")]
    table = Table(
        "predictions",
        "Zero-shot predictions on edited tokens",
        [LABEL, *SHARES, *(metric.column for metric in metrics)],
        notes=[
            f"{len(first.image_index):,} test images, {count_names(first.class_names, 'classes')},"
            f" {count_runs([run for many in runs.values() for run in many])}",
            "Changed: share of predictions unlike those on the original tokens. Confidence: mean probability of the"
            " predicted class. ECE: expected calibration error, 15 bins. TV: mean total-variation distance of the"
            " probabilities from the original ones. Mass: share of the sum of activations on the training images."
            " Energy: share of the squared distance from the mean token that the edit changes, on these images.",
            *tell_unequal_mass(runs, "mass_share_train"),
        ],
        marks=MARKS,
    )
    fill_by_mode(
        table,
        runs,
        lambda filled: [*_share_cells(filled), *(Cell(compute_stat(map(metric.read, filled))) for metric in metrics)],
    )
    return table


def _share_cells(runs: Sequence[Result]) -> list[Cell]:
    if any(run["variant"]["role"] == "original" for run in runs):
        return [Cell()] * len(SHARES)
    return [Cell(compute_stat(run["variant"][column.key] for run in runs)) for column in SHARES]


class _Numbers:
    """Means and spreads by variant, for sentences."""

    def __init__(self, runs: Mapping[AblationRow, Sequence[Result]]) -> None:
        self.runs = runs

    def stat(self, variant: AblationRow, metric: str) -> Stat:
        return compute_stat(run["metrics"][TASK][metric] for run in self.runs.get(variant, ()))

    def mean(self, variant: AblationRow, metric: str) -> float:
        return self.stat(variant, metric).mean

    def has(self, variant: AblationRow) -> bool:
        return bool(self.runs.get(variant))


def _make_findings(runs: Mapping[AblationRow, Sequence[Result]], first: PredictionResult) -> tuple[str, ...]:
    numbers = _Numbers(runs)
    groups = [variant for variant in runs if variant.role == "group" and variant.mode == KEPT]
    findings = [_tell_main(numbers, groups, first)]
    findings += [_compare_with_random(numbers, group) for group in groups if numbers.has(group)]
    for group in groups:
        if not numbers.has(group):
            findings.append(f"The group {group.group!r} has no features in any run: nothing was removed.")
    if first.has_labels:
        findings.append(_tell_calibration(numbers, groups))
    nothing = AblationRow("nothing", "reconstruct")
    if numbers.has(nothing):
        findings.append(
            "The SAE's reconstruction alone, with nothing removed, changes"
            f" {format_percent(numbers.mean(nothing, 'changed'))} of the predictions."
        )
    return tuple(findings)


def _tell_main(numbers: _Numbers, groups: Sequence[AblationRow], first: PredictionResult) -> str:
    n = f"{len(first.image_index):,} test images and {count_names(first.class_names, 'classes')}"
    present = [group for group in groups if numbers.has(group)]
    if not first.has_labels:
        parts = [f"{format_percent(numbers.mean(group, 'changed'))} change {group.label} features" for group in present]
        return f"Of the predictions on {n} (no labels, so no accuracy), {_join(parts)}." if parts else f"{n}."
    before = numbers.mean(ORIGINAL, "top1")
    parts = [
        f"{format_percent(numbers.mean(group, 'top1'))} {group.label} features"
        f" ({format_number(100 * (numbers.mean(group, 'top1') - before), 1, signed=True)} points)"
        for group in present
    ]
    chance = format_percent(1 / len(first.class_names))
    return (
        f"Zero-shot top-1 on {n} is {format_percent(before)} on the original tokens"
        f" (guessing: {chance}){''.join(f', {part}' for part in parts)}."
    )


def _compare_with_random(numbers: _Numbers, group: AblationRow) -> str:
    """Say whether a group changes more predictions than random groups of its mass; within two spreads it does not."""
    mine = numbers.stat(group, "changed")
    random = numbers.stat(AblationRow("control", KEPT, group.group, "mass"), "changed")
    start = f"{group.label.capitalize()} features {format_percent(mine)} of the predictions change"
    confidence = numbers.mean(group, "max_prob") - numbers.mean(ORIGINAL, "max_prob")
    end = f"; mean confidence moves by {format_number(100 * confidence, 1, signed=True)} points."
    if random.n == 0:
        return start + end
    against = f"{format_percent(random)} without random features of the same mass"
    spread = math.hypot(*np.nan_to_num([random.sd, mine.sd]))
    if random.n < 2:
        verdict = "of one random group only, so there is no spread to judge the difference by"
    elif abs(mine.mean - random.mean) <= 2 * spread:
        verdict = "a difference within two standard deviations, so nothing special to this group is seen here"
    else:
        verdict = f"{'more' if mine.mean > random.mean else 'fewer'}, by more than two standard deviations"
    return f"{start}, {against}: {verdict}{end}"


def _tell_calibration(numbers: _Numbers, groups: Sequence[AblationRow]) -> str:
    def tell(variant: AblationRow, name: str) -> str:
        excess = numbers.mean(variant, "max_prob") - numbers.mean(variant, "top1")
        word = "over" if excess > 0 else "under"
        return (
            f"{format_percent(numbers.mean(variant, 'ece'))} {name} (confidence {word} accuracy by"
            f" {format_number(100 * abs(excess), 1)} points)"
        )

    parts = [tell(ORIGINAL, "on the original tokens")]
    parts += [tell(group, f"{group.label} features") for group in groups if numbers.has(group)]
    return f"Expected calibration error: {_join(parts)}."


def _join(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1] if parts else ""
