"""Where numbers go: what is logged can be read back from the files, without a server."""

from __future__ import annotations

import csv
import json
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infoscope.errors import InputError
from infoscope.tracking import LoggerConfig, LoggerKind, WandbMode, make_lightning_logger, track

TREE = {"seeds": [0, 1], "scope": {"k_cds": 8, "rank_by": "max"}, "data": {"root": None}}
COLUMNS, ROWS = ["group", "top1", "n"], [["high", 0.25, 3], ["low", None, 4]]


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def fail(error: BaseException, *args: Any, **kwargs: Any) -> None:
    """A stage that logs one number and then fails."""
    with track(*args, **kwargs) as tracker:
        tracker.log({"loss": 1.0}, step=10)
        raise error


# -- nowhere, and CSV files --------------------------------------------------------------------------------------------


def test_none_writes_nothing(tmp_path: Path):
    locations: dict[str, Path] = {}
    with track(LoggerConfig(kind=LoggerKind.none), "rank", "group", TREE, tmp_path, locations=locations) as tracker:
        tracker.log({"loss": 1.0}, step=1)
        tracker.log_table("groups", COLUMNS, ROWS)
        tracker.log_figure("scope", tmp_path / "scope.png")
    assert list(tmp_path.iterdir()) == []
    assert locations == {}


def test_csv_files_hold_what_was_logged(tmp_path: Path):
    locations: dict[str, Path] = {}
    config = LoggerConfig(kind=LoggerKind.csv)
    with track(config, "train_sae", "demo", TREE, tmp_path, seed=1, locations=locations) as tracker:
        tracker.log({"loss": 0.5, "l0": 16.0}, step=10)
        tracker.log({"fvu": 0.125})
        tracker.log_table("probes/groups", COLUMNS, ROWS)
    folder = tmp_path / "csv" / "demo" / "train_sae-seed1"
    assert locations == {"train_sae-seed1": folder}
    assert json.loads((folder / "config.json").read_text()) == TREE
    assert read_csv(folder / "metrics.csv") == [
        ["step", "name", "value"],
        ["10", "loss", "0.5"],
        ["10", "l0", "16.0"],
        ["", "fvu", "0.125"],
    ]
    assert read_csv(folder / "probes_groups.csv") == [COLUMNS, ["high", "0.25", "3"], ["low", "", "4"]]


def test_a_stage_that_goes_on_appends_to_its_metrics(tmp_path: Path):
    for step in (1, 2):
        with track(LoggerConfig(kind=LoggerKind.csv), "rank", "demo", TREE, tmp_path) as tracker:
            tracker.log({"loss": float(step)}, step)
    rows = read_csv(tmp_path / "csv" / "demo" / "rank" / "metrics.csv")
    assert rows == [["step", "name", "value"], ["1", "loss", "1.0"], ["2", "loss", "2.0"]]


def test_a_failing_stage_keeps_its_numbers_and_its_error(tmp_path: Path):
    with pytest.raises(RuntimeError, match="boom"):
        fail(RuntimeError("boom"), LoggerConfig(kind=LoggerKind.csv), "rank", "demo", TREE, tmp_path)
    assert len(read_csv(tmp_path / "csv" / "demo" / "rank" / "metrics.csv")) == 2


def test_lightning_logs_through_the_tracker(tmp_path: Path):
    with track(LoggerConfig(kind=LoggerKind.csv), "train_sae", "demo", TREE, tmp_path) as tracker:
        logger = make_lightning_logger(tracker)
        logger.log_hyperparams({"lr": 1e-3})
        logger.log_metrics({"loss": np.float32(0.25), "epoch": 0}, step=3)
    assert read_csv(tmp_path / "csv" / "demo" / "train_sae" / "metrics.csv")[1:] == [["3", "loss", "0.25"]]


# -- Weights & Biases --------------------------------------------------------------------------------------------------


