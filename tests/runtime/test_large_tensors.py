"""Tensors some rows at a time: the same files, numbers and refusals as at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from infoscope.runtime import large_tensors
from infoscope.runtime.large_tensors import cut_rows, fill_tensors, is_finite, reduce_rows, write_tensors
from infoscope.runtime.untrusted.makers import NotReadError


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_tensors, "MAX_VALUES", 20)


def make_tensors() -> dict[str, torch.Tensor]:
    """Return tensors of several shapes and strides, one of them a transposed view."""
    matrix = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    named = {"b.matrix": matrix, "W": matrix.clone().T, "a": torch.arange(50.0), "scale": torch.tensor(0.5)}
    return named | {"empty": torch.zeros(0, 4), "wide": torch.ones(2, 30)}


@pytest.mark.parametrize("others", [{}, {"z": torch.ones(3, dtype=torch.float64), "half": torch.ones(4).half()}])
def test_a_file_is_byte_for_byte_that_of_safetensors(tmp_path: Path, others: dict[str, torch.Tensor]) -> None:
    tensors, file = make_tensors() | others, tmp_path / "tensors"
    write_tensors(file, tensors, {"format": "pt"})
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert file.read_bytes() == save(whole, metadata={"format": "pt"})


def test_what_is_written_is_read_into_any_strides(tmp_path: Path) -> None:
    tensors, file = make_tensors(), tmp_path / "tensors"
    write_tensors(file, tensors, {}, {"b.matrix": lambda part: part * 2})
    empty = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    assert not empty["W"].is_contiguous()
    fill_tensors(file, empty)
    for name, tensor in tensors.items():
        assert torch.equal(empty[name], tensor * 2 if name == "b.matrix" else tensor), name
    assert load_file(file).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("a"), "a is too much"),
        (lambda tensors: tensors.update(b=torch.zeros(1)), "b is missing"),
        (lambda tensors: tensors.update(a=torch.zeros(49)), r"a is F32 \[50\], expected \[49\]"),
    ],
)
def test_other_tensors_than_those_of_the_file_are_refused(tmp_path: Path, change, message: str) -> None:
    tensors, file = make_tensors(), tmp_path / "tensors"
    write_tensors(file, tensors, {})
    change(tensors)
    with pytest.raises(NotReadError, match=message):
        fill_tensors(file, tensors)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_tensors(Path("/dev/full"), make_tensors(), {})


def test_parts_give_what_the_whole_gives() -> None:
    W = make_tensors()["W"]
    assert torch.equal(torch.cat(list(cut_rows(W))), W)
    assert max(part.numel() for part in cut_rows(W)) == 18
    assert torch.equal(reduce_rows(W, lambda part: part.sum(1)), W.double().sum(1))
    assert is_finite(W)
    for value in (torch.nan, torch.inf, -torch.inf):
        assert not is_finite(W.index_fill(0, torch.tensor(6), value))
        assert not is_finite(torch.tensor(value))
