"""Processes that work for this one: they read images, render, solve.

Questions and results go through a pipe to each: no semaphores and no files in shared memory, which containers have
little of, or none. What helpers write into an anonymous mapping that was there before them (`mmap(-1, n_bytes)`) this
process sees; those need neither.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from infoscope.runtime.behind import Behind
from infoscope.runtime.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

CAN_FORK = sys.platform == "linux"
"""Whether helpers are copies of this process, which have all that it has, its shared memory too."""


def map_ahead(
    compute: Callable[[Item], Result], items: Sequence[Item], n_helpers: int, remedy: str = "set data.n_workers=0"
) -> Generator[Result, None, None]:
    """Yield `compute(item)` of every item in order, computed ahead by helpers, who take turns; 0: by this process.

    A result may hold tensors.

    Args:
        remedy: what to do where helpers fail.

    Raises:
        InputError: helpers cannot be started, or one was killed. What `compute` raises is raised here, in its turn.
    """
    n_helpers = min(n_helpers, len(items))
    if n_helpers == 0:
        yield from map(compute, items)
        return
    shares = [partial(_compute_nth, compute, items[turn::n_helpers]) for turn in range(n_helpers)]
    n_ahead = 2 * n_helpers  # one is sent while the next one is computed
    with Helpers(shares, remedy) as helpers:
        for number in range(min(n_ahead, len(items))):
            helpers.ask(number, number // n_helpers)
        for number in range(len(items)):
            result = helpers.receive(number)
            if number + n_ahead < len(items):
                helpers.ask(number, (number + n_ahead) // n_helpers)
            yield result


def _compute_nth(compute: Callable[[Item], Result], items: Sequence[Item], number: int) -> Result:
    return compute(items[number])


class Helpers:
    """Processes that stay until the end of the context: each computes what it is asked for, in the order of asking.

    They are copies of this process (where it can be copied: Linux) that must not start threads of torch.

    Args:
        computes: what each of them does with what is asked, and sends back; tensors may be among it.
        remedy: what to do where helpers fail.

    Raises:
        InputError: they cannot be started.
    """

    def __init__(self, computes: Sequence[Callable[[Any], Any]], remedy: str = "set data.n_workers=0") -> None:
        self._helpers: list[_Helper] = []
        try:
            for compute in computes:
                self._helpers.append(_start(compute, self._helpers, remedy))
        except BaseException:
            self.end()
            raise

    def __len__(self) -> int:
        return len(self._helpers)

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, number: int, item: Any) -> None:
        """Have the helper whose turn it is at this number compute `item`, which should be small.

        What waits in a pipe, there and back, must fit into it: some 10 kB of questions, or of answers. That a helper
        was killed is said when its result is wanted, so that those before it are not lost.
        """
        self._helpers[number % len(self)].ask(item)

    def receive(self, number: int) -> Any:
        """Wait for the next result of the helper whose turn it is at this number.

        Raises:
            InputError: the helper was killed. What it raised is raised here.
        """
        return self._helpers[number % len(self)].receive()

    def end(self) -> None:
        """Kill them: nobody wants what they still do."""
        for helper in self._helpers:
            helper.end()
        self._helpers = []


class _Helper:
    """One of them, seen from here."""

    def __init__(self, process: Any, connection: Connection, remedy: str) -> None:
        self.process, self.connection, self.remedy = process, connection, remedy

    def ask(self, item: Any) -> None:
        with suppress(ConnectionError):
            self.connection.send(item)

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
        self.process.kill()
        self.process.join()


def _start(compute: Callable[[Any], Any], others: list[_Helper], remedy: str) -> _Helper:
    context: Any = multiprocessing.get_context("fork" if CAN_FORK else "spawn")
    try:
        here, there = context.Pipe()
        inherited = [here, *(other.connection for other in others)] if CAN_FORK else []
        process = context.Process(target=_help, args=(compute, there, inherited), daemon=True)
        process.start()
    except OSError as error:
        raise InputError(
            f"Cannot start a process that works ahead for this one ({error.strerror}): {remedy}."
        ) from error
    there.close()  # so that the pipe ends with the helper
    return _Helper(process, here, remedy)


def _help(compute: Callable[[Any], Any], to_parent: Connection, inherited: list[Connection]) -> None:
    """What a helper does: the next item is computed while the last result is sent."""
    gc.freeze()  # what the parent leaves to its collector may lie on a GPU, which a copy of it must not touch
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one it works for, who closes the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    for connection in inherited:
        connection.close()
    with suppress(EOFError, ConnectionError), closing(Behind("send", 1)) as sender:
        while True:
            sender.submit(to_parent.send_bytes, _pack(compute, to_parent.recv()))


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
