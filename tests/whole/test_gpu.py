"""On a CUDA device the chain gives what it gives on the CPU, and everything stays where it was put."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from infoscope.scope.scores import Scores
from infoscope.vision.tokens.extract import TokenCache
from tests.support.pipeline_samples import FEATURES, STAGES, copy_run, find_folder, run_tiny

pytestmark = pytest.mark.gpu
SHIPPED = ("model=scenes_clip", "probe=plain", "probe.classification_epochs=20", "probe.dense_steps=30")


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output_dir = tmp_path_factory.mktemp("cpu")
    run_tiny(output_dir, *SHIPPED)
    return output_dir


def test_every_stage_runs(tmp_path: Path) -> None:
    record = run_tiny(tmp_path, *SHIPPED, "trainer.device=cuda")
    assert set(record.stages("built")) == {*STAGES, *FEATURES}


def test_a_clip_is_trained(tmp_path: Path) -> None:
    sizes = ("clip.n_images=64", "clip.n_test_images=16", "clip.n_steps=4", "clip.warmup_steps=2", "clip.batch_size=16")
    run_tiny(tmp_path, "model=scenes_clip", "stage=train_clip", "trainer.device=cuda", *sizes)
    assert (find_folder(tmp_path, "train_clip") / "open_clip_model.safetensors").is_file()


def test_tokens_are_those_of_the_cpu(on_cpu: Path, tmp_path: Path) -> None:
    run_tiny(tmp_path, *SHIPPED, "stage=train_sae", "trainer.device=cuda")
    ours, theirs = (TokenCache(find_folder(where, "tokens", "train")) for where in (tmp_path, on_cpu))
    apart = np.abs(np.subtract(*(cache.patches[np.arange(len(cache))] for cache in (ours, theirs))))
    assert apart.mean() < 2e-3  # cuDNN's convolution rounds to TF32
    assert apart.max() < 0.1
    np.testing.assert_allclose(ours.mean, theirs.mean, atol=2e-3)
    assert ours.scale == pytest.approx(theirs.scale, rel=1e-3)


def test_scores_and_probes_are_those_of_the_cpu(on_cpu: Path, tmp_path: Path) -> None:
    output_dir = copy_run(on_cpu, tmp_path / "run", but=("rank", "score", "probe", "report"))
    run_tiny(output_dir, *SHIPPED, "trainer.device=cuda")
    ours, theirs = (Scores.load(find_folder(where, "score")) for where in (output_dir, on_cpu))
    assert np.array_equal(np.isnan(ours.emd), np.isnan(theirs.emd))
    assert np.nanmean(np.abs(ours.emd - theirs.emd)) < 1e-3
    metrics = [
        json.loads((find_folder(where, "probe", "original") / "result.json").read_text())["metrics"]
        for where in (output_dir, on_cpu)
    ]
    for task, values in metrics[0].items():
        for name, value in values.items():
            assert math.isclose(value, metrics[1][task][name], rel_tol=0.05, abs_tol=0.07), (task, name)
