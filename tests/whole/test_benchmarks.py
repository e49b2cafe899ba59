"""Every file of experiments/benchmarks/ still runs: `--tiny` prints finite numbers and writes no result."""

from __future__ import annotations

import argparse
import math
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.chromium import CHROMIUM, MISSING
from tests.support.experiment_samples import FOLDER

BENCHMARKS = FOLDER / "benchmarks"
NAMES = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - {"harness"})
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
@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "explorer" and CHROMIUM is None:
        pytest.skip(MISSING)
    before = read_results()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny"])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    text = capsys.readouterr().out
    numbers = [float(number.replace(",", "")) for number in NUMBER.findall(text)]
    assert len(numbers) >= 5, text
    assert all(math.isfinite(number) for number in numbers), text
    assert read_results() == before


class _Parsed(Exception):
    """The command line was understood."""


def assert_has_options(file: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        _, unknown = parser.parse_known_args()  # exits where a value will not do
        assert not unknown
        raise _Parsed

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [str(file), *arguments])
    with pytest.raises(_Parsed):
        runpy.run_path(str(file), run_name="__main__")


@pytest.mark.parametrize("name", NAMES)
def test_make_bench_gives_a_benchmark_options_that_it_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_has_options(BENCHMARKS / f"{name}.py", ["--save", "--device", "cuda"], monkeypatch)


def test_the_gpu_script_gives_benchmarks_options_that_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, told = tmp_path / "python", tmp_path / "told.txt"
    python.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    python.chmod(0o755)
    script = ["sh", str(BENCHMARKS / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(script, cwd=FOLDER.parent, env={**os.environ, "PYTHON": str(python)}, capture_output=True)
    assert done.stdout.endswith(b"0 steps failed\n"), done.stdout
    steps = [line.split() for line in told.read_text().splitlines()]
    assert steps[0][:4] == ["-m", "pytest", "-m", "gpu"]

    for file, *arguments in steps[1:]:
        assert_has_options(FOLDER.parent / file, arguments, monkeypatch)
    assert {Path(file).stem for file, *_ in steps[1:]} == set(NAMES) - {"emd", "explorer", "load_sae"}
