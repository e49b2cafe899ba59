"""What a command would do is said beforehand, and nothing is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.pipeline import probing
from infoscope.pipeline.planning import Plan, Step, make_plan
from infoscope.pipeline.planning import steps as planned_steps
from infoscope.pipeline.planning.calibration import Calibration, make_sparse
from infoscope.pipeline.planning.probe_costs import N_EVALUATIONS, REPORTED, ChunkCosts, ProbeCosts, count_probe_work
from infoscope.pipeline.run import Pipeline
from infoscope.probes import classification
from infoscope.probes.config import Solver, Task
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import format_bytes, format_seconds
from infoscope.sae.config import KINDS
from infoscope.sae.module import make_sae
from infoscope.scope import rescoring, scoring
from infoscope.scope.ranking import Ranking
from infoscope.vision.backbone import Backbone
from infoscope.vision.open_clip_backbone import OpenClipBackbone
from tests.support.pipeline_samples import (
    FEATURES,
    N_TEST,
    N_TRAIN,
    Recorder,
    copy_run,
    find_folder,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
)

PER_CHUNK = {
    "train_image": 0.1,
    "test_image": 0.15,
    "class_step": 0.2,
    "class_image": 0.01,
    "dense_image": 0.3,
    "dense_step": 0.4,
    "dense_test_image": 0.5,
}
SHIPPED = ("model=scenes_clip", "data.n_train=24", "sae.n_tokens=4000", "partition.rule=quantile")
FEW = ("stability.shifts=[1,2]", "stability.n_solver_latents=2", "stability.n_draws=20")


class Quick(Calibration):
    """Rates that take no time and are known."""

    scenes, images, tokens, ranked, distances = 10.0, 5.0, 1000.0, 20.0, 100.0
    sinkhorn, texts = 2.0, 10.0
    cropped_s, cropped_sae_s, group_activation_s, confounds_s, resumed_s = 0.5, 0.1, 0.01, 0.02, 0.05
    mean_entries = 20.0
    probes = ProbeCosts(
        ChunkCosts(2, 1.0, dict(PER_CHUNK)), ChunkCosts(4, 1.5, {kind: 2 * cost for kind, cost in PER_CHUNK.items()})
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned_steps, "Calibration", Quick)


@dataclass
class Spy:
    """Counts calls of a function, and sums up a number of each."""

    function: Callable[..., Any]
    measure: Callable[..., int]

    def __post_init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.counts.append(self.measure(*args, **options))
        return self.function(*args, **options)


def plan_of(output_dir: Path, *overrides: str) -> Plan:
    return make_plan(Pipeline(make_tiny_config(output_dir, *overrides), Recorder()))


def find(made: Plan, what: str) -> Step:
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
        "outliers",
        "group activation",
        "confounds",
    ]
    assert all(step.n_reused == 0 and step.n_built > 0 for step in made.steps)
    assert (find(made, "tokens, train").forwards, find(made, "tokens, test").forwards) == (N_TRAIN, N_TEST)
    assert find(made, "tokens, train").seconds == N_TRAIN / Quick.images
    score, d_sae, k_max = find(made, "score"), 32, 3
    assert (score.forwards, score.distances, score.is_bound) == (2 * N_TRAIN, 2 * d_sae * k_max, True)
    assert made.naive_forwards == 2 * d_sae * k_max
    assert find(made, "train_sae").seconds == pytest.approx(16_000 / Quick.tokens)
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
        "stability",
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
        *(f"{stage}, seed 0" for stage in ("train_sae", "rank", "score", "probe")),
        "group activation",
        "confounds",
    }
    slower = find(plan_of(finished, "stage=score", "scope.emd=sinkhorn"), "score")
    assert slower.n_built == 1
    assert slower.seconds > slower.distances / Quick.sinkhorn


@pytest.mark.usefixtures("quick")
def test_counts_are_exact_once_the_ranking_is_known(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run", but=("score", "probe", "report"))
    score = find(plan_of(output_dir, "stage=score"), "score")
    top_images = Ranking.load(find_folder(output_dir, "rank")).top_images
    assert score.forwards == 2 * len(np.unique(top_images[top_images >= 0]))
    assert score.distances == 2 * int((top_images >= 0).sum())
    assert not score.is_bound


@pytest.mark.usefixtures("quick")
def test_predictions_are_counted_as_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tiny(tmp_path, *SHIPPED, "stage=score")
    passes = Spy(OpenClipBackbone.embed_tokens, lambda self, tokens, layer: len(tokens.patches))
    monkeypatch.setattr(OpenClipBackbone, "embed_tokens", lambda *args: passes(*args))
    shown = ("predict.n_shown=2", "predict.n_candidates=3")
    for overrides in (("predict.n_shown=0",), shown):
        command = (*SHIPPED, "stage=predict", *overrides)
        planned = find(plan_of(tmp_path, *command), "predict")
        passes.counts.clear()
        run_tiny(tmp_path, *command)
        n_edited = sum(passes.counts)
        if overrides == shown:  # trials of single features: as many as act at most, in images that lose something
            assert planned.is_bound
            assert planned.resumed - 2 * 2 * (2 + 3) < n_edited <= planned.resumed
        else:
            assert (n_edited, planned.is_bound) == (planned.resumed, False)
        assert planned.seconds == pytest.approx(planned.resumed * Quick.resumed_s)
        again = plan_of(tmp_path, *command)
        assert all(step.n_built == 0 and step.n_reused > 0 for step in again.steps)
    assert find(plan_of(tmp_path, *SHIPPED, "stage=predict", "predict.seed=1"), "predict").n_built == 1


@pytest.mark.usefixtures("quick")
def test_a_plan_refuses_what_the_stage_would(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no text tower"):
        plan_of(tmp_path, "stage=predict")


@pytest.mark.usefixtures("quick")
def test_stability_is_counted_as_it_is_made(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run")
    planned = find(plan_of(output_dir, "stage=stability", *FEW), "stability")
    assert planned.n_built == 1
    assert planned.seconds > planned.forwards / 2 * Quick.cropped_s

    def count_images(backbone: Backbone, images: Any, wanted: Any, *_: Any, **__: Any) -> int:
        ranked = np.concatenate([part.top_images.ravel() for part in wanted])
        return len(np.unique(ranked[ranked >= 0]))

    settings = Spy(rescoring.encode_maps, count_images)
    encoded = Spy(Backbone.tokens, lambda self, images, layer: len(images))
    exact = Spy(scoring.compute_emd, lambda maps, *_: len(maps))
    sinkhorn = Spy(scoring.compute_emd_sinkhorn, lambda maps, *_, **__: len(maps))
    monkeypatch.setattr(rescoring, "encode_maps", settings)
    monkeypatch.setattr(Backbone, "tokens", lambda *args: encoded(*args))
    monkeypatch.setattr(scoring, "compute_emd", exact)
    monkeypatch.setattr(scoring, "compute_emd_sinkhorn", sinkhorn)
    run_tiny(output_dir, "stage=stability", *FEW)
    *others, held_out = settings.counts  # another shift, the other diagonal, held-out images
    assert len(others) == 2
    assert planned.forwards == 2 * (sum(others) + N_TEST)
    assert sum(encoded.counts) == 2 * (sum(others) + held_out)
    # one of no mass is no distance: how many there are is known afterwards
    n_distances = sum(exact.counts) + sum(sinkhorn.counts)
    assert 0 < sum(sinkhorn.counts) <= 2 * 2
    assert n_distances <= planned.distances
    again = plan_of(output_dir, "stage=stability", *FEW)
    assert all(step.n_built == 0 and step.n_reused > 0 for step in again.steps)


def test_the_work_of_probes_is_what_a_run_reports(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run", but=(*FEATURES, "probe", "report"))
    said: list[tuple[str, int, int]] = []

    def run_probes(*args: Any, progress: Any, **options: Any) -> Any:
        return original(*args, progress=lambda *event: said.append(event), **options)

    original = probing.run_probes
    steps = Spy(classification.fit_heads, lambda module, batches, device, checkpoint: len(batches))
    monkeypatch.setattr(probing, "run_probes", run_probes)
    monkeypatch.setattr(classification, "fit_heads", steps)
    few = ("probe.n_test_images=12", "probe.classification_batch_images=10", "stage=probe")
    run_tiny(output_dir, *few)
    done = {what: sum(of for name, n, of in said if name == what and n == of) for what in REPORTED}
    work = count_probe_work(make_tiny_config(output_dir, *few).probe, N_TRAIN, N_TEST)
    assert done == {what: work[kind] for what, kind in REPORTED.items()}
    assert steps.counts == [work["class_step"]]
    assert (work["train_image"], work["test_image"]) == (N_TRAIN, 12)


@pytest.mark.usefixtures("quick")
def test_tokens_that_are_not_stored_are_counted_as_often_as_they_are_encoded(tmp_path: Path) -> None:
    live = ("data.store_tokens=false", "stage=rank", "sae.n_tokens=16000", "sae.tokens_per_image=32")
    made = plan_of(tmp_path, *live)
    n_trained = 16_000 // 32
    forwards = [find(made, what).forwards for what in ("tokens, train", "train_sae", "rank")]
    assert forwards == [N_TRAIN, n_trained, N_TRAIN]
    assert find(made, "rank").seconds == N_TRAIN / Quick.ranked + N_TRAIN / Quick.images
    stored = plan_of(tmp_path, "stage=rank", "sae.n_tokens=16000")
    assert find(stored, "tokens, train").disk_bytes > 10 * find(made, "tokens, train").disk_bytes > 0
    assert find(stored, "train_sae").forwards == find(stored, "rank").forwards == 0
    pipeline = Pipeline(make_tiny_config(tmp_path, *live), Recorder())
    pipeline.rank(0)
    n_held_out = N_TRAIN // 10
    whole_passes = -(-n_trained // (N_TRAIN - n_held_out)) * (N_TRAIN - n_held_out)  # one pool holds all images here
    assert pipeline.backbone.n_images_encoded == 2 * N_TRAIN + whole_passes + n_held_out


def test_tasks_that_are_left_out_are_no_work(tmp_path: Path) -> None:
    config = make_tiny_config(tmp_path).probe
    config.tasks = [Task.depth]
    work = count_probe_work(config, N_TRAIN, N_TEST)
    assert (work["train_image"], work["test_image"], work["class_step"]) == (0, N_TEST, 0)  # shares are measured
    assert (work["dense_image"], work["dense_step"], work["dense_test_image"]) == (16, 3, 8)
    config.tasks = [Task.classification]
    work = count_probe_work(config, N_TRAIN, N_TEST)
    assert (work["train_image"], work["test_image"], work["class_image"]) == (N_TRAIN, N_TEST, 0)
    assert (work["dense_image"], work["dense_step"], work["dense_test_image"]) == (0, 0, 0)
    read = count_probe_work(config, N_TRAIN, N_TEST, has_features=True)
    assert (read["train_image"], read["test_image"], read["class_step"]) == (0, 0, work["class_step"])
    config.classification_solver = Solver.lbfgs
    work = count_probe_work(config, N_TRAIN, N_TEST)
    assert (work["class_step"], work["class_image"]) == (0, 16 * N_EVALUATIONS * 0.9 * N_TRAIN)


def test_probes_cost_by_variants_chunks_and_work(tmp_path: Path) -> None:
    costs, work = Quick.probes, count_probe_work(make_tiny_config(tmp_path).probe, N_TRAIN, N_TEST)
    small, large = costs.small.seconds(work), costs.large.seconds(work)
    assert costs.seconds(2, 8, 8, work) == pytest.approx(small)
    assert costs.seconds(4, 8, 8, work) == pytest.approx(large)
    assert costs.seconds(6, 8, 8, work) == pytest.approx(2 * large - small)
    assert costs.seconds(0, 8, 8, work) == 0
    more = {**work, "dense_step": work["dense_step"] + 10}
    assert costs.seconds(2, 8, 8, more) - small == pytest.approx(10 * PER_CHUNK["dense_step"])
    dense = {kind: amount for kind, amount in work.items() if kind.startswith("dense")}
    small, large = costs.small.seconds(dense), costs.large.seconds(dense)
    assert costs.seconds(8 + 8 + 2, 8, 8, dense) == pytest.approx(2 * (3 * large - 2 * small) + small)
    assert costs.seconds(18, 8, 2, work) - costs.seconds(18, 8, 2, dense) == pytest.approx(
        9 * work["class_step"] * PER_CHUNK["class_step"]  # in nine chunks of two
        + 9 * (N_TRAIN * PER_CHUNK["train_image"] + N_TEST * PER_CHUNK["test_image"])  # once, nine times as many as two
    )


@pytest.mark.parametrize("kind", ["relu", "batchtopk", "jumprelu", "topk"])
def test_the_calibration_edits_with_sparse_codes(kind: str) -> None:
    """An untrained gate lets half of all latents through, and every edit would cost as much more."""
    settings = {"relu": {}, "jumprelu": {"initial_threshold": 0.1}}.get(kind, {"k": 4})
    config, tokens = KINDS[kind](expansion_factor=8, **settings), torch.randn(500, 16)
    sae = make_sae(config, torch.zeros(16), 1.0, 0).requires_grad_(False)
    n_before = (sae.encode(tokens) > 0).sum().item() / len(tokens)
    make_sparse(sae, tokens, 4)
    n_active = (sae.encode(tokens) > 0).sum().item() / len(tokens)
    assert 3.5 < n_active <= 4
    assert n_before == n_active if kind == "topk" else n_before > 30


def test_the_calibration_times_every_kind_of_work(tmp_path: Path) -> None:
    rates = Calibration(Pipeline(make_tiny_config(tmp_path), Recorder()), tmp_path)
    costs = rates.probes
    assert costs.small.n_variants < costs.large.n_variants
    for chunk in (costs.small, costs.large):
        assert chunk.per_unit.keys() == count_probe_work(rates.config.probe, N_TRAIN, N_TEST).keys()
        assert all(chunk.per_unit[kind] > 0 for kind in REPORTED.values())


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


@pytest.mark.usefixtures("quick")
def test_selection_is_counted_as_it_is_made(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    few = ("stage=select", "select.n_kept=[1,2]", "select.n_bands=2", "select.n_draws=2")
    folder = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run")
    planned = find(plan_of(folder, *few), "select, seed 0")
    probes = run_tiny(folder, *few).names("built", "probe")
    assert planned.n_built == len(probes) > 0
    assert find(plan_of(folder, *few), "select, seed 0").n_built == 0
    unknown = find(plan_of(tmp_path / "other", *few), "select, seed 0")
    assert unknown.n_built >= planned.n_built  # the rules of a run that has probes may agree on some sets
