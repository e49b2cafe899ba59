"""What can be chosen about logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from infoscope.errors import InputError


class LoggerKind(Enum):
    """Which logger: Weights & Biases, CSV files, none."""

    wandb = "wandb"
    csv = "csv"
    none = "none"


class WandbMode(Enum):
    """Whether Weights & Biases talks to its server; offline runs can be sent later by `wandb sync`."""

    offline = "offline"
    online = "online"


@dataclass
class LoggerConfig:
    """Where metrics, tables and figures are logged; part of no hash."""

    kind: LoggerKind = LoggerKind.wandb
    mode: WandbMode = WandbMode.offline
    project: str = "infoscope"
    group: str | None = None
    """Name that joins the runs of one experiment; null: the sweep's folder, outside a sweep model and data."""
    entity: str | None = None
    timeout_s: float = 15.0
    """How long the server of mode=online may keep a job waiting, at its start and again at its end."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise InputError(f"Expected logger.timeout_s to be a number of seconds above 0, got {self.timeout_s}.")
