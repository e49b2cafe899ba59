"""Several processes that work on one job."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infoscope import resume, world
from infoscope.artifacts import Store, Workspace
from infoscope.errors import InputError
from infoscope.manifests import Spec

SHARED, OWN = Spec("rank", "shared", {"a": 1}), Spec("rank", "own", {"a": 2})


def work(folder: Path, fails: int | None = None) -> dict:
    """What every process does; each leaves a record of it."""
    here = world.current()
    found = {"ranks": world.gather(here.rank), "told": world.broadcast(f"by {here.rank}"), "main": world.is_main()}
    with world.alone():
        n_cores = world.count_cores()
    found["cores_shared"] = world.count_cores() == max(1, n_cores // 2)
    store = Store(folder / "artifacts")
    if here.rank == fails:
        raise InputError(f"process {here.rank} cannot go on")

    def build_shared(place: Workspace) -> None:
        parts = resume.compute_parts(5, lambda n: {"by": torch.tensor([n, here.rank])}, place.progress, "parts")
        joined = [part["by"].tolist() for part in parts]
        if world.is_main():
            (place.folder / "joined.json").write_text(json.dumps(joined))

    def build_own(place: Workspace) -> None:
        assert world.current().size == 1
        (place.folder / "by.json").write_text(json.dumps(here.rank))

    shared = store.get(SHARED, build_shared, shared=True)
    own = store.get(OWN, build_own, shared=False)
    again = store.get(SHARED, build_shared, shared=True)
    assert again.hash == shared.hash
    found |= {"shared": shared.read_json("joined.json"), "own": own.read_json("by.json")}
    if here.rank > 0:
        with world.alone():  # an artifact that no other process makes
            store.get(Spec("probe", "mine", {"rank": here.rank}), build_own)
    world.barrier()
    (folder / f"{here.rank}.json").write_text(json.dumps(found))
    return found


def test_processes_share_work_and_exchange_what_they_find(tmp_path: Path):
    Store(tmp_path / "other").get(OWN, lambda place: None)  # this process has done other things before
    with world.sharing(2, work, tmp_path):
        work(tmp_path)
    expected = {
        "ranks": [0, 1],
        "told": "by 0",
        "shared": [[n, n % 2] for n in range(5)],
        "own": 0,
        "cores_shared": True,
    }
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {**expected, "main": rank == 0}
    assert len(list((tmp_path / "artifacts").glob("*/*/manifest.json"))) == 3
    assert world.current() == world.World()


@pytest.mark.parametrize("fails", [0, 1])
def test_one_process_that_fails_ends_all_with_its_sentence(tmp_path: Path, fails: int):
    with pytest.raises(InputError, match=f"process {fails} cannot go on"), world.sharing(2, work, tmp_path, fails):
        work(tmp_path, fails)
    assert not list((tmp_path / "artifacts").glob("*/*/manifest.json"))


def fail(name: str) -> None:
    """The second process cannot go on, the first waits for it."""
    if world.current().rank == 1:
        raise FAULTS[name]
    world.barrier()


FAULTS = {"full": OSError(errno.ENOSPC, "No space left on device"), "fault": KeyError("a fault of ours")}


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("full", InputError, "The disk that holds output_dir is full: free some space"),
        ("fault", RuntimeError, r"Process 1 of this job failed \(KeyError: 'a fault of ours'\); see its traceback"),
    ],
)
def test_the_first_process_says_why_another_failed(
    capfd: pytest.CaptureFixture[str], name: str, kind: type[Exception], says: str
):
    with pytest.raises(kind, match=says), world.sharing(2, fail, name):
        fail(name)
    assert ("Traceback" in capfd.readouterr().err) == (kind is RuntimeError)


def die(folder: Path) -> None:
    """The second process is killed, the first waits for it."""
    if world.current().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    world.barrier()


def test_a_process_that_is_killed_ends_all(tmp_path: Path):
    with pytest.raises(InputError, match=r"was killed \(signal 9"), world.sharing(2, die, tmp_path):
        die(tmp_path)


def test_one_process_is_a_world_of_its_own():
    with world.sharing(1, work):
        assert world.current() == world.World(0, 1)
        assert world.gather("a") == ["a"]
        assert world.broadcast("a") == "a"
        world.barrier()


def test_processes_are_found_in_the_environment():
    torchrun = {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
    assert world.find_place(torchrun) == world.World(1, 4, 1, "10.0.0.1", 29500)
    slurm = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "7",
        "MASTER_ADDR": "n1",
    }
    found = world.find_place(slurm)
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.address) == (3, 4, 1, "n1")
    assert found.port == world.find_place({**slurm, "SLURM_PROCID": "0"}).port  # pyright: ignore
    local = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_LOCALID": "1",
        "SUBMITIT_LOCAL_JOB_ID": "99",
    }
    assert world.find_place(local).rank == 1  # pyright: ignore
    assert world.find_place({}) is None
    assert world.find_place({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None, "a batch script without srun is alone"


MEET_TWICE = """
from infoscope import world
for _ in range(3):
    with world.sharing(1, print):
        found = world.gather(world.current().rank)
    print(*found)
"""


def test_processes_from_outside_meet_for_one_job_after_the_other(tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    processes = [
        subprocess.Popen([sys.executable, "-c", MEET_TWICE], env=environment, stdout=subprocess.PIPE, text=True)
        for environment in environments
    ]
    for process in processes:
        assert process.communicate(timeout=120)[0] == "0 1\n" * 3
        assert process.returncode == 0


def test_processes_from_outside_and_from_here_are_refused_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "0")
    with pytest.raises(InputError, match="2 processes were started already"), world.sharing(2, work):
        pass
