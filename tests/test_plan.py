"""What a command would do is said beforehand, and nothing is done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoscope import plan
from infoscope.plan import Rates, format_bytes, format_seconds, make_plan
from infoscope.scope.ranking import Ranking
from infoscope.stages import Stages
from pipeline_samples import (
    N_TEST,
    N_TRAIN,
    Recorder,
    copy_run,
    find_folder,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
)

RATES = Rates(scenes=10.0, images=5.0, tokens=1000.0, ranked=20.0, distances=100.0, variant_s=2.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibration that takes no time and is known."""
    monkeypatch.setattr(plan, "calibrate", lambda stages: RATES)


def plan_of(output_dir: Path, *overrides: str) -> plan.Plan:
    return make_plan(Stages(make_tiny_config(output_dir, *overrides), Recorder()))


def find(made: plan.Plan, what: str) -> plan.Step:
    (step,) = [step for step in made.steps if step.what.startswith(what)]
    return step


@pytest.mark.usefixtures("quick")
def test_everything_is_missing_at_first(tmp_path: Path) -> None:
    made = plan_of(tmp_path)
    assert [step.what for step in made.steps] == [
        "scenes",
        "tokens, train",
        "tokens, test",
        "train_sae, seed 0",
        "rank, seed 0",
        "score, seed 0",
        "probe, seed 0",
    ]
    assert all(step.n_reused == 0 and step.n_built > 0 for step in made.steps)
    assert (find(made, "tokens, train").forwards, find(made, "tokens, test").forwards) == (N_TRAIN, N_TEST)
    assert find(made, "tokens, train").seconds == N_TRAIN / RATES.images
    score, d_sae, k_max = find(made, "score"), 32, 3
    assert (score.forwards, score.distances, score.is_bound) == (2 * N_TRAIN, 2 * d_sae * k_max, True)
    assert made.naive_forwards == 2 * d_sae * k_max
    assert find(made, "train_sae").seconds == pytest.approx(16_000 / RATES.tokens)
    assert made.seconds == sum(step.seconds for step in made.steps)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.usefixtures("quick")
def test_a_stage_plans_no_further_than_itself(tmp_path: Path) -> None:
    assert [step.what for step in plan_of(tmp_path, "stage=train_sae").steps] == [
        "scenes",
        "tokens, train",
        "train_sae, seed 0",
    ]
    analysis = [step.what for step in plan_of(tmp_path, "stage=stability").steps]
    assert analysis[2:] == [
        "tokens, test",
        "train_sae, seed 0",
        "rank, seed 0",
        "score, seed 0",
        "stability (not estimated)",
    ]
    assert find(plan_of(tmp_path, "probe.n_draws=5"), "probe").n_built == 30


@pytest.mark.usefixtures("quick")
def test_what_exists_is_reused(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    finished = finish_tiny_run(tmp_path_factory)[0]
    made = plan_of(finished)
    assert all(step.n_built == 0 and step.n_reused > 0 for step in made.steps)
    assert made.seconds == 0
    other = plan_of(finished, "sae.k=3")
    assert {step.what for step in other.steps if step.n_built} == {
        f"{stage}, seed 0" for stage in ("train_sae", "rank", "score", "probe")
    }
    assert find(plan_of(finished, "stage=score", "scope.emd=sinkhorn"), "score").n_built == 1


@pytest.mark.usefixtures("quick")
def test_counts_are_exact_once_the_ranking_is_known(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run", but=("score", "probe", "report"))
    score = find(plan_of(output_dir, "stage=score"), "score")
    top_images = Ranking.load(find_folder(output_dir, "rank")).top_images
    assert score.forwards == 2 * len(np.unique(top_images[top_images >= 0]))
    assert score.distances == 2 * int((top_images >= 0).sum())
    assert not score.is_bound


def test_the_command_plans_and_does_nothing(tmp_path: Path) -> None:
    said = run_tiny(tmp_path, "plan=true")
    assert said.events == []
    assert said.files is None
    for text in ("What this command would do", "score, seed 0", "estimated on this machine", "The naive way"):
        assert text in said.text
    assert not (tmp_path / "artifacts").exists()


def test_numbers_for_people() -> None:
    assert [format_seconds(s) for s in (8.2, 150, 9000)] == ["8 s", "2 min", "2.5 h"]
    assert [format_bytes(n) for n in (1200, 3_400_000, 1_200_000_000)] == ["1 kB", "3.4 MB", "1.2 GB"]
