"""Where the time of a piece of work goes: seconds by kind of work, counted only while somebody records.

The kinds are marked where the work is done (`with spent_on(Kind.forward)`); nested marks are exclusive, so the seconds
add up to those of the clock. Only the thread that records counts: what others do meanwhile costs it nothing but what it
waits for them, which is `Kind.waiting`. On CUDA every mark waits for the device, so that work is charged to the kind
that asked for it: a recorded run shows the shares, and is slower than one that is not recorded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Kind(Enum):
    """What a process spends its time on, in words."""

    reading = "reading images or tokens"
    copying = "copying to and from the device"
    forward = "the backbone's forward"
    encoder = "the SAE's encoder"
    training = "training steps"
    emd = "distances between maps"
    disk = "writing to the disk"
    waiting = "waiting for helpers"
    other = "everything else"


class Profile:
    """Seconds by kind of work; `spent_on` fills it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Kind, 0.0)
        self._thread = threading.get_ident()
        self._now = [Kind.other]
        self._since = time.perf_counter()

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def shares(self) -> dict[Kind, float]:
        """Return each kind's share of the time, the largest first; kinds that took none are left out."""
        taken = sorted(((kind, s) for kind, s in self.seconds.items() if s > 0), key=lambda pair: -pair[1])
        return {kind: s / self.total_s for kind, s in taken}

    def enter(self, kind: Kind) -> None:
        """Charge what was done so far to the kind before, and go on with this one."""
        self._charge()
        self._now.append(kind)

    def leave(self) -> None:
        """Charge what was done since to the kind in hand, and go on with the one before."""
        self._charge()
        if len(self._now) > 1:
            self._now.pop()

    def is_of_this_thread(self) -> bool:
        """Whether the thread that asks is the one whose time is counted."""
        return threading.get_ident() == self._thread

    def _charge(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._now[-1]] += now - self._since
        self._since = now


_recording: Profile | None = None
_NOTHING = nullcontext()


@contextmanager
def recording() -> Iterator[Profile]:
    """Count the time of this thread until the end; a recording within another one counts for itself alone."""
    global _recording
    before, _recording = _recording, Profile()
    mine = _recording
    try:
        yield mine
    finally:
        mine.leave()
        _recording = before


def spent_on(kind: Kind) -> AbstractContextManager[object]:
    """Mark a piece of work as of this kind, for whoever records; costs next to nothing where nobody does."""
    return _NOTHING if _recording is None or not _recording.is_of_this_thread() else _mark(_recording, kind)


@contextmanager
def _mark(profile: Profile, kind: Kind) -> Iterator[None]:
    profile.enter(kind)
    try:
        yield
    finally:
        profile.leave()


def counted(kind: Kind, items: Iterable[Item]) -> Iterator[Item]:
    """Yield items; the time until each of them is there is of this kind, what is done with them is not."""
    iterator = iter(items)
    try:
        while True:
            with spent_on(kind):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
