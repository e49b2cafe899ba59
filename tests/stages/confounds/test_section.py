"""The section on confounds: its numbers are those of the features, and it renders whatever is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from infoscope.report.figure_style import save_figure
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import Stat, Table
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.confounds import ConfoundResult, LatentProperties
from infoscope.scope.separation import compute_auroc, match_frequency
from infoscope.stages.confounds.figures import _spread
from infoscope.stages.confounds.section import make_confound_section
from infoscope.stages.confounds.stage import list_columns
from infoscope.stages.score.result import ScopeResult
from tests.support.report_samples import K_MAX, make_scope_result, make_unscored_result


def make_confound_result(scope: ScopeResult, with_truth: bool = True, n_images: int = 500) -> ConfoundResult:
    """Properties that go with the firing rate; high scores are mostly global, unless the latent is diffuse."""
    rng = np.random.default_rng(scope.sae_seed + 100)
    n = len(scope.cds)
    rate = np.asarray(scope.firing_rate, dtype=np.float64)
    fires = rate > 0
    support = np.where(fires, np.clip(3 * rate + rng.beta(1.5, 9, n), 1 / 144, 1), np.nan)
    peak = np.where(fires, rng.gamma(4, 2, n), 0)
    properties = LatentProperties(
        firing_rate=rate,
        image_rate=np.where(fires, np.clip(rate / support, 0, 1), 0),
        peaks=np.outer(peak, 0.96 ** np.arange(K_MAX)),
        support=support,
        participation=0.7 * support,
    )
    if not with_truth:
        return ConfoundResult(properties, n_images, {}, None)
    is_global = np.nan_to_num(scope.cds, nan=0.1) + rng.normal(0, 0.1, n) > 0.25
    is_global |= (support > 0.25) & (rng.random(n) < 0.6)
    large, small = rng.uniform(0.15, 0.7, n), rng.uniform(0, 0.01, n)
    effects = {"light": np.where(is_global, large, small), "weather": small}
    return ConfoundResult(properties, n_images, effects, np.where(is_global, small, large))


def make_one(scopes: list[ScopeResult], confounds: dict[int, ConfoundResult]) -> ReportSection:
    """Return the section, with a table of latents that holds what the scores and the confounds say."""
    tables = []
    for scope in scopes:
        one_sided = np.random.default_rng(0).uniform(0, 0.2, len(scope.cds))
        measured = {"cds": scope.cds, "firing_rate": scope.firing_rate, "one_sided": one_sided}
        tables.append(LatentTable(scope.sae_seed, (LatentColumn(name, of, name) for name, of in measured.items())))
        tables[-1].add("confounds", list_columns(confounds[scope.sae_seed], scope.k_cds))
    return make_confound_section([(scope, confounds[scope.sae_seed]) for scope in scopes], tables)


def make_section(n_seeds: int = 2, with_truth: bool = True) -> tuple[list[ScopeResult], ReportSection]:
    scopes = [make_scope_result(seed) for seed in range(n_seeds)]
    confounds = {scope.sae_seed: make_confound_result(scope, with_truth) for scope in scopes}
    return scopes, make_one(scopes, confounds)


def read(table: Table, label: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row[0].value == label)
    return {column.key: cell.value for column, cell in zip(table.columns, row, strict=True)}


def draw_all(section: ReportSection, folder: Path) -> None:
    for name, figure in section.figures.items():
        (path,) = save_figure(figure.draw, name, folder)
        assert path.stat().st_size > 5000


def test_correlations_are_over_scored_features_of_each_seed() -> None:
    scopes, section = make_section()
    cell = read(section.tables["confounds"], "firing frequency (share of patches)")
    expected = []
    for scope in scopes:
        scored = np.isfinite(scope.cds)
        expected.append(stats.spearmanr(scope.firing_rate[scored], scope.cds[scored])[0])
    assert cell["value"].mean == pytest.approx(np.mean(expected))
    assert cell["value"].sd == pytest.approx(np.std(expected, ddof=1))
    assert cell["n_latents"].mean == np.mean([np.isfinite(scope.cds).sum() for scope in scopes])
    assert section.summary["spearman"]["firing_rate"]["mean"] == pytest.approx(np.mean(expected))


def test_first_and_last_rank_are_compared_on_the_same_features() -> None:
    scope = make_scope_result()
    section = make_one([scope], {0: make_confound_result(scope)})
    both = np.isfinite(scope.scores.emd[:, [0, K_MAX - 1]]).all(axis=1)
    cell = read(section.tables["confounds"], "mean at the last rank of the CDS")
    assert cell["value"].mean == pytest.approx(scope.scores.emd[both, K_MAX - 1].mean())
    assert cell["n_latents"].mean == both.sum() < len(scope.cds)


def test_broad_facts_have_rows_and_columns_of_their_own() -> None:
    scope = make_scope_result()
    plain = make_confound_result(scope)
    found = replace(plain, fact_effects={"alike": plain.image_effects["light"], "even": plain.image_effects["weather"]})
    section = make_one([scope], {0: found})
    table = section.tables["auroc"]
    names = [row[0].value for row in table.rows]
    assert names == ["all", "compact", "diffuse", "matched frequency", "all", "compact", "diffuse"]
    assert any("Known-broad" in note for note in table.notes)
    columns = {column.name: column.values for column in list_columns(found, scope.k_cds)}
    assert {"fact_effect_alike", "fact_effect_even", "fact_effect"} <= set(columns)
    np.testing.assert_array_equal(columns["known_broad"], plain.fires_enough & (plain.image_effects["light"] >= 0.14))
    assert not (columns["known_broad"] & columns["known_local"]).any()
    assert "known_broad" not in {column.name for column in list_columns(plain, scope.k_cds)}


def test_auroc_rows() -> None:
    scopes, section = make_section()
    table = section.tables["auroc"]
    assert [row[0].value for row in table.rows] == ["all", "compact", "diffuse", "matched frequency"]
    found = [make_confound_result(scope) for scope in scopes]
    expected = [
        compute_auroc(scope.cds, one.known_global & one.compact, one.known_local & one.compact).value
        for scope, one in zip(scopes, found, strict=True)
    ]
    row = read(table, "compact")
    assert isinstance(row["cds"], Stat)
    assert row["cds"].mean == pytest.approx(np.mean(expected))
    assert row["cds_low"] < row["cds"].mean < row["cds_high"]
    matched = [
        match_frequency(one.known_global & scored, one.known_local & scored, one.properties.firing_rate)[0].sum()
        for scope, one in zip(scopes, found, strict=True)
        if (scored := np.isfinite(scope.cds)) is not None
    ]
    row = read(table, "matched frequency")
    assert row["n_global"].mean == row["n_local"].mean == np.mean(matched)
    assert section.summary["auroc"]["compact"]["cds"].mean == pytest.approx(np.mean(expected))


def test_groups_say_how_many_declared_features_they_hold() -> None:
    scopes, section = make_section()
    found = [make_confound_result(scope) for scope in scopes]
    table = section.tables["declared"]
    assert [row[0].value for row in table.rows] == ["high-scope", "low-scope", "unscored"]
    row = read(table, "low-scope")
    low = [scope.cds <= 0.2 for scope in scopes]
    assert row["n_features"].mean == np.mean([of.sum() for of in low])
    expected = [(of & one.known_global).sum() for of, one in zip(low, found, strict=True)]
    assert row["n_global"].mean == np.mean(expected)
    assert section.summary["declared"]["low"]["n_global"].mean == np.mean(expected)


def test_gamma_stands_beside_the_best_cut() -> None:
    scopes, section = make_section()
    gamma, best = (read(section.tables["cuts"], label) for label in ("gamma", "the best cut"))
    assert gamma["cds"].mean == pytest.approx(0.2)
    above = [
        (scope.cds[of.known_global & np.isfinite(scope.cds)] > 0.2).mean()
        for scope in scopes
        for of in [make_confound_result(scope)]
    ]
    assert gamma["global_above"].mean == pytest.approx(np.mean(above))
    assert best["balanced_accuracy"].mean >= gamma["balanced_accuracy"].mean
    assert any("gamma lies at 0.2000" in finding for finding in section.findings)


def test_findings_follow_the_numbers() -> None:
    """The same features, once with scores that tell them apart and once with the reverse."""
    scope = make_scope_result()
    found = make_confound_result(scope)
    rng = np.random.default_rng(0)
    for sign, verdict in ((1, "it ranks known-global features higher"), (-1, "wrong way round")):
        cds = 0.5 + sign * 0.3 * found.known_global + rng.normal(0, 0.05, len(scope.cds))
        first, _, second, third, *_ = make_one([replace(scope, cds=cds)], {0: found}).findings
        assert verdict in first
        assert "by definition" in third
        assert "farther from 0.5 than any" in second
    noise = rng.random(len(scope.cds))
    first = make_one([replace(scope, cds=noise)], {0: found}).findings[0]
    assert "does not tell them apart" in first


def test_effects_are_correlated_without_cuts() -> None:
    scope = make_scope_result()
    found = make_confound_result(scope)
    cds = found.image_effect + 0.01 * np.random.default_rng(0).normal(size=len(scope.cds))
    section = make_one([replace(scope, cds=cds)], {0: found})
    rho = stats.spearmanr(cds[found.fires_enough], found.image_effect[found.fires_enough])[0]
    row = read(section.tables["confounds"], "effect of the global factors")
    assert row["value"].mean == pytest.approx(rho)
    assert row["n_latents"].mean == found.fires_enough.sum()
    assert "global factors" in section.findings[1]
    assert "not as it should" not in section.findings[1]
    reverse = make_one([replace(scope, cds=1 - cds)], {0: found})
    assert "(as it should)" not in reverse.findings[1]


def test_what_is_expected_of_diffuse_global_features_is_said_whether_seen_or_not() -> None:
    scope = make_scope_result()
    found = make_confound_result(scope)
    for high, said in ((0.1, "they do score lower"), (0.9, "they do not score lower")):
        cds = np.where(found.diffuse, high, 0.5)
        finding = make_one([replace(scope, cds=cds)], {0: found}).findings[3]
        assert said in finding


@pytest.mark.long
def test_it_renders(tmp_path: Path) -> None:
    _, section = make_section(2)
    files = write_report(Page("Test", sections=[section]), tmp_path)
    assert {"confounds", "auroc"} <= files.tables.keys()
    assert {"cds_confounds", "cds_by_rank"} <= files.figures.keys()
    assert "confounds" in json.loads(files.summary.read_text())


def test_points_of_shares_are_spread_within_0_and_1() -> None:
    shares = np.repeat([0, 0.5, 1], 500)
    spread = _spread(shares, 0.04)
    assert spread.min() >= 0
    assert spread.max() <= 1
    assert np.abs(spread - shares).max() <= 0.04
    assert (np.array([part.std() for part in np.split(spread, 3)]) > 0.01).all()
    both = np.isfinite(_spread(np.array([0.2, math.nan]), 0.04))
    assert both.tolist() == [True, False]


def test_without_truth_there_is_no_auroc(tmp_path: Path) -> None:
    _, section = make_section(1, with_truth=False)
    assert list(section.tables) == ["confounds"]
    assert "no AUROC" in section.findings[0]
    assert section.summary["auroc"] == {}
    draw_all(section, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("case", ["nobody declared", "no local", "unscored"])
def test_empty_groups(tmp_path: Path, case: str) -> None:
    scope = make_unscored_result() if case == "unscored" else make_scope_result()
    if case == "unscored":
        scope = replace(scope, firing_rate=np.full(10, 0.01))
    found = make_confound_result(scope, n_images=1 if case == "nobody declared" else 500)
    if case == "no local":
        found = replace(found, label_effect=np.zeros(len(scope.cds)))
    section = make_one([scope], {0: found})
    assert "too few to say" in section.findings[0]
    assert "too few to say" in section.findings[3]
    assert math.isnan(section.summary["auroc"]["all"]["cds"].mean)
    draw_all(section, tmp_path)
