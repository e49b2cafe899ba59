"""What one run of the program is: alone, or one job of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Where one configuration runs.

    folder: the run's own folder, where Hydra keeps its configuration; None for a run that has none (from Python).
    sweep: the folder of the sweep it belongs to; None for a run of its own.
    number: place in the sweep, from 0.
    overrides: what its command line changes, as `KEY=VALUE`.
    layers: other values of model.layer in jobs that are like it in all else: their tokens come from the same forwards.
    """

    folder: Path | None = None
    sweep: Path | None = None
    number: int = 0
    overrides: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
