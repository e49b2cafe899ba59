"""The Slurm launcher on a real Slurm; the jobs have a stand-in for their work."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from tests.support.private_slurm import PrivateSlurm
from tests.support.sweeps import finish, start, sweep


def find_array(out: str) -> str:
    """Return the number of the array that the launcher said it submitted."""
    found = re.search(r"are with Slurm as (\d+)", out)
    assert found, out
    return found[1]


def test_a_failed_or_killed_job_loses_no_other(slurm: PrivateSlurm, tmp_path: Path):
    arguments = ("logger.group=fail,kill,break,succeed", "scope.k_cds=3")
    done = sweep(tmp_path / "out", *arguments, launcher="slurm", environment=slurm.environment)
    assert (done.code, [one["job"] for one in done.ran()]) == (1, [3])
    beginnings = [
        "job 0 (logger.group=fail): Expected anything but scope.k_cds=3. Its log: ",
        "job 1 (logger.group=kill): it was killed (signal 9). Its log: ",
        "job 2 (logger.group=break): RuntimeError: a bug (its log holds the traceback). Its log: ",
    ]
    failures = done.failures()
    assert len(failures) == 3, failures
    for line, beginning in zip(failures, beginnings, strict=True):
        assert line.startswith(beginning)
        assert "at work" in Path(line.removeprefix(beginning)).read_text()
    array = find_array(done.out)
    states = {job: state for job, state in slurm.states().items() if job.startswith(array)}
    assert states == {f"{array}_0": "FAILED", f"{array}_1": "FAILED", f"{array}_2": "FAILED", f"{array}_3": "COMPLETED"}
    exit_codes = [re.search(r" ExitCode=(\d+)", slurm.run("scontrol", "show", "job", f"{array}_{n}")) for n in range(3)]
    assert [found and found[1] for found in exit_codes] == ["2", "137", "1"]
    assert "JobName=infoscope-report" in slurm.run("scontrol", "show", "job", f"{array}_0")


def test_one_failed_task_ends_its_job(slurm: PrivateSlurm, tmp_path: Path):
    arguments = ("hydra.launcher.tasks_per_node=2", "logger.group=succeed,fail", "hydra.launcher.cpus_per_task=1")
    done = sweep(tmp_path / "out", *arguments, launcher="slurm", environment=slurm.environment)
    assert done.code == 2
    assert len(done.failures()) == 1
    assert sorted((one["job"], one["SLURM_PROCID"]) for one in done.ran()) == [(0, "0"), (0, "1")]


def refuse(slurm: PrivateSlurm, folder: Path, *arguments: str) -> str:
    done = sweep(folder, "scope.k_cds=1,2", *arguments, launcher="slurm", environment=slurm.environment)
    assert done.code == 2
    (sentence,) = done.failures()
    return sentence


def test_an_unknown_partition_is_one_sentence(slurm: PrivateSlurm, tmp_path: Path):
    assert refuse(slurm, tmp_path / "out", "hydra.launcher.partition=gpux") == (
        "Slurm does not take the jobs (Invalid partition name specified): expected hydra.launcher.partition to be one"
        " of high, main, got gpux."
    )


def test_what_no_node_has_is_one_sentence(slurm: PrivateSlurm, tmp_path: Path):
    sentence = refuse(slurm, tmp_path / "out", "hydra.launcher.mem_gb=9999")
    assert sentence.startswith("Slurm does not take the jobs (Requested node configuration is not available): ")


def test_jobs_go_on_after_ctrl_c_and_a_cancelled_one_is_reported(slurm: PrivateSlurm, tmp_path: Path):
    held = ("+hydra.launcher.additional_parameters.hold=true", "scope.k_cds=1,2")
    running = [start(tmp_path / name / "out", *held, launcher="slurm", environment=slurm.environment) for name in "ab"]
    assert running[0].stdout
    assert running[1].stdout
    ids = [find_array(process.stdout.readline()) for process in running]
    running[0].send_signal(signal.SIGINT)
    assert running[1].stdout.readline().startswith("Slurm does not start all jobs: JobHeldUser")
    slurm.run("scancel", ids[1])
    interrupted, cancelled = (finish(process, tmp_path / "out") for process in running)
    assert interrupted.code == 130
    assert interrupted.failures() == [
        f"interrupted; the jobs go on in Slurm: `squeue -j {ids[0]}` shows them, `scancel {ids[0]}` ends them, and the"
        " same command does later only what is missing by then."
    ]
    assert slurm.states()[f"{ids[0]}_0"] == "PENDING"
    slurm.run("scancel", ids[0])
    assert cancelled.code == 1
    assert [line.split(" Its log")[0] for line in cancelled.failures()] == [
        f"job {n} (scope.k_cds={n + 1}): it was cancelled." for n in range(2)
    ]
