"""Sweeps of the tests, as the commands that a user gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny_runs import TINY

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240
"""How long a sweep may take: one that hangs fails."""


@dataclass
class Sweep:
    """A sweep that has ended: its exit code, what it said."""

    code: int
    out: str
    err: str
    folder: Path

    def failures(self) -> list[str]:
        """The lines on stderr: one for each failed job, in the jobs' order."""
        lines = self.err.splitlines()
        assert all(line.startswith("infoscope: ") for line in lines), self.err
        return sorted(line.removeprefix("infoscope: ") for line in lines)

    def ran(self) -> list[dict[str, Any]]:
        """What the jobs with a stand-in for their work left."""
        return [json.loads(line) for path in self.folder.glob("sweeps/*/ran") for line in path.read_text().splitlines()]


def read_logs(folder: Path) -> str:
    """Return what all jobs of all sweeps below an output_dir have printed."""
    return "".join(path.read_text() for path in sorted(folder.glob("sweeps/*/.submitit/*/*_log.out")))


def start(
    folder: Path, *arguments: str, launcher: str, environment: dict[str, str] | None = None, stand_in: bool = True
) -> subprocess.Popen:
    """Start a sweep whose output_dir is `folder`; its jobs are `TINY`, or do as `logger.group` says."""
    environment = dict(environment or {**os.environ, "CUDA_VISIBLE_DEVICES": ""})  # none: no time to look for any
    paths = [str(ROOT / "src"), *([str(ROOT / "tests" / "support" / "stand_in")] if stand_in else [])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    own = ["logger.project=0"] if stand_in else TINY
    command = [sys.executable, "-m", "infoscope.app", "-m", f"hydra/launcher={launcher}", f"output_dir={folder}", *own]
    folder.parent.mkdir(exist_ok=True)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *arguments], cwd=folder.parent, env=environment, **pipes)


def finish(process: subprocess.Popen, folder: Path) -> Sweep:
    """Wait for a sweep."""
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Sweep(process.returncode, out, err, folder)


def sweep(folder: Path, *arguments: str, **options: Any) -> Sweep:
    """Run a sweep; see `start`."""
    return finish(start(folder, *arguments, **options), folder)
