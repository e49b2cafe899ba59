"""The table of all jobs: everything for programs, what differs and what counts for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from infoscope.collecting.jobs import CollectedJob
from infoscope.collecting.rows import Row
from infoscope.report.tables import Align, Column, Table, Value, compute_stat
from infoscope.sweeps import find_swept

NAME, SUFFIXES = "jobs", ("parquet", "csv", "md")
NAMED = (
    Column("sweep", "sweep", Align.left, optional=True),
    Column("job", "job", digits=0),
    Column("stage", "stage", Align.left, optional=True),
    Column("model", "model", Align.left),
)
OBSERVED = (Column("seed", "seed", digits=0), Column("variant", "variant", Align.left))
METRICS = (
    Column("gamma", "gamma", digits=3),
    Column("fvu", "FVU", digits=4),
    Column("l0", "L0", digits=1),
    Column("dead_share", "dead", digits=1, scale=100, unit="%"),
    Column("n_silent", "silent", digits=0),
    Column("n_scored", "scored", digits=0),
    Column("n_high", "high scope", digits=0),
    Column("high_mass", "their mass", digits=1, scale=100, unit="%"),
    Column("mean_cds", "mean CDS", digits=3),
    Column("mean_chance", "chance", digits=3),
    Column("mass_share", "mass removed", digits=1, scale=100, unit="%"),
    Column("classification/patch_mean/top1", "top-1 patch mean", digits=1, scale=100, unit="%"),
    Column("classification/cls_final/top1", "top-1 final CLS", digits=1, scale=100, unit="%"),
    Column("classification/cls_layer/top1", "top-1 CLS at layer", digits=1, scale=100, unit="%"),
    Column("segmentation/miou", "mIoU", digits=1, scale=100, unit="%"),
    Column("depth/rmse_m", "depth RMSE", digits=3, unit="m"),
    Column("top1", "top-1", digits=1, scale=100, unit="%"),
    Column("changed", "changed", digits=1, scale=100, unit="%"),
    Column("max_prob", "confidence", digits=1, scale=100, unit="%"),
    Column("entropy", "entropy", digits=3),
    Column("ece", "ECE", digits=3),
    Column("rank_correlation", "Spearman", digits=3),
    Column("on_outlier", "on outlier tokens", digits=2),
    Column("on_normal", "on normal tokens", digits=2),
)
"""What people read, where there is any of it; every other metric stands in the parquet and the CSV."""


def list_rows(jobs: Sequence[CollectedJob]) -> list[Row]:
    """Return every row of every job, with what tells its job from the others as `sweep.KEY`."""
    swept = find_swept([job.job.overrides for job in jobs])
    return [
        {**row, **{f"sweep.{key}": value for key, value in of_job.items()}}
        for job, of_job in zip(jobs, swept, strict=True)
        for row in job.rows
    ]


def make_rows_table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table; people are shown what differs, the main metrics and the artifact."""
    keys = dict.fromkeys(key for row in rows for key in row)
    swept = [key for key in keys if key.startswith("sweep.")]
    read = [column for column in NAMED if column.key in keys and not (column.key == "model" and "sweep.model" in swept)]
    read += [Column(key, key.removeprefix("sweep."), Align.left) for key in swept]
    read += [column for column in OBSERVED if column.key in keys]
    read += [column for column in METRICS if any(_is_number(row.get(column.key)) for row in rows)]
    read.append(Column("artifact", "artifact", Align.left, optional=True))
    columns = {column.key: column for column in read}
    hidden = [Column(key, key, csv_only=True) for key in keys if key not in columns]
    table = Table(NAME, "Jobs of the sweep", [*columns.values(), *hidden])
    for row in rows:
        table.add_row(*(_tell(row.get(column.key)) for column in table.columns))
    return table


def make_jobs_table(jobs: Sequence[CollectedJob], title: str) -> Table:
    """Return a row per job: what differs, mean and spread over SAE seeds of the main metrics, what has become of it."""
    metrics = [
        column
        for column in METRICS
        if any("variant" not in row and _is_number(row.get(column.key)) for job in jobs for row in job.rows)
    ]
    swept = find_swept([job.job.overrides for job in jobs])
    keys = dict.fromkeys(key for of_job in swept for key in of_job)
    names = [Column("sweep", "sweep", Align.left)] if len({job.sweep.folder for job in jobs}) > 1 else []
    names.append(Column("job", "job", digits=0))
    columns = [*(Column(key, key, Align.left) for key in keys), Column("n_rows", "rows", digits=0), *metrics]
    table = Table("overview", title, [*names, *columns, Column("state", "state", Align.left)])
    for job, of_job in zip(jobs, swept, strict=True):
        place = [job.sweep.folder.name, job.job.number][-len(names) :]
        stats = [compute_stat(_number(row.get(column.key)) for row in job.rows) for column in metrics]
        table.add_row(
            *place,
            *(of_job.get(key) for key in keys),
            len(job.rows),
            *(stat if stat.n else None for stat in stats),
            job.state_in_short,
        )
    return table


def save_rows(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `jobs.parquet`, `jobs.csv` and `jobs.md`, each whole or not at all, and return them; without rows, none."""
    if not rows:
        for suffix in SUFFIXES:
            (folder / f"{NAME}.{suffix}").unlink(missing_ok=True)
        return []
    table = make_rows_table(rows)
    keys = [column.key for column in table.columns]
    arrays = {key: pa.array([row.get(key) for row in rows]) for key in keys}
    arrays = {key: of.cast(pa.string()) if pa.types.is_null(of.type) else of for key, of in arrays.items()}
    paths = {suffix: folder / f"{NAME}.{suffix}" for suffix in SUFFIXES}
    writing = {suffix: path.with_name(f".{path.name}.tmp") for suffix, path in paths.items()}
    parquet.write_table(pa.table(arrays), writing["parquet"])
    writing["csv"].write_text(table.to_csv(), encoding="utf-8")
    writing["md"].write_text(table.to_markdown(), encoding="utf-8")
    for suffix, path in paths.items():
        writing[suffix].replace(path)
    return list(paths.values())


def _tell(value: Value) -> Value:
    """A switch is written as on the command line."""
    return str(value).lower() if isinstance(value, bool) else value


def _number(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
