"""What removing a group costs beyond removing random features: of equal mass, of equal energy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from infoscope.report.tables import LEVEL, Align, Cell, Column, Stat, Table, compute_stat, format_interval
from infoscope.stages.probe.results import (
    KEPT,
    MAIN_METRICS,
    AblationRow,
    Metric,
    Result,
    group_by_variant,
    is_empty,
    present_metrics,
)

_NO_WIDTH = 1e-9
"""Half of an interval whose ends differ by rounding alone."""

WORDS = {-1: "costs more than", 0: "is not told from", 1: "costs less than"}
"""What a difference says, by its sign: positive is better."""


class Excess(NamedTuple):
    """How far a metric without a group lies from the metric without other features, the SAE's error kept.

    group, control: what was removed and what stands against it; as in an `AblationRow` of a random group.
    by_seed: metric without the one minus that without the other, each a mean over its draws, by SAE seed.
    """

    metric: Metric
    group: str
    control: str
    by_seed: dict[int, float]

    @property
    def stat(self) -> Stat:
        """Mean and spread over SAE seeds."""
        return compute_stat(self.by_seed.values())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean over SAE seeds (t); NaN with fewer than two.

        Each seed has draws of its own, so that what they vary by is in the spread over seeds.
        """
        return self.stat.interval

    @property
    def sign(self) -> int | None:
        """1: better than without the others; -1: worse; 0: not told; None: there is no interval.

        Nor is it told of seeds that agree to the last digit: differences of a few counts can, by chance.
        """
        if math.isnan(self.stat.half_width):
            return None
        if self.stat.half_width < _NO_WIDTH:
            return 0
        return self.stat.sign if self.metric.higher_is_better else -self.stat.sign

    @property
    def verdict(self) -> str:
        """What the interval says; nothing where there is none."""
        return "" if self.sign is None else WORDS[self.sign]

    @property
    def in_words(self) -> str:
        """ "+2.1 points, +0.3 to +3.9"."""
        column = self.metric.column
        mean, low, high = format_interval(self.stat, column.digits, column.scale)
        return f"{mean} {'points' if column.unit == '%' else column.unit}, {low} to {high}"


def list_excess(results: Sequence[Result]) -> list[Excess]:
    """Return what each group costs beyond its random groups, by metric, group and control."""
    runs, metrics = group_by_variant(results), present_metrics(results, MAIN_METRICS)
    controls = [variant for variant in runs if variant.role == "control" and variant.mode == KEPT]
    found = []
    for metric in metrics:
        for variant in controls:
            removed = runs.get(AblationRow("group", KEPT, variant.group), [])
            found.append(compare_runs(metric, variant.group or "", variant.control or "", removed, runs[variant]))
    return [one for one in found if one.by_seed]


def compare_runs(
    metric: Metric, group: str, control: str, removed: Sequence[Result], others: Sequence[Result]
) -> Excess:
    """Return how far a metric lies without a group from without others, over the SAE seeds in which both have it."""
    of_group, of_others = _read_by_seed(removed, metric), _read_by_seed(others, metric)
    seeds = sorted(of_group.keys() & of_others.keys())
    return Excess(metric, group, control, {seed: of_group[seed].mean - of_others[seed].mean for seed in seeds})


def _read_by_seed(runs: Sequence[Result], metric: Metric) -> dict[int, Stat]:
    filled = [run for run in runs if not is_empty(run)]
    seeds = dict.fromkeys(run["sae_seed"] for run in filled)
    stats = {seed: compute_stat(metric.read(run) for run in filled if run["sae_seed"] == seed) for seed in seeds}
    return {seed: stat for seed, stat in stats.items() if stat.n}


def make_table_against_random(results: Sequence[Result]) -> Table:
    """Return the table: a section per metric, a row per group and control; the findings stand below it."""
    excess = list_excess(results)
    n_seeds = len({seed for one in excess for seed in one.by_seed})
    table = Table(
        "removal_against_random",
        "Feature removal against random features",
        [
            Column("group", "without", Align.left),
            Column("control", "against random of equal", Align.left),
            Column("difference", "difference", signed=True),
            Column("low", f"{LEVEL:.0%} from", signed=True),
            Column("high", "to", signed=True),
            Column("finding", "removal", Align.left),
            Column("metric", "metric", Align.left, csv_only=True),
            Column("n_seeds", "SAE seeds", is_count=True, csv_only=True),
        ],
        notes=[
            "Difference: the metric without the group minus the mean of the metric without its random groups, taken"
            " within an SAE seed, then averaged. Heads are retrained, the SAE's error stays."
        ],
    )
    if n_seeds > 1:
        table.notes[0] += (
            f" Interval: Student's t over {n_seeds} SAE seeds, each with draws of its own, so that it holds both; each"
            " interval by itself."
        )
    table.notes += describe_excess(excess)
    for metric in dict.fromkeys(one.metric for one in excess):
        column = metric.column
        unit, arrow = "points" if column.unit == "%" else column.unit, "↑" if metric.higher_is_better else "↓"
        table.add_section(f"{column.heading} {arrow} ({unit})")
        for one in excess:
            if one.metric == metric:
                numbers = [Cell(value, digits=column.digits, scale=column.scale) for value in (one.stat, *one.interval)]
                words = f"{one.verdict} random" if one.verdict else ""
                table.add_row(_name(one), one.control, *numbers, words, column.key, one.stat.n)
    return table


def _name(excess: Excess) -> str:
    return AblationRow("group", KEPT, excess.group).group_label


def describe_excess(excess: Sequence[Excess]) -> Iterator[str]:
    """Yield one sentence per metric: what each group costs beyond random features, and whether every control agrees."""
    known = [one for one in excess if one.sign is not None]
    for metric in dict.fromkeys(one.metric for one in known):
        groups: dict[str, list[Excess]] = {}
        for one in known:
            if one.metric == metric:
                groups.setdefault(_name(one), []).append(one)
        parts = [f"removing {name} features {_compare(controls)}" for name, controls in groups.items()]
        yield f"{metric.column.heading}: {'; '.join(parts)}."
    if len(known) < len(excess):
        yield "One SAE seed gives no interval, so it does not tell whether a group costs more than random features."


def _compare(controls: Sequence[Excess]) -> str:
    """What one group costs beyond each of its controls."""
    found = [f"of equal {one.control} ({one.in_words})" for one in controls]
    verdicts = [one.verdict for one in controls]
    if len(set(verdicts)) == 1:
        agree = ", under every control" if controls[0].sign and len(controls) > 1 else ""
        return f"{verdicts[0]} removing random ones {' and '.join(found)}{agree}"
    return ", but ".join(f"{verdict} removing random ones {of}" for verdict, of in zip(verdicts, found, strict=True))
