"""How often images are read and encoded when tokens are not stored: once each for what can share one reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.stages import train_sae as train_module
from infoscope.vision.tokens.source import LiveTokens
from tests.support.pipeline_samples import N_TEST, N_TRAIN, draw_without_saving, run_tiny

SEEDS = 3


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows of tokens that are not stored, as they are read: by split, those of SAE training apart."""
    counts: dict[str, int] = {}
    training: list[bool] = []
    iterate, train_sae = LiveTokens.iterate, train_module.train_sae

    def count(self: LiveTokens, rows: np.ndarray, batch_images: int) -> Iterator[Any]:
        key = "training" if training else ("train" if len(self) == N_TRAIN else "test")
        counts[key] = counts.get(key, 0) + len(rows)
        return iterate(self, rows, batch_images)

    def train(*args: Any, **options: Any) -> Any:
        training.append(True)
        try:
            return train_sae(*args, **options)
        finally:
            training.pop()

    monkeypatch.setattr(LiveTokens, "iterate", count)
    monkeypatch.setattr(train_module, "train_sae", train)
    return counts


def test_a_report_of_three_seeds_reads_live_tokens_twice(
    tmp_path: Path, rows_read: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside their extraction and the training of SAEs: once for all meters of all SAEs, once for all features; and
    the test images once for the fidelity of all SAEs. Some of these are read for each SAE once more, for the effects of
    its latents."""
    draw_without_saving(monkeypatch)
    recorder = run_tiny(
        tmp_path,
        "model=scenes_clip",
        "data.store_tokens=false",
        f"seeds={list(range(SEEDS))}",
        "sae.n_tokens=2000",
        "probe.tasks=[classification]",
    )
    assert len(recorder.names("built", "rank")) == SEEDS
    assert len(recorder.names("built", "image_means")) == SEEDS
    assert rows_read.pop("training") > 0
    assert rows_read == {"train": 2 * N_TRAIN, "test": (2 + SEEDS) * N_TEST}
