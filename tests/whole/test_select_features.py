"""experiments/select_features.py: planted worth of which it is known what CDS adds, and the whole of it, tiny."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from infoscope.pipeline.context import Context
from infoscope.probes.config import SelectConfig
from infoscope.probes.selection import BY_ACTIVATION, BY_WORTH
from infoscope.probes.worth import ALONE, BASE, RULES, WITH, WITHOUT, Known
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import Display
from infoscope.stages.probe.results import MAIN_METRICS
from infoscope.stages.select.worth import check_weights
from tests.support.experiment_samples import load_experiment, read_rows
from tests.support.pipeline_samples import copy_run, finish_tiny_run, make_overrides, make_tiny_config, run_tiny

D_SAE = 400
DEPTH = "depth"


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    return load_experiment("select_features")


def plant(experiment: ModuleType, seed: int, *, adds: bool) -> Any:
    """An SAE whose effects follow MS, and the CDS too where it adds anything; else that is the firing rate, blurred."""
    noise = np.random.default_rng(seed)
    columns = {name: noise.normal(size=D_SAE) for name in BASE}
    cds = noise.normal(size=D_SAE) if adds else columns["firing_rate"] + noise.normal(scale=0.3, size=D_SAE)
    effect = columns["firing_rate"] + columns["ms"] + (cds if adds else 0) + noise.normal(size=D_SAE)
    known = Known({**columns, "cds": cds}, np.arange(D_SAE) < 350)
    return experiment.OfSeed(known, noise.lognormal(size=D_SAE), {DEPTH: effect}, seed)


@pytest.mark.parametrize("adds", [True, False])
def test_cds_adds_what_it_was_planted_to_add(experiment: ModuleType, adds: bool) -> None:
    rules = experiment.fit([plant(experiment, seed, adds=adds) for seed in (0, 1)])
    seeds = [plant(experiment, seed, adds=adds) for seed in (2, 3, 4)]
    found = experiment.Correlations(seeds, DEPTH, {rule: of[DEPTH] for rule, of in rules.items()})
    gain = found.gain
    assert gain.low <= gain.value <= gain.high
    assert found.draws.keys() == {*RULES, BY_ACTIVATION}
    assert abs(found.estimate(BY_ACTIVATION).value) < 0.15
    if adds:
        assert gain.low > 0.1
        assert found.estimate(WITH).value > 0.8
        assert found.estimate(ALONE).value > 0.3
    else:
        assert gain.low < 0.01  # whether it says that a little is added or taken away is chance
        assert abs(gain.value) < 0.01
        assert found.estimate(ALONE).low > 0.3  # alone it does tell of worth


def test_a_rank_correlation_that_is_not_there_has_a_reason(experiment: ModuleType) -> None:
    seeds = [plant(experiment, seed, adds=True) for seed in (0, 1)]
    rules = {rule: of[DEPTH] for rule, of in experiment.fit(seeds).items()}
    assert experiment.Correlations(seeds, DEPTH, rules).lacking == []
    rules[ALONE] = {"cds": (0.0, 0.0)}
    of_rule = experiment.Correlations(seeds, DEPTH, rules)
    assert of_rule.lacking[0] == "all features have the same by CDS (SAE seed 0)"
    assert np.isnan(of_rule.estimate(ALONE).value)
    seeds[1].effects[DEPTH][:] = 0
    found = {DEPTH: experiment.Correlations(seeds, DEPTH, rules | {ALONE: rules[WITH]})}
    assert found[DEPTH].lacking == ["removing any one feature costs the same (SAE seed 1)"]
    table, _ = experiment.make_tables(found, make_results(experiment, 0.5), experiment.IMAGES, [])
    assert f"No rank correlation, {DEPTH}: {found[DEPTH].lacking[0]}." in table.notes


def test_the_choice_that_scope_is_not_needed_for(experiment: ModuleType) -> None:
    """Where the CDS is a blurred firing rate, the others know which features have the lowest."""
    first, second = (plant(experiment, seed, adds=False) for seed in (0, 1))
    config = SelectConfig(n_kept=[20], n_bands=4)
    (kept,) = experiment.keep_like_low(second, experiment.fit_cds([first]), config)
    cds, chosen = second.known.columns["cds"], ~kept.ablated
    assert chosen.sum() == 20
    assert np.median(cds[chosen]) < np.quantile(cds[second.known.members], 0.25)
    assert np.median(second.mass[chosen]) > np.median(second.mass)


def make_results(experiment: ModuleType, gain: float) -> list[dict]:
    """Probes of three SAE seeds: keeping by the rule with CDS is better by so much."""
    rules = {f"{BY_WORTH} {rule} {DEPTH}": rule for rule in (WITHOUT, WITH, ALONE)}
    rules |= {rule: rule for rule in (BY_ACTIVATION, experiment.LIKE_LOW, "band 1 of 3")}
    found = []
    for seed in range(3):
        noise = np.random.default_rng(seed)
        for role, group, n in [("all", None, 0), *(("kept", group, n) for n in (4, 8) for group in rules)]:
            value = 2 - gain * (rules.get(group or "") == WITH) + noise.normal(scale=0.01)
            variant = {"mode": "reconstruct", "role": role, "group": group, "draw": None, "n_latents": D_SAE - n}
            found.append({"sae_seed": seed, "variant": variant, "metrics": {DEPTH: {"rmse_m": value}}, "lr": {}})
    return found


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.5, "better in 2 of 2 comparisons, worse in 0"), (-0.5, "better in 0 of 2 comparisons, worse in 2")],
)
def test_the_table_says_what_is_kept(experiment: ModuleType, gain: float, words: str) -> None:
    seeds = [plant(experiment, seed, adds=True) for seed in (0, 1, 2)]
    rules = {rule: of[DEPTH] for rule, of in experiment.fit(seeds).items()}
    found = {DEPTH: experiment.Correlations(seeds, DEPTH, rules)}
    table, of_columns = experiment.make_tables(found, make_results(experiment, gain), experiment.IMAGES, ["A note."])
    assert [row[0].value for row in table.rows] == ["rank correlation", "4 kept", "8 kept"]
    assert len(of_columns.rows) == len(RULES) + 1
    assert "is predicted better in 1 of 1 tasks" in table.notes[0]
    assert table.notes[1].endswith(f"kept by it: {words}.")
    assert table.notes[2].startswith("Of the most active of lowest CDS")
    (depth,) = [metric for metric in MAIN_METRICS if metric.task == DEPTH]
    assert table.rows[1][2].number == pytest.approx(2, abs=0.03)  # the band
    assert table.notes[3].startswith(
        "Against the most active of lowest CDS as frequency, MS and class counts predict it: "
    )
    added = table.rows[1][6].number
    assert added == pytest.approx(-gain, abs=0.03)
    assert depth.higher_is_better is False


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("select") / "run")


def test_the_whole_of_it(experiment: ModuleType, output_dir: Path) -> None:
    """The second set of scenes differs from the first, and so does its SAE; columns and probes are all there."""
    assert experiment.main([*make_overrides(output_dir), "select.n_kept=[2]", "select.n_draws=1"]) == 0
    folder = output_dir / "experiments" / "select_features"
    weights = json.loads((folder / "weights.json").read_text())
    assert weights["rules"].keys() == {WITHOUT, WITH, ALONE}
    assert weights["rules"][WITHOUT]["depth"].keys() == {*BASE}
    rows = read_rows(folder / "select_features.csv")
    assert [row["what"] for row in rows] == ["rank correlation", "2 kept"] * 4
    assert all(-1 <= float(row[WITH]) <= 1 for row in rows[::2])
    assert all(float(row[WITH]) >= 0 for row in rows[1::2])
    assert len(read_rows(folder / "select_features_columns.csv")) == 4 * (len(RULES) + 1)


def test_the_stage_shows_what_the_weights_chose(output_dir: Path) -> None:
    """After the experiment everything exists but the page."""
    file = output_dir / "experiments" / "select_features" / "weights.json"
    asked = ["stage=select", f"select.weights={file}", "select.n_kept=[2]", "select.n_draws=1"]
    planned = run_tiny(output_dir, *asked, "data.seed=4", "plan=true")
    assert "describe, seed 0" in planned.text
    shown = run_tiny(output_dir, *asked, "data.seed=3")
    assert shown.stages("built") == ["report"]
    for words in ("most worth by frequency, MS, class counts, CDS", "features of 1 SAEs, data.seed=0"):
        assert words in " ".join(shown.text.split())


def test_weights_that_would_deceive_are_refused(
    experiment: ModuleType, output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main([*make_overrides(output_dir), "report=data.seed=0", "select.n_kept=[2]"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "report= to have other images than fit=" in said
    assert "share 16 of 16 test images: give another data.root or data.seed." in said
    file = output_dir / "experiments" / "select_features" / "weights.json"
    elsewhere = [f"select.weights={file}", "stage=select", "data.seed=3"]
    with pytest.raises(InputError, match=r"select.weights of probe.target=light, got those of class"):
        check_weights(Context(make_tiny_config(output_dir, *elsewhere, "probe.target=light"), Display.silent()))
    no_depth = json.loads(file.read_text())
    no_depth["rules"] = {rule: {"depth": of["depth"]} for rule, of in no_depth["rules"].items()}
    file.write_text(json.dumps(no_depth))
    with pytest.raises(InputError, match=r"of a task that is probed \(segmentation\), got those of depth"):
        check_weights(Context(make_tiny_config(output_dir, *elsewhere, "probe.tasks=[segmentation]"), Display.silent()))
