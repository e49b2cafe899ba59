"""What people see while stages run, at a terminal and elsewhere."""

from __future__ import annotations

import errno
import io
import threading
from contextlib import suppress

import pytest
from rich.console import Console

from infoscope.runtime import progress
from infoscope.runtime.manifests import Spec
from infoscope.runtime.progress import Display


class Clock:
    """Tells the time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 1e6)  # nobody but the loop itself looks
    return Clock()


class Log(io.StringIO):
    """A file that knows when a line has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.has_line = threading.Event()

    def flush(self) -> None:
        if "\n" in self.getvalue():
            self.has_line.set()


def open_log(clock: Clock, **options: bool) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, width=40), clock=clock, **options), file


def read(file: io.StringIO) -> list[str]:
    return [line.strip() for line in file.getvalue().splitlines()]


def work(display: Display, clock: Clock, step_s: float, n: int = 24) -> None:
    with display.bar("encoding train images", 100 * n, "images") as advance:
        for done in range(100, 100 * n + 1, 100):
            clock.now_s += step_s
            advance(done)


def test_a_log_gets_a_line_every_half_minute_with_what_how_far_and_time_left(clock: Clock):
    display, file = open_log(clock)
    work(display, clock, 4.0)
    assert read(file) == [
        "encoding train images: 800 of 2,400 images (33%), 64 s left",  # longer than the console is wide
        "encoding train images: 1,600 of 2,400 images (67%), 32 s left",
        "encoding train images: 2,400 of 2,400 images (100%), 2 min so far",
        "encoding train images: 2,400 images in 2 min",
    ]


def test_short_work_stays_quiet_even_if_there_is_much_of_it(clock: Clock):
    display, file = open_log(clock)
    work(display, clock, 1.0)
    assert read(file) == []
    work(display, clock, 1.0)  # half a minute after the last word
    assert read(file) == ["encoding train images: 600 of 2,400 images (25%), 18 s left"]


def test_whatever_is_said_counts_as_a_sign_of_life(clock: Clock):
    display, file = open_log(clock)
    with display.bar("training", 10) as advance:
        clock.now_s += 29
        display.event("built", Spec("train_sae", "sae", {}), "a" * 60)
        clock.now_s += 29
        advance(5)
        assert len(read(file)) == 1  # unbroken
        clock.now_s += 1
        advance(6)
        assert read(file)[1:] == ["training: 6 of 10 (60%), 4 s left"]


def test_time_left_counts_what_this_run_has_done(clock: Clock):
    display, file = open_log(clock)
    with display.bar("probing", unit="steps") as advance:
        advance(900, 1000, "dense")  # what an interrupted run has left
        clock.now_s += 40
        advance(920, 1000, "dense")
        clock.now_s += 30
        advance(0, 50, "evaluation")
        clock.now_s += 30
        advance(30, 50, "evaluation")
    assert read(file) == [
        "probing: dense: 920 of 1,000 steps (92%), 3 min left",
        "probing: evaluation: 0 of 50 steps (0%), 70 s so far",
        "probing: evaluation: 30 of 50 steps (60%), 20 s left",
        "probing: done in 2 min",
    ]


def test_the_innermost_loop_speaks_and_an_end_that_nobody_knows_is_not_guessed(clock: Clock):
    display, file = open_log(clock)
    with display.bar("outer", 3) as outer:
        outer(1)
        with suppress(KeyboardInterrupt), display.bar("listing images") as advance:
            clock.now_s += 30
            advance(0)
            clock.now_s += 70
            advance(12_000)
            raise KeyboardInterrupt  # no last line for what has not come to its end
    assert read(file)[:2] == ["listing images: 30 s so far", "listing images: 12,000, 2 min so far"]
    assert read(file)[2:] == ["outer: 1 in 2 min"]


@pytest.mark.parametrize("display", [Display.silent(), Display(Console(file=io.StringIO()), bars=False)])
def test_no_line_where_none_is_wanted(display: Display, clock: Clock):
    display._lines.clock = clock
    work(display, clock, 10.0)
    assert display.console.quiet or not display.console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_single_step_that_takes_long_is_not_silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 0.001)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    file = Log()
    n_before = threading.active_count()
    with Display(Console(file=file)).bar("waiting for tokens/clip_b16"):
        assert file.has_line.wait(60)
    assert threading.active_count() == n_before
    assert read(file)[0] == "waiting for tokens/clip_b16: 0 s so far"


class Full(io.StringIO):
    """On a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_does_not_end_the_work_from_beside_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 0.001)
    display = Display(Console(file=Full()))
    display._lines._said_s -= 100
    with display.bar("training"):
        display._lines._look._thread.join(60)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.fixture
def terminal() -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=True, width=100, _environ={"TERM": "xterm"})), file


def test_a_terminal_gets_bars_nested_ones_too_and_no_lines(terminal: tuple[Display, io.StringIO], clock: Clock):
    display, file = terminal
    display._lines.clock = clock
    with display.bar("outer", 2) as outer, display.bar("inner", 4) as inner:
        outer(1, part="first half")
        clock.now_s += 100
        inner(3)
        assert display._bars._drawn is not None
        display._bars._drawn.refresh()
    with display.bar("afterwards") as advance:
        advance(1, 4)
    assert "left" not in file.getvalue()
    for shown in ("outer: first half", "1/2", "inner", "3/4", "afterwards"):
        assert shown in file.getvalue()


@pytest.mark.parametrize("environment", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_what_only_looks_like_a_terminal_gets_lines(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    work(Display(clock=clock), clock, 10.0)
    assert "encoding train images: 300 of 2,400 images (12%), 4 min left" in capsys.readouterr().out
