"""Runs of Weights & Biases, read back from their files and from a loopback server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.tracking.config import LoggerConfig, WandbMode
from infoscope.tracking.names import name_job, name_summary
from infoscope.tracking.tracker import JobTracking, TrackerLogger
from tests.support.wandb_files import WandbRun, find_runs, log_into, read_wandb, redirect_wandb
from tests.support.wandb_server import ServedRun, Server, serve_wandb

pytestmark = pytest.mark.long

TREE = {"seeds": [0, 1], "scope": {"k_cds": 8, "rank_by": "max"}, "data": {"root": None}}
OFFLINE, ONLINE = LoggerConfig(), LoggerConfig(mode=WandbMode.online)
COLUMNS, ROWS = ["group", "top1", "n"], [["high", 0.25, 3], ["low", None, 4]]
N_STEPS = 50


def make_tracking(output_dir: Path, said: list[str], config: LoggerConfig = OFFLINE, k: int = 8) -> JobTracking:
    """Return the tracking of one of the jobs of a sweep, which differ in `k`."""
    job = Job(sweep=output_dir / "sweeps" / "monday", overrides=("stage=train_sae", f"scope.k_cds={k}"))
    tree = TREE | {"scope": {"k_cds": k}}
    name = name_job("monday", "train_sae", tree, job)
    return JobTracking(config, name, tree, output_dir, said.append, tells_failure=True)


def run_job(tracking: JobTracking, first_step: int, error: BaseException | None = None) -> None:
    """A job that logs two points of a curve and one number, and then perhaps fails."""
    with tracking:
        tracker = tracking.view("train_sae/seed0")
        for step in (first_step, first_step + 10):
            TrackerLogger(tracker).log_metrics({"loss": 1 / step, "epoch": 0}, step)
        tracker.log({"fvu": 0.125})
        if error is not None:
            raise error


@pytest.fixture(autouse=True)
def own_wandb(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings and service of each test its own."""
    redirect_wandb(monkeypatch, tmp_path_factory.mktemp("home"))
    yield
    wandb.teardown()


# -- offline -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep in one process: a job that ends well, two that fail, the second of which comes back; and the summary."""
    output_dir = tmp_path_factory.mktemp("tracking") / "outputs"
    picture = output_dir.parent / "scope.png"
    Image.new("RGB", (4, 4)).save(picture)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        redirect_wandb(monkeypatch, output_dir.parent)
        with make_tracking(output_dir, said, k=1) as tracking:
            tracking.view("report").log_table("groups", COLUMNS, ROWS)
            tracking.view("report").log_figure("scope", picture)
            tracking.view("explore").log_table("latents", ["latent", "images"], [[3, picture], [5, None]])
        for first_step, error in ((10, KeyboardInterrupt()), (30, None)):
            try:
                run_job(make_tracking(output_dir, said, k=2), first_step, error)
            except KeyboardInterrupt:
                continue
        with pytest.raises(InputError), make_tracking(output_dir, said, k=3):
            raise InputError("No room for k=3.")
        with JobTracking(OFFLINE, name_summary("monday"), TREE, output_dir, said.append) as tracking:
            tracking.write(lambda log: log.log_table("jobs", COLUMNS, ROWS))
            tracking.write(lambda log: log.log_numbers({"n_jobs": 3, "n_failed": 1}))
        wandb.teardown()
    assert said == [f"logged: {folder}" for folder in find_runs(output_dir)]
    return output_dir


@pytest.fixture
def runs(output_dir: Path) -> list[WandbRun]:
    return [read_wandb(folder) for folder in find_runs(output_dir)]


def test_a_run_says_what_it_is(runs: list[WandbRun]):
    first, *_, summary = runs
    assert (first.group, first.job_type, first.project) == ("monday", "train_sae", "infoscope")
    assert first.name == "monday-train_sae scope.k_cds=1"
    assert first.config == TREE | {"scope": {"k_cds": 1}}
    assert (summary.group, summary.job_type, summary.name) == ("monday", "sweep", "monday-summary")
    assert summary.config == TREE


def test_a_job_is_one_run_and_different_jobs_are_different_runs(runs: list[WandbRun]):
    first, interrupted, resumed, failed, summary = runs
    assert interrupted.id == resumed.id
    assert len({run.id for run in (first, resumed, failed, summary)}) == 4
    assert summary.id == name_summary("monday").id


