"""What Slurm says of jobs, read from stand-ins for its commands; and how a job leaves its outcome."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infoscope.launchers import local, slurm
from infoscope.launchers.outcome import Outcome, explain_failure, name_outcome, read_outcome, write_outcome
from infoscope.launchers.slurm import FORGOTTEN, State
from infoscope.runtime.errors import InputError


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH: write commands into it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


SQUEUE = """
echo "7_0      RUNNING    0      None"
echo "7_1      FAILED     35072  NonZeroExitCode"
echo "7_2      PENDING    0      (launch failed requeued held)"
"""


def test_states_come_from_squeue_and_then_from_sacct(commands: Path):
    write_command(commands, "squeue", SQUEUE)
    write_command(commands, "sacct", "echo '7_0|PENDING|0:0'; echo '7_3|CANCELLED by 1000|0:15'")
    assert slurm.ask_states(["7_0", "7_1", "7_2", "7_3", "8"]) == {
        "7_0": State("RUNNING", 0, "None"),
        "7_1": State("FAILED", 35072, "NonZeroExitCode"),
        "7_2": State("PENDING", 0, "(launch failed requeued held)"),
        "7_3": State("CANCELLED", 15),
        "8": FORGOTTEN,
    }


def test_a_job_that_nobody_knows_is_forgotten_but_silence_means_nothing(commands: Path):
    assert slurm.ask_states(["7"]) is None, "there is no squeue"
    write_command(commands, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm.ask_states(["7"]) == {"7": FORGOTTEN}
    write_command(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert slurm.ask_states(["7"]) is None


def test_settings_of_the_users_squeue_change_nothing(commands: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    write_command(commands, "squeue", 'echo "7 RUNNING 0 [$SQUEUE_STATES]"')
    assert slurm.ask_states(["7"]) == {"7": State("RUNNING", 0, "[]")}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State("FAILED", 137 * 256), "it was killed (signal 9)."),
        (State("FAILED", 9), "it was killed (signal 9)."),
        (State("FAILED", 3 * 256), "it failed with exit code 3."),
        (State("OUT_OF_MEMORY"), "it ran out of memory: ask for more (hydra.launcher.mem_gb)."),
        (State("CANCELLED"), "it was cancelled."),
        (FORGOTTEN, "it ended without a result, and Slurm has forgotten how."),
    ],
)
def test_ends_in_words(state: State, words: str):
    assert slurm.explain_end(state) == words
    assert (slurm.find_patience_s(state) or 0) > 0


@pytest.mark.parametrize("name", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "CONFIGURING"])
def test_these_jobs_go_on(name: str):
    assert slurm.find_patience_s(State(name)) is None


def test_only_unusual_reasons_to_wait_are_obstacles():
    states = [
        State("PENDING", 0, "Priority"),
        State("PENDING", 0, "JobHeldUser"),
        State("FAILED", 1, "NonZeroExitCode"),
    ]
    assert slurm.find_obstacles(states) == {"JobHeldUser"}


def test_refusals_in_words(commands: Path):
    partition = "sbatch: error: invalid partition specified: gpux\nsbatch: error: Batch job submission failed: {}"
    write_command(commands, "sinfo", "echo main; echo high")
    assert slurm.explain_refusal(partition.format("Invalid partition name specified"), "gpux", None) == (
        "Slurm does not take the jobs (Invalid partition name specified): expected hydra.launcher.partition to be one"
        " of high, main, got gpux."
    )
    account = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    assert slurm.explain_refusal(account, "main", "me").endswith(
        "hydra.launcher.account=me, hydra.launcher.partition=main."
    )
    assert slurm.explain_refusal("", None, None).startswith("Slurm does not take the jobs (no reason given)")


def test_jobs_share_the_gpus_and_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c")
    shares = [local.share_machine(2, place, 1) for place in range(2)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["a,c", "b"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"4"}
    shares = [local.share_machine(5, place, 4) for place in range(5)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["a", "b", "c", "a", "b"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert local.share_machine(2, 1, 1) == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "3"}


def test_a_failure_of_any_task_is_the_jobs(tmp_path: Path):
    assert read_outcome(tmp_path, "7_0") is None
    write_outcome(name_outcome(tmp_path, "7_0", 1), Outcome(log="b"))
    assert read_outcome(tmp_path, "7_0") is None, "the first task is not done"
    write_outcome(name_outcome(tmp_path, "7_0", 0), Outcome(log="a"))
    assert read_outcome(tmp_path, "7_0") == Outcome(log="a")
    write_outcome(name_outcome(tmp_path, "7_0", 1), Outcome("no such picture", True, "b"))
    assert read_outcome(tmp_path, "7_0") == Outcome("no such picture", True, "b")
    assert read_outcome(tmp_path, "7") is None


def fail_to_compose() -> OmegaConfBaseException:
    try:
        OmegaConf.create({"a": "???"}).a  # noqa: B018
    except OmegaConfBaseException as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "failure", "is_input"),
    [
        (InputError("Expected a picture."), "Expected a picture.", True),
        (fail_to_compose(), "Expected a value for a, got none: give it as a=...", True),
        (PermissionError(13, "Permission denied", "/out"), "Cannot write to /out (Permission denied): set", True),
        (RuntimeError("one\ntwo"), "RuntimeError: one (its log holds the traceback).", False),
        (KeyError(), "KeyError (its log holds the traceback).", False),
    ],
)
def test_errors_in_words(error: Exception, failure: str, is_input: bool):
    outcome = explain_failure(error, Path("log"))
    assert outcome.failure.startswith(failure)
    assert (outcome.is_input, outcome.log) == (is_input, "log")
