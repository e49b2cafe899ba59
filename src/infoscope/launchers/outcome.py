"""How a job ended: a small file that its process leaves for the one that waits for it.

A job that was killed leaves none. With several tasks each leaves its own; the job failed if any of them did.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from infoscope.config import errors
from infoscope.config.tree import Config
from infoscope.runtime.errors import InputError, explain_write_error
from infoscope.runtime.files import atomic_write


@dataclass(frozen=True)
class Outcome:
    """How a job, or one of its tasks, ended.

    failure: one sentence, empty for success.
    is_input: whether it failed by something that the user can mend (an `InputError`).
    log: of the task.
    """

    failure: str = ""
    is_input: bool = False
    log: str = ""


def explain_failure(error: Exception, log: Path) -> Outcome:
    """Return what is said of an error that ended a job."""
    explained = explain_write_error(error, getattr(error, "filename", None) or "output_dir")
    if isinstance(error, OmegaConfBaseException):
        return Outcome(errors.explain(error, Config), True, str(log))
    if isinstance(error, InputError) or explained is not None:
        return Outcome(str(explained or error), True, str(log))
    words = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return Outcome(f"{words} (its log holds the traceback).", False, str(log))


def name_outcome(folder: Path, job_id: str, rank: int) -> Path:
    """Return the file of a task's outcome."""
    return folder / f"{job_id}_{rank}_outcome.json"


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write it, whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(asdict(outcome)), encoding="utf-8")


def read_outcome(folder: Path, job_id: str) -> Outcome | None:
    """Return the job's outcome: a failure of any task, else the success of the first; None: there is none yet."""
    found: dict[int, Outcome] = {}
    for path in folder.glob(f"{job_id}_*_outcome.json"):  # listing a folder shows what other machines wrote
        rank = path.name.removeprefix(f"{job_id}_").removesuffix("_outcome.json")
        if rank.isdigit():
            found[int(rank)] = Outcome(**json.loads(path.read_text(encoding="utf-8")))
    failed = [found[rank] for rank in sorted(found) if found[rank].failure]
    return failed[0] if failed else found.get(0)
