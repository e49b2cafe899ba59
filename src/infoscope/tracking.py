"""Where a stage's numbers go: Weights & Biases (offline unless asked), CSV files, or nowhere."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

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
    """Name that joins the runs of one experiment; null: from model and data."""
    entity: str | None = None


class Tracker:
    """One run of one stage. The base class logs nowhere: `logger=none`."""

    location: Path | None = None
    """Where the run lies on disk, for people."""

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, with a step where they form a curve."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table."""

    def log_figure(self, name: str, path: Path) -> None:
        """Log a picture file."""

    def finish(self, failed: bool = False) -> None:
        """Flush and close."""


class CsvTracker(Tracker):
    """Writes `metrics.csv` (step, name, value), `<table>.csv` and `config.json` into a folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.location = folder
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        self._file = (folder / "metrics.csv").open("a", newline="")
        self._writer = csv.writer(self._file)
        if self._file.tell() == 0:
            self._writer.writerow(["step", "name", "value"])

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self._writer.writerow(["" if step is None else step, name, value])
        self._file.flush()

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        assert self.location is not None
        with (self.location / f"{name.replace('/', '_')}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)

    def finish(self, failed: bool = False) -> None:
        self._file.close()


class WandbTracker(Tracker):
    """A Weights & Biases run: job type = stage, group = experiment, config = resolved tree."""

    def __init__(
        self, config: LoggerConfig, stage: str, name: str, group: str, tree: Mapping[str, Any], folder: Path
    ) -> None:
        import wandb

        online = config.mode is WandbMode.online
        if online and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            raise InputError("logger.mode=online needs an account: run `wandb login`, or use logger.mode=offline.")
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=group,
            job_type=stage,
            name=f"{group}-{name}",
            config=dict(tree),
            dir=folder,
            mode="online" if online else "offline",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                save_code=False,
            ),
            reinit="finish_previous",
        )
        self.location = Path(self._run.dir).parent

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self._run.summary.update(dict(metrics))
        else:
            self._run.log({**metrics, "step": step})

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        text: list[Any] = [[str(value) if value is not None else "" for value in row] for row in rows]
        names: list[Any] = list(columns)
        self._run.log({name: self._wandb.Table(columns=names, data=text)})

    def log_figure(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def finish(self, failed: bool = False) -> None:
        self._run.finish(exit_code=1 if failed else 0)


@contextmanager
def track(
    config: LoggerConfig,
    stage: str,
    group: str,
    tree: Mapping[str, Any],
    output_dir: Path,
    seed: int | None = None,
    locations: dict[str, Path] | None = None,
) -> Iterator[Tracker]:
    """Open the run of one stage; it is marked as failed if the stage raises.

    Args:
        group: joins the runs of one experiment.
        tree: the resolved configuration, plain containers.
        output_dir: runs lie in `<output_dir>/wandb` or `<output_dir>/csv/<group>/<stage>`.
        seed: of the SAE, for the run's name.
        locations: told where the run lies, by name.

    Raises:
        InputError: logger.mode=online without an account.
    """
    name = stage if seed is None else f"{stage}-seed{seed}"
    tracker: Tracker
    if config.kind is LoggerKind.none:
        tracker = Tracker()
    elif config.kind is LoggerKind.csv:
        tracker = CsvTracker(output_dir / "csv" / group / name, tree)
    else:
        tracker = WandbTracker(config, stage, name, group, tree, output_dir)
    if locations is not None and tracker.location is not None:
        locations[name] = tracker.location
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()


def make_lightning_logger(tracker: Tracker) -> Any:
    """Return a Lightning logger that passes a trainer's metrics on to a run."""
    from lightning.pytorch.loggers.logger import Logger

    class TrackerLogger(Logger):
        """Forwards numbers; hyperparameters are in the run's config already."""

        @property
        def name(self) -> str:
            return "infoscope"

        @property
        def version(self) -> str:
            return "0"

        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            tracker.log({key: float(value) for key, value in metrics.items() if key != "epoch"}, step)

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            pass

    return TrackerLogger()
