"""What the numbers on single features and on matched groups say, in sentences: what is found, and what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infoscope.report.tables import LEVEL, compute_stat, format_number
from infoscope.scope.config import By
from infoscope.scope.matching import MATCHINGS, name_matched
from infoscope.scope.partial_ranks import Estimate
from infoscope.scope.partition import ENDS, find_ends, name_group
from infoscope.stages.effects.numbers import SCORES, Said, compare_scores
from infoscope.stages.probe.against_random import WORDS, Excess, compare_runs
from infoscope.stages.probe.results import MAIN_METRICS, Result, group_by_variant, is_empty, present_metrics

TASKS = {
    "classification/patch_mean": "classification, mean patch",
    "classification/cls_final": "classification, final CLS",
    "classification/cls_layer": "classification, CLS at the layer",
    "segmentation": "segmentation",
    "depth": "depth",
}
"""In words."""


def say_effects(said: Mapping[str, Mapping[str, Said]]) -> list[str]:
    """Say what the CDS tells of effects beyond the other properties, and whether the other scores tell more or less."""
    if partial := _say_partial(said):
        return [partial, *_compare_scores(said)]
    return ["Too few features are scored to say what the score tells of the effects of single features."]


def _say_partial(said: Mapping[str, Mapping[str, Said]]) -> str:
    """Name the tasks for which the CDS goes with the effect, by its sign, and those for which that is undecided."""
    parts: dict[str, list[str]] = {
        "the more scope a feature has, the less its removal costs": [],
        "the more scope a feature has, the more its removal costs": [],
        "whether scope goes with what removal costs is undecided": [],
    }
    for task, of in said.items():
        partial = of["cds"].partial
        if math.isfinite(partial.value):
            place = (partial.value > 0) if partial.is_decided else 2
            [*parts.values()][place].append(f"{TASKS[task]} ({_write_numbers(partial)})")
    text = "; ".join(f"{words}: {', '.join(of)}" for words, of in parts.items() if of)
    brackets = "In brackets: partial rank correlation of CDS and effect, 95% interval over features, the SAEs given."
    return f"At equal frequency, peak, support and mass {text}. {brackets}" if text else ""


def _compare_scores(said: Mapping[str, Mapping[str, Said]]) -> list[str]:
    """Say of each task how much the CDS adds to the other properties, and what that is against the other scores."""
    sentences = []
    for task, of in said.items():
        parts = []
        for name, lead in compare_scores(of).items():
            words = ("more than" if lead.value > 0 else "less than") if lead.is_decided else "not told from"
            if math.isfinite(lead.value):
                parts.append(f"{words} {SCORES[name]} ({_write_numbers(lead, 3)})")
        if parts:
            added = format_number(of["cds"].added.value, 3)
            sentences.append(f"R² that CDS adds to these four for {TASKS[task]}: {added}, {', '.join(parts)}.")
    return sentences or ["No score can be held against another."]


def _write_numbers(of: Estimate, digits: int = 2) -> str:
    """ "+0.21, +0.03 to +0.39"."""
    value, low, high = (format_number(number, digits, signed=True) for number in of)
    return f"{value}, {low} to {high}"


def say_matched(results: Sequence[Result]) -> list[str]:
    """Say what removing low scope costs beyond removing high scope where both are alike, a sentence per matching."""
    runs = {variant.group or "": many for variant, many in group_by_variant(results, matched=True).items()}
    above, below = find_ends([group.split(", ")[0] for group in runs]) or ENDS[By.cds]
    sentences, known, unknown = [], [], []
    for matching in MATCHINGS:
        low, high = (runs.get(name_matched(name, matching), []) for name in (below, above))
        filled = [run for run in low if not is_empty(run)]
        if not filled:
            of_above, of_below = name_group(above), name_group(below)
            sentences.append(f"No {of_above} feature could be matched with a {of_below} one in {matching}.")
            continue
        n = format_number(compute_stat(run["variant"]["n_latents"] for run in filled).mean, 0)
        excess = [compare_runs(of, below, above, low, high) for of in present_metrics(filled, MAIN_METRICS)]
        if words := _say_excess(excess):
            known.append(f"Matched in {matching} ({n} features in each group), {words}.")
        else:
            unknown.append(f"in {matching} ({n} features in each group)")
    if known:
        brackets = f"difference between the two with its {LEVEL:.0%} interval over SAE seeds (t, each by itself)"
        sentences += [*known, f"In brackets: {brackets}."]
    if unknown:
        sentences.append(f"One SAE seed does not tell scope from chance in groups matched {'; '.join(unknown)}.")
    return sentences


def _say_excess(excess: Sequence[Excess]) -> str:
    """Say in which metrics removing low scope costs more, or less, than removing high scope; "": nothing is known."""
    parts = []
    for sign, words in WORDS.items():
        if of := [f"{one.metric.column.heading} ({one.in_words})" for one in excess if one.sign == sign]:
            parts.append(f"{words} removing {name_group(excess[0].control)} ones in {', '.join(of)}")
    return f"removing {name_group(excess[0].group)} features {'; it '.join(parts)}" if parts else ""
