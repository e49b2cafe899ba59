"""Copies to and from a GPU: complete when they are waited for, in page-locked memory, where that can be had."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infoscope.runtime import copies
from infoscope.runtime.copies import Leaver, Leaving, count_behind, lock, make_locked
from infoscope.scope.maps import _to_device
from tests.support.late_copies import Far, copying_late


class OnGPU(Far):
    """Says that it is on a device which is not there."""

    is_cuda = True


class OfGPU(Tensor):
    is_cuda = True


def test_copies_are_complete_when_they_are_waited_for() -> None:
    leaver, under_way = Leaver(), []
    with copying_late() as locked:
        for number, n in enumerate((3, 2, 3, 4)):
            tokens, index = torch.full((n, 4), float(number)), torch.arange(n)
            leaving = leaver.start({"tokens": tokens.as_subclass(Far), "index": index})
            assert not torch.equal(leaving.there["tokens"].as_subclass(Tensor), tokens)  # not yet
            under_way.append((leaving, tokens, index))
            if number:  # there are never more than two
                leaving, tokens, index = under_way.pop(0)
                found = leaving.wait()
                assert torch.equal(found["tokens"].as_subclass(Tensor), tokens)
                assert torch.equal(found["index"], index)
                leaving.release()
    assert [memory.nbytes for memory in locked] == [48, 32, 64]  # the third copy took the first one's


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a stream")
def test_without_a_stream_of_their_own_copies_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_warn_once", lambda reason: None)
    leaver, tokens = Leaver(), {"patches": torch.ones(2, 3).as_subclass(OnGPU), "index": torch.arange(2)}
    with pytest.warns(UserWarning, match="Copies leave the GPU slowly, for want of a stream"):
        found = leaver.start(tokens).wait()
    assert torch.equal(found["patches"].as_subclass(Tensor), torch.ones(2, 3))
    assert leaver.start(tokens).wait()["index"].tolist() == [0, 1]  # it is said once


def test_without_page_locked_memory_other_memory_serves_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, said = torch.empty, []

    def refuse(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nmore")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(warnings, "warn", lambda sentence, **_: said.append(sentence))
    copies._warn_once.cache_clear()
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(lock(values.T), values.T)
    assert make_locked([2, 3], torch.bfloat16).shape == (2, 3)
    assert _to_device(np.arange(6)[::2], torch.zeros(1).as_subclass(OfGPU)).tolist() == [0, 2, 4]
    assert said == ["Copies to and from the GPU are slow, for want of page-locked memory (CUDA error: out of memory)."]


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        ([0], 4),
        ([2**20, 0], 4),
        ([2**27, 2**19], 4),  # ViT-L/14, 224 px, 256 images in float16
        ([2**28, 2**20], 2),
        ([2**28 - 1], 3),
        ([2**28 + 1], 1),
        ([2**29], 1),
        ([256 * 37**2 * 1024 * 2, 2**19], 1),  # 518 px: one waits, although both take more than is meant
        ([2**33], 1),
    ],
)
def test_few_large_copies_wait(n_bytes: list[int], expected: int) -> None:
    assert count_behind(n_bytes, 4) == expected
    assert count_behind(n_bytes, 2) == min(2, expected)


def test_what_holds_no_page_locked_memory_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "LOCKED_BYTES", 48)
    there = {"tokens": torch.zeros(4)}
    assert Leaving(there, there).count_behind(4) == 4
    assert Leaving(there, there, held=there).count_behind(4) == 2
