"""What people see while stages run: one line per artifact, and of each loop how far it is, its rate, the time left.

In a terminal that is a bar. Elsewhere (a log, a pipe, a notebook) it is a plain line, every half minute at most: short
work stays quiet, and long work never does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from infoscope.runtime.calls import name_type
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Spec
from infoscope.runtime.output import LostOutput, Terminal

LINE_EVERY_S = 30.0
"""Between two plain lines, at least."""
LOOK_EVERY_S = 1.0
"""How often one looks whether a line is due, while a step takes long."""
_EVENTS = {"building": "cyan", "built": "green", "reused": "dim", "waiting": "yellow", "damaged": "red"}
_INDENT = " " * 10
_saying = threading.RLock()
# A process must not be forked while another thread writes: the lock on the stream would stay closed in it for good.
os.register_at_fork(before=_saying.acquire, after_in_parent=_saying.release, after_in_child=_saying.release)


class Advance(Protocol):
    """A callback of a loop that reports its progress."""

    def __call__(self, done: int, of: int | None = None, part: str = "") -> None:
        """Say how many are done, how many there are (None: as said before), and which part of the loop that counts."""
        ...


def ignore(done: int, of: int | None = None, part: str = "") -> None:
    """An `Advance` for those who show nothing."""


ShowBar = Callable[[str], AbstractContextManager[Advance]]
"""Given a name, opens a progress bar and gives the callback that moves it: `Display.bar`."""
ProgressCallback = Callable[[str, int, int | None], object]
"""A user's callback: (what is being done, how many of it are done, how many there are)."""


def show_nothing(_what: str) -> AbstractContextManager[Advance]:
    """A `ShowBar` for those who have no display."""
    return nullcontext(ignore)


