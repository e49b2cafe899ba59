"""What the terminal shows while stages run: one line per artifact, one bar per loop (rate, time left)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from infoscope.manifests import Spec

Item = TypeVar("Item")

_EVENTS = {"building": "cyan", "built": "green", "reused": "dim", "waiting": "yellow", "damaged": "red"}


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.4g}/s", style="progress.data.speed")


class Display:
    """Prints to a console; bars only where it is a terminal and `bars` is true."""

    def __init__(self, console: Console | None = None, bars: bool = True) -> None:
        self.console = console or Console(highlight=False)
        self.bars = bars
        self._known: set[str] = set()

    @classmethod
    def silent(cls) -> Display:
        """Return a display that shows nothing: of a process that is not the main one."""
        return cls(Console(quiet=True), bars=False)

    def event(self, event: str, spec: Spec, detail: str) -> None:
        """Say what happens to an artifact: building (its bars say so), built, reused (once), waiting, damaged."""
        is_one_of_many = spec.stage in ("probe", "features")  # dozens per seed: the stage itself says how many
        if event in ("built", "reused") and (is_one_of_many or (event == "reused" and spec.hash in self._known)):
            return
        if event == "building" and not detail:
            return
        if event in ("built", "reused"):
            self._known.add(spec.hash)
        line = Text(f"{event:>8}  ", style=_EVENTS[event])
        line.append(f"{spec.stage}/{spec.folder_name}", style="default" if event == "built" else "dim")
        line.append(f"  {detail}" if event != "reused" else "", style="dim")
        self.console.print(line)

    def say(self, sentence: str) -> None:
        """Print one sentence."""
        self.console.print(Text(sentence))

    @contextmanager
    def bar(self, what: str, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
        """Show a bar; yields a function that takes (how many are done, how many there are or None)."""
        progress = Progress(
            TextColumn("          {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not (self.bars and self.console.is_terminal),
        )
        with progress:
            task = progress.add_task(what, total=total)

            def advance(done: int, of: int | None = None) -> None:
                progress.update(task, completed=done, total=total if of is None else of)

            yield advance

    def track(self, what: str, items: Iterable[Item], total: int, size: Callable[[Item], int]) -> Iterator[Item]:
        """Yield items under a bar; `size` says how many units an item stands for."""
        with self.bar(what, total) as advance:
            done = 0
            for item in items:
                yield item
                done += size(item)
                advance(done, None)


class LightningBar(L.Callback):
    """A bar over the steps of a Lightning run, with the metrics of its progress bar."""

    def __init__(self, display: Display, what: str) -> None:
        self.display, self.what = display, what
        self._context: Any = None
        self._advance: Callable[[int, int | None], None] = lambda done, of: None

    def _open(self, total: int) -> None:
        self._context = self.display.bar(self.what, total)
        self._advance = self._context.__enter__()

    def _close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open(trainer.max_steps)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._advance(trainer.global_step, None)

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested numbers as {"a/b": value}; None and texts are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
