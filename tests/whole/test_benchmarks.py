"""Every file of experiments/benchmarks/ still runs: `--tiny` prints finite numbers and writes no result."""

from __future__ import annotations

import math
import os
import re
import runpy
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.support.experiment_samples import FOLDER

BENCHMARKS = FOLDER / "benchmarks"
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d[\d,]*\.?\d*(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\w)", re.IGNORECASE)


def read_results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (BENCHMARKS / "results").iterdir()}


@pytest.fixture
def _own_cores() -> Iterator[None]:
    """Put back how many threads and which cores this process works with: benchmarks choose their own."""
    n_threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(n_threads)
    os.sched_setaffinity(0, cores)


@pytest.mark.usefixtures("_own_cores")
@pytest.mark.parametrize("name", sorted({path.stem for path in BENCHMARKS.glob("*.py")} - {"harness"}))
def test_a_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_results()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny"])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    numbers = [float(number.replace(",", "")) for number in NUMBER.findall(text)]
    assert len(numbers) >= 5, text
    assert all(math.isfinite(number) for number in numbers), text
    assert read_results() == before
