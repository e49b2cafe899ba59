"""stage=collect: one table of all that the jobs of a sweep have found, and the commands that make what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from infoscope.commands.collect.jobs import CollectedJob, read_jobs
from infoscope.commands.collect.opening import ContextFactory
from infoscope.commands.collect.table import cut_table, make_jobs_table, save_rows
from infoscope.config.sweeps import Sweep, find_sweep, make_commands, read_sweep
from infoscope.config.tree import Config, to_tree
from infoscope.report.tables import Table
from infoscope.runtime.errors import InputError, explain_write_error
from infoscope.runtime.job import Job
from infoscope.runtime.lightning import quiet_lightning
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.progress import Display
from infoscope.tracking.names import name_summary
from infoscope.tracking.tracker import JobTracking

MISSING_FILE = "missing.txt"
N_SHOWN = 20
"""Missing jobs whose commands are printed; the file has all."""


def collect(config: Config, job: Job | None = None, display: Display | None = None) -> list[CollectedJob]:
    """Read what the jobs of the configured sweeps have left, write and print it, and say what is missing.

    Nothing is built: the hashes of a job's configuration say whether its artifacts are there. Written are
    `jobs.{parquet,csv,md}` and, where jobs are missing, `missing.txt`, into `<output_dir>/collected/<sweep>/`.

    Raises:
        InputError: no sweep; or missing jobs, with collect.require_all.
    """
    if job is not None and job.sweep is not None:
        raise InputError("stage=collect reads sweeps and is none: drop -m, and name sweeps by collect.sweeps=[...].")
    display = display or Display(bars=config.trainer.progress)
    output_dir = Path(config.output_dir)
    names = config.collect.sweeps or [None]
    sweeps = [read_sweep(folder) for folder in dict.fromkeys(find_sweep(output_dir, name) for name in names)]
    jobs: list[CollectedJob] = []
    n_jobs = sum(len(sweep.jobs) for sweep in sweeps)
    with quiet_lightning(), display.bar("reading jobs", n_jobs, "jobs") as advance:
        for one in read_jobs(sweeps, ContextFactory(Display.silent(), builds=False)):
            jobs.append(one)
            advance(len(jobs))
    missing = [one for one in jobs if one.missing is not None]
    commands = [
        command
        for sweep in sweeps
        if (of := [one.job.overrides for one in missing if one.sweep is sweep])
        for command in make_commands(of, sweep.options, sweep.config_dirs)
    ]
    folder = output_dir / "collected" / _name_folder(sweeps)
    files = _write(jobs, missing, commands, folder)
    table = make_jobs_table(jobs, f"{len(jobs)} jobs of {', '.join(sweep.folder.name for sweep in sweeps)}")
    cut_table(table, folder / "jobs.md").show(display.console)
    for line in [*_describe_jobs(jobs, missing, commands), *(f"wrote {file}" for file in files)]:
        display.console.print(Text(line), soft_wrap=True)
    _log(config, jobs, table, folder.name, display)
    if missing and config.collect.require_all:
        raise InputError(
            f"{len(missing)} of {len(jobs)} jobs are missing: run the command above, listed in"
            f" {folder / MISSING_FILE} too, and collect again."
        )
    return jobs


def _name_folder(sweeps: Sequence[Sweep]) -> str:
    first, *others = sorted(sweep.folder.resolve().name for sweep in sweeps)
    if not others:
        return first
    return f"{first}-and-{len(others)}-more-{compute_hash([str(sweep.folder.resolve()) for sweep in sweeps])[:8]}"


def _write(
    jobs: Sequence[CollectedJob], missing: Sequence[CollectedJob], commands: Sequence[str], folder: Path
) -> list[Path]:
    """Write the files; what an earlier collection left is replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = save_rows(jobs, folder)
        if not missing:
            (folder / MISSING_FILE).unlink(missing_ok=True)
            return files
        lines = [f"# {len(missing)} of {len(jobs)} jobs are missing. Each of them:"]
        for one in missing:
            lines += [f"# job {one.job.number} of {one.sweep.folder.name}: {one.state}", one.command]
        lines += ["", "# All of them:", *(f"# {command}" for command in commands)]
        (folder / MISSING_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise explain_write_error(error, folder) or error from error
    return [*files, folder / MISSING_FILE]


def _log(config: Config, jobs: Sequence[CollectedJob], table: Table, name: str, display: Display) -> None:
    """Sum the sweep up in a run of its own; the next collection of the same sweep goes on with that."""
    records = table.records()
    n_missing, n_refused = (sum(one.state.startswith(word) for one in jobs) for word in ("missing", "refused"))
    counts = {"jobs": len(jobs), "missing": n_missing, "refused": n_refused}
    counts["done"] = len(jobs) - n_missing - n_refused
    columns, rows = list(records[0]) if records else [], [list(record.values()) for record in records]
    given = [one.config.logger.group for one in jobs if one.config is not None]
    group = config.logger.group or next(filter(None, given), name)
    run, tree = name_summary(group), to_tree(config)
    with JobTracking(config.logger, run, tree, Path(config.output_dir), display.say) as tracking:
        tracking.write(lambda log: log.log_table("jobs", columns, rows))
        tracking.write(lambda log: log.log_numbers({f"n_{name}": n for name, n in counts.items()}))


def _describe_jobs(jobs: Sequence[CollectedJob], missing: Sequence[CollectedJob], commands: Sequence[str]) -> list[str]:
    lines = [f"job {one.job.number} is {one.state}" for one in jobs if one.refused]
    for one in missing[:N_SHOWN]:
        lines += [f"job {one.job.number} is {one.state}; this makes it:", f"    {one.command}"]
    if len(missing) > N_SHOWN:
        lines.append(f"... and {len(missing) - N_SHOWN} more; {MISSING_FILE} has all.")
    if len(missing) > 1:
        lines += [f"This makes all {len(missing)} that are missing:", *(f"    {command}" for command in commands)]
    return lines
