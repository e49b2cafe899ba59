"""Which cores there are to work with, and how threads wait for each other."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infoscope.config.tree import TrainerConfig
from infoscope.pipeline import run
from infoscope.runtime import environment, processes
from infoscope.runtime.environment import count_usable_cores, read_cpu_quota
from tests.support.pipeline_samples import Recorder


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),  # inside a container
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4.0),  # that of a parent holds
        ("3:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/\n2:memory:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("1:name=systemd:/", {}, math.inf),
        ("", {}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_found(tmp_path: Path, groups: str, files: dict[str, str], quota: float):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    (tmp_path / "groups").write_text(groups + "\n" if groups else "", encoding="utf-8")
    assert read_cpu_quota(tmp_path, tmp_path / "groups") == quota
    assert read_cpu_quota(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota", "slurm", "n"), [(math.inf, "", 8), (1.5, "", 2), (0.2, "", 1), (math.inf, "3", 3)])
def test_cores_that_one_may_not_keep_busy_do_not_count(
    monkeypatch: pytest.MonkeyPatch, quota: float, slurm: str, n: int
):
    monkeypatch.setattr(environment, "find_cores", lambda: list(range(8)))
    monkeypatch.setattr(environment, "read_cpu_quota", lambda: quota)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", slurm)
    assert count_usable_cores() == processes.count_cores() == n


@pytest.mark.parametrize(
    ("n_busy", "trainer", "n_threads", "is_said"),
    [
        (0.0, TrainerConfig(), 4, False),
        (3.0, TrainerConfig(), 4, False),
        (7.0, TrainerConfig(), 4, True),
        (7.0, TrainerConfig(n_threads=3), 3, False),  # as it was told
    ],
)
def test_other_work_is_said_and_changes_no_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, n_busy: float, trainer: TrainerConfig, n_threads: int, is_said: bool
):
    told: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(processes, "count_cores", lambda: 4)  # a quota that torch knows nothing of
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(run, "count_busy_cores", lambda: n_busy)
    display = Recorder()
    run.apply_trainer(trainer, display)
    assert told == [n_threads]
    assert ("1 of 8 cores are free: this run takes 4 threads (trainer.n_threads)" in display.text) == is_said


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_of_torch_do_not_spin_unless_one_wants_that(given: str | None):
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environ |= {"OMP_WAIT_POLICY": given} if given else {}
    code = "import infoscope, os; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == (given or "PASSIVE")
