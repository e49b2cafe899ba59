"""The section on the removal curve: what probes read without a growing share of the mass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.report.figure_style import FAINT, GREY, HIGH, INK, LOW, draw_means, make_empty, make_panels
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import LEVEL, Align, Column, Stat, Table, compute_stat
from infoscope.scope.config import By
from infoscope.scope.curve import ORDERS, name_orders, name_part
from infoscope.stages.probe.against_random import Excess, compare_runs
from infoscope.stages.probe.results import MAIN_METRICS, Metric, Result, present_metrics
from infoscope.stages.probe.tables import (
    EDGE,
    MARKS,
    REMOVED,
    UNCONVERGED,
    count_runs,
    make_metric_columns,
    metric_cell,
    removed_cells,
)

COLOURS = {"low": LOW, "high": HIGH, "random": GREY}
PAIRS = (("low", "random"), ("high", "random"), ("low", "high"))
"""Which orders are compared."""
LINES = {"low": "-", "high": "-", "random": (0, (5, 2))}
"""How each order of removal is drawn."""


def make_curve_section(results: Sequence[Result], shares: Sequence[float], by: By = By.cds) -> ReportSection:
    """Return the table, the figure and the findings.

    Args:
        results: of every SAE seed, the variants of `make_curve_ablations` with the original tokens and all removed.
        shares: of the mass, ascending.
        by: what decides the order of removal.
    """
    excess = list_curve_excess(results, shares)
    return ReportSection(
        name="removal_curve",
        title="Removal by mass",
        findings=tuple(describe_curve(excess, shares, by)),
        tables={"removal_curve": make_curve_table(results, shares, by)},
        figures={
            "removal_curve": SectionFigure(
                lambda: draw_curve(results, shares, by),
                f"What each probe reads as more of the activation mass is removed: features of lowest {by.words} first,"
                f" of highest {by.words} first, in random order. Lower is worse in every panel. Means over SAE seeds"
                " (and draws), shades are ± one standard deviation.",
            )
        },
        summary=[
            {
                "metric": one.metric.column.key,
                "mass_share": share,
                "removed": one.group,
                "minus": one.control,
                "difference": one.stat,
                "sign": one.sign,
            }
            for share, of_share in excess.items()
            for one in of_share
        ],
    )


def find_part(results: Sequence[Result], end: str, share: float) -> list[Result]:
    """Return the runs without a share of the mass from one end, or at random."""
    return [result for result in results if result["variant"]["group"] == name_part(end, share)]


def find_role(results: Sequence[Result], role: str) -> list[Result]:
    """Return the runs on the original tokens, or on those without any feature."""
    return [result for result in results if result["variant"]["role"] == role]


def make_curve_table(results: Sequence[Result], shares: Sequence[float], by: By = By.cds) -> Table:
    """Return the table: a section per share, a row per order of removal, mean ± sd over seeds (and draws)."""
    metrics = present_metrics(results, MAIN_METRICS)
    table = Table(
        "removal_curve",
        "Removal by mass",
        [Column("removed", "removed", Align.left), *REMOVED, *make_metric_columns(metrics)],
        notes=[
            f"{count_runs(results)} Scored features are removed one after the other until their mass comes closest to a"
            " share of that of all scored features; heads are retrained, the SAE's error stays. Mass and energy are"
            " those removed from the test images.",
        ],
        marks={mark: MARKS[mark] for mark in (EDGE, UNCONVERGED)},
    )

    def add_row(label: str, runs: Sequence[Result]) -> None:
        table.add_row(label, *removed_cells(runs, REMOVED), *(metric_cell(runs, metric) for metric in metrics))

    add_row("nothing", find_role(results, "original"))
    for share in shares:
        table.add_section(f"{100 * share:g}% of the mass")
        for end, label in name_orders(by).items():
            if runs := find_part(results, end, share):
                add_row(label, runs)
    table.add_section()
    add_row("all", find_role(results, "all"))
    return table


def list_curve_excess(results: Sequence[Result], shares: Sequence[float]) -> dict[float, list[Excess]]:
    """Return what each of `PAIRS` costs beyond its second order, at as much mass, by share."""
    found, metrics = {}, present_metrics(results, MAIN_METRICS)
    for share in shares:
        parts = {end: find_part(results, end, share) for end in ORDERS}
        excess = [compare_runs(of, end, other, parts[end], parts[other]) for of in metrics for end, other in PAIRS]
        found[share] = [one for one in excess if one.by_seed]
    return found


def describe_curve(excess: Mapping[float, Sequence[Excess]], shares: Sequence[float], by: By = By.cds) -> Iterator[str]:
    """Yield how orders are compared, then per metric at which shares one costs more, or less, than another."""
    every, names = [one for of_share in excess.values() for one in of_share], name_orders(by)
    if all(one.sign is None for one in every):
        yield "One SAE seed: how far the curves differ by chance is not known."
        return
    yield (
        f"At each of {len(shares)} shares two orders are compared within an SAE seed; a difference counts where its"
        f" {LEVEL:.0%} interval over SAE seeds (t, each by itself) leaves out 0."
    )
    for metric in dict.fromkeys(one.metric for one in every):
        parts = []
        for end, other in PAIRS:
            signs = {share: one.sign for share, of in excess.items() for one in of if one[:3] == (metric, end, other)}
            worse, better = ([share for share, sign in signs.items() if sign == wanted] for wanted in (-1, 1))
            if signs:
                counts = f"costs more at {_count(worse)}, less at {_count(better)}"
                parts.append(f"{names[end]} against {names[other]} {counts}")
        yield f"{metric.column.heading}: {'; '.join(parts)}."


def _count(shares: Sequence[float]) -> str:
    """ "3 (20, 30, 90% of the mass)"."""
    return f"{len(shares)} ({', '.join(f'{100 * share:g}' for share in shares)}% of the mass)" if shares else "none"


def draw_curve(results: Sequence[Result], shares: Sequence[float], by: By = By.cds) -> Figure:
    """Draw each metric against the mass removed, a line per order of removal: lower is always worse."""
    metrics = present_metrics(results, MAIN_METRICS)
    ends = [end for end in ORDERS if any(find_part(results, end, share) for share in shares)]
    if not metrics or not ends:
        return make_empty("Nothing was removed.")
    figure, panels = make_panels(len(metrics), 0.7 + 2.1 * math.ceil(len(metrics) / 2))
    for panel, metric in zip(panels, metrics, strict=True):
        for end in ends:
            parts = [find_part(results, end, share) for share in shares]
            _draw_line(panel, [find_role(results, "original"), *parts, find_role(results, "all")], metric, end)
        _finish(panel, compute_stat(map(metric.read, find_role(results, "original"))), metric)
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[end], linestyle=LINES[end], marker="o", markersize=3.5, label=name_orders(by)[end])
        for end in ends
    ]
    handles.append(Line2D([], [], color=INK, linewidth=0.8, label="original tokens"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _draw_line(axes: Axes, points: Sequence[Sequence[Result]], metric: Metric, end: str) -> None:
    known = [runs for runs in points if runs]
    x = [100 * compute_stat(run["variant"].get("mass_share") for run in runs).mean for runs in known]
    stats = [compute_stat(map(metric.read, runs)) for runs in known]
    draw_means(axes, x, stats, metric.column.scale, COLOURS[end], linestyle=LINES[end])


def _finish(axes: Axes, original: Stat, metric: Metric) -> None:
    axes.axhline(metric.column.scale * original.mean, color=INK, linewidth=0.8, zorder=1)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_title(metric.column.title, fontsize=8.5)
    axes.set_xlabel("mass removed (%)")
    if not metric.higher_is_better:
        axes.invert_yaxis()
