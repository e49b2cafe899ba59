"""What can be chosen about logs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from infoscope.runtime.bounds import Bounds, Name, check


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
    project: Name = "infoscope"
    group: Name | None = None
    """Name that joins the runs of one experiment; null: the sweep's folder, outside a sweep model and data."""
    entity: str | None = None
    timeout_s: Annotated[float, Bounds(above=0, most=1e9)] = 15.0
    """How long the server of mode=online may keep a job waiting, at its start and again at its end."""

    def __post_init__(self) -> None:
        check(self, "logger")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that this logger does not read, and in words what would."""
        if self.kind is not LoggerKind.wandb:
            others = ("mode", "project", "entity", "timeout_s")
            return dict.fromkeys(others, "by logger=wandb alone: drop it, or choose that")
        is_online = self.mode is WandbMode.online
        return {} if is_online else {"timeout_s": "by logger.mode=online alone: drop it, or give that"}
