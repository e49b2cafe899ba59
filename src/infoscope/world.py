"""Several processes that work on one job: who this one is, and what they tell each other.

Every process runs the same program on the same configuration; the one of rank 0 is the main one. It alone decides what
has to be built, writes artifacts, prints and logs; the others take part in the stages that share their work. With one
process, which is the rule, every function here does the obvious at once.

Processes come from `trainer.n_processes` on one machine (`sharing`), or from outside: tasks of a submitit job, srun,
torchrun (`find_place`). Each sees one GPU. What they exchange goes over gloo, gradients on GPUs over NCCL.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from infoscope.environment import count_usable_cores, find_cores
from infoscope.errors import InputError, explain_write_error

if TYPE_CHECKING:
    import torch.distributed as dist  # else late: who lists artifacts, or starts processes, need not wait for torch

Value = TypeVar("Value")

GATHERING_S = 600
"""How long processes wait for each other at the start: nodes may come up one by one."""
WORKING = timedelta(days=7)
"""How long one waits for another afterwards. One that dies is noticed at once, by its closed connections."""
VISIBLE_S = 120
"""How long a file that another machine has made may take to show on this one."""
_FAILURE = "failure"


@dataclass(frozen=True)
class World:
    """This process among those of the job: rank 0 .. size - 1, and its place on its machine.

    n_on_cores: processes of the job that may use the same cores as this one, itself among them.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    n_on_cores: int = 1


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


def find_place(environment: Mapping[str, str] = os.environ) -> World | None:
    """Return this process among those that were started from outside: torchrun, submitit, srun; None: there are none.

    MASTER_ADDR and MASTER_PORT, where given, say where the main process listens.

    Raises:
        InputError: if srun's nodes cannot be found out.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        rank, size, local = (environment.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        host, job = "127.0.0.1", "torchrun"
    elif environment.get("SUBMITIT_EXECUTOR") == "local" and int(environment.get("SUBMITIT_LOCAL_NTASKS", "1")) > 1:
        names = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID")
        rank, size, local = (environment[name] for name in names)
        host, job = "127.0.0.1", environment["SUBMITIT_LOCAL_JOB_ID"]
    elif int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun alone: a batch script is no task
        rank, size, local = (environment[name] for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))
        host = environment.get("MASTER_ADDR") or _find_first_host(environment["SLURM_STEP_NODELIST"])
        job = environment["SLURM_JOB_ID"] + environment.get("SLURM_STEP_ID", "")
    else:
        return None
    port = environment.get("MASTER_PORT") or random.Random(job).randint(20000, 60000)
    return World(int(rank), int(size), int(local), environment.get("MASTER_ADDR", host), int(port))


def _find_first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise InputError(
            f"Cannot find out the first node of {nodes} ({' '.join(command)} failed): set MASTER_ADDR to its address."
        ) from None


@contextmanager
def sharing(n_processes: int, work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Let processes share what is done inside the block: those from outside, else `n_processes` started here.

    This process has rank 0 then, and goes on with the block; the others call `work(*arguments)`, which must come to the
    same stages. All is over when the block is.

    Args:
        work: a function of a module (it is pickled by name), as are its arguments.

    Raises:
        InputError: also what another process failed with, if this one could not go on without it.
        RuntimeError: another process failed of a fault.
    """
    place = find_place() if _world.size == 1 else None
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
            target=_work_as,
            args=(World(rank, n_processes, rank, port=port), work, arguments),
            daemon=False,
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
        store = dist.TCPStore(place.address, place.port, place.size, is_main, timedelta(seconds=GATHERING_S))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=WORKING)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"Process {place.rank} of {place.size} cannot meet the others at {place.address}:{place.port}"
            f" ({str(error).splitlines()[0]}): are all of them running, and is MASTER_ADDR the first one's address?"
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
            told = json.loads(store.get(_FAILURE))
            raise (InputError if told["is_input"] else RuntimeError)(told["text"]) from error
        raise
    finally:
        _world, _store = World(), None
        dist.destroy_process_group()


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
