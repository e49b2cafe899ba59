"""Locks on artifacts: the process that builds one holds its lock; others wait, or build something else first."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from infoscope.runtime import processes
from infoscope.runtime.errors import InputError, explaining_writes
from infoscope.runtime.manifests import Spec
from infoscope.runtime.progress import ShowBar, show_nothing

ASK_EVERY_S = 0.5
"""Between two looks at a lock that another process holds; a hundred jobs may look at one."""


class Locks:
    """The locks of one store: files `<root>/<stage>/.<hash>.lock`, which stay when they are free.

    Args:
        on_event: callback(event, spec, detail) for the events "waiting" and "claimed".
        timeout_s: how long to wait for another process.
        show_bar: given a name, shows for how long one has waited.
    """

    def __init__(
        self, root: Path, on_event: Callable[[str, Spec, str], None], timeout_s: float, show_bar: ShowBar = show_nothing
    ) -> None:
        self.root, self.on_event, self.timeout_s, self._show_bar = root, on_event, timeout_s, show_bar
        self._claimed: dict[str, filelock.BaseFileLock | None] = {}

    @contextmanager
    def hold(self, spec: Spec) -> Iterator[None]:
        """Hold the lock of an artifact; one that is claimed is held already, and free when the block has done its work.

        Raises:
            InputError: another process holds it too long, it cannot be written, or the disk knows no locks.
        """
        if spec.hash in self._claimed:
            yield
            self._release(spec.hash)
            return
        lock = self._make(spec)
        self._acquire(lock, spec)
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def claim(self, specs: Iterable[Spec], exists: Callable[[Spec], bool]) -> Iterator[list[str]]:
        """Lock those artifacts that do not exist and that no other process builds; see `Store.claim`."""
        held = self._lock_missing(specs, exists) if processes.current().rank == 0 else {}
        locks = {name: held.get(name) for name in processes.broadcast(list(held))}  # other processes know of them
        self._claimed |= locks
        try:
            yield list(locks)
        finally:
            for name in locks:
                if name in self._claimed:
                    self._release(name)

    def _lock_missing(self, specs: Iterable[Spec], exists: Callable[[Spec], bool]) -> dict[str, filelock.BaseFileLock]:
        locks: dict[str, filelock.BaseFileLock] = {}
        for spec in specs:
            if spec.hash in locks or exists(spec):
                continue
            lock = self._make(spec)
            if not self._try(lock):
                if locks:  # never wait for somebody while somebody may wait for this process
                    continue
                self._acquire(lock, spec)
            if exists(spec):  # built while this one waited
                lock.release()
            else:
                locks[spec.hash] = lock
                self.on_event("claimed", spec, "")
        return locks

    def _make(self, spec: Spec) -> filelock.BaseFileLock:
        with explaining_writes(self.root):
            (self.root / spec.stage).mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.root / spec.stage / f".{spec.hash}.lock")

    def _acquire(self, lock: filelock.BaseFileLock, spec: Spec) -> None:
        if self._try(lock):
            return
        self.on_event("waiting", spec, f"for the process that builds it, at most {self.timeout_s:.0f} s")
        with self._show_bar(f"waiting for {spec.stage}/{spec.folder_name}"):
            is_held = self._try(lock, self.timeout_s)
        if not is_held:
            raise InputError(
                f"Waited {self.timeout_s:.0f} s for another process to build {spec.stage}/{spec.folder_name}:"
                f" if none runs, delete {lock.lock_file} and start again."
            )

    def _try(self, lock: filelock.BaseFileLock, timeout_s: float = 0) -> bool:
        """Return whether the lock is held now."""
        try:
            with explaining_writes(self.root):
                lock.acquire(timeout=timeout_s, poll_interval=ASK_EVERY_S)
        except filelock.Timeout:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            raise InputError(
                f"Cannot lock {lock.lock_file} ({error.strerror}): let output_dir lie on a disk that knows locks (NFS:"
                " version 4, or with lockd)."
            ) from error
        return True

    def _release(self, name: str) -> None:
        lock = self._claimed.pop(name)
        if lock is not None:
            lock.release()
