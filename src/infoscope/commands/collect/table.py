"""The table of all jobs: all columns for programs, those that differ and the metrics for readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from infoscope.commands.collect.jobs import CollectedJob
from infoscope.config.sweeps import find_swept
from infoscope.pipeline.stage import Row
from infoscope.probes.selection import BY_PROBE
from infoscope.report.tables import OVER_SEEDS, PERCENT, Align, Column, Section, Table, Value, compute_stat
from infoscope.runtime.files import atomic_write
from infoscope.scope.partition import ABOVE, name_group
from infoscope.stages.probe.results import AblationRow, is_matched

NAME, SUFFIXES = "jobs", ("parquet", "csv", "md")
NAMED = (
    Column("sweep", "sweep", Align.left, optional=True),
    Column("job", "job", digits=0, is_count=True),
    Column("stage", "stage", Align.left, optional=True),
    Column("model", "model", Align.left),
)
OBSERVED = (
    Column("seed", "seed", digits=0, is_count=True),
    Column("variant", "compared", Align.left),
    Column("quantity", "quantity", Align.left),
)
"""A variant that is a quantity has a name for people besides; where all are, the other stands in the CSV alone."""
OF_SAE = (
    Column("gamma", "gamma", digits=3),
    Column("fvu", "FVU", digits=4),
    Column("l0", "L0", digits=1),
    Column("dead_share", "silent on held-out tokens", **PERCENT),
    Column("n_silent", "silent on the ranked images", digits=0),
    Column("n_scored", "scored", digits=0),
    *(
        column
        for group in ABOVE
        for column in (
            Column(f"n_{group}", name_group(group, " "), digits=0),
            Column(f"{group}_mass", "their mass", **PERCENT),
        )
    ),
    Column("mean_cds", "mean CDS", digits=3),
    Column("mean_chance", "chance", digits=3),
    Column("reliability", "reliability", optional=True),
)
OF_VARIANT = (
    Column("n_removed", "latents removed", digits=0, optional=True, is_count=True),
    Column("mass_share", "mass removed", **PERCENT),
    Column("classification/patch_mean/top1", "top-1 patch mean", **PERCENT),
    Column("classification/cls_final/top1", "top-1 final CLS", **PERCENT),
    Column("classification/cls_layer/top1", "top-1 CLS at layer", **PERCENT),
    Column("segmentation/miou", "mIoU", **PERCENT),
    Column("depth/rmse_m", "depth RMSE", digits=3, unit="m"),
)
"""What people read, where there is any of it: of an SAE, or of a variant of its tokens where the stage compares these;
then what the stage names itself. Every other metric stands in the parquet and the CSV."""
N_ROWS_SHOWN = 60
"""Rows of the overview that are printed."""


def list_rows(jobs: Sequence[CollectedJob]) -> list[Row]:
    """Return every row of every job, with what tells its job from the others as `sweep.KEY`."""
    swept = find_swept([job.job.overrides for job in jobs])
    return [
        {**row, **{f"sweep.{key}": value for key, value in of_job.items()}}
        for job, of_job in zip(jobs, swept, strict=True)
        for row in job.rows
    ]


def list_named(jobs: Sequence[CollectedJob]) -> list[Column]:
    """Return the metrics that the jobs' stages add, each once."""
    return list(dict.fromkeys(column for job in jobs for column in job.columns))


