"""Processes that work for this one: they read images, render, solve.

Results come through a pipe from each, and nothing else is shared: no shared memory, no semaphores, which containers
have little of, or none.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from infoscope.runtime.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    compute: Callable[[Item], Result], items: Sequence[Item], n_helpers: int, remedy: str = "set data.n_workers=0"
) -> Generator[Result, None, None]:
    """Yield `compute(item)` of every item in order, computed ahead by helpers, who take turns; 0: by this process.

    Helpers are copies of this process (where it can be copied: Linux) that must not start threads of torch. A result
    may hold tensors.

    Args:
        remedy: what to do where helpers fail.

    Raises:
        InputError: helpers cannot be started, or one was killed. What `compute` raises is raised here, in its turn.
    """
    n_helpers = min(n_helpers, len(items))
    if n_helpers == 0:
        yield from map(compute, items)
        return
    helpers: list[_Helper] = []
    try:
        for turn in range(n_helpers):
            helpers.append(_start(compute, items[turn::n_helpers], helpers, remedy))
        for number in range(len(items)):
            yield helpers[number % n_helpers].receive()
    finally:
        for helper in helpers:
            helper.end()


class _Helper:
    """One of them, seen from here."""

    def __init__(self, process: Any, connection: Connection, remedy: str) -> None:
        self.process, self.connection, self.remedy = process, connection, remedy

    def receive(self) -> Any:
        try:
            is_result, value = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join()  # its end of the pipe closes when it ends
            code = self.process.exitcode or 0
            how = f"was killed (signal {-code}; for want of memory, perhaps)" if code < 0 else f"ended (code {code})"
            raise InputError(
                f"A process that worked ahead for this one {how}: {self.remedy}; what was finished is"
                " kept, the same command goes on from there."
            ) from None
        if not is_result:
            raise value
        return value

    def end(self) -> None:
        self.connection.close()
        self.process.kill()  # nobody wants what it still does
        self.process.join()


def _start(compute: Callable[[Any], Any], items: Sequence[Any], others: list[_Helper], remedy: str) -> _Helper:
    can_fork = sys.platform == "linux"
    context: Any = multiprocessing.get_context("fork" if can_fork else "spawn")
    try:
        here, there = context.Pipe(duplex=False)
        inherited = [here, *(other.connection for other in others)] if can_fork else []
        process = context.Process(target=_help, args=(compute, items, there, inherited), daemon=True)
        process.start()
    except OSError as error:
        raise InputError(
            f"Cannot start a process that works ahead for this one ({error.strerror}): {remedy}."
        ) from error
    there.close()  # so that the pipe ends with the helper
    return _Helper(process, here, remedy)


def _help(compute: Callable[[Any], Any], items: Sequence[Any], out: Connection, inherited: list[Connection]) -> None:
    """What a helper does: the next item is computed while the last one is sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one it works for, who closes the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    for connection in inherited:
        connection.close()
    sent: Future[None] | None = None
    with suppress(BrokenPipeError), ThreadPoolExecutor(1) as sender:
        for item in items:
            packed = _pack(compute, item)
            if sent is not None:
                sent.result()
            sent = sender.submit(out.send_bytes, packed)
        if sent is not None:
            sent.result()


def _pack(compute: Callable[[Any], Any], item: Any) -> bytes:
    try:
        return _dump((True, compute(item)))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return _dump((False, error))


def _dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as arrays: torch's own way is by shared memory."""

    def reducer_override(self, obj: Any) -> Any:
        return (_to_tensor, (obj.numpy(),)) if isinstance(obj, Tensor) else NotImplemented


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)
