"""What a result was made with: versions, commit, hardware."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

_PACKAGES = ("infoscope", "torch", "lightning", "open_clip_torch", "numpy", "scipy", "pot", "geomloss", "hydra-core")


@cache
def describe_environment() -> dict[str, Any]:
    """Return versions, commit and hardware, for manifests and reports."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {"versions": versions, "commit": _find_commit(), "hardware": _describe_hardware()}


def find_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def count_usable_cores() -> int:
    """Return how many cores this process may keep busy: those it may run on, or fewer by a quota (a container's CPUs)
    or by what Slurm gives to a task; at least 1."""
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [len(find_cores()), read_cpu_quota(), int(asked) if asked.isdigit() else math.inf]
    return max(1, math.ceil(min(limits)))


def read_cpu_quota(root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> float:
    """Return the CPUs that this process's control groups (version 2 or 1) let it use at a time; inf: no quota."""
    quotas = [math.inf]
    for line in filter(None, _read_words(process, "\n")):
        _, controllers, group = line.split(":", 2)
        version_1 = controllers.split(",")
        if controllers and "cpu" not in version_1:
            continue
        for place in (PurePosixPath(group), *PurePosixPath(group).parents):
            if not controllers:
                limit = _read_words(root / f".{place}" / "cpu.max")
            else:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                limit = [word for name in names for word in _read_words(root / controllers / f".{place}" / name)]
            if len(limit) == 2 and limit[0] not in ("max", "-1"):
                quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas)


def count_busy_cores() -> float:
    """Return how many cores other processes keep busy: of late, and now; 0 where that is not known."""
    words = _read_words(Path("/proc/loadavg"))
    if len(words) < 4:
        return 0.0
    return max(0.0, min(float(words[0]), int(words[3].split("/")[0]) - 1.0))


def _read_words(path: Path, separator: str | None = None) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").strip().split(separator)
    except OSError:
        return []


def _find_commit() -> str | None:
    """Return the commit of the source tree ("+changes" if it was edited), None outside a checkout."""
    here = Path(__file__).resolve().parents[1]
    try:
        top = _ask_git(here, "rev-parse", "--show-toplevel", "HEAD").split()
        if len(top) != 2 or not (Path(top[0]) / "src" / "infoscope").samefile(here):
            return None
        changed = _ask_git(Path(top[0]), "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return top[1] + ("+changes" if changed else "")


def _ask_git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape", check=True).stdout


def _describe_hardware() -> dict[str, Any]:
    import torch

    known = [line for line in _read_words(Path("/proc/cpuinfo"), "\n") if line.startswith("model name")]
    model = known[0].split(":", 1)[1].strip() if known else platform.processor() or platform.machine()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}