def make_rows_table(rows: Sequence[Row], named: Sequence[Column] = ()) -> Table:
    """Return the rows as a table; shown are what differs, the main metrics and the artifact.

    Args:
        named: the metrics that stages add.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    swept = [key for key in keys if key.startswith("sweep.")]
    read = [column for column in NAMED if column.key in keys and not (column.key == "model" and "sweep.model" in swept)]
    read += [Column(key, key.removeprefix("sweep."), Align.left) for key in swept]
    are_quantities = all("quantity" in row for row in rows)
    read += [column for column in OBSERVED if column.key in keys and not (column.key == "variant" and are_quantities)]
    read += [
        column for column in (*OF_SAE, *OF_VARIANT, *named) if any(_is_number(row.get(column.key)) for row in rows)
    ]
    read.append(Column("artifact", "artifact", Align.left, optional=True))
    columns = {column.key: column for column in read}
    hidden = [Column(key, key, csv_only=True) for key in keys if key not in columns]
    table = Table(NAME, "Jobs of the sweep", [*columns.values(), *hidden])
    for row in rows:
        table.add_row(*(_tell(row.get(column.key)) for column in table.columns))
    return table


def make_jobs_table(jobs: Sequence[CollectedJob], title: str) -> Table:
    """Return what was swept and what became of it: a row per job, and per variant where the stage compares these.

    A row holds mean and spread over SAE seeds of the main metrics. Of what is removed from tokens it tells the original
    ones and each group, removed while the SAE's error stays; of kept features those of one number; of the others all.
    """
    shown = [_choose_rows(job.rows) for job in jobs]
    named = list_named(jobs)
    rows = [(row, OF_VARIANT if label else OF_SAE) for of_job in shown for label, of in of_job.items() for row in of]
    metrics = [
        column
        for column in (*OF_SAE, *OF_VARIANT, *named)
        if any(column in (*columns, *named) and _is_number(row.get(column.key)) for row, columns in rows)
    ]
    swept = find_swept([job.job.overrides for job in jobs])
    keys = dict.fromkeys(key for of_job in swept for key in of_job)
    names = [Column("sweep", "sweep", Align.left)] if len({job.sweep.folder for job in jobs}) > 1 else []
    names += [Column("job", "job", digits=0, is_count=True), *(Column(key, key, Align.left) for key in keys)]
    if any(label for of_job in shown for label in of_job):
        names.append(Column("variant", "compared", Align.left))
    all_done = all(job.state_in_short == "done" for job in jobs)
    ends = [Column("n_rows", "rows", csv_only=True), Column("state", "state", csv_only=True)]
    ends.append(Column("fate", "", Align.left, csv_only=all_done))
    table = Table("overview", f"{title}, all done" if all_done else title, [*names, *metrics, *ends])
    if metrics:
        table.notes += [OVER_SEEDS, "Other ablations and metrics stand in the files."]
    by_precision: dict[object, list[int]] = {}
    for job in jobs:
        for precision in {row.get("trainer.precision") for row in job.rows} - {None}:
            by_precision.setdefault(precision, []).append(job.job.number)
    if len(by_precision) > 1 and "trainer.precision" not in keys:
        told = "; ".join(f"{name}: job {', '.join(map(str, of))}" for name, of in sorted(by_precision.items(), key=str))
        table.notes.append(f"The SAEs of these jobs differ in precision (trainer.precision): {told}.")
    for job, of_job, chosen in zip(jobs, swept, shown, strict=True):
        place = {"sweep": job.sweep.folder.name, "job": job.job.number, **of_job}
        for label, of in (chosen or {"": []}).items():
            named = {**place, "variant": label or None}
            stats = [compute_stat(_number(row.get(column.key)) for row in of) for column in metrics]
            table.add_row(
                *(named.get(column.key) for column in names),
                *(stat if stat.n else None for stat in stats),
                len(job.rows),
                job.state_in_short,
                job.state_in_short.split()[0],  # where it is missing is said below
            )
    return table


def cut_table(table: Table, where: Path, n_rows: int = N_ROWS_SHOWN) -> Table:
    """Return the first rows of a table of one section, and where the rest of it is."""
    if len(table.rows) <= n_rows:
        return table
    n_more = len(table.rows) - n_rows
    notes = [f"... and {n_more:,} more rows: all jobs stand in {where}.", *table.notes]
    return replace(table, notes=notes, sections=[Section(rows=table.rows[:n_rows])])


def _choose_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows that an overview sums up, of all SAE seeds and draws, by what they are of; "": of the SAE."""
    chosen: dict[str, list[Row]] = {}
    numbers = sorted({_count_kept(row) for row in rows if row.get("role") == "kept"})
    n_kept = numbers[len(numbers) // 2] if numbers else 0
    for row in rows:
        if (label := _label(row, n_kept)) is not None:
            chosen.setdefault(label, []).append(row)
    return chosen


def _label(row: Row, n_kept: int) -> str | None:
    """What a row is of, in words; None where an overview leaves it out."""
    if "role" not in row:
        return str(row.get("quantity") or name_group(str(row.get("variant", ""))))
    group, control = (None if row[key] is None else str(row[key]) for key in ("group", "control"))
    variant = AblationRow(str(row["role"]), str(row["mode"]), group, control)
    if variant.role == "kept":
        is_shown = _count_kept(row) == n_kept and not str(group).startswith(BY_PROBE)
        return f"{n_kept} kept: {group}" if is_shown else None
    is_group = variant.role == "group" and variant.mode == "error_preserving" and not is_matched(variant)
    return variant.label if variant.role == "original" or is_group else None


def _count_kept(row: Row) -> int:
    """How many features a variant keeps, from its name: `keep_16_random_0`."""
    return int(str(row["variant"]).split("_")[1])


def save_rows(jobs: Sequence[CollectedJob], folder: Path) -> list[Path]:
    """Write `jobs.parquet`, `jobs.csv` and `jobs.md`, each whole or not at all, and return them; without rows, none."""
    rows = list_rows(jobs)
    if not rows:
        for suffix in SUFFIXES:
            (folder / f"{NAME}.{suffix}").unlink(missing_ok=True)
        return []
    table = make_rows_table(rows, list_named(jobs))
    keys = [column.key for column in table.columns]
    arrays = {key: pa.array([row.get(key) for row in rows]) for key in keys}
    arrays = {key: of.cast(pa.string()) if pa.types.is_null(of.type) else of for key, of in arrays.items()}
    paths = {suffix: folder / f"{NAME}.{suffix}" for suffix in SUFFIXES}
    with ExitStack() as all_written:
        writing = {suffix: all_written.enter_context(atomic_write(path)) for suffix, path in paths.items()}
        parquet.write_table(pa.table(arrays), writing["parquet"])
        writing["csv"].write_text(table.to_csv(), encoding="utf-8")
        writing["md"].write_text(table.to_markdown(), encoding="utf-8")
    return list(paths.values())


def _tell(value: Value) -> Value:
    """A switch is written as on the command line."""
    return str(value).lower() if isinstance(value, bool) else value


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
