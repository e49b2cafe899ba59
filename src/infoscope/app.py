"""The command line: compose the configuration, run the stage, turn every failure into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from infoscope.artifacts import explain_write_error
from infoscope.config import CONF_FOLDER, explain_config_error, make_config, register_schemas
from infoscope.config_errors import COMPOSITION_ERRORS
from infoscope.errors import InputError
from infoscope.job import Job

EXIT_OK, EXIT_BUG, EXIT_INPUT, EXIT_INTERRUPT = 0, 1, 2, 130
_failures: list[str] = []


def main() -> None:
    """Entry point of the console command `infoscope`; exits with 0, 1 (a bug of ours), 2 (input) or 130 (Ctrl-C)."""
    sys.exit(run_command_line())


def run_command_line() -> int:
    """Run `sys.argv` and return the exit code.

    Failures that a user can mend are one sentence on stderr; INFOSCOPE_TRACEBACK=1 shows the traceback as well.
    """
    _failures.clear()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing its own report
    register_schemas()
    try:
        _hydra_main()
    except KeyboardInterrupt:
        return _say_interrupted()
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            return _say_interrupted()
        return error.code if isinstance(error.code, int) else EXIT_BUG
    except InputError as error:
        _fail(str(error), error)
    except COMPOSITION_ERRORS as error:
        if _was_in_job(error):
            raise
        _fail(explain_config_error(error), error)
    except OSError as error:  # Hydra writes into output_dir before any stage does
        explained = explain_write_error(error, error.filename or "output_dir")
        if explained is None and (_was_in_job(error) or error.filename is None):
            raise
        fallback = f"Cannot use {error.filename} ({error.strerror}): set output_dir to a folder you may write to."
        _fail(str(explained or fallback), error)
    return EXIT_INPUT if _failures else EXIT_OK


def _fail(sentence: str, error: BaseException) -> None:
    _failures.append(sentence)
    print(f"infoscope: {sentence}", file=sys.stderr)
    if os.environ.get("INFOSCOPE_TRACEBACK") == "1":
        traceback.print_exception(error)


def _was_in_job(error: BaseException) -> bool:
    """Whether an error comes from the job, where it is a bug of ours, or from Hydra before or after it."""
    return any(frame.f_code is _run_job.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _say_interrupted() -> int:
    print("infoscope: interrupted; finished artifacts are kept, the same command goes on from there.", file=sys.stderr)
    return EXIT_INTERRUPT


def _run_job(tree: DictConfig) -> Any:
    """Run one job. In a sweep of this process a failed job does not stop the others; elsewhere it must fail itself."""
    try:
        from infoscope.pipeline import run  # late: --help and shell completion need no torch

        return run(make_config(tree), job=_find_job())
    except (InputError, OmegaConfBaseException) as error:
        if not HydraConfig.get().launcher._target_.endswith("BasicLauncher"):
            raise
        _fail(explain_config_error(error) if isinstance(error, OmegaConfBaseException) else str(error), error)
        return None


def _find_job() -> Job:
    """Return what Hydra says of the run that has begun."""
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    return Job(
        folder=Path(hydra_config.runtime.output_dir),
        sweep=Path(hydra_config.sweep.dir) if in_sweep else None,
        number=hydra_config.job.num if in_sweep else 0,
        overrides=tuple(hydra_config.overrides.task),
    )


_hydra_main = hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="config")(_run_job)


if __name__ == "__main__":
    main()
