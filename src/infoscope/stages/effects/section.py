"""The section on effects: what the score says of single features beyond their frequency, and groups matched in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infoscope.probes.latent_effects import LatentEffects
from infoscope.report.section import ReportSection
from infoscope.report.tables import Align, Column, Table, format_number
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.matching import CALIPER, PROPERTIES, Pair
from infoscope.scope.partial_ranks import MIN_LATENTS, N_BOOTSTRAP
from infoscope.scope.partition import ENDS, name_group
from infoscope.stages.effects.findings import TASKS, say_effects, say_matched
from infoscope.stages.effects.numbers import OTHERS, SCORES, Matched, Said, judge_matching, predict_effects
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.tables import make_matched_table
from infoscope.stages.score.result import ScopeResult

UNITS = {"classification": "nats per image", "segmentation": "nats per pixel", "depth": "m^2 per pixel"}
"""Of the effects on a task."""


def name_column(task: str) -> str:
    """Return the column of the table of latents that holds the effects on a task."""
    return f"effect_{task.rpartition('/')[2]}"


def make_effect_section(
    effects: Sequence[LatentEffects],
    tables: Sequence[LatentTable],
    scopes: Sequence[ScopeResult],
    results: Sequence[Result],
    matched: Sequence[Mapping[str, Pair]],
) -> ReportSection:
    """Return the section of some SAE seeds.

    Args:
        tables: what is known of each latent, with the effects among it.
        results: as for the removal tables; those of matched groups have their table here.
        matched: the groups of `judge_matching`.
    """
    tasks = list(effects[0].effects)
    said = {task: predict_effects(tables, name_column(task)) for task in tasks}
    shown, findings = {"effects": _make_table(said)}, say_effects(said)
    if matching := judge_matching(scopes, tables, matched):
        shown["matching"] = _make_matching_table(matching, ENDS[scopes[0].by])
    if (removal := make_matched_table(results)) is not None:
        shown["removal_matched"] = removal
        findings += say_matched(results)
    return ReportSection(
        name="effects",
        title="Is it the score, or how often a feature fires?",
        findings=tuple(findings),
        tables=shown,
        summary={
            "effects": {task: _summarise(of) for task, of in said.items()},
            "losses": [dict(of.losses) for of in effects],
        },
    )


def _summarise(said: Mapping[str, Said]) -> dict[str, dict[str, object]]:
    return {
        name: {
            "spearman": of.spearman.value,
            "partial": of.partial._asdict(),
            "added": of.added._asdict(),
            "n": of.n.mean,
        }
        for name, of in said.items()
    }


def _make_table(said: Mapping[str, Mapping[str, Said]]) -> Table:
    """Return the table of correlations, a section for each task."""
    columns = [
        Column("property", "property", Align.left),
        Column("spearman", "Spearman", signed=True),
        Column("partial", "given the others", signed=True),
        Column("partial_low", "95 % from", signed=True),
        Column("partial_high", "to", signed=True),
        Column("added", "R² added", digits=3),
        Column("added_low", "95 % from", digits=3, optional=True),
        Column("added_high", "to", digits=3, optional=True),
        Column("n_latents", "features", digits=0, is_count=True, optional=True),
    ]
    notes = [
        "Effect: how much the loss rises when this feature alone is removed from the test images (error-preserving) and"
        " the head of the original tokens reads them: cross-entropy of classification and segmentation, squared error"
        " of depth.",
        "Given the others: partial rank correlation, a score given firing frequency, peak, support and mass, each of"
        " these given the other three and the CDS. R² added: share of the variance of the effect's ranks that is"
        " explained beyond these; it is never below 0, so look at the partial correlation for whether it is there at"
        f" all. Over scored features, mean over SAE seeds; intervals: features drawn anew {N_BOOTSTRAP:,} times, the"
        f" SAEs given; none with fewer than {MIN_LATENTS} features. Decoder rows have unit norm here, so that their"
        " norm tells nothing apart.",
    ]
    title = "Effect of single features, and what the score says of it beyond how often they fire"
    table = Table("effects", title, columns, notes)
    for task, of_task in said.items():
        table.add_section(TASKS[task])
        for key, of in of_task.items():
            numbers = (of.spearman.value, *of.partial, *of.added, of.n.mean)
            table.add_row((SCORES | OTHERS)[key], *numbers)
    return table


def _make_matching_table(matching: Mapping[str, Matched], ends: tuple[str, str]) -> Table:
    """Return how many features could be matched, and how alike the groups of these names are before and after."""
    above, below = ends
    columns = [
        Column("matching", "matched in", Align.left),
        Column("n_high", name_group(above, " "), digits=0),
        Column("n_low", name_group(below, " "), digits=0),
        Column("n_pairs", "of each kept", digits=0),
    ]
    for name in PROPERTIES:
        columns += [
            Column(f"{name}_before", f"{name}: before", signed=True),
            Column(f"{name}_after", "after", signed=True),
        ]
    table = Table(
        "matching",
        "How alike matched groups are",
        columns,
        notes=[
            f"Differences of means, {above} minus {below}, in standard deviations of the whole groups; of frequency and"
            " mass the logarithms. Frequency: equally many features in every half octave, drawn at random. All others:"
            " pairs of nearest neighbours without replacement, the closest first, at most"
            f" {CALIPER:g} standard deviations apart (Euclidean)."
        ],
    )
    lacking = [f"{format_number(of.n_lacking.mean, 1)} ({name})" for name, of in matching.items() if of.n_lacking.mean]
    if lacking:
        table.notes.append(f"Features of both groups that lack what they are matched in: {', '.join(lacking)}.")
    for name, of in matching.items():
        balance = [stat for key in PROPERTIES for stat in (of.before[key], of.after[key])]
        table.add_row(name, of.n_high, of.n_low, of.n_pairs, *balance)
    return table
