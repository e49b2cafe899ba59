"""Sweeps by launchers: every job is waited for, and how each ended is said. The jobs have a stand-in for their work."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.app_samples import run_infoscope
from tests.support.private_slurm import wait_until
from tests.support.sweeps import finish, read_logs, start, sweep


def test_local_jobs_run_some_at_a_time_and_share_the_machine(tmp_path: Path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,5,6"}
    environment.pop("OMP_NUM_THREADS", None)
    arguments = ("scope.k_cds=1,2,3,4,5", "hydra.launcher.n_parallel=2", "logger.project=0.6")
    done = sweep(tmp_path / "out", *arguments, launcher="local", environment=environment)
    assert (done.code, done.err) == (0, "")
    ran = done.ran()
    assert sorted(one["job"] for one in ran) == [0, 1, 2, 3, 4]
    at_once = [sum(one["begin"] <= other["begin"] < one["end"] for one in ran) for other in ran]
    assert max(at_once) <= 2
    assert {one["OMP_NUM_THREADS"] for one in ran} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    assert {one["CUDA_VISIBLE_DEVICES"] for one in ran} == {"4,6", "5"}


def test_a_failed_or_killed_local_job_loses_no_other(tmp_path: Path):
    arguments = ("logger.group=fail,kill,break,succeed", "scope.k_cds=3", "hydra.launcher.n_parallel=4")
    done = sweep(tmp_path / "out", *arguments, launcher="local")
    assert (done.code, [one["job"] for one in done.ran()]) == (1, [3])
    beginnings = [
        "job 0 (logger.group=fail): Expected anything but scope.k_cds=3. Its log: ",
        "job 1 (logger.group=kill): it was killed (by hand, or out of memory). Its log: ",
        "job 2 (logger.group=break): RuntimeError: a bug (its log holds the traceback). Its log: ",
    ]
    failures = done.failures()
    assert len(failures) == 3, failures
    for line, beginning in zip(failures, beginnings, strict=True):
        assert line.startswith(beginning)
        log = Path(line.removeprefix(beginning)).read_text()
        assert "at work" in log
        assert ("Traceback" in log) == ("group=break" in line)
        assert ("infoscope: Expected anything but" in log) == ("group=fail" in line)
    assert "3 of 4 jobs failed" in done.out


def test_only_mistakes_of_the_user_are_exit_code_2(tmp_path: Path):
    done = sweep(tmp_path / "out", "logger.group=fail", "scope.k_cds=1,2", launcher="local")
    assert done.code == 2
    assert len(done.failures()) == 2


def test_several_processes_of_a_local_job(tmp_path: Path):
    done = sweep(tmp_path / "out", "logger.group=succeed,fail", "hydra.launcher.tasks_per_node=2", launcher="local")
    assert done.code == 2
    assert len(done.failures()) == 1
    assert sorted((one["job"], one["SUBMITIT_LOCAL_GLOBALID"]) for one in done.ran()) == [(0, "0"), (0, "1")]


def test_an_interruption_ends_local_jobs(tmp_path: Path):
    running = start(tmp_path / "out", "scope.k_cds=1,2", "logger.project=60", launcher="local")
    wait_until(lambda: read_logs(tmp_path / "out").count("at work") == 2, "two jobs")
    running.send_signal(signal.SIGINT)
    done = finish(running, tmp_path / "out")
    assert done.code == 130
    assert done.failures() == ["interrupted; finished artifacts are kept, the same command goes on from there."]
    assert done.ran() == []


@pytest.mark.parametrize(
    ("launcher", "setting"), [("local", "n_parallel"), ("slurm", "timeout_min"), ("slurm", "nodes")]
)
def test_a_launcher_that_can_start_nothing_is_refused(tmp_path: Path, launcher: str, setting: str, capsys: Any):
    given = [f"hydra/launcher={launcher}", f"hydra.launcher.{setting}=0", f"output_dir={tmp_path}"]
    assert run_infoscope("-m", *given, "scope.k_cds=1,2") == 2
    assert f"Expected hydra.launcher.{setting} to be at least 1, got 0." in capsys.readouterr().err


def test_slurm_without_its_commands_is_one_sentence(tmp_path: Path):
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = sweep(tmp_path / "out", "scope.k_cds=1,2", launcher="slurm", environment=environment)
    assert done.code == 2
    assert done.failures() == [
        "hydra/launcher=slurm needs Slurm's commands, but sbatch is not on the PATH: start the sweep where Slurm is, or"
        " with hydra/launcher=local."
    ]