@dataclass
class WandbRun:
    """What a .wandb file says."""

    job_type: str = ""
    group: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    folder: Path = Path()

    def read_table(self, name: str) -> dict[str, Any]:
        """Return the JSON file of a table that the history points to."""
        return json.loads(self.find_file(name).read_text())

    def find_file(self, name: str) -> Path:
        (path,) = (row[f"{name}/path"] for row in self.history if f"{name}/path" in row)
        return self.folder / "files" / path


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    block, header = 32768, struct.Struct("<IHB")  # checksum, length, kind: 1 whole, 2 first, 3 middle, 4 last part
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + header.size <= len(data):
        left = block - position % block
        if left < header.size:
            position += left
            continue
        checksum, length, kind = header.unpack_from(data, position)
        if kind == 0:
            return
        position += header.size
        chunk = data[position : position + length]
        assert checksum == zlib.crc32(bytes([kind]) + chunk)
        position += length
        parts += chunk
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read_items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def read_wandb(location: Path) -> WandbRun:
    (path,) = location.glob("*.wandb")
    run = WandbRun(folder=location)
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.job_type, run.group = record.run.job_type, record.run.run_group
            run.name, run.project = record.run.display_name, record.run.project
            run.config |= read_items(record.run.config.update)
        elif kind == "history":
            run.history.append(read_items(record.history.item))
        elif kind == "summary":
            run.summary |= read_items(record.summary.update)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def redirect_wandb(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep Weights & Biases to one folder, offline, and ignorant of accounts that the machine may have."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR", "HOME"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("NETRC", str(folder / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WandbRun]]:
    """A stage that succeeds and two that fail, in one process; starting wandb's service takes seconds."""
    import wandb

    folder = tmp_path_factory.mktemp("tracking")
    output_dir = folder / "outputs"
    picture = folder / "scope.png"
    Image.new("RGB", (4, 4)).save(picture)
    locations: dict[str, Path] = {}
    config = LoggerConfig()
    with pytest.MonkeyPatch.context() as monkeypatch:
        redirect_wandb(monkeypatch, folder)
        try:
            with track(config, "train_sae", "demo", TREE, output_dir, seed=0, locations=locations) as tracker:
                make_lightning_logger(tracker).log_metrics({"loss": 0.5, "epoch": 0}, step=10)
                tracker.log({"loss": 0.25}, step=20)
                tracker.log({"fvu": 0.125})
                tracker.log_table("groups", COLUMNS, ROWS)
                tracker.log_figure("scope", picture)
            for seed, error in ((1, InputError("boom")), (2, KeyboardInterrupt())):
                with pytest.raises(type(error)):
                    fail(error, config, "train_sae", "demo", TREE, output_dir, seed=seed, locations=locations)
        finally:
            wandb.teardown()
        yield {name: read_wandb(location) for name, location in locations.items()}


def test_a_run_says_what_it_is(runs: dict[str, WandbRun]):
    run = runs["train_sae-seed0"]
    assert (run.job_type, run.group, run.name, run.project) == (
        "train_sae",
        "demo",
        "demo-train_sae-seed0",
        "infoscope",
    )
    assert {name: value for name, value in run.config.items() if name != "_wandb"} == TREE


def test_a_run_holds_what_was_logged(runs: dict[str, WandbRun]):
    run = runs["train_sae-seed0"]
    curve = [(row["step"], row["loss"]) for row in run.history if "loss" in row]
    assert curve == [(10, 0.5), (20, 0.25)]
    assert run.summary["fvu"] == 0.125
    table = run.read_table("groups")
    assert table["columns"] == COLUMNS
    assert table["data"] == [["high", "0.25", "3"], ["low", "", "4"]]
    with Image.open(run.find_file("scope")) as picture:
        assert picture.size == (4, 4)


def test_runs_of_one_process_stay_apart(runs: dict[str, WandbRun]):
    assert list(runs) == ["train_sae-seed0", "train_sae-seed1", "train_sae-seed2"]
    assert len({run.folder for run in runs.values()}) == 3
    assert [run.name for run in runs.values()] == [f"demo-{name}" for name in runs]
    assert [row["loss"] for row in runs["train_sae-seed1"].history] == [1.0]


def test_a_failed_stage_is_a_failed_run(runs: dict[str, WandbRun]):
    assert [run.exit_code for run in runs.values()] == [0, 1, 1]


def test_runs_lie_below_output_dir(runs: dict[str, WandbRun]):
    for run in runs.values():
        assert (run.folder.parent.name, run.folder.parent.parent.name) == ("wandb", "outputs")


def test_online_without_an_account_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    redirect_wandb(monkeypatch, tmp_path)
    monkeypatch.delenv("WANDB_MODE")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    config = LoggerConfig(mode=WandbMode.online)
    with pytest.raises(InputError, match="run `wandb login`, or use logger"):
        fail(RuntimeError("the run began"), config, "rank", "demo", TREE, tmp_path / "outputs")
    assert not (tmp_path / "outputs").exists()
