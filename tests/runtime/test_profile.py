"""Seconds by kind of work: exclusive, of one thread, and nothing where nobody records."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from infoscope.runtime import profile
from infoscope.runtime.profile import Kind, counted, recording, spent_on


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(profile.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_nested_kinds_are_exclusive_and_add_up(clock: Clock) -> None:
    with recording() as spent:
        clock.now += 1
        with spent_on(Kind.forward):
            clock.now += 2
            with spent_on(Kind.copying):
                clock.now += 4
            clock.now += 8
        clock.now += 16
    assert {kind: s for kind, s in spent.seconds.items() if s} == {Kind.other: 17, Kind.forward: 10, Kind.copying: 4}
    assert spent.total_s == 31


def lose(clock: Clock) -> None:
    with spent_on(Kind.disk):
        clock.now += 3
        raise ValueError("lost")


def test_what_raises_is_charged_too(clock: Clock) -> None:
    with recording() as spent:
        with pytest.raises(ValueError, match="lost"):
            lose(clock)
        clock.now += 1
    assert (spent.seconds[Kind.disk], spent.seconds[Kind.other]) == (3, 1)


def test_iteration_counts_the_wait_alone_and_closes_what_it_reads(clock: Clock) -> None:
    closed = []

    def read() -> Iterator[int]:
        try:
            for i in range(3):
                clock.now += 10
                yield i
        finally:
            closed.append(True)

    with recording() as spent:
        for i in counted(Kind.reading, read()):
            clock.now += 1
            if i == 1:
                break
    assert (spent.seconds[Kind.reading], spent.seconds[Kind.other]) == (20, 2)
    assert closed == [True]


def test_other_threads_and_unrecorded_work_count_for_nothing(clock: Clock) -> None:
    with spent_on(Kind.emd):
        clock.now += 5

    def work() -> None:
        with spent_on(Kind.disk):
            clock.now += 7

    with recording() as spent:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert spent.seconds[Kind.disk] == 0
    assert spent.seconds[Kind.other] == 7  # it was waited for


def test_a_recording_within_another_is_its_own(clock: Clock) -> None:
    with recording() as outer:
        clock.now += 4
        with recording() as inner, spent_on(Kind.emd):
            clock.now += 2
        with spent_on(Kind.disk):
            clock.now += 1
    assert (inner.seconds[Kind.emd], inner.total_s) == (2, 2)
    assert (outer.seconds[Kind.other], outer.seconds[Kind.disk], outer.total_s) == (4, 1, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells the peak on Linux alone")
def test_the_peak_is_that_of_the_recording() -> None:
    def hold(n_bytes: int) -> int:
        return int(np.ones(n_bytes, np.uint8).sum())

    hold(2**29)
    with recording() as small:
        hold(2**20)
    with recording() as large:
        hold(2**28)
        with recording():
            hold(2**20)
    assert small.peak_bytes is not None
    assert large.peak_bytes is not None
    assert 0.9 * 2**28 < large.peak_bytes - small.peak_bytes < 1.1 * 2**28
