"""What a job's run is called: the group, the type, a name for display, and an id that stays the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infoscope.runtime.job import Job

_NO_RESULT = ("trainer", "logger", "output_dir", "plan")
"""Keys of the configuration that change nothing of what a job computes."""
_MAX_NAME = 120  # Weights & Biases takes 128 characters


@dataclass(frozen=True)
class RunName:
    """A run among others.

    group: the sweep, or what joins runs outside one.
    job_type: the stage.
    name: for display; not always unique.
    id: the same whenever the same job of the same group runs, different for any other job.
    """

    group: str
    job_type: str
    name: str
    id: str


def name_job(group: str, stage: str, tree: Mapping[str, Any], job: Job) -> RunName:
    """Return what the run of a job is called.

    Args:
        tree: the resolved configuration, plain containers.
    """
    computed = {key: value for key, value in tree.items() if key not in _NO_RESULT}
    words = [_shorten(override) for override in job.overrides if _key(override) not in (*_NO_RESULT, "stage")]
    name = " ".join([f"{group}-{stage}", *words])
    name = name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 3]}..."
    return RunName(group, stage, name, _compute_id(group, stage, computed))


def name_summary(group: str) -> RunName:
    """Return what the run that sums up a sweep is called."""
    return RunName(group, "sweep", f"{group}-summary", _compute_id(group, "sweep"))


def choose_group(given: str | None, job: Job, otherwise: str) -> str:
    """Return the group that was given, else the sweep's folder name, else another name."""
    return given or (job.sweep.name if job.sweep is not None else otherwise)


def _compute_id(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0]


def _shorten(override: str) -> str:
    """Keep of a path its last part."""
    key, equals, value = override.partition("=")
    return f"{key}{equals}{value if value.endswith('/') else value.rpartition('/')[2]}"
