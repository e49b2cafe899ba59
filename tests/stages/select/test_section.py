"""The section on selection: its rows, its verdicts, its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoscope.probes.selection import BY_ACTIVATION, BY_CHANCE, name_probe_rule, name_worth_rule
from infoscope.report.figure_style import save_figure
from infoscope.report.section import ReportSection
from infoscope.scope.partition import name_group
from infoscope.stages.select.section import make_selection_section

D_SAE = 100
BANDS = ("band 1 of 2", "band 2 of 2")
GAIN = {"band 1 of 2": 0.3, "band 2 of 2": 0.1, BY_ACTIVATION: 0.2, BY_CHANCE: 0.0}


def make_run(seed: int, role: str, group: str | None, n_removed: int, value: float, draw: int | None = None) -> dict:
    variant = {"name": f"{role}{group}{n_removed}{draw}", "mode": "reconstruct", "role": role, "group": group}
    variant |= {"draw": draw, "n_latents": n_removed, "empty": False, "mass_share": n_removed / D_SAE}
    metrics = {
        "classification/patch_mean": {"top1": value},
        "classification/cls_final": {"top1": value},
        "depth": {"rmse_m": 1 - value},
    }
    return {"sae_seed": seed, "variant": variant, "metrics": metrics, "lr": {}}


def make_runs(n_seeds: int = 3) -> list[dict]:
    runs = []
    for seed in range(n_seeds):
        noise = np.random.default_rng(seed)
        runs += [make_run(seed, "original", None, 0, 0.9), make_run(seed, "nothing", None, 0, 0.85)]
        runs.append(make_run(seed, "all", None, D_SAE, 0.1))
        for n_kept in (4, 8):
            for rule, gain in GAIN.items():
                for draw in range(2) if rule == BY_CHANCE else (None,):
                    value = 0.2 + gain + n_kept / 100 + noise.normal(0, 0.005)
                    runs.append(make_run(seed, "kept", rule, D_SAE - n_kept, value, draw))
            for task, value in (("classification/patch_mean", 0.8), ("depth", 0.3)):
                runs.append(make_run(seed, "kept", name_probe_rule(task), D_SAE - n_kept, value))
    return runs


@pytest.fixture
def section() -> ReportSection:
    return make_selection_section(make_runs())


def test_a_row_per_rule_and_number(section: ReportSection) -> None:
    lines = section.tables["selection"].to_markdown().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    of_bands = [f"most active of {name_group(band)}" for band in BANDS]
    names = [*of_bands, "most active of all", "random", "heaviest in the probe"]
    assert [row for row in rows if row in names] == names * 2
    assert {"original tokens", "all features kept", "no feature kept"} <= set(rows)


def test_every_task_has_its_own_probes_choice(section: ReportSection) -> None:
    """The final CLS takes the choice of the mean patch token's head."""
    of_probe = section.summary["4"]["probe"]
    assert of_probe["top1_patch_mean"] == of_probe["top1_cls_final"] == pytest.approx(0.8)
    assert of_probe["depth_rmse_m"] == pytest.approx(0.7)


def test_every_task_has_its_own_choice_by_worth() -> None:
    """A rule of the weights is one row, which stands beside the others and is no band."""
    runs = make_runs()
    for seed in range(3):
        for task, value in (("classification/cls_final", 0.7), ("depth", 0.4)):
            for n_kept in (4, 8):
                runs.append(make_run(seed, "kept", name_worth_rule("base_cds", task), D_SAE - n_kept, value))
    section = make_selection_section(runs, ["Fitted on others."])
    of_worth = section.summary["4"]["worth base_cds"]
    assert of_worth["top1_cls_final"] == pytest.approx(0.7)
    assert of_worth["depth_rmse_m"] == pytest.approx(0.6)
    assert np.isnan(of_worth["top1_patch_mean"])
    text = section.tables["selection"].to_markdown()
    assert text.count("most worth by frequency, MS, class counts, CDS") == 2
    assert "Fitted on others." in text
    assert "in 2 groups of equal size" in text
    assert section.figures["selection"].draw() is not None


def test_the_verdict_counts_every_metric_and_number(section: ReportSection) -> None:
    assert "better in 6, worse in 0 of 6" in section.findings[0]
    depth = section.findings[-1]
    assert depth.startswith("depth RMSE")
    assert "of the bands, most active of band 1 of 2 (lowest CDS) (n = 4, 8)" in depth
    assert "the best rule is most active of band 1 of 2 (lowest CDS)" in depth  # the probe's own choice is worse there


def flatten(runs: list[dict], value: float, n_kept: tuple[int, ...], *rules: str) -> list[dict]:
    """The runs, of which those that keep so many features by these rules read the same."""
    return [
        make_run(run["sae_seed"], "kept", of["group"], of["n_latents"], value, of["draw"])
        if (of := run["variant"])["group"] in rules and D_SAE - of["n_latents"] in n_kept
        else run
        for run in runs
    ]


def test_a_tie_has_no_winner() -> None:
    """Both bands read the same of 4 features: the lower one is not named for standing first."""
    *_, depth = make_selection_section(flatten(make_runs(), 0.95, (4,), *BANDS)).findings
    names = " and ".join(f"most active of {name_group(band)}" for band in BANDS)
    assert f"the best rule is a tie of {names} (n = 4), most active of band 1 of 2 (lowest CDS) (n = 8)" in depth
    assert "of the bands, a tie of all (n = 4), most active of band 1" in depth
    *_, depth = make_selection_section(flatten(make_runs(), 0.95, (4, 8), *BANDS, BY_ACTIVATION)).findings
    assert "the best rule is a tie of all but random and heaviest in the probe (n = 4, 8)" in depth


@pytest.mark.parametrize(("n_kept", "named"), [((4, 8), False), ((8,), True)])
def test_what_no_feature_reads_as_well_tells_no_rule_apart(n_kept: tuple[int, ...], named: bool) -> None:
    rules = {run["variant"]["group"] for run in make_runs() if run["variant"]["role"] == "kept"}
    runs = [run for run in flatten(make_runs(), 0.1, n_kept, *rules) if "probe" not in (run["variant"]["group"] or "")]
    *_, depth = make_selection_section(runs).findings
    numbers = ", ".join(map(str, n_kept))
    assert f"no rule reads more than no feature does (n = {numbers}), so none is told from another" in depth
    assert ("the best rule is most active of band 1" in depth) == named


def test_one_seed_gives_no_verdict() -> None:
    findings = make_selection_section(make_runs(1)).findings
    assert "not known" in findings[-1]
    assert not any("better in" in finding for finding in findings)


def test_nothing_was_kept() -> None:
    runs = [run for run in make_runs() if run["variant"]["role"] != "kept"]
    section = make_selection_section(runs)
    assert section.findings[0].startswith("Nothing was kept")
    assert section.tables["selection"].rows


@pytest.mark.parametrize("roles", [("kept", "nothing", "all", "original"), ("all",)])
def test_figure(roles: tuple[str, ...], tmp_path: Path) -> None:
    runs = [run for run in make_runs() if run["variant"]["role"] in roles]
    figure = make_selection_section(runs).figures["selection"]
    (path,) = save_figure(figure.draw, "selection", tmp_path)
    assert path.stat().st_size > 5000
