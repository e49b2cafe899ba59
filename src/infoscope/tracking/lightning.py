"""Metrics of Lightning's trainers in a job's run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from infoscope.tracking.tracker import Tracker


class TrackerLogger(Logger):
    """Forwards numbers; hyperparameters are in the run's configuration already."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    @property
    def name(self) -> str:
        return "infoscope"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.tracker.log({key: float(value) for key, value in metrics.items() if key != "epoch"}, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass
