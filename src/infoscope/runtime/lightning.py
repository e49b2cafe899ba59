"""Lightning's part in a job: trainers among processes that run already, and the checkpoint a training goes on from.

Lightning neither starts processes here nor looks for them in the environment, and signals stay with whoever started the
program: of them all, a training takes the first Ctrl-C alone.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.strategies import DDPStrategy

from infoscope.runtime import collective, parts, processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import atomic_write

CHECKPOINT_NAME = "last.ckpt"
_OURS = "infoscope"


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's announcements (devices, tips, "max_steps reached") and advice from the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Processes(LightningEnvironment):
    """The processes of `world`, each as a node of its own with one device: the first that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.here = processes.current()

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.here.address

    @property
    def main_port(self) -> int:
        return self.here.port

    def world_size(self) -> int:
        return self.here.size

    def global_rank(self) -> int:
        return self.here.rank

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self.here.rank


class _JoinedDDP(DDPStrategy):
    """DDP among processes that have met; Lightning's launcher would set the number of threads again."""

    def _configure_launcher(self) -> None:
        self._launcher = None


def place_trainer() -> dict[str, Any]:
    """Return what a Lightning trainer is made with to run on one device, or on one of every process of the job.

    Buffers are left alone: what a module counts must be counted over all processes, and is then the same in each.
    """
    size = processes.current().size
    if size == 1:
        return {"devices": 1, "plugins": [LightningEnvironment()]}  # else it takes Slurm's or torchrun's for its own
    strategy = _JoinedDDP(cluster_environment=_Processes(), broadcast_buffers=False)
    return {"devices": 1, "num_nodes": size, "strategy": strategy, "use_distributed_sampler": False}


def count_steps(tell: Callable[[int, int], None]) -> Callback:
    """Return what tells how many steps of a training are done, and how many there are."""

    def count(trainer: L.Trainer, *_: Any, **__: Any) -> None:
        tell(trainer.global_step, trainer.max_steps)

    return LambdaCallback(on_train_start=count, on_train_batch_end=count)


class LastCheckpoint(Callback):
    """Keeps `last.ckpt`, whole or not at all: every so many steps or `parts.SAVE_EVERY_S`, and at Ctrl-C.

    The first Ctrl-C lets the step in hand end (several processes: one step more), so that weights, optimiser and
    counters belong together; a second one ends at once, and the checkpoint of an earlier step remains. The main process
    writes the file; any number of processes goes on from it.

    Args:
        folder: of the file, on a disk that all processes see; the caller deletes it when the result is safe.
        run: what determines the training, as plain values; a checkpoint of another run is refused.
        every_n_steps: steps between checkpoints, at most.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], every_n_steps: int) -> None:
        self.file, self.run, self.every_n_steps = folder / CHECKPOINT_NAME, dict(run), every_n_steps
        self.is_stopped = False
        """Whether training ended because Ctrl-C asked for it."""
        self._stop_asked = self._time_is_up = False
        self._handlers: dict[signal.Signals, Any] = {}

    def find(self) -> Path | None:
        """Return the checkpoint to go on from, or None.

        Raises:
            InputError: if it is damaged, or belongs to another run.
        """
        if not processes.broadcast(self.file.exists()):
            return None
        try:
            run = torch.load(self.file, map_location="cpu", weights_only=True)[_OURS]
        except Exception:  # a damaged file raises errors of many kinds
            raise InputError(
                f"{self.file} is damaged or no checkpoint of infoscope: delete it to start anew."
            ) from None
        for name in self.run | run:
            if run.get(name) != self.run.get(name):
                raise InputError(f"{self.file} belongs to a run with another {name}: delete it to start anew.")
        return self.file

    def fit(self, trainer: L.Trainer, module: L.LightningModule, **data: Any) -> None:
        """Run the trainer, one of whose callbacks this is, from the checkpoint if there is one.

        Args:
            data: `datamodule` or `train_dataloaders`.

        Raises:
            InputError: as `find`.
            KeyboardInterrupt: at Ctrl-C, whichever way Lightning took it.
        """
        # Lightning has this option from 2.6 on.
        options: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(trainer.fit).parameters else {}
        self._handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            trainer.fit(module, ckpt_path=self.find(), **data, **options)
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise  # by whoever handles a signal, such as a launcher that queues the job again
            raise KeyboardInterrupt from None  # Lightning turns it into exit(1), and leaves SIGINT ignored
        finally:
            self._set_handlers(self._handlers)
        if self.is_stopped:
            raise KeyboardInterrupt

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_OURS] = self.run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_s = time.monotonic()
        # SIGTERM goes back to where it was: Lightning's handler would talk to the other processes in mid-step.
        self._set_handlers({**self._handlers, signal.SIGINT: self._ask_to_stop})

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # Every process has its batch by now; one that failed to get it is gone, and here the others see that.
        if processes.current().size > 1:
            self.is_stopped, self._time_is_up = collective.any_of(self._stop_asked, self._is_time())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if processes.current().size == 1:
            self.is_stopped, self._time_is_up = self._stop_asked, self._is_time()
        if self.is_stopped or self._time_is_up or trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)
        if self.is_stopped:
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        is_end = isinstance(exception, KeyboardInterrupt | SystemExit) and processes.current().size == 1
        if is_end and getattr(pl_module, "at_step_boundary", False) and trainer.global_step > 0:
            self._save(trainer)

    def _is_time(self) -> bool:
        return processes.is_main() and time.monotonic() - self._saved_s >= parts.SAVE_EVERY_S

    def _ask_to_stop(self, signum: int, frame: Any) -> None:
        if self._stop_asked:
            raise KeyboardInterrupt
        self._stop_asked = True

    def _set_handlers(self, handlers: Mapping[signal.Signals, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _save(self, trainer: L.Trainer) -> None:
        # the other processes take part, and write nothing
        writing = atomic_write(self.file, durable=True) if trainer.is_global_zero else nullcontext(self.file)
        with writing as unfinished:
            trainer.save_checkpoint(unfinished)
        self._saved_s = time.monotonic()
