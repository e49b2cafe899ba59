"""Several processes that work on one job: who this one is, and what they tell each other.

Every process runs the same program on the same configuration; the one of rank 0 is the main one. It alone decides what
has to be built, writes artifacts, prints and logs; the others take part in the stages that share their work. With one
process, which is the rule, every function here does the obvious at once.

Processes come from `trainer.n_processes` on one machine (`sharing`), or from outside: tasks of a submitit job, srun,
torchrun (`find_place`). Each sees one GPU. What they exchange goes over gloo, gradients on GPUs over NCCL.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from infoscope.runtime.environment import count_usable_cores, find_cores
from infoscope.runtime.errors import InputError, explain_write_error
from infoscope.runtime.output import complain
from infoscope.runtime.places import World, find_place, is_shell

if TYPE_CHECKING:
    import torch.distributed as dist  # else late: who lists artifacts, or starts processes, need not wait for torch

Value = TypeVar("Value")

GATHERING_S = 600
"""How long processes wait for each other at the start: nodes may come up one by one."""
SAY_AFTER_S, SAY_EVERY_S = 2.0, 30.0
"""When one says first that one waits, and then again."""
WORKING = timedelta(days=7)
"""How long one waits for another afterwards. One that dies is noticed at once, by its closed connections."""
VISIBLE_S = 120
"""How long a file that another machine has made may take to show on this one."""
_FAILURE = "failure"


_world, _store, _n_alone = World(), None, 0
_meetings = count()


def current() -> World:
    """Return this process among those that share work; (0 of 1) where there is one, or inside `alone`."""
    return World() if _n_alone else _world


def is_main() -> bool:
    """Whether this process decides, writes artifacts, prints and logs, also inside `alone`."""
    return _world.rank == 0


def count_cores() -> int:
    """Return how many cores this process may keep busy: its share of those that it may use; at least 1."""
    return max(1, count_usable_cores() // current().n_on_cores)


@contextmanager
def alone() -> Iterator[None]:
    """Work as if there were no other process; the others do not take part."""
    global _n_alone
    _n_alone += 1
    try:
        yield
    finally:
        _n_alone -= 1


def is_apart() -> bool:
    """Whether there are other processes that do not take part in what this one does, see `alone`."""
    return _n_alone > 0 and _world.size > 1


def barrier() -> None:
    """Wait until every process has come here."""
    gather(None)


def broadcast(value: Value) -> Value:
    """Return the main process's value (anything that pickles) in every process."""
    if current().size == 1:
        return value
    import torch
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: Value) -> list[Value]:
    """Return every process's value (anything that pickles) in every process, by rank."""
    size = current().size
    if size == 1:
        return [value]
    import torch.distributed as dist

    boxes: list[Any] = [None] * size
    dist.all_gather_object(boxes, value)
    return boxes


def post(key: str, text: str) -> None:
    """Tell all processes something; unlike `broadcast`, each asks for it when it wants."""
    if _store is not None:
        _store.set(key, text)


def wait_for(key: str) -> str:
    """Return what was posted under a key, as soon as it is."""
    assert _store is not None, "one process has nobody to wait for"
    _store.wait([key], WORKING)
    return _store.get(key).decode()


def wait_until_visible(path: Path) -> None:
    """Wait for what another machine has written to show on this one (network file systems take their time).

    Raises:
        InputError: it does not.
    """
    end = time.monotonic() + VISIBLE_S
    while not path.exists():
        if time.monotonic() > end:
            raise InputError(
                f"Expected {path}, which another process of this job has made, but it does not show here: let"
                " output_dir lie on a disk that all nodes share."
            )
        time.sleep(0.1)


