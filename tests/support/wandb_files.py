"""Reading runs of Weights & Biases back from their files, and keeping it to one folder meanwhile."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class WandbRun:
    """What a .wandb file says."""

    id: str = ""
    job_type: str = ""
    group: str = ""
    name: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    """Where the files of the tables' artifacts lie until they are sent, by their names."""
    exit_code: int | None = None
    folder: Path = Path()

    def read_curve(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of a curve, in the order of the file."""
        step = f"{name.rpartition('/')[0]}/step"
        return [(row[step], row[name]) for row in self.history if name in row]

    def read_table(self, name: str) -> dict[str, Any]:
        """Return the JSON file of a table that the history points to."""
        return json.loads(self.find_file(name).read_text())

    def read_pictures(self, name: str) -> dict[int, Path]:
        """Return the picture files of a table by the row they are in; the table's JSON file knows none."""
        table = json.loads(self.artifacts[f"{name}.table.json"].read_text())
        cells = {number: cell for number, row in enumerate(table["data"]) for cell in row if isinstance(cell, dict)}
        return {number: self.artifacts[cell["path"]] for number, cell in cells.items()}

    def find_file(self, name: str) -> Path:
        (path,) = (row[f"{name}/path"] for row in self.history if f"{name}/path" in row)
        return self.folder / "files" / path


def read_wandb(folder: Path) -> WandbRun:
    """Return what the .wandb file in a run's folder says."""
    (path,) = folder.glob("*.wandb")
    run = WandbRun(folder=folder)
    for record in _read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.job_type, run.group = record.run.run_id, record.run.job_type, record.run.run_group
            run.name, run.project = record.run.display_name, record.run.project
            run.config |= _read_items(record.run.config.update)
        elif kind == "history":
            run.history.append(_read_items(record.history.item))
        elif kind == "summary":
            run.summary |= _read_items(record.summary.update)
        elif kind == "metric" and record.metric.step_metric:
            run.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            run.artifacts |= {file.path: Path(file.local_path) for file in record.artifact.manifest.contents}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    run.config.pop("_wandb", None)
    return run


def find_runs(output_dir: Path, kind: str = "offline-run") -> list[Path]:
    """Return the folders of all runs below `output_dir`, in the order in which they began."""
    folders = (output_dir / "wandb").glob(f"{kind}-*")
    return sorted(folders, key=lambda folder: next(folder.glob("*.wandb")).stat().st_ctime_ns)


def redirect_wandb(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep Weights & Biases to one folder, offline, and ignorant of accounts that the machine may have."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR", "HOME"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("NETRC", str(folder / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def log_into(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Give Weights & Biases an account on a server."""
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


def _read_records(path: Path) -> Iterator[Any]:
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
        position += header.size
        chunk = data[position : position + length]
        if kind == 0 or len(chunk) < length:  # a killed process stops anywhere
            return
        assert checksum == zlib.crc32(bytes([kind]) + chunk)
        position += length
        parts += chunk
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _read_items(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
