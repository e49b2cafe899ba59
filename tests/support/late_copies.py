"""Tensors as far away as a GPU's, and copies of them that are as late as can be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from infoscope.runtime import copies
from infoscope.runtime.copies import Leaver


class Far(Tensor):
    """As far away as a GPU's: nothing is asked of it before somebody waits."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda")


class LateEvent:
    """Of a stream that has copied nothing until somebody waits for it."""

    asked: ClassVar[list[tuple[Tensor, Tensor]]] = []

    def record(self, _: object) -> None:
        self.mine, LateEvent.asked = LateEvent.asked, []

    def synchronize(self) -> None:
        for there, here in self.mine:
            there.copy_(here)


@contextmanager
def copying_late() -> Iterator[list[Tensor]]:
    """Let `Far` tensors leave by a stream that copies when it is waited for; give the memory that is page-locked."""
    empty, take, locked = torch.empty, Leaver._take_memory, []

    class Stream:
        def wait_stream(self, _: object) -> None: ...

    class Copied(Tensor):
        def copy_(self, src: Tensor, non_blocking: bool = False) -> Tensor:
            assert non_blocking
            LateEvent.asked.append((self.as_subclass(Tensor), src.as_subclass(Tensor)))
            return self

    def lock(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*size, **options)
        if pin_memory:
            locked.append(made.fill_(255))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "copy_stream", lambda *_, **__: Stream())
        patch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        patch.setattr(torch.cuda, "current_stream", lambda _: Stream())
        patch.setattr(torch.cuda, "Event", LateEvent)
        patch.setattr(Leaver, "_take_memory", lambda self, *asked: take(self, *asked).as_subclass(Copied))
        patch.setattr(torch, "empty", lock)
        patch.setattr(Far, "is_cuda", True, raising=False)
        patch.setattr(Far, "device", torch.device("cpu"))
        yield locked
