"""The run of a job: what it is called, when it opens, how it ends, and what becomes of a log that cannot be written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import run
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.tracking.config import LoggerConfig, LoggerKind
from infoscope.tracking.log import Log
from infoscope.tracking.names import RunName, choose_group, name_job, name_summary
from infoscope.tracking.tracker import JobTracking, TrackerLogger
from tests.support.pipeline_samples import Recorder

TREE = {"seeds": [0, 1], "scope": {"k_cds": 8, "rank_by": "max"}, "data": {"root": None}}
CSV, NONE = LoggerConfig(kind=LoggerKind.csv), LoggerConfig(kind=LoggerKind.none)
NAME = RunName("demo", "train_sae", "demo-train_sae", "0123")
COLUMNS, ROWS = ["group", "top1", "n"], [["high", 0.25, 3], ["low", None, 4]]


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def read_metrics(output_dir: Path) -> list[list[str]]:
    """Return the rows of the only run below `output_dir`, without the header."""
    (path,) = (output_dir / "csv").glob("*/*/metrics.csv")
    header, *rows = read_csv(path)
    assert header == ["step", "name", "value"]
    return rows


def fail(tracking: JobTracking, error: BaseException) -> None:
    """A job that logs one number and then fails."""
    with tracking:
        tracking.view("rank").log({"loss": 1.0}, step=10)
        raise error


# -- what a run is called ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"trainer": {"device": "cuda"}}, {"logger": {"mode": "online"}}, {"output_dir": "/elsewhere"}, {"plan": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_an_id_does_not_depend_on_how_the_job_runs(changes: dict):
    name = name_job("demo", "rank", TREE, Job())
    assert name_job("demo", "rank", TREE | changes, Job(number=3, overrides=("sae=topk",))).id == name.id


def test_jobs_that_differ_have_ids_that_differ():
    names = [name_job(group, stage, TREE, Job()) for group in ("demo", "other") for stage in ("rank", "score")]
    names += [name_job("demo", "rank", TREE | {"seeds": [2]}, Job()), name_summary("demo"), name_summary("other")]
    assert len({name.id for name in names}) == len(names)


def test_a_run_is_named_by_what_its_command_line_changes():
    overrides = ("stage=rank", "sae=topk", "trainer.device=cpu", "output_dir=/big/outputs", "+data.root=/sets/imagenet")
    name = name_job("demo", "rank", TREE, Job(overrides=overrides))
    assert (name.group, name.job_type, name.name) == ("demo", "rank", "demo-rank sae=topk +data.root=imagenet")
    assert name_job("demo", "rank", TREE, Job()).name == "demo-rank"


def test_a_name_is_not_longer_than_what_is_taken():
    name = name_job("demo", "rank", TREE, Job(overrides=tuple(f"sae.k={k}" for k in range(100)))).name
    assert len(name) == 120
    assert name.endswith("...")


def test_a_group_is_given_or_the_sweep_or_the_experiment():
    sweep = Job(sweep=Path("outputs/sweeps/monday"))
    assert choose_group("mine", sweep, "clip-scenes") == "mine"
    assert choose_group(None, sweep, "clip-scenes") == "monday"
    assert choose_group(None, Job(), "clip-scenes") == "clip-scenes"


# -- where it lies -----------------------------------------------------------------------------------------------------


def test_none_writes_nothing(tmp_path: Path):
    said: list[str] = []
    with JobTracking(NONE, NAME, TREE, tmp_path, said.append) as tracking:
        tracker = tracking.view("rank")
        tracker.log({"loss": 1.0}, step=1)
        tracker.log_table("groups", COLUMNS, ROWS)
        tracker.log_figure("scope", tmp_path / "scope.png")
    assert list(tmp_path.iterdir()) == said == []


def test_csv_files_name_the_pictures_beside_them(tmp_path: Path):
    picture = tmp_path / "latent_3.png"
    picture.write_bytes(b"a picture")
    with JobTracking(CSV, NAME, TREE, tmp_path, print) as tracking:
        tracking.view("explore").log_table("latents", ["latent", "images"], [[3, picture], [5, None]])
        picture.unlink()
    folder = tmp_path / "csv" / "demo" / "train_sae-0123"
    assert read_csv(folder / "explore_latents.csv")[1:] == [["3", "explore_latents/latent_3.png"], ["5", ""]]
    assert (folder / "explore_latents/latent_3.png").read_bytes() == b"a picture"


def test_csv_files_hold_what_was_logged(tmp_path: Path):
    said: list[str] = []
    with JobTracking(CSV, NAME, TREE, tmp_path, said.append) as tracking:
        tracking.view("train_sae/seed1").log({"loss": 0.5, "l0": 16.0}, step=10)
        tracking.view("train_sae/seed1").log({"fvu": 0.125})
        tracking.view("report").log_table("probes/groups", COLUMNS, ROWS)
    folder = tmp_path / "csv" / "demo" / "train_sae-0123"
    assert said == [f"logged: {folder}"]
    assert json.loads((folder / "config.json").read_text()) == TREE
    assert read_csv(folder / "metrics.csv") == [
        ["step", "name", "value"],
        ["10", "train_sae/seed1/loss", "0.5"],
        ["10", "train_sae/seed1/l0", "16.0"],
        ["", "train_sae/seed1/fvu", "0.125"],
        ["", "error", ""],
    ]
    assert read_csv(folder / "report_probes_groups.csv") == [COLUMNS, ["high", "0.25", "3"], ["low", "", "4"]]


def test_a_job_that_comes_back_goes_on_with_its_run(tmp_path: Path):
    for step in (1, 2):
        with JobTracking(CSV, NAME, TREE, tmp_path, print) as tracking:
            tracking.view("rank").log({"loss": float(step)}, step)
    steps = [row for row in read_metrics(tmp_path) if row[1] != "error"]
    assert steps == [["1", "rank/loss", "1.0"], ["2", "rank/loss", "2.0"]]


def test_lightning_logs_through_the_tracker(tmp_path: Path):
    with JobTracking(CSV, NAME, TREE, tmp_path, print) as tracking:
        logger = TrackerLogger(tracking.view("train_sae/seed0"))
        logger.log_hyperparams({"lr": 1e-3})
        logger.log_metrics({"loss": np.float32(0.25), "epoch": 0}, step=3)
    assert read_metrics(tmp_path)[:-1] == [["3", "train_sae/seed0/loss", "0.25"]]


def test_a_summary_holds_the_table_of_all_jobs(tmp_path: Path):
    said: list[str] = []
    for n_done in (1, 2):
        with JobTracking(CSV, name_summary("monday"), TREE, tmp_path, said.append) as tracking:
            tracking.write(lambda log: log.log_table("jobs", COLUMNS, ROWS))
            tracking.write(lambda log, n_done=n_done: log.log_numbers({"n_jobs": 2, "n_done": n_done}))
    folder = tmp_path / "csv" / "monday" / f"sweep-{name_summary('monday').id}"
    assert said == 2 * [f"logged: {folder}"]
    assert read_csv(folder / "jobs.csv") == [COLUMNS, ["high", "0.25", "3"], ["low", "", "4"]]
    assert [row[2] for row in read_metrics(tmp_path) if row[1] == "n_done"] == ["1", "2"]


# -- when it opens, how it ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("Expected a number."), "Expected a number."),
        (RuntimeError("boom"), "RuntimeError: boom"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "stopped by exit(3)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failing_job_keeps_its_numbers_and_says_why(tmp_path: Path, error: BaseException, sentence: str):
    with pytest.raises(type(error)):
        fail(JobTracking(CSV, NAME, TREE, tmp_path, print), error)
    assert read_metrics(tmp_path) == [["10", "rank/loss", "1.0"], ["", "error", sentence]]


def test_a_job_that_logs_nothing_has_no_run(tmp_path: Path):
    with JobTracking(CSV, NAME, TREE, tmp_path, print, tells_failure=True) as tracking:
        tracking.view("rank")
    with pytest.raises(InputError), JobTracking(CSV, NAME, TREE, tmp_path, print):
        raise InputError("boom")
    assert list(tmp_path.iterdir()) == []


def test_a_job_of_a_sweep_that_fails_at_once_has_a_run_that_says_so(tmp_path: Path):
    job = Job(folder=tmp_path / "monday" / "0", sweep=tmp_path / "monday")
    config = compose(["data=image_folder", "data.root=/none", "logger=csv", f"output_dir={tmp_path}", "stage=rank"])
    with pytest.raises(InputError) as refused:
        run(config, Recorder(), job)
    (folder,) = (tmp_path / "csv" / "monday").iterdir()
    assert folder.name.startswith("rank-")
    assert read_metrics(tmp_path) == [["", "error", str(refused.value)]]


def test_a_plan_opens_no_run(tmp_path: Path):
    display = Recorder()
    run(compose(["logger=csv", f"output_dir={tmp_path}", "stage=rank", "plan=true"]), display, Job(sweep=tmp_path))
    assert "rank" in display.text
    assert not (tmp_path / "csv").exists()


def test_stages_share_the_run_of_their_job(tmp_path: Path):
    config = compose(["logger=csv", f"output_dir={tmp_path}", "stage=score"])
    ctx = Context(config, Recorder(), Job(sweep=tmp_path / "monday", overrides=("seeds=[0]",)))
    with ctx.tracking:
        with ctx.track("rank", 0) as tracker:
            tracker.log({"n_images": 5})
        with ctx.track("report") as tracker:
            tracker.log({"rows": 7})
    assert ctx.tracking.name.name == "monday-score seeds=[0]"
    assert read_metrics(tmp_path)[:2] == [["", "rank/seed0/n_images", "5"], ["", "report/rows", "7"]]


def test_processes_that_help_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_world", processes.World(rank=1, size=2))
    ctx = Context(compose(["logger=csv", f"output_dir={tmp_path}"]), Recorder(), Job(sweep=tmp_path))
    with pytest.raises(RuntimeError):
        fail(ctx.tracking, RuntimeError("boom"))
    assert not (tmp_path / "csv").exists()


# -- a log that cannot be written --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LoggerKind.csv, LoggerKind.wandb])
def test_a_log_that_cannot_be_opened_is_one_sentence(tmp_path: Path, kind: LoggerKind):
    said: list[str] = []
    (tmp_path / "outputs").write_text("a file where a folder should be")
    with JobTracking(LoggerConfig(kind=kind), NAME, TREE, tmp_path / "outputs", said.append) as tracking:
        for step in range(3):
            tracking.view("rank").log({"loss": 1.0}, step)
        tracking.view("rank").log_table("groups", COLUMNS, ROWS)
    (sentence,) = said
    assert sentence.startswith("The run is not logged any further, the work goes on: ")
    assert "outputs" in sentence


def test_a_full_disk_ends_the_log_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    ended: list[str] = []

    class FullDisk(Log):
        def log_point(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

        def finish(self, error: str) -> None:
            ended.append(error)

    monkeypatch.setattr(JobTracking, "_open", lambda self: FullDisk())
    with JobTracking(CSV, NAME, TREE, tmp_path, said.append) as tracking:
        tracking.view("rank").log({"n": 1})
        tracking.view("rank").log({"loss": 1.0}, step=1)
        tracking.view("rank").log({"loss": 1.0}, step=2)
    assert len(said) == len(ended) == 1
    assert "No space left on device" in said[0]
    assert "No space left on device" in ended[0]


def test_no_time_for_the_server_is_refused():
    with pytest.raises(InputError, match=r"logger\.timeout_s to be above 0, got 0"):
        compose(["logger.timeout_s=0"])
