"""experiments/score_variants.py: more images are found to be better where they are, and it runs on the tiny scenes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from infoscope.commands.experiments.sweep import main
from infoscope.scope.confounds import ConfoundResult, LatentProperties
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from tests.support.experiment_samples import load_experiment, read_rows
from tests.support.pipeline_samples import make_overrides, save_noise

N, K_MAX = 300, 32


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_experiment("score_variants")
    monkeypatch.setattr(module, "N_DRAWS", 100)
    return module


def make_found(module: ModuleType, noise: float) -> list:
    """Return what four configurations say of one SAE whose true scores are the effect of the light, with noise."""
    rng = np.random.default_rng(0)
    true, rate = rng.random(N), rng.random(N)
    properties = LatentProperties(rate, np.ones(N), np.ones((N, K_MAX)), np.full(N, 0.1), np.full(N, 0.1))
    confounds = ConfoundResult(properties, 500, {"light": true}, np.where(true < 0.05, 0.3, 0.005))
    found = []
    for _ in module.SCORINGS:
        emd = true[:, None] + noise * rng.normal(size=(N, K_MAX))
        mass = np.ones_like(emd)
        images = np.tile(np.arange(K_MAX), (N, 1))
        scores = Scores(emd, mass, mass, np.full_like(emd, 0.5), np.empty(0), 12, 1)
        found.append(module.OfSeed(scores, Ranking(images, mass, rate, rate, 500, 500), confounds))
    return found


def test_more_images_are_better_and_chance_that_is_constant_changes_nothing(module: ModuleType) -> None:
    rows = {row.variant.name: row for row in module.compare_variants(make_found(module, 1.0), 8, 0)}
    paper, more = rows["mean of 8 (the paper's)"], rows["32 images"]
    assert more.measures["reliability"][0] > paper.measures["reliability"][0] + 0.1
    assert more.is_better
    assert not paper.is_better
    assert all((gain == 0).all() for gain in paper.gains.values())
    assert not rows["8, minus chance"].is_better
    np.testing.assert_allclose(rows["8, minus chance"].gains["auroc"], 0, atol=1e-9)
    assert (paper.n_crops, more.n_crops, rows["4 images, both diagonals"].n_crops) == (16, 64, 16)
    other = next(iter(module.compare_variants(make_found(module, 1.0), 8, 1)))  # another SAE has draws of its own
    assert other.measures["auroc"][0] == paper.measures["auroc"][0]
    assert (other.measures["auroc"][1:] != paper.measures["auroc"][1:]).any()


def test_seeds_are_averaged_draw_by_draw(module: ModuleType) -> None:
    one, other = (next(iter(module.compare_variants(make_found(module, noise), 8, 0))) for noise in (0.2, 1.0))
    both = module.join_seeds([one, other])
    expected = (one.measures["auroc"] + other.measures["auroc"]) / 2
    np.testing.assert_allclose(both.measures["auroc"], expected)


@pytest.mark.long
def test_it_runs_on_tiny_scenes(module: ModuleType, tmp_path: Path) -> None:
    assert main(module.EXPERIMENT, [*make_overrides(tmp_path), "scope.k_max=8", "data.seed=1"]) == 0
    folder = tmp_path / "experiments" / "score_variants"
    rows = read_rows(folder / "score_variants.csv")
    assert [row["variant"] for row in rows][:2] == ["mean of 2 (the paper's)", "median of 2"]
    assert {row["n_pairs"] for row in rows} == {"2", "4", "8"}
    assert len(read_rows(folder / "gains.csv")) == len(rows)


@pytest.mark.long
def test_other_settings_have_tables_of_their_own_and_a_variant_alone_is_refused(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*make_overrides(tmp_path), "scope.k_max=8", "data.seed=1"]
    assert main(module.EXPERIMENT, [*common, "scope.k_cds=1,2"]) == 0
    folder = tmp_path / "experiments" / "score_variants"
    firsts = [read_rows(folder / f"score_variants_{number}.csv")[0] for number in (1, 2)]
    assert [row["n_pairs"] for row in firsts] == ["1", "2"]
    capsys.readouterr()
    assert main(module.EXPERIMENT, [*common, "scope.rank_by=drawn"]) == 2
    assert "scope.rank_by=max,drawn" in capsys.readouterr().err


def test_photographs_are_refused(module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        save_noise(tmp_path / "photographs" / f"{i}.png", i)
    photographs = ["data=image_folder", f"data.root={tmp_path / 'photographs'}"]
    overrides = [one for one in make_overrides(tmp_path / "out") if not one.startswith("data.n_t")]
    assert main(module.EXPERIMENT, [*overrides, *photographs]) == 2
    assert "which say what is global and local" in capsys.readouterr().err
