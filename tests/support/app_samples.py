"""The command line, run in this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hydra.core.global_hydra import GlobalHydra

from infoscope import app


@contextmanager
def as_it_was() -> Iterator[None]:
    """Hydra changes logging and a global of its own: all of it is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        GlobalHydra.instance().clear()


def run_infoscope(*arguments: str) -> int:
    """Run `infoscope` with these arguments and return its exit code."""
    with as_it_was(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["infoscope", *arguments])
        return app.run_command_line()
