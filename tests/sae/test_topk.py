"""The kernels that select the k largest, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from infoscope.sae.topk import find_largest, plan_groups, run_kernels

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check(rows: Tensor, k: int) -> None:
    plan = plan_groups(rows.shape[1], k)
    assert plan is not None
    values, indices = (part.cpu() for part in run_kernels(rows.to(DEVICE), k, plan))
    torch.testing.assert_close(
        values.sort(dim=1, descending=True).values, rows.topk(k, dim=1).values, rtol=0, atol=0, equal_nan=True
    )
    torch.testing.assert_close(rows.gather(1, indices), values, rtol=0, atol=0, equal_nan=True)
    assert (indices.sort(dim=1).values.diff(dim=1) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < rows.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "k"), [(1000, 1), (129, 5), (300, 32), (1024, 8)])
def test_largest_are_torchs(d: int, k: int, dtype: torch.dtype) -> None:
    rows = torch.randn(5, d, generator=torch.Generator().manual_seed(d))
    rows[1], rows[2] = -rows[1].abs() * 1e30, 0.0  # all negative and far apart; all the same
    rows[3] = rows[3].round()  # ties at every value
    rows[4, 7 : 7 + 2 * k] = torch.inf
    check(rows.to(dtype), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_more_columns_than_16_bits_count(dtype: torch.dtype) -> None:
    rows = torch.randn(2, 70_001, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[:, -1], rows[0, -3] = 9.0, 8.0
    check(rows, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_have_their_places(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    rows[0], rows[1, ::2], rows[2, 3], rows[3] = torch.nan, torch.nan, torch.nan, -torch.inf
    rows = rows.to(dtype)
    rows.view(torch.int32 if dtype == torch.float32 else torch.int16)[4, 100:103] = -1  # NaN with a sign
    check(rows, 7)


def test_rows_apart_in_memory_are_read_where_they_are() -> None:
    wide = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    check(wide[:, 100:350], 4)


def test_every_choice_is_the_same_twice() -> None:
    rows = torch.randn(3, 400, generator=torch.Generator().manual_seed(0)).mul(2).round().to(DEVICE)
    plan = plan_groups(400, 9)
    assert plan is not None
    assert torch.equal(run_kernels(rows, 9, plan).indices, run_kernels(rows, 9, plan).indices)


def test_few_or_many_columns_are_left_to_torch() -> None:
    assert plan_groups(30, 16) is None
    assert plan_groups(100_000, 1000) is None
    assert plan_groups(49_152, 32) == (32, 1024, 64)  # as it was measured


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_they_are_used_and_gradients_pass(dtype: torch.dtype, recwarn: pytest.WarningsRecorder) -> None:
    rows = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)).to("cuda", dtype).requires_grad_()
    values, indices = find_largest(rows, 32, is_sorted=True)
    assert torch.equal(values, rows.topk(32).values)
    values.sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad.sum(1), torch.full((64,), 32.0, device="cuda", dtype=dtype))
    assert rows.grad.gather(1, indices).eq(1).all()
    assert not recwarn.list
