"""A thread that works behind: in order, bounded, and no failure is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from infoscope.runtime.behind import Behind

N_WAITING = 3


@pytest.fixture
def behind() -> Iterator[Behind]:
    made = Behind("of_a_test", N_WAITING)
    yield made
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("of_a_test")]


def fail() -> None:
    raise OSError("No space left on device")


def test_all_is_done_in_order(behind: Behind) -> None:
    done: list[int] = []
    futures = [behind.submit(lambda i=i: done.append(i) or -i) for i in range(20)]
    behind.finish()
    assert done == list(range(20))
    assert [future.result() for future in futures] == [-i for i in range(20)]


def test_whoever_submits_waits_for_the_oldest(behind: Behind) -> None:
    go, n_done, seen = threading.Event(), 0, []

    def work() -> None:
        nonlocal n_done
        go.wait()
        n_done += 1

    for _ in range(N_WAITING):
        behind.submit(work)
    assert n_done == 0
    timer = threading.Timer(0.01, go.set)
    timer.start()
    behind.submit(lambda: seen.append(n_done))
    assert n_done >= 1
    behind.finish()
    assert seen == [N_WAITING]
    timer.join()


def test_after_a_failure_nothing_more_is_done_and_it_is_raised(behind: Behind) -> None:
    done: list[int] = []
    go = threading.Event()
    failed = behind.submit(lambda: go.wait() and fail())
    later = behind.submit(done.append, 1)
    go.set()
    assert isinstance(later.exception(), OSError)  # it waits for the thread
    assert isinstance(failed.exception(), OSError)
    with pytest.raises(OSError, match="No space"):
        behind.check()
    with pytest.raises(OSError, match="No space"):
        behind.submit(done.append, 2)
    assert not done


def test_what_fails_last_is_raised_at_the_end(behind: Behind) -> None:
    behind.submit(fail)
    with pytest.raises(OSError, match="No space"):
        behind.finish()
    behind.finish()  # it was said


def test_closing_waits_and_raises_nothing() -> None:
    behind, done = Behind("of_a_test", N_WAITING), []
    behind.submit(done.append, 1)
    behind.submit(fail)
    behind.close()
    assert done == [1]
