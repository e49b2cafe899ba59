"""Tests that need a GPU, seconds or minutes say so by a mark and are left out where they cannot or should not run."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LONG = ("launchers/test_slurm_chain.py", "whole", "launchers/test_slurm_sweeps.py", "pipeline", "launchers", "commands")
"""Where tests run whole chains of stages: all of them are marked long. They come first, in this order: the longest, so
that one of several processes is not left alone at the end, and those that wait for Slurm apart, so that others work."""


if not any(Path("/dev").glob("nvidia[0-9]*")):
    # Without a GPU kernels run in Triton's interpreter. Triton reads this when it is imported, as Lightning does.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def find_place(path: Path) -> int:
    """Return the place of a test file among `LONG`, their number for those elsewhere."""
    name = path.relative_to(TESTS).as_posix()
    return next((place for place, start in enumerate(LONG) if name.startswith(start)), len(LONG))


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C mean what it means at a terminal, here and in what tests start: jobs in the background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if (config.rootpath / "conf" / "local" / "default.yaml").exists():
        raise pytest.UsageError("conf/local/default.yaml changes every configuration: move it away while tests run.")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run the tests marked slow too (or set INFOSCOPE_SLOW=1)")


@cache
def has_cuda() -> bool:
    import torch  # the process that only deals out the tests needs none

    return torch.cuda.is_available()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run_slow = config.getoption("--runslow") or os.environ.get("INFOSCOPE_SLOW", "") not in ("", "0")
    skip_slow = pytest.mark.skip(reason="slow: give --runslow or set INFOSCOPE_SLOW=1")
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    items.sort(key=lambda item: find_place(item.path))
    for item in items:
        if find_place(item.path) < len(LONG):
            item.add_marker(pytest.mark.long)
        if "slow" in item.keywords and not run_slow:
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not has_cuda():
            item.add_marker(skip_gpu)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no time goes into seeking garbage in it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter end as always: what is frozen would count as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _unsaved_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whole runs draw a report's figures and save empty files: else that is half of a tiny run."""
    with ExitStack() as stack:
        if find_place(request.path) < len(LONG):
            from tests.support.pipeline_samples import unsaved_figures

            stack.enter_context(unsaved_figures())
        yield


@pytest.fixture(scope="session", autouse=True)
def _quick_hydra() -> Iterator[None]:
    """Two thirds of what compositions cost are saved: they were a fifth of all tests."""
    from tests.support.quick_hydra import speed_up

    with pytest.MonkeyPatch.context() as patch:
        speed_up(patch)
        yield


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Hydra sets up logging for good; what it wrote to in one test is closed in the next."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in list(root.handlers):
        if handler not in before and type(handler) in (logging.StreamHandler, logging.FileHandler):  # not pytest's own
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
