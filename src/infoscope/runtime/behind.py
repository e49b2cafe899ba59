"""Work that a thread does behind the one that asks for it: in order, so much at a time, and no failure is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Behind:
    """One thread that does what it is given, in the order it was given; after a failure it does nothing more.

    Only one thread may give it work. The failure is raised there: whenever more is submitted, or at the end.

    Args:
        name: of the thread.
        n_waiting: pieces of work that may be unfinished; whoever submits one more waits for the oldest of them.
    """

    def __init__(self, name: str, n_waiting: int) -> None:
        self.n_waiting = n_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._unfinished: deque[Future[Any]] = deque()
        self._failure: BaseException | None = None

    def submit(self, work: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Let the thread call `work(*arguments)` after all that it was given before; what that returns is to come.

        Raises:
            BaseException: what earlier work failed with.
        """
        self.check()
        while len(self._unfinished) >= self.n_waiting:
            self._unfinished.popleft().result()
        future = self._thread.submit(self._do, work, arguments)
        self._unfinished.append(future)
        return future

    def check(self) -> None:
        """Raise what earlier work failed with, as far as is known by now."""
        while self._unfinished and self._unfinished[0].done():
            self._unfinished.popleft().result()

    def finish(self) -> None:
        """Wait until all is done, and raise what failed."""
        while self._unfinished:
            self._unfinished.popleft().result()

    def close(self) -> None:
        """Wait until all that was submitted is done, failed or not, and end the thread."""
        self._thread.shutdown()

    def _do(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self._failure is not None:
            raise self._failure
        try:
            return work(*arguments)
        except BaseException as error:
            self._failure = error
            raise