def test_a_run_holds_what_was_logged(runs: list[WandbRun]):
    first, interrupted, *_ = runs
    table = first.read_table("report/groups")
    assert table["columns"] == COLUMNS
    assert table["data"] == ROWS
    with Image.open(first.find_file("report/scope")) as picture:
        assert picture.size == (4, 4)
    assert interrupted.read_curve("train_sae/seed0/loss") == [(10, 0.1), (20, 0.05)]
    assert interrupted.step_metrics == {"train_sae/seed0/*": "train_sae/seed0/step"}
    assert interrupted.summary["train_sae/seed0/fvu"] == 0.125


def test_a_cell_may_be_a_picture(runs: list[WandbRun]):
    assert [row[0] for row in runs[0].read_table("explore/latents")["data"]] == [3, 5]
    pictures = runs[0].read_pictures("explore/latents")
    assert list(pictures) == [0]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (4, 4)


def test_a_run_that_goes_on_logs_where_it_was(runs: list[WandbRun]):
    assert [step for step, _ in runs[2].read_curve("train_sae/seed0/loss")] == [30, 40]


def test_a_failed_job_is_a_failed_run_that_says_why(runs: list[WandbRun]):
    assert [run.exit_code for run in runs] == [0, 1, 0, 1, 0]
    assert [run.summary["error"] for run in runs] == ["", "interrupted", "", "No room for k=3.", ""]


def test_the_summary_holds_the_table_of_all_jobs(runs: list[WandbRun]):
    assert runs[-1].read_table("jobs")["data"] == ROWS
    assert (runs[-1].summary["n_jobs"], runs[-1].summary["n_failed"]) == (3, 1)


