"""What the numbers on single features and on matched groups say, in sentences: what is found, and what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infoscope.report.tables import compute_stat, format_number
from infoscope.scope.matching import MATCHINGS, name_matched
from infoscope.scope.partial_ranks import Estimate
from infoscope.stages.effects.numbers import SCORES, Said, compare_scores
from infoscope.stages.probe.results import (
    MAIN_METRICS,
    Result,
    find_originals,
    group_by_variant,
    is_empty,
    present_metrics,
    read_difference,
)

TASKS = {
    "classification/patch_mean": "classification, mean patch",
    "classification/cls_final": "classification, final CLS",
    "classification/cls_layer": "classification, CLS at the layer",
    "segmentation": "segmentation",
    "depth": "depth",
}
"""In words."""


def say_effects(said: Mapping[str, Mapping[str, Said]], per_mass: Mapping[str, Mapping[str, Said]]) -> list[str]:
    """Say what the CDS tells of effects beyond the other properties, and which of the scores tells most."""
    equal = "at equal frequency, peak, support and mass"
    sentences = [
        _say_partial(said, f"The more scope a feature has, the %s its removal costs {equal}"),
        _say_partial(per_mass, f"Per unit of mass it costs the %s {equal}"),
    ]
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        return ["Too few features are scored to say what the score tells of the effects of single features."]
    return [*sentences, *_say_best(said)]


def _say_partial(said: Mapping[str, Mapping[str, Said]], beginning: str) -> str:
    """Name the tasks for which the CDS goes with the effect, by its sign, and those for which that is undecided."""
    parts: dict[str, list[str]] = {"less": [], "more": [], "undecided": []}
    for task, of in said.items():
        partial = of["cds"].partial
        if math.isfinite(partial.value):
            sign = ("more" if partial.value > 0 else "less") if partial.is_decided else "undecided"
            parts[sign].append(f"{TASKS[task]} {write_estimate(partial)}")
    if not any(parts.values()):
        return ""
    text = [f"{beginning % sign}: {', '.join(parts[sign])}" for sign in ("less", "more") if parts[sign]]
    if parts["undecided"]:
        text.append(f"Undecided: {', '.join(parts['undecided'])}")
    return f"{'. '.join(text)}. (Partial rank correlation of CDS and effect, 95 % interval over features.)"


def _say_best(said: Mapping[str, Mapping[str, Said]]) -> list[str]:
    """Say of each task which of the scores adds most to the other properties, and whether that is decided."""
    sentences = []
    for task, of in said.items():
        best, leads = compare_scores(of)
        if not leads or not math.isfinite(of[best].added.value):
            continue
        by = " and ".join(f"{write_estimate(lead, 3)} more than {SCORES[name]}" for name, lead in leads.items())
        verdict = "" if all(lead.low > 0 for lead in leads.values()) else ", but that is undecided"
        sentences.append(
            f"Of the scores {SCORES[best]} tells most of the effects on {TASKS[task]} beyond the other properties"
            f"{verdict}: R² added {format_number(of[best].added.value, 3)}, {by}."
        )
    return sentences or ["No score can be held against another."]


def write_estimate(of: Estimate, digits: int = 2) -> str:
    """Return a number with its interval."""
    value, low, high = (format_number(number, digits, signed=True) for number in of)
    return f"{value} ({low} to {high})"


def say_matched(results: Sequence[Result]) -> list[str]:
    """Say what removal costs where both groups are alike, a sentence for each matching."""
    return [_say_one_matching(results, matching) for matching in MATCHINGS]


def _say_one_matching(results: Sequence[Result], matching: str) -> str:
    runs = {variant.group: many for variant, many in group_by_variant(results, matched=True).items()}
    groups = {
        name: [r for r in runs.get(name_matched(name, matching), []) if not is_empty(r)] for name in ("high", "low")
    }
    if not all(groups.values()):
        return f"No high-scope feature could be matched with a low-scope one in {matching}."
    originals, parts, n_low_costs = find_originals(results), [], 0
    for metric in present_metrics(results, MAIN_METRICS):
        sign, column = (1 if metric.higher_is_better else -1), metric.column
        changes = [[read_difference(run, originals, metric) for run in groups[name]] for name in ("high", "low")]
        high, low = (compute_stat(values).mean for values in changes)
        if math.isfinite(high + low):
            n_low_costs += sign * low < sign * high
            without = [format_number(column.scale * value, column.digits, signed=True) for value in (low, high)]
            unit = "points" if column.unit == "%" else column.unit
            parts.append(f"{column.heading} {without[0]} without low-scope, {without[1]} without high-scope {unit}")
    if not parts:
        return f"Matched in {matching}, nothing was measured against the original tokens."
    n = compute_stat(run["variant"].get("n_latents") for run in groups["low"]).mean
    return (
        f"Matched in {matching} ({format_number(n, 0)} features in each group): {'; '.join(parts)}. Removing the"
        f" low-scope ones costs more in {n_low_costs} of {len(parts)} metrics."
    )
