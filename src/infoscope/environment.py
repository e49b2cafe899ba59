"""What a result was made with: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
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


def _find_commit() -> str | None:
    """Return the commit of the source tree ("+changes" if it was edited), None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        top = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.split()
        if len(top) != 2 or not (Path(top[0]) / "src" / "infoscope").samefile(here):
            return None
        changed = subprocess.run(
            ["git", "-C", top[0], "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return top[1] + ("+changes" if changed else "")


def _describe_hardware() -> dict[str, Any]:
    import torch

    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": model, "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}