class Display:
    """Prints to a console; how far loops are only if `bars` is true.

    Args:
        clock: tells the time in seconds.
    """

    def __init__(
        self, console: Console | None = None, bars: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or _make_console()
        self.bars = bars
        self._known: set[str] = set()
        self._bars, self._lines = _Bars(self.console), _Lines(self.console, clock)

    @classmethod
    def silent(cls) -> Display:
        """Return a display that shows nothing, such as that of a process that is not the main one."""
        return cls(Console(quiet=True), bars=False)

    def event(self, event: str, spec: Spec, detail: str) -> None:
        """Say what happens to an artifact: building (its bars say so), built, reused (once), waiting, damaged."""
        if event in ("built", "reused") and (spec.is_one_of_many or (event == "reused" and spec.hash in self._known)):
            return
        if event == "building" and not detail:
            return
        if event in ("built", "reused"):
            self._known.add(spec.hash)
        line = Text(f"{event:>8}  ", style=_EVENTS[event])
        line.append(f"{spec.stage}/{spec.folder_name}", style="default" if event == "built" else "dim")
        line.append(f"  {detail}" if event != "reused" else "", style="dim")
        self._lines.say(line)

    def say(self, sentence: str) -> None:
        """Print one sentence."""
        self._lines.say(Text(sentence))

    def bar(self, what: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """Open a progress bar and give the callback that moves it.

        Args:
            unit: of what is counted: "images".
        """
        if not self.bars or self.console.quiet:
            return show_nothing(what)
        view = self._bars if self.console.is_interactive else self._lines
        return view.show(what, total, unit)


def _make_console(stderr: bool = False) -> Console:
    """Return the console of this program: what only looks like a terminal (FORCE_COLOR in CI) gets no bars.

    A notebook gets the text of a log.
    """
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    interactive = None if is_terminal else False
    return Terminal(stderr=stderr, highlight=False, force_jupyter=False, force_interactive=interactive)


class CallbackDisplay:
    """In place of a display: passes the progress of loops to a user's callback and prints nothing."""

    def __init__(self, callback: ProgressCallback) -> None:
        self.callback = callback

    def say(self, sentence: str) -> None:
        """Print nothing: the caller chose a callback instead."""

    def bar(self, what: str, total: int | None = None, unit: str = "") -> AbstractContextManager[Advance]:
        """Return the callback of a loop, which calls the user's."""

        def advance(done: int, of: int | None = None, part: str = "") -> None:
            self.callback(part or what, done, total if of is None else of)

        return nullcontext(advance)


def choose_display(progress: Any) -> Display | CallbackDisplay:
    """Return what shows how far work is that was called from Python.

    Args:
        progress: True shows it on stderr, False nowhere, and a function is called, see `ProgressCallback`.

    Raises:
        InputError: if it is something else.
    """
    if progress is False:
        return Display.silent()
    if progress is True:
        return Display(_make_console(stderr=True))
    if not callable(progress):
        raise InputError(
            f"Expected progress= to be True, False or a function of (what, done, total), got {name_type(progress)}."
        )
    return CallbackDisplay(progress)


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.4g}/s", style="progress.data.speed")


class _Bars:
    """Bars in a terminal, one below the other where loops are nested; each goes when its loop is over."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._drawn: Progress | None = None

    @contextmanager
    def show(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        if self._drawn is None:
            columns = (TextColumn(_INDENT + "{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn())
            left = (_RateColumn(), TimeRemainingColumn(compact=True))
            self._drawn = Progress(*columns, *left, console=self.console, transient=True)
            self._drawn.start()
        drawn = self._drawn
        task = drawn.add_task(what, total=total)

        def advance(done: int, of: int | None = None, part: str = "") -> None:
            name = f"{what}: {part}" if part else what
            drawn.update(task, completed=done, total=total if of is None else of, description=name)

        try:
            yield advance
        finally:
            drawn.remove_task(task)
            if not drawn.tasks:
                drawn.stop()
                self._drawn = None


class _Lines:
    """Plain lines. A thread looks after them while a loop is open: a single step may take longer than a line's time."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.console, self.clock = console, clock
        self._loops: list[_Loop] = []
        self._look: _Repeated | None = None
        self._said_s = clock()

    def say(self, line: Text) -> None:
        """Print a line; a log has any width."""
        with _saying:
            self.console.print(line, soft_wrap=not self.console.is_interactive)
            self._said_s = self.clock()

    @contextmanager
    def show(self, what: str, total: int | None, unit: str) -> Iterator[Advance]:
        loop = _Loop(what, total, unit, self.clock)
        self._loops.append(loop)
        if self._look is None:
            self._look = _Repeated(self._say_if_due)

        def advance(done: int, of: int | None = None, part: str = "") -> None:
            loop.advance(done, of, part)
            self._say_if_due()

        try:
            yield advance
            if self.clock() - loop.opened_s >= LINE_EVERY_S:
                self.say(Text(_INDENT + loop.describe_end()))
        finally:
            self._loops.remove(loop)
            if self._look is not None and not self._loops:
                self._look.end()
                self._look = None

    def _say_if_due(self) -> None:
        with _saying:
            if self._loops and self.clock() - self._said_s >= LINE_EVERY_S:
                self.say(Text(_INDENT + self._loops[-1].describe()))


class _Repeated:
    """A thread that does something every second, until it ends."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[do], name="progress", daemon=True)
        self._thread.start()

    def _run(self, do: Callable[[], None]) -> None:
        with suppress(LostOutput, OSError, ValueError):  # a closed pipe, a full disk: whoever prints next meets it too
            while not self._is_over.wait(LOOK_EVERY_S):
                do()

    def end(self) -> None:
        """End it, when what it does is done."""
        self._is_over.set()
        self._thread.join()


class _Loop:
    """How far a loop is, in words. Each part of it is timed from its first report."""

    def __init__(self, what: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self.what, self.total, self.unit, self.clock = what, total, f" {unit}" if unit else "", clock
        self.opened_s = self._began_s = clock()
        self.done, self.part, self._began_at = 0, "", None

    def advance(self, done: int, of: int | None, part: str) -> None:
        if self._began_at is None or part != self.part or done < self.done:
            self._began_at, self._began_s = done, self.clock()
        self.done, self.part, self.total = done, part, self.total if of is None else of

    def describe(self) -> str:
        """Return what is done, how far it is, and how long it will take or has taken."""
        name = f"{self.what}: {self.part}" if self.part else self.what
        so_far = f"{format_seconds(self.clock() - self.opened_s)} so far"
        if self.total is None:
            return f"{name}: {f'{self.done:,}{self.unit}, ' if self.done else ''}{so_far}"
        share = f"{self.done:,} of {self.total:,}{self.unit} ({self.done / max(1, self.total):.0%})"
        n_timed = self.done - (self.done if self._began_at is None else self._began_at)
        if n_timed == 0 or self.done >= self.total:  # what follows the loop takes as long as it takes
            return f"{name}: {share}, {so_far}"
        left_s = (self.total - self.done) * (self.clock() - self._began_s) / n_timed
        return f"{name}: {share}, {format_seconds(left_s)} left"

    def describe_end(self) -> str:
        """Return how long it has taken."""
        count = f"{self.done:,}{self.unit}" if self.done and not self.part else "done"
        return f"{self.what}: {count} in {format_seconds(self.clock() - self.opened_s)}"


def format_bytes(n_bytes: float) -> str:
    """Return a size for display: 12 kB, 3.4 MB, 1.2 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"


def format_seconds(seconds: float) -> str:
    """Return a duration for display: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested numbers as {"a/b": value}; None and texts are left out."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = float(value)
    return flat