def sync(server: Server, output_dir: Path, *arguments: str | Path) -> None:
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
    command = [Path(sys.executable).with_name("wandb"), "sync", *arguments]
    done = subprocess.run(command, cwd=output_dir, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_offline_runs_are_sent_later_and_parts_of_a_run_are_joined(output_dir: Path):
    with serve_wandb() as server:
        sync(server, output_dir, *find_runs(output_dir))
    assert server.unknown == []
    assert len(server.runs) == 4
    run = server.runs[make_tracking(output_dir, [], k=2).name.id]
    assert (run.group, run.job_type) == ("monday", "train_sae")
    assert read_steps(run) == [10, 20, 30, 40]
    assert run.summary["error"] == ""
    assert run.exit_codes == [1, 0]
    assert server.runs[make_tracking(output_dir, [], k=3).name.id].exit_codes == [1]
    summary = server.runs[name_summary("monday").id]
    assert summary.summary["jobs"]["nrows"] == 2
    assert [name for name in summary.files if name.startswith("media/table/jobs_")]


def read_steps(run: ServedRun) -> list[int]:
    return [row["train_sae/seed0/step"] for row in run.history if "train_sae/seed0/loss" in row]


# -- processes that die ------------------------------------------------------------------------------------------------

JOB = f"""
import sys
import time
from pathlib import Path
from infoscope.tracking.config import LoggerConfig
from infoscope.tracking.names import RunName
from infoscope.tracking.tracker import JobTracking

output_dir = Path(sys.argv[1])
with JobTracking(LoggerConfig(), RunName("monday", "train_sae", "a job", "0123"), {{}}, output_dir, print) as tracking:
    tracker = tracking.view("train_sae/seed0")
    for step in range({N_STEPS}):
        tracker.log({{"loss": step / 2}}, step)
    print("logged", flush=True)
    sys.stdin.read()
    end = time.monotonic() + 20
    while len(list(output_dir.glob("wandb/offline-run-*"))) == 1 and time.monotonic() < end:
        step += 1
        tracker.log({{"loss": step / 2}}, step)
    tracker.log({{"loss": -1.0}}, step + 1)
"""


@contextmanager
def start(output_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a job that logs N_STEPS points at once, and goes on until it has a second folder when it is told to."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", JOB, str(output_dir)], env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"logged\n"
            yield process
        finally:
            process.kill()


def find_service(pid: int) -> int:
    """Return the process that writes wandb's files for another one."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for text in children for child in text.read_text().split()]
    (service,) = [child for child in pids if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return service


def wait_until(is_so: Any, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the service")
def test_kill_9_loses_nothing_that_was_logged(tmp_path: Path):
    with start(tmp_path) as process:
        logged = time.monotonic()
        (folder,) = find_runs(tmp_path)
        wait_until(lambda: len(read_wandb(folder).history) == N_STEPS)
        took = time.monotonic() - logged
        os.kill(find_service(process.pid), signal.SIGKILL)
    assert took < 5  # wandb's own 15 s would be too late for what a scheduler kills
    run = read_wandb(folder)
    assert run.read_curve("train_sae/seed0/loss") == [(step, step / 2) for step in range(N_STEPS)]
    assert run.exit_code is None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the service")
def test_a_run_goes_on_when_its_service_is_terminated(tmp_path: Path):
    """Slurm sends SIGTERM to every process of a job; the job itself may live on, or wait for its requeue."""
    with start(tmp_path) as process:
        (folder,) = find_runs(tmp_path)
        wait_until(lambda: len(read_wandb(folder).history) == N_STEPS)
        service = find_service(process.pid)
        os.kill(service, signal.SIGTERM)
        wait_until(lambda: Path(f"/proc/{service}/cmdline").read_bytes() == b"")  # dead, though not waited for
        said, complaint = process.communicate(b"go on", timeout=60)
    assert process.returncode == 0, complaint.decode()
    cut, resumed = (read_wandb(folder) for folder in find_runs(tmp_path))
    assert [step for step, _ in cut.read_curve("train_sae/seed0/loss")] == list(range(N_STEPS))
    *more, last = resumed.read_curve("train_sae/seed0/loss")  # what was under way when it died is lost
    assert len(more) == 1
    assert last == (more[0][0] + 1, -1.0)
    assert cut.id == resumed.id
    assert (cut.exit_code, resumed.exit_code) == (None, 0)
    assert said.decode().splitlines() == [f"logged: {resumed.folder}"]
    assert complaint == b""


# -- online ------------------------------------------------------------------------------------------------------------


def test_a_server_gets_one_run_per_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serve_wandb() as server:
        log_into(monkeypatch, server.url)
        with pytest.raises(RuntimeError):
            run_job(make_tracking(tmp_path, [], ONLINE), 10, RuntimeError("boom"))
        run = server.runs[make_tracking(tmp_path, []).name.id]
        assert run.summary["error"] == "RuntimeError: boom"
        run_job(make_tracking(tmp_path, [], ONLINE), 30)
        run_job(make_tracking(tmp_path, [], ONLINE, k=9), 10)
    assert server.unknown == []
    assert (run.group, run.job_type, run.project) == ("monday", "train_sae", "infoscope")
    assert run.config["scope"] == {"value": {"k_cds": 8}}
    assert read_steps(run) == [10, 20, 30, 40]
    assert run.summary["train_sae/seed0/fvu"] == 0.125
    assert run.summary["error"] == ""
    assert run.exit_codes == [1, 0]
    assert list(server.runs) == [run.id, make_tracking(tmp_path, [], k=9).name.id]


def test_a_server_that_falls_silent_holds_a_job_up_for_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    tracking = make_tracking(tmp_path, said, replace(ONLINE, timeout_s=3))
    with serve_wandb() as server:
        log_into(monkeypatch, server.url)
        with tracking:
            tracking.view("train_sae/seed0").log({"loss": 1.0}, 1)
            server.hang()
            for step in range(2, N_STEPS):
                tracking.view("train_sae/seed0").log({"loss": 1.0}, step)
            start = time.monotonic()
        took = time.monotonic() - start
    assert took < 10
    (folder,) = find_runs(tmp_path, "run")
    assert said[0] == (
        "Weights & Biases did not take all of a run within 3 s: it lies on the disk,"
        f" `wandb sync --include-online {folder}` sends it."
    )
    with serve_wandb() as server:
        sync(server, tmp_path, "--include-online", folder)
    assert read_steps(server.runs[tracking.name.id]) == list(range(1, N_STEPS))


def test_without_a_server_a_run_is_offline_after_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens
        log_into(monkeypatch, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        start = time.monotonic()
        run_job(make_tracking(tmp_path, said, replace(ONLINE, timeout_s=2)), 10)
        took = time.monotonic() - start
    assert took < 15
    wandb.teardown()  # the last 0.2 s of a run are written behind its back
    (folder,) = find_runs(tmp_path)
    assert read_wandb(folder).read_curve("train_sae/seed0/loss") == [(10, 0.1), (20, 0.05)]
    assert said[0].startswith("Weights & Biases does not answer (")
    assert said[0].endswith(f"): this run is logged offline, `wandb sync {folder}` sends it.")


def test_online_without_an_account_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(InputError, match="run `wandb login`, or use logger"):
        run_job(make_tracking(tmp_path / "outputs", [], ONLINE), 10)
    assert not (tmp_path / "outputs").exists()
