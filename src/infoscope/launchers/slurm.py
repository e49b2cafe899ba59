"""What Slurm knows of jobs, and why it refuses them, in sentences.

The state of a job comes from `squeue`, which needs no accounting and remembers ended jobs for some minutes
(MinJobAge), and from `sacct` for jobs that squeue has forgotten.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from infoscope.runtime.errors import InputError

ANSWER_S = 120
"""How long a command of Slurm may take."""


@dataclass(frozen=True)
class State:
    """What Slurm says of a job: its state (RUNNING, FAILED, ...), its exit code or the signal that ended it."""

    name: str
    exit_code: int = 0
    reason: str = ""


FORGOTTEN = State("FORGOTTEN")
"""Neither squeue nor sacct knows the job: it ended long ago."""
_ENDS = {
    "BOOT_FAIL": "its node did not start.",
    "CANCELLED": "it was cancelled.",
    "COMPLETED": "it left no result.",
    "DEADLINE": "Slurm ended it at its deadline.",
    "FORGOTTEN": "it ended without a result, and Slurm has forgotten how.",
    "NODE_FAIL": "its node failed.",
    "OUT_OF_MEMORY": "it ran out of memory: ask for more (hydra.launcher.mem_gb).",
    "PREEMPTED": "it was preempted, and Slurm did not put it back into the queue.",
    "TIMEOUT": (
        "it reached its time limit before it could save and go back into the queue: allow more time"
        " (hydra.launcher.timeout_min), or tell it earlier (hydra.launcher.signal_delay_s)."
    ),
}
_USUAL_REASONS = {"", "None", "BeginTime", "Cleaning", "JobArrayTaskLimit", "Priority", "Prolog", "Resources"}
_PATIENCE_S = {"COMPLETED": 60.0, "PREEMPTED": 60.0, "NODE_FAIL": 60.0, "FORGOTTEN": 60.0}


def check_commands() -> None:
    """Refuse to go on where Slurm is not.

    Raises:
        InputError: one of its commands is missing.
    """
    for command in ("sbatch", "srun", "squeue"):
        if shutil.which(command) is None:
            raise InputError(
                f"hydra/launcher=slurm needs Slurm's commands, but {command} is not on the PATH: start the sweep where"
                " Slurm is, or with hydra/launcher=local."
            )


def explain_refusal(words: str, partition: str | None, account: str | None) -> str:
    """Return the sentence for jobs that sbatch did not take.

    Args:
        words: what it said on stderr.
    """
    last_line = (words.splitlines() or ["no reason given"])[-1]
    reason = re.sub("^sbatch: (error|fatal): (Batch job submission failed: )?", "", last_line).strip().rstrip(".")
    given = f"hydra.launcher.account={account or 'null'}, hydra.launcher.partition={partition or 'null'}"
    if "account" in reason.lower():
        return f"Slurm does not take the jobs ({reason}): got {given}."
    if "partition" in reason.lower():
        known = ", ".join(_list_partitions()) or "those that sinfo shows"
        return (
            f"Slurm does not take the jobs ({reason}): expected hydra.launcher.partition to be one of {known}, got"
            f" {partition or 'null'}."
        )
    return (
        f"Slurm does not take the jobs ({reason}): `infoscope --cfg hydra hydra/launcher=slurm` shows what was asked."
    )


def ask_states(job_ids: Iterable[str]) -> dict[str, State] | None:
    """Return the state of every job, `FORGOTTEN` where Slurm knows none; None: Slurm does not answer.

    Args:
        job_ids: such as 17, or 17_3 for a job of an array.
    """
    ids = list(job_ids)
    arrays = ",".join(sorted({job_id.split("_")[0] for job_id in ids}))
    fields = "JobArrayID:60,State:40,exit_code:20,Reason:120"
    asked = ["squeue", "--states=all", "--array", "--noheader", f"--Format={fields}", f"--jobs={arrays}"]
    done = _ask(asked)
    if done is None or (done.returncode != 0 and "Invalid job id" not in done.stderr):
        return None
    found = dict(_read_squeue(done.stdout))
    if set(ids) - set(found):
        done = _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State,ExitCode", "-j", arrays])
        found = {**dict(_read_sacct(done.stdout if done and done.returncode == 0 else "")), **found}
    return {job_id: found.get(job_id, FORGOTTEN) for job_id in ids}


def find_patience_s(state: State) -> float | None:
    """Return how many seconds a job may stay in a state before it is over; None: it goes on.

    Its last file may take a moment to show on this machine, and a job that was preempted, or whose node failed, may yet
    be put back into the queue.
    """
    return _PATIENCE_S.get(state.name, 5.0) if state.name in _ENDS or state.name == "FAILED" else None


def find_obstacles(states: Iterable[State]) -> set[str]:
    """Return why jobs wait, as Slurm names it, where it is not just their turn."""
    return {state.reason for state in states if state.name == "PENDING"} - _USUAL_REASONS


def explain_end(state: State) -> str:
    """Return the sentence for a job that is over and left no word itself."""
    if state.name != "FAILED":
        return _ENDS[state.name]
    signal = state.exit_code & 127 or max(state.exit_code // 256 - 128, 0)
    return f"it was killed (signal {signal})." if signal else f"it failed with exit code {state.exit_code // 256}."


def _ask(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a command; None if it is not there, or hangs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment, timeout=ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _read_squeue(text: str) -> Iterable[tuple[str, State]]:
    for line in text.splitlines():
        job_id, name, exit_code, *reason = line.split(None, 3)
        yield job_id, State(name, int(exit_code), " ".join(reason).strip())


def _read_sacct(text: str) -> Iterable[tuple[str, State]]:
    for line in text.splitlines():
        job_id, name, exit_code = line.split("|")
        code, signal = map(int, exit_code.split(":"))
        yield job_id, State(name.split()[0], code * 256 + signal)  # "CANCELLED by 1000"


def _list_partitions() -> list[str]:
    done = _ask(["sinfo", "--noheader", "--format=%R"])
    return sorted(set(done.stdout.split())) if done is not None and done.returncode == 0 else []
