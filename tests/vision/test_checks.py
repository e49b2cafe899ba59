"""Whether values are finite, of any type and layout, and what is asked of them later."""

from __future__ import annotations

import math

import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.vision.checks import LaterChecks, is_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_value_anywhere_is_seen(dtype: torch.dtype, value: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for place in [*torch.randint(7 * 5 * 33, (20,), generator=generator).tolist(), 0, 7 * 5 * 33 - 1]:
        values = torch.randn(7, 6, 33, generator=generator).to(dtype)[:, 1:]
        assert is_finite(values)
        assert is_finite(values.contiguous())
        values[place // 165, place // 33 % 5, place % 33] = value
        assert not is_finite(values)
        assert not is_finite(values.contiguous())
    largest = torch.finfo(dtype).max
    assert is_finite(torch.tensor([largest, -largest], dtype=dtype))
    assert is_finite(torch.empty(3, 0, 4, dtype=dtype))


def test_on_a_cpu_a_condition_is_looked_at_at_once() -> None:
    checks = LaterChecks()
    checks.require(torch.tensor(True), "Never said.")
    with pytest.raises(InputError, match="Said at once"):
        checks.require(torch.tensor(False), "Said at once.")
    checks.ask()
