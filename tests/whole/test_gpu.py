"""On a CUDA device the chain gives what it gives on the CPU, and everything stays where it was put."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from infoscope.data.scenes.scene_set import SceneSet
from infoscope.sae.loading import load_sae
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.stages.contextual_dependency.measure import contextual_dependency
from infoscope.vision.load import load_backbone
from infoscope.vision.tokens.extract import TokenCache
from tests.support.pipeline_samples import FEATURES, STAGES, copy_run, find_folder, run_tiny

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
PRECISIONS = ("float32", "bfloat16")
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
    run_tiny(output_dir, *SHIPPED, "trainer.device=cuda", "trainer.precision=32")
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


READING = ("scope.k_cds=4", "scope.k_max=4", "data.n_train=400", "sae.expansion_factor=4", "sae.n_tokens=400000")


class Agreement(NamedTuple):
    """How alike two rankings and scores of the same latents are.

    overlap: mean share of a latent's top images that both rank. correlation: of CDS, over latents that both score.
    """

    overlap: float
    correlation: float
    n_scored: int


def compare(rankings: Sequence[Ranking], scores: Sequence[Scores]) -> Agreement:
    pairs = zip(*(ranking.top_images for ranking in rankings), strict=True)
    kept = [(set(one[one >= 0]), set(other[other >= 0])) for one, other in pairs]
    overlap = np.mean([len(one & other) / len(one | other) for one, other in kept if one and other])
    cds = np.stack([one.cds(4).values for one in scores])
    scored = np.isfinite(cds).all(axis=0)
    return Agreement(float(overlap), float(np.corrcoef(cds[:, scored])[0, 1]), int(scored.sum()))


def test_the_fast_chain_finds_what_the_plain_one_does(tmp_path: Path) -> None:
    """bfloat16 and compiled blocks from the first token to the score, against float32 and plain blocks."""
    plain, fast = tmp_path / "plain", tmp_path / "fast"
    options = (*SHIPPED, *READING, "stage=score", f"trainer.device={DEVICE}")
    run_tiny(plain, *options, "trainer.precision=32", "trainer.compile=false")
    run_tiny(fast, *options, "trainer.precision=bf16", "model.precision=bfloat16", "trainer.compile=true")
    folders = [[find_folder(where, kind) for where in (plain, fast)] for kind in ("rank", "score")]
    own = compare([Ranking.load(folder) for folder in folders[0]], [Scores.load(folder) for folder in folders[1]])

    # the same SAE, read both ways: what training makes of rounding is left out
    sae, images = load_sae(find_folder(plain, "train_sae")), SceneSet(find_folder(plain, "scenes", "train"))
    backbones = [load_backbone(precision=precision, progress=False).to(DEVICE) for precision in PRECISIONS]
    backbones[1].compile_blocks(64)
    found = []
    for backbone, sae.uses_tf32 in zip(backbones, (False, True), strict=True):
        options = {"k_cds": 4, "k_max": 4, "batch_images": 32, "check_origin": False, "progress": False}
        found.append(contextual_dependency(backbone, sae, images, **options))
    read = compare([one.ranking for one in found], [one.scores for one in found])
    print(f"same SAE: {read}; an SAE of its own: {own}")
    assert read.n_scored > 100
    assert read.overlap > 0.8
    assert read.correlation > 0.95
    assert own.n_scored > 100
    assert own.overlap > 0.3
    assert own.correlation > 0.4  # another SAE: how far training carries rounding
