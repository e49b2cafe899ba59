"""Where the time of a piece of work goes: seconds by kind of work, counted only while somebody records.

The kinds are marked where the work is done (`with spent_on(Kind.forward)`); nested marks are exclusive, so the seconds
add up to those of the clock. Only the thread that records counts: what others do meanwhile costs it nothing but what it
waits for them, which is `Kind.waiting`. On CUDA every mark waits for the device, so that work is charged to the kind
that asked for it: a recorded run shows the shares, and is slower than one that is not recorded.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

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
    """Seconds by kind of work, which `spent_on` fills, and the most memory held, helpers not counted.

    peak_bytes: resident in this process; None where the system does not tell (elsewhere than on Linux).
    device_bytes: of tensors on the CUDA device; None without one.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Kind, 0.0)
        self.peak_bytes: int | None = None
        self.device_bytes: int | None = None
        self._thread = threading.get_ident()
        self._now = [Kind.other]
        self._since = time.perf_counter()

    @property
    def total_s(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())

    def enter(self, kind: Kind) -> None:
        """Charge what was done so far to the kind before, and go on with this one."""
        self._charge()
        self._now.append(kind)

    def leave(self) -> None:
        """Charge what was done since to the kind in hand, and go on with the one before."""
        self._charge()
        self._now.pop()

    def pause(self) -> None:
        """Charge what was done so far, and count nothing until `go_on`; the peaks so far are kept."""
        self._charge()
        self._keep_peaks()

    def go_on(self) -> None:
        """Count again."""
        self._since = time.perf_counter()

    def _keep_peaks(self) -> None:
        peak = _read_peak()
        self.peak_bytes = peak if self.peak_bytes is None or peak is None else max(peak, self.peak_bytes)
        if cuda := _find_cuda():
            self.device_bytes = max(cuda.max_memory_allocated(), self.device_bytes or 0)

    def is_of_this_thread(self) -> bool:
        """Whether the thread that asks is the one whose time is counted."""
        return threading.get_ident() == self._thread

    def _charge(self) -> None:
        if cuda := _find_cuda():
            cuda.synchronize()
        now = time.perf_counter()
        self.seconds[self._now[-1]] += now - self._since
        self._since = now


_recording: Profile | None = None
_NOTHING = nullcontext()


@contextmanager
def recording() -> Iterator[Profile]:
    """Count the time of this thread until the end; what is recorded within another recording is not the other's."""
    global _recording
    before = _recording
    if before is not None:
        before.pause()
    _forget_peaks()
    _recording = mine = Profile()
    try:
        yield mine
    finally:
        mine.pause()
        if before is not None:
            before.go_on()
        _recording = before


def _forget_peaks() -> None:
    """Let the peaks of memory begin anew: 5 is what the kernel's proc(5) asks for."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if cuda := _find_cuda():
        cuda.reset_peak_memory_stats()


def _find_cuda() -> Any | None:
    """Return `torch.cuda` where a device is in use. Torch is not imported for it: the store does without."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _read_peak() -> int | None:
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return None if found is None else 1024 * int(found[1])
    return None


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
