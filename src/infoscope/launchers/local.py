"""Jobs of submitit as processes of this machine, each with its share of it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from submitit.local.local import LocalExecutor, LocalJob

from infoscope.runtime.environment import count_usable_cores

FOREVER_S = 365 * 24 * 3600


class ShareExecutor(LocalExecutor):
    """submitit's executor, but the one who starts a job says what it gets, and ends it.

    submitit's own hands out GPUs by number, always the first ones, and leaves the processes that watch over its jobs in
    the terminal's group: Ctrl-C then makes each print a traceback there.
    """

    def __init__(self, folder: str, n_tasks: int) -> None:
        super().__init__(folder)
        self.n_tasks = n_tasks
        self.environment: dict[str, str] = {}
        """Of the next job, besides this process's own."""

    def _num_tasks(self) -> int:
        return self.n_tasks

    def _submit_command(self, command: str) -> LocalJob[Any]:
        environment = {
            **os.environ,
            **self.environment,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(self.n_tasks),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(FOREVER_S),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "submitit.local._local", str(self.folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return LocalJob(self.folder, str(process.pid), process=process, tasks=range(self.n_tasks))


def share_machine(n_jobs: int, place: int, n_tasks: int) -> dict[str, str]:
    """Return the environment of a job: which GPUs it sees, and how many threads each of its processes starts.

    With fewer GPUs than jobs, jobs share them. OMP_NUM_THREADS, where it is set, stays.

    Args:
        n_jobs: that run at a time.
        place: of this one among them, from 0.
        n_tasks: processes of the job.
    """
    gpus = _list_gpus()
    own = gpus[place::n_jobs] or [gpu for gpu in gpus if gpu == gpus[place % len(gpus)]]
    n_threads = max(1, count_usable_cores() // (n_jobs * n_tasks))
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(own),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(n_threads),
    }


def _list_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    import torch  # late: a launcher needs nothing else of it

    return [str(number) for number in range(torch.cuda.device_count())]
