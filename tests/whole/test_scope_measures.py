"""experiments/scope_measures.py: it says which measure tells the truth, and runs on the tiny scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.commands.experiments.sweep import main
from infoscope.config.tree import compose
from infoscope.sae.loading import load_sae
from infoscope.scope.config import By
from infoscope.scope.confounds import ConfoundResult, LatentProperties
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.scores import Scores
from infoscope.vision.planted_facts import CODES, PlantedFacts
from tests.support.experiment_samples import check_files, load_experiment, read_rows
from tests.support.pipeline_samples import make_overrides, save_noise

N, GRID = 200, 11


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_experiment("scope_measures")
    monkeypatch.setattr(module, "N_DRAWS", 200)
    return module


def make_extent(rng: np.random.Generator, own_patch: np.ndarray, noise: float) -> ExtentResult:
    """Return extents of latents that keep a share of their activation on their own patch, and all of it further on."""
    kept = np.ones((2, N, 4, 2), dtype=np.float32)
    kept[0] = own_patch[:, None, None] + noise * rng.normal(size=(N, 4, 2))
    images = np.tile(np.arange(4), (N, 1))
    return ExtentResult(
        GRID, np.array([0, 2]), images, images, np.ones((N, 4)), np.zeros((N, 4, 2)), kept, np.zeros_like(kept), 0
    )


def make_seed(module: ModuleType, seed: int = 0, **informed: float) -> Any:
    """Return one SAE, the first half of its latents known-global, the others known-local, every second one diffuse.

    Args:
        informed: how far apart the two lie by each measure, in standard deviations.
    """
    rng = np.random.default_rng(seed)
    is_global = np.arange(N) < N // 2
    support = np.where(np.arange(N) % 2, 0.5, 0.1)
    properties = LatentProperties(rng.random(N), np.ones(N), np.ones((N, 4)), support, support)
    confounds = ConfoundResult(properties, 500, {"light": np.where(is_global, 0.3, 0)}, np.where(is_global, 0, 0.3))
    measures = {name: informed.get(name, 0.0) * is_global + rng.normal(size=N) for name in module.MEASURES}
    emd = measures["cds"][:, None] + 0.3 * rng.normal(size=(N, 8))
    scores = Scores(emd, np.ones_like(emd), np.ones_like(emd), emd, np.empty(0), 12, 1)
    extent = make_extent(rng, 0.45 - 0.4 * rng.random(N), 0.02)
    known = module.find_known(confounds, is_control=False)
    return module.OfSeed(measures, scores, confounds, extent, np.random.default_rng(9).normal(size=(N, 16)), known)


def find_row(rows: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (found,) = (row for row in rows if all(row[key] == value for key, value in wanted.items()))
    return found


@pytest.mark.parametrize(
    ("informed", "words"),
    [
        ({"extent": 2.0}, "Evidence extent tells known-global from known-local features better than the CDS"),
        ({"cds": 2.0}, "Evidence extent tells known-global from known-local features worse than the CDS"),
        (
            {"extent": 1.0, "cds": 1.0},
            "Evidence extent tells known-global from known-local features neither",
        ),
    ],
)
def test_it_says_first_which_measure_tells_the_truth(
    module: ModuleType, informed: dict[str, float], words: str
) -> None:
    seeds = [make_seed(module, seed, **informed) for seed in (1, 2)]
    table = module.make_measure_table(module.Found(seeds, {}, {}))
    assert table.notes[0].startswith(words)
    assert ": AUROC " in table.notes[0]
    row = find_row([{key: str(of) for key, of in one.items()} for one in table.records()], key="extent")
    assert (float(row["all"]) > 0.8) is (informed.get("extent") == 2)
    assert float(row["all_from"]) < float(row["all"]) < float(row["all_to"])
    assert (row["all_n_known"], row["diffuse_n_known"], row["compact_n_local"]) == ("100.0", "50.0", "100.0")


def test_pairs_are_worth_what_their_members_are(module: ModuleType) -> None:
    seeds = [make_seed(module, seed, extent=1.0, cds=1.0) for seed in (1, 2)]
    separated = module.separate(seeds, "global")["all"]
    alone = {names: np.mean([draws[0] for draws in of]) for names, of in separated.aurocs.items()}
    assert alone["extent", "cds"] > max(alone["extent",], alone["cds",]) + 0.03
    assert separated.gain("cds").value == 0
    assert separated.gain("extent", "cds").low > 0


def test_too_few_known_features_are_said(module: ModuleType) -> None:
    of = make_seed(module)
    table = module.make_measure_table(
        module.Found([of._replace(known=of.known | {"local": np.arange(N) > N - 9})], {}, {})
    )
    assert table.notes == ["Too few known-global or known-local features to say which measure tells them apart."]
    none = module.find_known(replace(of.confounds, image_effects={}), is_control=False)
    assert "No feature is known" in module.make_measure_table(module.Found([of._replace(known=none)], {}, {})).instead


def test_local_features_of_the_control_are_those_of_single_patches(module: ModuleType) -> None:
    n, is_local = len(CODES), np.array([code.startswith("local") for code in CODES])
    properties = LatentProperties(np.ones(n), np.ones(n), np.ones((n, 4)), np.ones(n), np.ones(n))
    knows = {"light": np.where(np.arange(n) % 2, 0.5, 0)}
    confounds = ConfoundResult(properties, 500, knows, np.zeros(n), {"even": np.full(n, 0.5)})
    known = module.find_known(confounds, is_control=True)
    np.testing.assert_array_equal(known["local"], is_local)
    np.testing.assert_array_equal(known["global"], ~is_local & (np.arange(n) % 2 == 1))
    np.testing.assert_array_equal(known["broad"], ~is_local)
    rarely = replace(confounds, properties=replace(properties, image_rate=np.full(n, 0.01)))
    assert not module.find_known(rarely, is_control=True)["local"].any()


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (
            ["data.planted=marks", "model=planted_facts", "sae=import", "sae.path=out/planted_facts_sae"],
            "positive control",
        ),
        (["model=planted_facts"], "label"),  # another SAE's latents are not the formula's codes
        (["model=planted_facts", "sae=import", "sae.path=out/mine"], "label"),
        (["data.planted=marks", "model.pretrained=local-dir:out/marked_clip"], "tuned scenes_clip"),
        (["data.planted=marks", "model.pretrained=local-dir:out/marked_clip", "sae.k=32"], "tuned with sae.k=32"),
        (["data.planted=marks"], "label"),
    ],
)
def test_a_run_is_called_what_it_is(module: ModuleType, overrides: list[str], name: str) -> None:
    config = compose(overrides)
    assert module.name_run(SimpleNamespace(config=config, label="label")) == name
    assert module.reads_formula(config) is (name == "positive control")


def test_no_design_is_held_against_itself(module: ModuleType) -> None:
    means = dict(module.list_designs(compose(["scope.extent.donor=mean"])))
    assert "donors: a mean colour" not in means
    assert "donors: a mean colour" in dict(module.list_designs(compose([])))
    assert means[module.ONE_EACH].scope.extent.n_images == 1


def test_halves_and_seeds_that_agree_are_told_from_those_that_do_not(module: ModuleType) -> None:
    one = make_seed(module, 0)
    other = one._replace(decoder=one.decoder[::-1], measures={k: v[::-1] for k, v in one.measures.items()})
    same = module.compare_seeds(one, other, 0.7)
    assert all(rho == pytest.approx(1) and n == N for rho, n in same.values())
    few = one._replace(
        measures={k: np.where(np.arange(N) < module.MIN_GROUP - 1, v, np.nan) for k, v in one.measures.items()}
    )
    assert all(np.isnan(rho) and n == module.MIN_GROUP - 1 for rho, n in module.compare_seeds(one, few, 0.7).values())
    noise = make_extent(np.random.default_rng(5), 0.45 - 0.4 * np.random.default_rng(6).random(N), 0.5)
    found = module.Found([one, other], {"donors: a mean colour": one.extent, module.ONE_EACH: noise}, {})
    rows = {row["comparison"]: row for row in module.make_stability_table(found, 4, 0.7).records()}
    assert rows["half of the images"]["extent"] > 0.9
    assert rows["donors: a mean colour"]["extent"] == pytest.approx(1)
    assert abs(rows[module.ONE_EACH]["extent"]) < 0.3
    assert rows[module.ONE_EACH]["cds"] > 0.9
    assert rows["another SAE seed"]["cds"] == pytest.approx(1)


@pytest.mark.long
def test_it_runs_on_tiny_scenes(module: ModuleType, tmp_path: Path) -> None:
    few = ["scope.extent.n_images=2", "scope.extent.n_latents=12", "data.planted=nothing"]
    few += ["probe.tasks=[classification]", "probe.n_draws=1"]
    dense = ("probe.segmentation", "probe.depth", "probe.dense", "probe.n_dense")
    overrides = [one for one in make_overrides(tmp_path) if not one.startswith(dense)]
    assert main(module.EXPERIMENT, [*overrides, *few]) == 0
    folder = tmp_path / "experiments" / "scope_measures"
    check_files(folder, ["scope_measures", "scope_measures_stability", "removal"], ["scope_measures"])
    rows = read_rows(folder / "removal.csv")
    assert {row["by"] for row in rows} == {by.name for by in By}


def test_the_control_reads_the_directions_of_the_backbone(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(module, "make_marked_clip", made.extend)
    settings = module.add_marks([f"output_dir={tmp_path}", "stage=extent"], tmp_path / "scratch").settings
    _, tuned, dense, control = settings
    assert tuned == f"data.planted=marks model.pretrained=local-dir:{made[0]} data.seed=8"
    assert dense == f"data.planted=marks model.pretrained=local-dir:{made[0]} data.seed=9 sae.k=32"
    sae = load_sae(control.split("sae.path=")[1])
    torch.testing.assert_close(sae.encode(PlantedFacts().directions), torch.eye(len(CODES)) / 2)
    for asked in ("model=scenes_clip", "data.planted=nothing", "sae.expansion_factor=2", "debug=tiny"):
        assert module.add_marks([asked], tmp_path) is module.EXPERIMENT
    assert module.add_marks([f"output_dir={tmp_path}", "build=false"], tmp_path / "scratch").settings == settings
    assert len(made) == 1
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("plan", ["plan=true", "plan=1"])
def test_a_plan_tunes_nothing_and_says_so(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plan: str
) -> None:
    made: list[str] = []
    monkeypatch.setattr(module, "make_marked_clip", made.extend)
    asked = [f"output_dir={tmp_path / 'out'}", plan]
    settings = module.add_marks(asked, tmp_path / "scratch").settings
    assert [one.split()[:2] for one in settings] == [
        ["data.planted=nothing", "data.seed=7"],
        ["data.planted=marks", "data.seed=7"],
    ]
    assert "A CLIP is tuned first" in capsys.readouterr().out
    assert not made
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "experiments" / "marked_clip").mkdir(parents=True)
    (tmp_path / "out" / "experiments" / "marked_clip" / module.LOCAL_WEIGHTS[0]).touch()
    assert len(module.add_marks(asked, tmp_path / "scratch").settings) == 4


def test_a_plan_counts_the_other_designs_and_what_is_divided(
    module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for overrides, n_probes in (["stage=probe"], len(By)), (["stage=extent"], 0):
        assert main(module.EXPERIMENT, make_overrides(tmp_path, *overrides, "data.planted=nothing", "plan=true")) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sum(line.startswith("extent, seed 0") for line in lines) == 4
        assert sum(line.startswith("probe, seed 0") for line in lines) == n_probes
        assert sum(line.startswith("rank, seed 0") for line in lines) == 1


def test_photographs_are_refused(module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        save_noise(tmp_path / "photographs" / f"{i}.png", i)
    photographs = ["data=image_folder", f"data.root={tmp_path / 'photographs'}", "stage=extent"]
    overrides = [one for one in make_overrides(tmp_path / "out") if not one.startswith("data.n_t")]
    assert main(module.EXPERIMENT, [*overrides, *photographs]) == 2
    assert "which say what is global and local" in capsys.readouterr().err
