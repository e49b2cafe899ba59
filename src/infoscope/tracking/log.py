"""What every kind of log takes, and the log that keeps nothing."""

from __future__ import annotations

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
        """Log a table."""

    def log_figure(self, name: str, path: Path) -> None:
        """Log a picture file."""

    def finish(self, error: str) -> None:
        """Flush and close; "" says that all went well, anything else marks the run as failed and says why."""