@contextmanager
def sharing(n_processes: int, work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Let processes share what is done inside the block: those from outside, else `n_processes` started here.

    This process has rank 0 then, and goes on with the block; the others call `work(*arguments)`, which must come to the
    same stages. All is over when the block is.

    Args:
        work: a function of a module (it is pickled by name), as are its arguments.

    Raises:
        InputError: also what another process failed with, if this one could not go on without it.
        RuntimeError: another process raised an unexpected error.
    """
    place = find_place() if _world.size == 1 else None
    if _world.size == 1 and place is None and is_shell():
        complain("This is one process in a shell of Slurm: it works alone (`srun infoscope ...` starts all tasks).")
    if place is not None and n_processes > 1:
        raise InputError(
            f"trainer.n_processes={n_processes}, but {place.size} processes were started already (by Slurm, torchrun or"
            " a launcher's tasks_per_node): drop one of the two."
        )
    if place is not None:
        # Jobs one after the other: the next must not meet at what the last has not closed yet.
        with _joined(replace(place, port=place.port + next(_meetings))):
            yield
        return
    if n_processes == 1 or _world.size > 1:  # a process that was started here is in its world already
        yield
        return
    port = _find_free_port()
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(
            target=_work_as, args=(World(rank, n_processes, rank, port=port), work, arguments), daemon=False
        )
        for rank in range(1, n_processes)
    ]
    for process in others:
        process.start()
    try:
        with _joined(World(0, n_processes, 0, port=port)):
            yield
    except BaseException as error:
        signals = [code for code in _read_exits(others) if code < 0] if isinstance(error, RuntimeError) else []
        for process in others:
            process.terminate()
        if signals:
            raise InputError(
                f"A process of this job was killed (signal {-signals[0]}; for want of memory, perhaps): what was"
                " finished is kept, the same command goes on from there."
            ) from error
        raise
    finally:
        for process in others:
            process.join()


def _read_exits(processes: list[Any]) -> list[int]:
    """Return the exit codes of those processes that have ended; below 0: by that signal."""
    for process in processes:
        process.join(0.5)  # its connections close a moment before it has ended
    return [process.exitcode for process in processes if process.exitcode is not None]


def _work_as(place: World, work: Callable[..., Any], arguments: tuple) -> None:
    """A process that was started here."""
    try:
        with _joined(place):
            work(*arguments)
    except (InputError, KeyboardInterrupt):
        raise SystemExit(2) from None  # the main process says it


@contextmanager
def _joined(place: World) -> Iterator[None]:
    import torch
    import torch.distributed as dist

    global _world, _store
    _choose_gpu(place.local_rank)
    is_main = place.rank == 0
    try:
        store = _open_store(place, is_main)
        _await_all(place, store, is_main)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=WORKING)
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"Process {place.rank} of {place.size} cannot meet the others at {place.address}:{place.port}"
            f" ({str(error).splitlines()[0]}): are all of them running, is MASTER_ADDR the first one's address, and"
            f" MASTER_PORT free there?{_explain_alone(place)}"
        ) from error
    _world, _store = place, store
    try:
        cores = (socket.gethostname(), find_cores())
        _world = replace(place, n_on_cores=gather(cores).count(cores))
        yield
        dist.barrier()  # the main process holds the store that the others may still be asking
    except Exception as error:
        if not is_main:
            explained = _tell_failure(store, place.rank, error)
            if explained in (None, error):
                raise
            raise explained from error
        if isinstance(error, RuntimeError) and store.check([_FAILURE]):  # a connection is closed: here is why
            failure = json.loads(store.get(_FAILURE))
            raise (InputError if failure["is_input"] else RuntimeError)(failure["text"]) from error
        raise
    finally:
        _world, _store = World(), None
        dist.destroy_process_group()


def _open_store(place: World, is_main: bool) -> dist.TCPStore:
    """Open what processes meet at, or reach it, having said for whom one waits."""
    import torch.distributed as dist

    if place.named_by and not is_main:
        start = time.monotonic()
        while not (is_there := _can_reach(place)) and time.monotonic() - start < SAY_AFTER_S:
            time.sleep(0.05)
        if not is_there:
            complain(
                f"Process {place.rank} of {place.size} ({place.named_by}={place.size}) is waiting for the first one at"
                f" {place.address}:{place.port}, up to {GATHERING_S:.0f} s.{_explain_alone(place)}"
            )
    limit = timedelta(seconds=GATHERING_S)
    return dist.TCPStore(place.address, place.port, place.size, is_main, limit, wait_for_workers=False)


def _can_reach(place: World) -> bool:
    try:
        socket.create_connection((place.address, place.port), 1).close()
    except OSError:
        return False
    return True


def _await_all(place: World, store: dist.TCPStore, is_main: bool) -> None:
    """Wait until every process is there; the main one says for how many it waits.

    Raises:
        InputError: they do not come.
    """
    n_here, start, said_s = store.add("here", 1), time.monotonic(), -math.inf
    while is_main and n_here < place.size:
        waited_s, n_here = time.monotonic() - start, store.add("here", 0)
        missing = f"{place.size - n_here} of {place.size} processes"
        where = f"at {place.address}:{place.port}"
        if n_here < place.size and waited_s > GATHERING_S:
            raise InputError(
                f"Waited {GATHERING_S:.0f} s for {missing} {where}: start all of them.{_explain_alone(place)}"
            )
        if place.named_by and n_here < place.size and waited_s > SAY_AFTER_S and waited_s - said_s >= SAY_EVERY_S:
            said_s = waited_s
            name = f"{place.named_by}={place.size}"
            complain(f"Waiting for {missing} ({name}) {where}, up to {GATHERING_S:.0f} s.{_explain_alone(place)}")
        time.sleep(0.05)


def _explain_alone(place: World) -> str:
    return f" To work alone: unset {place.named_by}." if place.named_by else ""


def _tell_failure(store: dist.TCPStore, rank: int, error: Exception) -> InputError | None:
    """Let the main process say why this one failed, and return what it says where a user can mend it.

    The first failure counts: others follow from it.
    """
    explained = error if isinstance(error, InputError) else explain_write_error(error, "output_dir")
    text = str(explained or f"Process {rank} of this job failed ({type(error).__name__}: {error}); see its traceback.")
    with suppress(RuntimeError):  # the main process is gone already
        if not store.check([_FAILURE]):
            store.set(_FAILURE, json.dumps({"is_input": explained is not None, "text": text}))
    return explained


def _choose_gpu(local_rank: int) -> None:
    """Leave this process the GPU of its place on the machine, unless it was given one alone."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        if local_rank >= len(gpus):
            raise InputError(f"Expected a GPU for each process of a machine, found {len(gpus)}: start fewer processes.")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local_rank]


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
