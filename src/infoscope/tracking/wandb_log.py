"""The log that is a run of Weights & Biases, of which nothing may stop or delay the work: no server, no service."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import wandb

from infoscope.runtime.errors import InputError
from infoscope.tracking.config import LoggerConfig, WandbMode
from infoscope.tracking.log import Log, LogError
from infoscope.tracking.names import RunName

FLUSH_S = 0.2
"""How much of a run a killed machine can take with it, in seconds (wandb's own default is 15)."""


def check_account(config: LoggerConfig) -> None:
    """Refuse runs that talk to a server without an account, before hours of work.

    Raises:
        InputError: such a run.
    """
    if config.mode is WandbMode.online and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise InputError("logger.mode=online needs an account: run `wandb login`, or use logger.mode=offline.")


class WandbLog(Log):
    """A run in `<folder>/wandb`; one of the same id goes on where it was.

    Args:
        tree: the resolved configuration, plain containers.
        say: callback(sentence): what went wrong with the server.

    Raises:
        LogError: if no run can be opened, not even offline.
        OSError: if `folder` cannot be written to.
    """

    def __init__(
        self, config: LoggerConfig, name: RunName, tree: Mapping[str, Any], folder: Path, say: Callable[[str], None]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config, self.name, self.tree, self.folder, self.say = config, name, dict(tree), folder, say
        self._mode = config.mode
        with _as_log_errors():
            self._open()

    def _open(self) -> None:
        try:
            self._run = self._init()
        except Exception as error:
            if not _is_of_service(error):
                raise
            _stop_service()  # it died under an earlier run of this process
            self._run = self._init()
        self.location = Path(self._run.dir).parent
        self._curves: set[str] = set()

    def _init(self) -> wandb.Run:
        """Open the run, offline if the server does not answer in time."""
        try:
            return self._init_as(self._mode)
        except (wandb.Error, TimeoutError) as error:
            if self._mode is WandbMode.offline:
                raise
            _stop_service()  # it believes that the run is still being opened
            self._mode = WandbMode.offline
            run = self._init_as(self._mode)
            self.say(
                f"Weights & Biases does not answer ({_first_line(error)}): this run is logged offline,"
                f" `wandb sync {shlex.quote(str(Path(run.dir).parent))}` sends it."
            )
            return run

    def _init_as(self, mode: WandbMode) -> wandb.Run:
        return wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.name.group,
            job_type=self.name.job_type,
            name=self.name.name,
            id=self.name.id,
            resume="allow",
            config=self.tree,
            dir=self.folder,
            mode=mode.value,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=self.config.timeout_s,
                finish_timeout=self.config.timeout_s,
                finish_timeout_raises=True,
                x_transaction_log_flush_interval=FLUSH_S,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                save_code=False,
            ),
        )

    def log_numbers(self, numbers: Mapping[str, float]) -> None:
        self._do(lambda run: run.summary.update(dict(numbers)))

    def log_point(self, curve: str, numbers: Mapping[str, float], step: int) -> None:
        def log(run: wandb.Run) -> None:
            if curve not in self._curves:  # so that a curve goes on where it was, though the run has logged others
                run.define_metric(f"{curve}/step")
                run.define_metric(f"{curve}/*", step_metric=f"{curve}/step")
                self._curves.add(curve)
            run.log({**numbers, f"{curve}/step": step})

        self._do(log)

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        names = list[Any](columns)  # its annotations take no lists of str and of lists
        cells: list[Any] = [[_show(cell) for cell in row] for row in rows]
        table = wandb.Table(columns=names, data=cells, allow_mixed_types=True)
        for number, column in enumerate(columns):
            if any(isinstance(row[number], Path) for row in rows):  # else it would be the picture's name in Python
                table.cast(column, wandb.Image, optional=True)
        self._do(lambda run: run.log({name: table}))

    def log_figure(self, name: str, path: Path) -> None:
        self._do(lambda run: run.log({name: wandb.Image(str(path))}))

    def finish(self, error: str) -> None:
        def end(run: wandb.Run) -> None:
            run.summary["error"] = error
            run.finish(exit_code=1 if error else 0)

        try:
            self._do(end)
        except TimeoutError:
            self.say(
                f"Weights & Biases did not take all of a run within {self.config.timeout_s:g} s: it lies on the disk,"
                f" `wandb sync --include-online {shlex.quote(str(self.location))}` sends it."
            )

    def _do(self, action: Callable[[wandb.Run], None]) -> None:
        """Act on the run; if the service has died, start another, which goes on with the run.

        Raises:
            LogError: if that did not help either.
        """
        with _as_log_errors():
            try:
                action(self._run)
            except Exception as error:
                if not _is_of_service(error):
                    raise
                _stop_service()
                self._open()
                action(self._run)


def _show(cell: Any) -> Any:
    return wandb.Image(str(cell)) if isinstance(cell, Path) else cell


@contextmanager
def _as_log_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, wandb.Error) or _is_of_service(error):
            raise LogError(_first_line(error)) from error
        raise


def _is_of_service(error: Exception) -> bool:
    """Whether wandb cannot talk to the process that writes its files: Slurm's SIGTERM goes to every process of a job.

    wandb has no public name for most of these errors.
    """
    return isinstance(error, ConnectionError) or type(error).__module__.startswith("wandb.sdk.")


def _stop_service() -> None:
    """End the process that writes wandb's files, if it is there at all; the next run starts another."""
    with suppress(Exception, SystemExit):  # wandb exits with the service's code
        wandb.teardown()
    os.environ.pop("WANDB_SERVICE", None)  # where wandb looks for a service, even one that was another process's


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
