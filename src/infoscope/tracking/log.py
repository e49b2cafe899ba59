"""What every kind of log takes, the log that keeps nothing, and the one that is plain files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LogError(Exception):
    """A log cannot be written. The work it tells of goes on."""


class Log:
    """One run, by full names such as "train_sae/seed0/loss". The base class keeps nothing: `logger=none`."""

    location: Path | None = None
    """Where the run lies on disk, for display."""

    def log_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log what has one value in the run."""

    def log_point(self, curve: str, numbers: Mapping[str, float], step: int) -> None:
        """Log points of the curves whose names begin with `curve`; its steps are `<curve>/step`."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table; a cell that is a path is the picture of that file, which need not outlive the call."""

    def log_figure(self, name: str, path: Path) -> None:
        """Log a picture file."""

    def finish(self, error: str) -> None:
        """Flush and close; "" says that all went well, anything else marks the run as failed and says why."""


class CsvLog(Log):
    """Writes `metrics.csv` (step, name, value), `<table>.csv`, its pictures into `<table>`, and `config.json` into a
    folder; goes on where it was.

    The last row named "error" says how the run ended: no value if well.
    """

    def __init__(self, folder: Path, tree: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = self.location = folder
        (folder / "config.json").write_text(json.dumps(tree, indent=2), encoding="utf-8")
        self._file = (folder / "metrics.csv").open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        if self._file.tell() == 0:
            self._write([["step", "name", "value"]])

    def log_numbers(self, numbers: Mapping[str, float]) -> None:
        self._write([["", name, value] for name, value in numbers.items()])

    def log_point(self, curve: str, numbers: Mapping[str, float], step: int) -> None:
        self._write([[step, name, value] for name, value in numbers.items()])

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        name = name.replace("/", "_")
        with (self.folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([self._keep(name, cell) for cell in row] for row in rows)

    def _keep(self, table: str, cell: Any) -> Any:
        """Return a cell; of a picture, which is copied into the table's folder, where it lies."""
        if not isinstance(cell, Path):
            return cell
        kept = self.folder / table / cell.name
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(cell, kept)
        return f"{table}/{cell.name}"

    def finish(self, error: str) -> None:
        with self._file:
            self._write([["", "error", error]])

    def _write(self, rows: list[list[Any]]) -> None:
        self._writer.writerows(rows)
        self._file.flush()
