"""The run of a job as its stages see it: opened when there is something to tell, closed when the job ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from infoscope.runtime.errors import InputError
from infoscope.tracking.config import LoggerConfig, LoggerKind
from infoscope.tracking.log import CsvLog, Log, LogError
from infoscope.tracking.names import RunName


class JobTracking:
    """The one run of a job (a context manager: the end of the block is the end of the run).

    A job that only reuses opens no run; one of a sweep that fails does, to say so. A log that cannot be written is one
    sentence, and the work goes on without it: what is computed is worth more.

    Args:
        tree: the resolved configuration, plain containers.
        output_dir: runs lie in `<output_dir>/wandb` or `<output_dir>/csv/<group>/<job type>-<id>`.
        say: callback(sentence): where the run lies and what went wrong with it.
        tells_failure: whether a failure opens a run where nothing was logged before.
    """

    def __init__(
        self,
        config: LoggerConfig,
        name: RunName,
        tree: Mapping[str, Any],
        output_dir: Path,
        say: Callable[[str], None],
        tells_failure: bool = False,
    ) -> None:
        self.config, self.name, self.tree, self.output_dir, self.say = config, name, tree, output_dir, say
        self.tells_failure = tells_failure
        self._log: Log | None = None
        self._is_broken = False

    def __enter__(self) -> JobTracking:
        """Begin the job.

        Raises:
            InputError: logger.mode=online without an account.
        """
        if self.config.kind is LoggerKind.wandb:
            from infoscope.tracking.wandb_log import check_account

            check_account(self.config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._log is None and self.tells_failure and isinstance(error, Exception):
            self.write(lambda log: None)
        if self._log is None:
            return
        location = self._log.location
        self.write(lambda log: log.finish(_explain(error)))
        if location is not None and not self._is_broken:
            self.say(f"logged: {location}")
        self._log = None

    def view(self, prefix: str) -> Tracker:
        """Return the run for one stage: all that it logs is called `<prefix>/...`."""
        return Tracker(self.write, prefix)

    def write(self, action: Callable[[Log], None]) -> None:
        """Act on the run, opening it first if need be; the first failure ends it, in one sentence."""
        if self._is_broken:
            return
        try:
            self._log = self._log or self._open()
            action(self._log)
        except (LogError, OSError) as error:
            self._is_broken = True
            self.say(f"The run is not logged any further, the work goes on: {error}.")
            with suppress(LogError, OSError):  # it was said already
                if self._log is not None:
                    self._log.finish(f"not logged any further: {error}")

    def _open(self) -> Log:
        match self.config.kind:
            case LoggerKind.none:
                return Log()
            case LoggerKind.csv:
                folder = self.output_dir / "csv" / self.name.group / f"{self.name.job_type}-{self.name.id}"
                return CsvLog(folder, self.tree)
            case LoggerKind.wandb:
                from infoscope.tracking.wandb_log import WandbLog

                return WandbLog(self.config, self.name, self.tree, self.output_dir, self.say)


@dataclass(frozen=True)
class Tracker:
    """What a stage logs to: a part of its job's run."""

    write: Callable[[Callable[[Log], None]], None]
    prefix: str

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers, with a step where they form a curve."""
        named = {f"{self.prefix}/{name}": value for name, value in metrics.items()}
        if step is None:
            self.write(lambda log: log.log_numbers(named))
        else:
            self.write(lambda log: log.log_point(self.prefix, named, step))

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table; its cells are numbers, texts, None and pictures, which are the paths of their files."""
        self.write(lambda log: log.log_table(f"{self.prefix}/{name}", columns, rows))

    def log_figure(self, name: str, path: Path) -> None:
        """Log a picture file."""
        self.write(lambda log: log.log_figure(f"{self.prefix}/{name}", path))


class TrackerLogger(Logger):
    """Forwards numbers of Lightning's trainers; hyperparameters are in the run's configuration already."""

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


def _explain(error: BaseException | None) -> str:
    """Return why a job ended before its time, or "" if it did not."""
    match error:
        case None:
            return ""
        case KeyboardInterrupt():
            return "interrupted"
        case SystemExit():
            return f"stopped by exit({error.code})"
        case InputError():
            return str(error)
        case _:
            return f"{type(error).__name__}: {error}"
