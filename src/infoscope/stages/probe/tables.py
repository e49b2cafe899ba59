"""The feature-removal tables: what classification, segmentation and depth lose without a group of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from infoscope.report.tables import PERCENT, Align, Cell, Column, Table, compute_stat
from infoscope.stages.probe.against_random import make_table_against_random
from infoscope.stages.probe.paper import PAPER_TITLES, PAPER_VALUES, PaperRow
from infoscope.stages.probe.results import (
    MAIN_METRICS,
    MODES,
    SECOND_METRICS,
    AblationRow,
    Metric,
    Result,
    at_edge,
    find_originals,
    group_by_variant,
    is_empty,
    is_unconverged,
    present_metrics,
    read_difference,
    tell_unequal_mass,
)

EDGE, EMPTY, PAPER, UNCONVERGED = "†", "∅", "‡", "§"
MARKS = {
    EDGE: "the best learning rate (or L2 strength) lies at an edge of its grid in at least one run.",
    UNCONVERGED: "L-BFGS had not converged within probe.lbfgs_max_iterations in at least one run.",
    EMPTY: "the group is empty in at least one run; such runs are in no mean.",
    PAPER: "from arXiv 2604.05724: ImageNet top-1, ADE20K mIoU, NYU Depth v2 RMSE. Which tokens its classifier reads"
    " and how it removes a group are unknown to us; its top-1 stands under every readout.",
}
LABEL = Column("variant", "tokens", Align.left)
REMOVED = (
    Column("n_latents", "latents removed", digits=0),
    Column("mass_share", "mass", **PERCENT),
    Column("energy_share", "energy", **PERCENT, optional=True),
)
SHARES = (*REMOVED, Column("overlap", "overlap", **PERCENT, optional=True))


def make_removal_tables(results: Sequence[Result], paper_reference: str | None = None) -> dict[str, Table]:
    """Return the feature-removal tables by name; the empty dictionary when there are no results.

    removal: every variant with the shares it removes and the main metric of each probe.
    removal_against_random: groups against their random groups, with intervals and findings.
    removal_delta: the same as differences from the original tokens of the same run.
    removal_frozen_head: the head trained on original tokens, read on edited ones, as differences again.
    removal_more: the other metrics.
    """
    if not results:
        return {}
    differences = _make_difference_table(
        "removal_delta",
        "Feature removal, differences from the original tokens",
        "Differences are taken within a run, then averaged.",
        results,
    )
    _add_paper(differences, paper_reference, present_metrics(results, MAIN_METRICS), relative=True)
    frozen = _make_difference_table(
        "removal_frozen_head",
        "Feature removal under the original head, differences from the original tokens",
        "The head was trained on the original tokens and reads the edited ones.",
        results,
        source="frozen_head",
    )
    against = make_table_against_random(results)
    tables = [make_main_table(results, paper_reference), against, differences, frozen, _make_second_table(results)]
    return {table.name: table for table in tables if len(table.columns) > 1 and table.rows}


def make_main_table(results: Sequence[Result], paper_reference: str | None = None) -> Table:
    """Return the table of absolute numbers: mean ± sd over SAE seeds, and over draws for the random controls."""
    metrics, runs_of = present_metrics(results, MAIN_METRICS), group_by_variant(results)
    table = Table(
        "removal",
        "Feature removal",
        [LABEL, *SHARES, *make_metric_columns(metrics)],
        notes=[
            f"{count_runs(results)} Heads are retrained for each ablation.",
            "Error-preserving: tokens minus the group's part, so the SAE's error stays. Reconstruct: decoded without"
            " the group, so it goes.",
            "Mass: share of the sum of activations. Energy: share of the squared distance from the mean token that the"
            " edit changes. Both are those of the test images. Overlap: share of a random group that is also in the"
            " group it stands in for.",
            *tell_unequal_mass(runs_of),
        ],
        marks=MARKS,
    )
    fill_by_mode(
        table, runs_of, lambda runs: [*removed_cells(runs), *(metric_cell(runs, metric) for metric in metrics)]
    )
    _add_paper(table, paper_reference, metrics)
    return table


def _make_difference_table(
    name: str, title: str, note: str, results: Sequence[Result], source: str = "metrics"
) -> Table:
    """Return the table of differences from the original tokens of the same SAE seed."""
    metrics, originals = present_metrics(results, MAIN_METRICS, source), find_originals(results)
    columns = [LABEL, *make_metric_columns(metrics, relative=True)]
    notes = [f"{count_runs(results)} {note}", *tell_unequal_mass(group_by_variant(results))]
    table = Table(name, title, columns, notes, MARKS)
    edited = [result for result in results if result["variant"]["role"] != "original" and result.get(source)]
    fill_by_mode(
        table,
        group_by_variant(edited),
        lambda runs: [metric_cell(runs, metric, originals, source) for metric in metrics],
    )
    return table


def _make_second_table(results: Sequence[Result]) -> Table:
    """Return the metrics that the main table has no room for."""
    metrics = present_metrics(results, SECOND_METRICS)
    note = (
        f"{count_runs(results)} Depth RMSE in the main table is a mean over images; pooled RMSE is over all pixels."
        " mIoU there is over the classes that occur; here classes that do not count as 0."
    )
    columns = [LABEL, *make_metric_columns(metrics)]
    table = Table("removal_more", "Feature removal, further metrics", columns, [note], MARKS)
    runs_of = group_by_variant(results)
    fill_by_mode(table, runs_of, lambda runs: [metric_cell(runs, metric) for metric in metrics])
    return table


def make_matched_table(results: Sequence[Result]) -> Table | None:
    """Return the rows of the groups that are matched in something, with differences; None where there are none."""
    variants = group_by_variant(results, matched=True)
    metrics, originals = present_metrics(results, MAIN_METRICS), find_originals(results)
    if not variants or not metrics:
        return None
    relative = make_metric_columns(metrics, relative=True)
    differences = [replace(column, heading=f"Δ {column.heading}") for column in relative]
    table = Table(
        "removal_matched",
        "Feature removal, groups matched",
        [LABEL, *REMOVED, *make_metric_columns(metrics), *differences],
        notes=[
            f"{count_runs(list(originals.values()))} Both groups are thinned out until they are alike: by frequency,"
            " equally many features in every half octave of firing rate; else in pairs of nearest neighbours. They are"
            " removed while the SAE's error stays; differences are taken from the original tokens within a run.",
        ],
        marks=MARKS,
    )
    unedited = [metric_cell(list(originals.values()), metric) for metric in metrics]
    table.add_row("original tokens", *[None] * len(REMOVED), *unedited, *[None] * len(metrics))
    _add_rows(
        table,
        variants,
        lambda runs: [
            *removed_cells(runs, REMOVED),
            *(metric_cell(runs, metric) for metric in metrics),
            *(metric_cell(runs, metric, originals) for metric in metrics),
        ],
    )
    return table


Cells = Callable[[Sequence[Result]], Sequence[Cell]]


def fill_by_mode(table: Table, runs: Mapping[AblationRow, Sequence[Result]], cells: Cells) -> None:
    """Add one row per variant, in a section per mode; runs with an empty group only mark the row."""
    for mode, variants in groupby(runs, lambda variant: variant.mode):
        table.add_section(MODES.get(mode, mode))
        _add_rows(table, {variant: runs[variant] for variant in variants}, cells)


def _add_rows(table: Table, runs: Mapping[AblationRow, Sequence[Result]], cells: Cells) -> None:
    for variant, many in runs.items():
        filled = [run for run in many if not is_empty(run)]
        table.add_row(Cell(variant.label, EMPTY if len(filled) < len(many) else ""), *cells(filled))


def removed_cells(runs: Sequence[Result], columns: Sequence[Column] = SHARES) -> list[Cell]:
    """Return what a variant removes, mean and spread over runs; nothing of the original tokens."""
    variants = [run["variant"] for run in runs]
    if not variants:  # every run's group is empty
        return [Cell({"n_latents": 0, "overlap": None}.get(column.key, math.nan)) for column in columns]
    cells = []
    for column in columns:
        values = [variant.get(column.key) for variant in variants]
        has_none = column.key == "overlap" and all(value is None for value in values)  # only random groups have one
        is_empty_cell = has_none or variants[0]["role"] == "original"
        cells.append(Cell() if is_empty_cell else Cell(compute_stat(values)))
    return cells


def metric_cell(
    runs: Sequence[Result], metric: Metric, originals: Mapping[int, Result] | None = None, source: str = "metrics"
) -> Cell:
    """Return mean and spread of a metric over runs, or of its differences from the original tokens; edges marked."""
    if originals is None:
        values = [metric.read(run, source) for run in runs]
    else:
        values = [read_difference(run, originals, metric, source) for run in runs]
    # The original head has no rate of its own to choose, so only retrained ones can be at an edge.
    marks = ""
    if source == "metrics":
        marks += EDGE if any(at_edge(run, metric.task) for run in runs) else ""
        marks += UNCONVERGED if any(is_unconverged(run, metric.task) for run in runs) else ""
    return Cell(compute_stat(values), marks)


def make_metric_columns(metrics: Sequence[Metric], relative: bool = False) -> list[Column]:
    """Return the columns of metrics, with arrows towards the better; `relative` for differences."""
    return [
        replace(
            metric.column,
            key=f"{metric.column.key}_difference" if relative else metric.column.key,
            heading=f"{metric.column.heading} {'↑' if metric.higher_is_better else '↓'}",
            unit="points" if relative and metric.column.unit == "%" else metric.column.unit,
            signed=relative,
        )
        for metric in metrics
    ]


def _add_paper(table: Table, reference: str | None, metrics: Sequence[Metric], relative: bool = False) -> None:
    """Add the paper's rows, only where the caller says that model and data are the paper's."""
    if reference is None:
        return
    table.add_section(PAPER_TITLES[reference])
    rows = PAPER_VALUES[reference]
    for name, row in rows.items():
        if relative and name == "original":
            continue
        values = PaperRow(*(a - b for a, b in zip(row, rows["original"], strict=True))) if relative else row
        label = AblationRow("original" if name == "original" else "group", "", name).label
        by_task = {"segmentation": values.miou, "depth": values.rmse_m}
        cells = [Cell(by_task.get(metric.task, values.top1)) for metric in metrics]
        table.add_row(Cell(label, PAPER), *[Cell()] * (len(table.columns) - 1 - len(cells)), *cells)


def count_runs(results: Sequence[Result]) -> str:
    """Say over how many SAE seeds and random draws the results are, and what stands in a table for several."""
    n_seeds = len({result["sae_seed"] for result in results})
    n_draws = len({result["variant"].get("draw") for result in results} - {None})
    text = f"{n_seeds} SAE seed{'s' if n_seeds != 1 else ''}"
    if n_draws:
        text += f", {n_draws} draw{'s' if n_draws != 1 else ''} of each random group"
    spread = "; mean ± standard deviation over them" if n_seeds > 1 or n_draws > 1 else ""
    return f"{text}{spread}."


def summarise_removal(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the main numbers of each variant as flat rows, for `summary.json`."""
    metrics, originals = present_metrics(results, MAIN_METRICS), find_originals(results)
    return [summarise_runs(*one, metrics, originals) for one in group_by_variant(results).items()]


def summarise_runs(
    variant: AblationRow,
    runs: Sequence[Result],
    metrics: Sequence[Metric],
    originals: Mapping[int, Result] | None = None,
) -> dict[str, Any]:
    """Return a variant, how many runs it has, how many of them are empty, and means and spreads of the others.

    Args:
        originals: by SAE seed; with them, the differences from the original tokens too.
    """
    filled = [run for run in runs if not is_empty(run)]
    row: dict[str, Any] = {**variant._asdict(), "n_runs": len(runs), "n_empty": len(runs) - len(filled)}
    for metric in metrics:
        key = metric.column.key
        stats = {key: compute_stat(map(metric.read, filled))}
        if originals is not None:
            stats[f"{key}_difference"] = compute_stat(read_difference(run, originals, metric) for run in filled)
        for name, (mean, sd, *_) in stats.items():
            row |= {name: mean, f"{name}_sd": sd}
    return row
