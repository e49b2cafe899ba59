"""The chain of stages in jobs of a real Slurm, whatever happens to them: each artifact once, and the right one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.app_samples import run_infoscope
from tests.support.private_slurm import PrivateSlurm, wait_until
from tests.support.sweeps import finish, read_logs, start, sweep
from tests.support.tiny_runs import TINY, read_checksums

LONGER = "sae.n_tokens=200000"
"""So that training lasts for some seconds, in which a job can be met at work."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output_dir of one run alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_infoscope(*TINY, LONGER, f"output_dir={folder}") == 0
    return folder


def list_built(folder: Path) -> list[str]:
    """Return every artifact that jobs say they built, once for each time; they name no single heads and features."""
    found = re.findall(r"^ *built +(\w+)/\S+-(\w+) ", read_logs(folder), re.MULTILINE)
    return sorted("/".join(stage_and_hash) for stage_and_hash in found)


def list_named(folder: Path) -> list[str]:
    """Return all artifacts of a folder that jobs name."""
    return sorted(name for name in read_checksums(folder) if not name.startswith(("probe/", "features/")))


def list_others(folder: Path, undisturbed: Path) -> list[str]:
    """Return the artifacts of a folder that the undisturbed run does not have just so."""
    expected = read_checksums(undisturbed)
    return [name for name, files in read_checksums(folder).items() if files != expected.get(name)]


def find_process(**variables: str) -> int | None:
    """Return the process of a job that has these variables in its environment, None if there is none now."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        wanted = {f"{name}={value}".encode() for name, value in variables.items()}
        if wanted <= set(environment) and b"python" in words[0] and b"submitit.core._submit" in words:
            return int(folder.name)
    return None


def hold_still(pid: int) -> None:
    """Stop a process until Slurm, which wakes it first, kills it: it shall not get on with its work meanwhile."""

    def is_gone() -> bool:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return True
        return False

    wait_until(is_gone, "the process to be killed")


def read_job_id(process: subprocess.Popen) -> str:
    """Return the number of the job or array that a sweep has just submitted."""
    assert process.stdout
    found = re.search(r"with Slurm as (\d+)", process.stdout.readline())
    assert found
    return found[1]


def test_a_sweep_computes_everything_once(slurm: PrivateSlurm, tmp_path: Path, undisturbed: Path):
    out = tmp_path / "out"
    grid = ("partition.mass_share=0.5,0.3", "scope.k_cds=1,2")
    done = sweep(out, LONGER, *grid, launcher="slurm", environment=slurm.environment, stand_in=False)
    assert (done.code, done.err) == (0, "")
    assert list_built(out) == list_named(out)
    assert set(read_checksums(undisturbed)) <= set(read_checksums(out)), "half of the mass and k_cds=2 are among them"
    others = list_others(undisturbed, out)
    # Jobs deal out the heads among them, and the last bits of heads depend on which are trained together.
    assert [name for name in others if not name.startswith(("probe/", "features/"))] == []


def test_two_sweeps_that_race_compute_everything_once(slurm: PrivateSlurm, tmp_path: Path, undisturbed: Path):
    out = tmp_path / "out"
    options: dict[str, Any] = {"launcher": "slurm", "environment": slurm.environment, "stand_in": False}
    for process in [start(out, LONGER, "stage=score", **options) for _ in range(2)]:
        done = finish(process, out)
        assert (done.code, done.err) == (0, "")
    assert list_built(out) == list_named(out)
    assert list_others(out, undisturbed) == []


def test_after_a_killed_job_only_what_is_missing_is_computed(slurm: PrivateSlurm, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ("seeds=[0],[1]", "stage=rank", LONGER)
    running = start(out, *arguments, launcher="slurm", environment=slurm.environment, stand_in=False)
    array = read_job_id(running)
    (log,) = wait_for(lambda: list(out.glob(f"sweeps/*/.submitit/{array}_1/*_log.out")), "its log")
    wait_until(lambda: is_at_work(log.read_text(), 0), "training to begin")
    process = wait_for(lambda: find_process(SLURM_ARRAY_JOB_ID=array, SLURM_ARRAY_TASK_ID="1"), "its process")
    os.kill(process, signal.SIGKILL)
    done = finish(running, out)
    assert done.code == 1
    assert done.failures() == [f"job 1 (seeds=[1]): it was killed (signal 9). Its log: {log}"]
    before = list_built(out)
    assert [name.split("/")[0] for name in before] == ["rank", "scenes", "scenes", "tokens", "train_sae"]

    again = sweep(out, *arguments, launcher="slurm", environment=slurm.environment, stand_in=False)
    assert (again.code, again.err) == (0, "")
    built = list_built(out)
    assert built == list_named(out)
    assert sorted(name.split("/")[0] for name in set(built) - set(before)) == ["rank", "train_sae"]


def test_a_job_that_is_put_back_three_times_ends_as_if_undisturbed(
    slurm: PrivateSlurm, tmp_path: Path, undisturbed: Path
):
    out = tmp_path / "out"
    running = start(out, LONGER, launcher="slurm", environment=slurm.environment, stand_in=False)
    job = read_job_id(running)
    put_back: list[tuple[list[str], bool]] = [
        (["scontrol", "requeue", job], True),  # by hand, or after its node failed
        (["scancel", "--signal=USR2", job], False),  # as before its time limit: it ends by itself
        (["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true"], True),
    ]
    for number, (command, is_killed) in enumerate(put_back):
        wait_until(lambda: is_at_work(read_logs(out), number), f"start {number}")  # noqa: B023
        assert running.poll() is None
        process = find_process(SLURM_JOB_ID=job)
        slurm.run(*command)
        if is_killed:
            assert process
            hold_still(process)
    done = finish(running, out)
    assert (done.code, done.err) == (0, "")
    assert read_logs(out).count("Starting with JobEnvironment") == 4
    assert read_checksums(out) == read_checksums(undisturbed)
    assert list_built(out) == list_named(out)


def is_at_work(log: str, number: int) -> bool:
    """Whether a job that began `number` times again has read its tokens, the last time too."""
    starts = log.split("Starting with JobEnvironment")[1:]
    return len(starts) == number + 1 and "tokens/scenes_clip-train" in starts[-1]


def test_two_nodes_rank_and_score_as_one_process_does(
    slurm_of_two_nodes: PrivateSlurm, tmp_path: Path, undisturbed: Path
):
    out = tmp_path / "out"
    for stage in ("scenes", "tokens", "train_sae"):
        shutil.copytree(undisturbed / "artifacts" / stage, out / "artifacts" / stage)
    nodes = ("hydra.launcher.nodes=2", 'hydra.launcher.setup=["export MASTER_ADDR=127.0.0.1"]')
    arguments = (LONGER, "stage=score", *nodes)
    done = sweep(out, *arguments, launcher="slurm", environment=slurm_of_two_nodes.environment, stand_in=False)
    assert (done.code, done.err) == (0, "")
    assert [name.split("/")[0] for name in list_built(out)] == ["rank", "score"]
    assert list_others(out, undisturbed) == []


def wait_for(find: Callable[[], Any], what: str) -> Any:
    """Wait until there is something, and return it."""
    found: list[Any] = []
    wait_until(lambda: found.append(find()) or found[-1], what)
    return found[-1]
