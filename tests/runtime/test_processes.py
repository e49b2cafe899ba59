"""Several processes that work on one job."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infoscope.runtime import parts, places, processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Spec
from infoscope.runtime.store import Store, Workspace
from tests.support.quick_processes import quick_sharing

pytestmark = pytest.mark.long

SHARED, OWN = Spec("rank", "shared", {"a": 1}), Spec("rank", "own", {"a": 2})


def work(folder: Path, fails: int | None = None) -> dict:
    """What every process does; each leaves a record of it."""
    here = processes.current()
    found = {
        "ranks": processes.gather(here.rank),
        "told": processes.broadcast(f"by {here.rank}"),
        "main": processes.is_main(),
    }
    with processes.alone():
        n_cores = processes.count_cores()
    found["cores_shared"] = processes.count_cores() == max(1, n_cores // 2)
    store = Store(folder / "artifacts")
    if here.rank == fails:
        raise InputError(f"process {here.rank} cannot go on")

    def build_shared(place: Workspace) -> None:
        joined_parts = parts.compute_parts(5, lambda n: {"by": torch.tensor([n, here.rank])}, place.progress, "parts")
        joined = [part["by"].tolist() for part in joined_parts]
        if processes.is_main():
            (place.folder / "joined.json").write_text(json.dumps(joined))

    def build_own(place: Workspace) -> None:
        assert processes.current().size == 1
        (place.folder / "by.json").write_text(json.dumps(here.rank))

    shared = store.get(SHARED, build_shared, shared=True)
    own = store.get(OWN, build_own, shared=False)
    again = store.get(SHARED, build_shared, shared=True)
    assert again.hash == shared.hash
    found |= {"shared": shared.read_json("joined.json"), "own": own.read_json("by.json")}
    if here.rank > 0:
        with processes.alone():  # an artifact that no other process makes
            store.get(Spec("probe", "mine", {"rank": here.rank}), build_own)
    processes.barrier()
    (folder / f"{here.rank}.json").write_text(json.dumps(found))
    return found


def test_processes_share_work_and_exchange_what_they_find(tmp_path: Path):
    Store(tmp_path / "other").get(OWN, lambda place: None)  # this process has done other things before
    with processes.sharing(2, work, tmp_path):
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
    assert processes.current() == processes.World()


@pytest.mark.parametrize("fails", [0, 1])
def test_one_process_that_fails_ends_all_with_its_sentence(tmp_path: Path, fails: int):
    says = f"process {fails} cannot go on"
    with pytest.raises(InputError, match=says), quick_sharing(), processes.sharing(2, work, tmp_path, fails):
        work(tmp_path, fails)
    assert not list((tmp_path / "artifacts").glob("*/*/manifest.json"))


def fail(name: str) -> None:
    """The second process cannot go on, the first waits for it."""
    if processes.current().rank == 1:
        raise FAULTS[name]
    processes.barrier()


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
    with pytest.raises(kind, match=says), processes.sharing(2, fail, name):
        fail(name)
    assert ("Traceback" in capfd.readouterr().err) == (kind is RuntimeError)


def die(folder: Path) -> None:
    """The second process is killed, the first waits for it."""
    if processes.current().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.barrier()


def test_a_process_that_is_killed_ends_all(tmp_path: Path):
    says = r"was killed \(signal 9"
    with pytest.raises(InputError, match=says), quick_sharing(), processes.sharing(2, die, tmp_path):
        die(tmp_path)


def test_one_process_is_a_world_of_its_own():
    with processes.sharing(1, work):
        assert processes.current() == processes.World(0, 1)
        assert processes.gather("a") == ["a"]
        assert processes.broadcast("a") == "a"
        processes.barrier()


def test_processes_are_found_in_the_environment():
    torchrun = {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }
    assert processes.find_place(torchrun) == processes.World(1, 4, 1, "10.0.0.1", 29500)
    slurm = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "7",
        "MASTER_ADDR": "n1",
    }
    found = processes.find_place(slurm)
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.address) == (3, 4, 1, "n1")
    assert found.port == processes.find_place({**slurm, "SLURM_PROCID": "0"}).port  # pyright: ignore
    local = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_LOCALID": "1",
        "SUBMITIT_LOCAL_JOB_ID": "99",
    }
    assert processes.find_place(local).rank == 1  # pyright: ignore
    assert processes.find_place({}) is None
    assert processes.find_place({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None, (
        "a batch script without srun is alone"
    )


MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "MASTER_ADDR": "n"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        (MPI, (3, 4, 1)),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, (1, 2, 0)),
        ({"WORLD_SIZE": "2", "RANK": "1"}, (1, 2, 0)),
        ({"WORLD_SIZE": "8"}, None),
        ({"RANK": "1", "LOCAL_RANK": "1"}, None),
        ({"WORLD_SIZE": "", "RANK": "0"}, None),
        ({**MPI, "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({**STEP, "SLURM_TASK_PID": str(os.getpid()), "SLURM_JOB_NAME": "interactive"}, (0, 4, 0)),  # srun of a shell
        ({**STEP, "SLURM_TASK_PID": "1", "SLURM_JOB_NAME": "interactive"}, (0, 4, 0)),  # a script that srun started
        ({**STEP, "SLURM_JOB_NAME": "bash"}, None),
        ({**STEP, "SLURM_JOB_NAME": "interactive"}, None),
        ({**STEP, "SLURM_STEP_ID": "4294967290", "SLURM_TASK_PID": "1"}, None),
    ],
)
def test_a_place_is_found_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], place: tuple[int, int, int] | None
):
    monkeypatch.setattr(places, "is_at_terminal", lambda: False)
    found = processes.find_place(environment)
    assert (found and (found.rank, found.size, found.local_rank)) == place


def test_a_person_at_a_terminal_is_no_task(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(places, "is_at_terminal", lambda: True)
    assert processes.find_place({**STEP, "SLURM_TASK_PID": "1"}) is None
    assert processes.find_place({**STEP, "SLURM_TASK_PID": str(os.getpid())}) is not None
    assert processes.find_place({"WORLD_SIZE": "2", "RANK": "1"}) is not None


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "two", "RANK": "0"}, "Expected the variable WORLD_SIZE to be a number, got 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "Expected RANK to be 0 to WORLD_SIZE - 1 = 1, got 2: .*unset WORLD_SIZE"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "Expected RANK to be 0 to"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "99999"}, "Expected MASTER_PORT to be 1 to 65535, got 99999"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "http"}, "MASTER_PORT to be a number, got 'http'"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(environment: dict[str, str], says: str):
    with pytest.raises(InputError, match=says):
        processes.find_place(environment)


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "says", "ends"),
    [
        ("0", r"Waiting for 3 of 4 processes \(WORLD_SIZE=4\) at 127\.0\.0\.1:\d+, up to", "Waited .* for 3 of 4 pro"),
        (
            "2",
            r"Process 2 of 4 \(WORLD_SIZE=4\) is waiting for the first one at 127\.0\.0\.1:",
            "cannot meet the others",
        ),
    ],
)
def test_whoever_waits_says_for_whom_and_how_long_and_what_to_unset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, says: str, ends: str
):
    monkeypatch.setattr(processes, "GATHERING_S", 0.4)
    monkeypatch.setattr(processes, "SAY_AFTER_S", 0.0)
    for name, value in {"WORLD_SIZE": "4", "RANK": rank, "MASTER_PORT": str(find_free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{ends}.*To work alone: unset WORLD_SIZE"), processes.sharing(1, work):
        pass
    said = capsys.readouterr().err
    assert re.match(says, said), said
    assert said.endswith("To work alone: unset WORLD_SIZE.\n")
    assert processes.current() == processes.World()


def test_a_shell_of_slurm_is_told_that_it_works_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in {**STEP, "SLURM_JOB_NAME": "bash"}.items():
        monkeypatch.setenv(name, value)
    with processes.sharing(1, work):
        assert processes.current().size == 1
    assert capsys.readouterr().err.startswith("This is one process in a shell of Slurm: it works alone (`srun info")


MEET_TWICE = """
from infoscope.runtime import processes
for _ in range(3):
    with processes.sharing(1, print):
        found = processes.gather(processes.current().rank)
    print(*found)
"""


def test_processes_from_outside_meet_for_one_job_after_the_other(tmp_path: Path):
    port = find_free_port()
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    started = [
        subprocess.Popen([sys.executable, "-c", MEET_TWICE], env=environment, stdout=subprocess.PIPE, text=True)
        for environment in environments
    ]
    for process in started:
        assert process.communicate(timeout=120)[0] == "0 1\n" * 3
        assert process.returncode == 0


def test_processes_from_outside_and_from_here_are_refused_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "0")
    with pytest.raises(InputError, match="2 processes were started already"), processes.sharing(2, work):
        pass
