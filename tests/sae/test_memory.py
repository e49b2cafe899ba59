"""A large SAE is held once, and one matrix more where a file has it the other way round."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from infoscope.sae.checkpoint import compute_digest, save_sae
from infoscope.sae.export import export_sae
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import draw_weights
from tests.support.foreign.dictionaries import WRITERS

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SLACK_MB = 40
"""Parts that are read, checked or hashed at a time."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not RESET.exists(), reason="needs a system that tells the peak of a process's memory"),
]


def read_mb(name: str) -> float:
    match = re.search(rf"^{name}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1000


def measure_rise(work: Callable[[], object]) -> float:
    """Return by how many MB resident memory rises at most while something is done."""
    RESET.write_text("5")  # the peak becomes what is held now
    before = read_mb("VmRSS")
    work()
    return read_mb("VmHWM") - before


@pytest.fixture(scope="module")
def weights():
    return draw_weights(0, d_in=512, d_sae=24_576)  # two matrices of 50 MB


@pytest.mark.parametrize(
    ("name", "copies"),
    [("patchsae", 1), ("saelens", 1), ("saev", 1), ("jumprelu", 1), ("groupmax", 1), ("gated", 1.5)],
)
def test_a_foreign_file_is_held_once(tmp_path: Path, weights, name: str, copies: float) -> None:
    path = WRITERS[name](tmp_path, weights)
    size = max(file.stat().st_size for file in tmp_path.iterdir()) / 1e6
    assert size > 100
    assert measure_rise(lambda: load_sae(path)) < copies * size + SLACK_MB


def test_our_own_is_held_once_and_written_without_a_copy(tmp_path: Path, weights) -> None:
    sae = load_sae(WRITERS["patchsae"](tmp_path, weights))
    assert measure_rise(lambda: save_sae(tmp_path / "ours", sae)) < SLACK_MB
    assert measure_rise(lambda: compute_digest(sae)) < SLACK_MB
    sae.scale.fill_(2)
    assert measure_rise(lambda: export_sae(sae, tmp_path / "theirs")) < SLACK_MB
    size = (tmp_path / "ours" / "sae.safetensors").stat().st_size / 1e6
    assert measure_rise(lambda: load_sae(tmp_path / "ours")) < size + SLACK_MB
