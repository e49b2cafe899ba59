"""Which place this process has among those that somebody has started together: torchrun, submitit, srun, mpirun."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from infoscope.runtime.errors import InputError

_SHELLS = {"bash", "sh", "zsh", "fish", "csh", "tcsh", "ksh", "interactive"}
_INTERACTIVE_STEP = "4294967290"
"""The number of the step in which salloc opens a shell (SLURM_INTERACTIVE_STEP)."""


@dataclass(frozen=True)
class World:
    """This process among those of the job: rank 0 .. size - 1, and its place on its machine.

    n_on_cores: processes of the job that may use the same cores as this one, itself among them.
    named_by: the variable of the environment that says how many there are, if they were started from outside.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    n_on_cores: int = 1
    named_by: str = field(default="", compare=False)


def find_place(environment: Mapping[str, str] = os.environ) -> World | None:
    """Return this process among those that were started from outside; None: there are none, or this is a shell.

    MASTER_ADDR and MASTER_PORT, where given, say where the main process listens.

    Raises:
        InputError: if the variables contradict each other, or srun's nodes cannot be found out.
    """

    def make(named_by: str, rank: str, local: str, host: str, job: str) -> World:
        size = _read(environment, named_by)
        if not 0 <= _read(environment, rank) < size:
            raise InputError(
                f"Expected {rank} to be 0 to {named_by} - 1 = {size - 1}, got {environment[rank]}: start the processes"
                f" by one launcher, or unset {named_by} to work alone."
            )
        port = random.Random(job).randint(20000, 60000)
        port = _read(environment, "MASTER_PORT", port) if environment.get("MASTER_PORT") else port
        if not 0 < port < 65536:
            raise InputError(f"Expected MASTER_PORT to be 1 to 65535, got {port}.")
        address = environment.get("MASTER_ADDR") or host
        return World(_read(environment, rank), size, _read(environment, local, 0), address, port, named_by=named_by)

    local_job = environment.get("SUBMITIT_LOCAL_JOB_ID", "")
    if "RANK" in environment and _read(environment, "WORLD_SIZE") > 1:
        return make("WORLD_SIZE", "RANK", "LOCAL_RANK", "127.0.0.1", "torchrun")
    if environment.get("SUBMITIT_EXECUTOR") == "local" and _read(environment, "SUBMITIT_LOCAL_NTASKS") > 1:
        names = ("SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_LOCALID")
        return make(*names, "127.0.0.1", local_job)
    if _read(environment, "SLURM_STEP_NUM_TASKS") > 1:  # set by srun alone: a batch script is no task
        if is_shell(environment):
            return None
        host = environment.get("MASTER_ADDR") or _find_first_host(environment.get("SLURM_STEP_NODELIST", ""))
        job = environment.get("SLURM_JOB_ID", "") + environment.get("SLURM_STEP_ID", "")
        return make("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", host, job)
    job = environment.get("PMIX_NAMESPACE", "mpirun")
    if "OMPI_COMM_WORLD_RANK" in environment and _read(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        return make(*names, "127.0.0.1", job)
    if "PMI_RANK" in environment and _read(environment, "PMI_SIZE") > 1 and "SLURM_JOB_ID" not in environment:
        return make("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "127.0.0.1", job)
    return None


def is_shell(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a person has started this process, alone, in a shell inside a step of Slurm that has several tasks."""
    if _read(environment, "SLURM_STEP_NUM_TASKS") < 2 or environment.get("SLURM_TASK_PID") == str(os.getpid()):
        return False
    is_named_so = environment.get("SLURM_JOB_NAME") in _SHELLS and "SLURM_TASK_PID" not in environment
    return is_named_so or environment.get("SLURM_STEP_ID") == _INTERACTIVE_STEP or is_at_terminal()


def is_at_terminal() -> bool:
    """Whether this process reads from a terminal, as no task of srun's but a shell does."""
    return sys.stdin is not None and sys.stdin.isatty()


def _read(environment: Mapping[str, str], name: str, default: int = 1) -> int:
    given = environment.get(name, "").strip()
    try:
        return int(given) if given else default
    except ValueError:
        raise InputError(f"Expected the variable {name} to be a number, got {given!r}: unset or mend it.") from None


def _find_first_host(nodes: str) -> str:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise InputError(
            f"Cannot find out the first node of {nodes} ({' '.join(command)} failed): set MASTER_ADDR to its address."
        ) from None
