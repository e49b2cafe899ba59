"""stage=artifacts: list, verify and prune what lies in <output_dir>/artifacts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from infoscope.commands.artifacts.inventory import ARTIFACTS, Entry, Kind, check, list_entries
from infoscope.commands.artifacts.pruning import choose, delete, delete_notes, find_users
from infoscope.config.tree import Config, HousekeepingConfig
from infoscope.report.tables import Align, Column, Table
from infoscope.runtime.errors import InputError, explain_write_error
from infoscope.runtime.job import Job
from infoscope.runtime.progress import Display, format_bytes, format_seconds

LIST_FILE = "artifacts.csv"
N_EACH = 12
"""Artifacts of one stage that are printed one by one; of more, the largest, and a line about the others."""
FREED = (Kind.whole, Kind.damaged, Kind.progress)
"""What goes only where no run refers to it."""
LOOK_AGAIN_S = 2.0
"""Before an artifact is deleted, the runs are scanned again if the last scan is older."""


def run_artifacts_command(config: Config, job: Job | None = None, display: Display | None = None) -> list[Entry]:
    """List the artifacts; with artifacts.verify read them, with artifacts.prune say (or delete) what can go.

    An artifact stays while the folder of a run, a sweep or an experiment that used it exists, or of one that used what
    is made from it; so deleting those folders frees artifacts. What no run has written down, such as artifacts made
    from Python, is unreferenced.

    Raises:
        InputError: if artifacts are damaged (with artifacts.verify), or files cannot be written or deleted.
    """
    display, output_dir = display or Display(bars=config.trainer.progress), Path(config.output_dir)
    root = (output_dir / "artifacts").resolve()
    chosen = config.artifacts
    try:
        with display.bar("looking for artifacts and their users"):
            entries = list_entries(root)
            reached = find_users(entries, output_dir)
        if chosen.verify:
            _verify(entries, display)
        _list(entries, reached, output_dir, display)
        if chosen.prune:
            _prune(entries, output_dir, root, chosen, display)
    except OSError as error:
        raise explain_write_error(error, error.filename or root) or error from error
    damaged = [entry for entry in entries if entry.kind is Kind.damaged]
    if chosen.verify and damaged:
        raise InputError(
            f"Found damaged artifacts: {len(damaged)}, listed above. A run that needs one builds it anew, so start"
            " again the command that made it."
        )
    return entries


def _verify(entries: Sequence[Entry], display: Display) -> None:
    whole = [entry for entry in entries if entry.kind is Kind.whole]
    with display.bar("reading artifacts", len(whole), "artifacts") as advance:
        for number, entry in enumerate(whole, 1):
            check(entry)
            advance(number)
    n_whole = sum(entry.kind is Kind.whole for entry in whole)
    display.say(f"Every file of {len(whole)} artifacts was read; those of {n_whole} are as they were written.")


def _list(entries: Sequence[Entry], reached: set[str], output_dir: Path, display: Display) -> None:
    """Print the artifacts, and write all of them as CSV."""
    artifacts = [entry for entry in entries if entry.kind in ARTIFACTS]
    folder = output_dir / "housekeeping"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LIST_FILE).write_text(_make_full_table(entries, reached).to_csv(), encoding="utf-8")
    table = _make_short_table(artifacts, reached)
    table.show(display.console)
    for entry in entries:
        if entry.damage:
            files = ", ".join(entry.damage)
            display.console.print(Text(f"damaged: {entry.path}: {files}"), soft_wrap=True)
        if entry.kind is Kind.newer:
            display.console.print(Text(f"of a newer infoscope, left alone: {entry.path}"), soft_wrap=True)
        if entry.kind is Kind.foreign:
            display.console.print(Text(f"not ours, left alone: {entry.path}"), soft_wrap=True)
    free = [entry for entry in artifacts if entry.hash not in reached]
    display.say(
        f"{len(artifacts)} artifacts, {_add_up(artifacts)}; no run refers to {len(free)} of them, {_add_up(free)}. All"
        f" are listed in {folder / LIST_FILE}."
    )


COLUMNS = (
    Column("name", "artifact", Align.left),
    Column("n_bytes", "size"),
    Column("age_s", "age"),
    Column("n_runs", "runs", digits=0),
    Column("n_artifacts", "made from it", digits=0),
    Column("state", "state", Align.left),
)


def _make_full_table(entries: Sequence[Entry], reached: set[str]) -> Table:
    """Return everything there is, with the names of all users."""
    users = [Column("runs", "runs"), Column("made_from_it", "made from it"), Column("path", "path")]
    table = Table("artifacts", "Artifacts", [*COLUMNS, *users])
    for entry in entries:
        counts, names = [len(entry.runs), len(entry.made)], [" ".join(entry.runs), " ".join(entry.made)]
        size = [entry.n_bytes, round(entry.age_s())]
        table.add_row(entry.name, *size, *counts, _describe(entry, reached), *names, str(entry.path))
    return table


def _make_short_table(entries: Sequence[Entry], reached: set[str]) -> Table:
    """Return the artifacts by stage, the largest first; whole ones of a stage that has many in one line."""
    table = Table("artifacts", "Artifacts, and how many use them", COLUMNS)
    stages: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: -entry.n_bytes):
        stages.setdefault(entry.stage, []).append(entry)
    for stage, of in sorted(stages.items()):
        others = [entry for entry in of[N_EACH:] if entry.kind is Kind.whole]
        for entry in of:
            if entry not in others:
                size, age = format_bytes(entry.n_bytes), _format_age(entry.age_s())
                counts = [len(entry.runs), len(entry.made)]
                table.add_row(entry.name, size, age, *counts, _describe(entry, reached))
        if others:
            age = _format_age(max(entry.age_s() for entry in others))
            table.add_row(f"{stage}: {len(others)} more", _add_up(others), age, None, None, "")
    return table


def _describe(entry: Entry, reached: set[str]) -> str:
    is_free = entry.kind in ARTIFACTS and entry.hash not in reached
    return f"{entry.kind.value}{', bf16' if entry.is_bf16 else ''}{', unreferenced' if is_free else ''}"


def _prune(
    entries: Sequence[Entry], output_dir: Path, root: Path, config: HousekeepingConfig, display: Display
) -> None:
    """Say what can go, and delete it if that is asked for."""
    reached = find_users(entries, output_dir)
    looked = time.monotonic()
    chosen = choose(entries, reached, config.min_age_h * 3600)
    gone: list[Entry] = []
    for entry, why in chosen:
        if config.delete:
            if time.monotonic() - looked > LOOK_AGAIN_S:  # a run may have begun to use it
                reached, looked = find_users(entries, output_dir), time.monotonic()
            if (entry.kind in FREED and entry.hash in reached) or not delete(entry, root):
                display.say(f"stays, it is in use: {entry.name}")
                continue
        gone.append(entry)
        if entry.kind is not Kind.lock:
            verb = "deleted" if config.delete else "would go"
            words = f"{verb}: {entry.name}, {format_bytes(entry.n_bytes)}, {why}"
            display.console.print(Text(words), soft_wrap=True)
    if config.delete:
        delete_notes(root)
    locks = sum(entry.kind is Kind.lock for entry in gone)
    what = f"{len(gone) - locks} things, {_add_up(gone)}, and {locks} locks that nobody holds"
    if config.delete:
        display.say(f"Deleted {what}.")
    else:
        display.say(f"Nothing was deleted. {what} can go: add artifacts.delete=true.")
    n_young = sum(entry.kind in FREED and entry.hash not in reached for entry in entries) - sum(
        entry.kind in FREED and entry.hash not in reached for entry, _ in chosen
    )
    if n_young:
        display.say(f"{n_young} more are younger than artifacts.min_age_h={config.min_age_h:g} hours, or being built.")


def _add_up(entries: Sequence[Entry]) -> str:
    return format_bytes(sum(entry.n_bytes for entry in entries))


def _format_age(seconds: float) -> str:
    return format_seconds(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
