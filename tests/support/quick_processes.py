"""Processes that begin at once: copies of one that has imported everything and computed nothing.

A process that imports all of it anew takes seconds. What is sent to either is pickled, and neither shares memory with
this process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext

import pytest

from infoscope.runtime import processes

IMPORTED = ["infoscope.pipeline.run", "infoscope.stages.probe.stage", "infoscope.sae.train", "torch._dynamo"]
"""What most of them need; the rest each imports itself."""


def get_quick_context() -> ForkServerContext:
    """Return the context whose processes begin at once; the first of them waits for the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


@contextmanager
def quick_sharing() -> Iterator[None]:
    """Let `processes.sharing` start such processes instead of new ones."""
    context = get_quick_context()

    class Started:
        """What `processes` sees of multiprocessing."""

        @staticmethod
        def get_context(kind: str) -> ForkServerContext:
            assert kind == "spawn"
            return context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "multiprocessing", Started)
        yield
