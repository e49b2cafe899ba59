"""The section on effects of single features: its numbers and sentences follow the latents, and it always renders."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.probes.latent_effects import LatentEffects
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import MINUS, Table
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.config import By, PartitionConfig
from infoscope.scope.matching import MATCHINGS, PROPERTIES, Pair, match_groups, name_matched
from infoscope.scope.partial_ranks import compute_partials
from infoscope.scope.partition import make_partition
from infoscope.stages.effects.numbers import OTHERS, SCORES, compare_scores, judge_matching, predict_effects
from infoscope.stages.effects.section import make_effect_section
from infoscope.stages.probe.tables import make_matched_table, make_removal_tables, summarise_removal
from infoscope.stages.score.result import ScopeResult
from tests.support.report_samples import make_result, make_results, make_scope_result, make_unscored_result

TASKS = ("classification/patch_mean", "classification/cls_final", "segmentation", "depth")


def make_matched_results(n_seeds: int = 2, empty: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The usual results, and those of the matched groups."""
    results = make_results(n_seeds, n_draws=2)
    for seed in range(n_seeds):
        for matching in MATCHINGS:
            for group in ("high", "low"):
                result = make_result(seed, "group", group=group)
                result["variant"] |= {"group": name_matched(group, matching), "n_latents": 38}
                if group in empty:
                    result["variant"] |= {"n_latents": 0, "empty": True}
                results.append(result)
    return results


def make_tables(scopes: list[ScopeResult]) -> list[LatentTable]:
    """What is known of the latents: classification misses those of low scope, depth those of high scope, at equal
    mass; segmentation misses mass alone; chance has nothing to say."""
    tables = []
    for scope in scopes:
        rng = np.random.default_rng(scope.sae_seed + 7)
        n, fires = len(scope.cds), scope.firing_rate > 0
        rate, mass = scope.firing_rate.astype(float), scope.mass.astype(float)
        centred = scope.cds - np.nanmean(scope.cds) if np.isfinite(scope.cds).any() else scope.cds
        rank = np.argsort(np.argsort(mass)) / n
        effects = [rank - 4 * centred, rank - 4 * centred, rank, rank + 4 * centred]
        columns = {
            "cds": scope.cds,
            "cds_minus_chance": scope.cds - rng.random(n),
            "cds_over_chance": scope.cds / rng.uniform(0.1, 1, n),
            "firing_rate": rate,
            "peak": np.where(fires, rng.gamma(4, 2, n), 0),
            "support": np.where(fires, np.clip(3 * rate + rng.beta(1.5, 9, n), 1 / 144, 1), np.nan),
            "mass": mass,
        }
        for task, effect in zip(TASKS, effects, strict=True):
            columns[f"effect_{task.rpartition('/')[2]}"] = effect + 0.1 * rng.normal(size=n)
        tables.append(LatentTable(scope.sae_seed, (LatentColumn(name, of, name) for name, of in columns.items())))
    return tables


def make_one(scopes: list[ScopeResult], results: list[dict[str, Any]]) -> tuple[list[LatentTable], ReportSection]:
    tables = make_tables(scopes)
    effects = [
        LatentEffects(
            {task: table[f"effect_{task.rpartition('/')[2]}"] for task in TASKS},
            dict.fromkeys(TASKS, 1.0),
            dict.fromkeys(TASKS, 9),
        )
        for table in tables
    ]
    return tables, make_effect_section(effects, tables, scopes, results, match_all(scopes, tables))


def match_all(scopes: list[ScopeResult], tables: list[LatentTable]) -> list[dict[str, Pair]]:
    return [
        match_groups(scope.partition.groups, scope.firing_rate, np.asarray(table["support"]), scope.mass)
        for scope, table in zip(scopes, tables, strict=True)
    ]


def read(table: Table, label: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row[0].value == label)
    return {column.key: cell.value for column, cell in zip(table.columns, row, strict=True)}


def test_rows_are_partial_correlations_over_seeds() -> None:
    scopes = [make_scope_result(seed) for seed in range(2)]
    tables, section = make_one(scopes, [])
    shown = section.tables["effects"]
    assert [row[0].value for row in shown.sections[0].rows] == [*SCORES.values(), *OTHERS.values()]
    assert len(shown.sections) == len(TASKS)
    columns = ["cds", "cds_minus_chance", "cds_over_chance", *OTHERS]
    expected = [
        compute_partials(table["effect_patch_mean"], {name: table[name] for name in columns}, {"cds": list(OTHERS)})
        for table in tables
    ]
    row = read(shown, "CDS")
    assert row["partial"] == pytest.approx(np.mean([of["cds"].partial[0] for of in expected]))
    assert row["partial"] == section.summary["effects"]["classification/patch_mean"]["cds"]["partial"]["value"]
    assert row["partial_low"] < row["partial"] < row["partial_high"] < 0
    assert row["n_latents"] == np.mean([of["cds"].n for of in expected])


def test_findings_follow_the_numbers() -> None:
    _, section = make_one([make_scope_result(seed) for seed in range(2)], [])
    less, more, undecided = section.findings[0].split("; ")
    assert less.startswith("At equal frequency, peak, support and mass the more scope a feature has, the less its")
    assert "mean patch" in less
    assert "final CLS" in less
    assert more.startswith("the more scope a feature has, the more its removal costs: depth (+")
    assert undecided.startswith("whether scope goes with what removal costs is undecided: segmentation (")


def test_the_cds_is_held_against_the_other_scores() -> None:
    tables = make_tables([make_scope_result(seed) for seed in range(2)])
    said = predict_effects(tables, "effect_depth")
    leads = compare_scores(said)
    assert leads.keys() == {"cds_minus_chance", "cds_over_chance"}
    for name, lead in leads.items():
        assert lead.value == pytest.approx(said["cds"].added.value - said[name].added.value)
        assert lead.low > 0
    _, section = make_one([make_scope_result(seed) for seed in range(2)], [])
    *_, of_segmentation, of_depth = section.findings
    assert re.search(
        r"CDS adds to these four for depth: 0\.\d+, more than CDS - chance \(\+.*more than CDS / chance \(\+", of_depth
    )
    assert of_segmentation.count("not told from") == 2


def test_a_score_that_tells_more_than_the_cds_is_said_to() -> None:
    (table,) = make_tables([make_scope_result()])
    renamed = {"cds": "cds_minus_chance", "cds_minus_chance": "cds"}
    swapped = LatentTable(0, [replace(column, name=renamed.get(column.name, column.name)) for column in table])
    leads = compare_scores(predict_effects([swapped], "effect_depth"))
    assert leads["cds_minus_chance"].high < 0


def test_without_the_corrected_scores_there_is_nothing_to_compare() -> None:
    (table,) = make_tables([make_scope_result()])
    plain = LatentTable(0, [column for column in table if "chance" not in column.name])
    said = predict_effects([plain], "effect_depth")
    assert list(said) == ["cds", *OTHERS]
    assert compare_scores(said) == {}


def test_scores_that_no_feature_has_take_nothing_from_the_cds() -> None:
    """With one image per feature there is no chance level."""
    (table,) = make_tables([make_scope_result()])
    nothing = np.full(len(table), np.nan)
    known = LatentTable(0, [replace(one, values=nothing) if "chance" in one.name else one for one in table])
    said = predict_effects([known], "effect_depth")
    assert list(said) == ["cds", *OTHERS]
    assert said["cds"].partial == predict_effects([table], "effect_depth")["cds"].partial


def test_balance_is_that_of_the_matched_groups() -> None:
    scopes = [make_scope_result(seed) for seed in range(2)]
    tables, section = make_one(scopes, [])
    shown = section.tables["matching"]
    assert [row[0].value for row in shown.rows] == list(MATCHINGS)
    n_pairs = [matched["mass"][0].sum() for matched in match_all(scopes, tables)]
    row = read(shown, "mass")
    assert row["n_pairs"].mean == np.mean(n_pairs)
    assert abs(row["mass_after"].mean) < 0.1
    row = read(shown, "frequency, support and mass")
    assert all(abs(row[f"{name}_after"].mean) < 0.25 for name in PROPERTIES)


def test_features_that_lack_what_is_matched_are_counted() -> None:
    scope = make_scope_result()
    (table,) = make_tables([scope])
    members = np.flatnonzero(scope.partition.groups["high"])[:3]
    table["support"][members] = np.nan
    matched = judge_matching([scope], [table], match_all([scope], [table]))
    assert {name: of.n_lacking.mean for name, of in matched.items()} == {
        "frequency": 0,
        "support": 3,
        "mass": 0,
        "frequency, support and mass": 3,
    }
    assert all(of.n_high.mean == scope.partition.groups["high"].sum() for of in matched.values())


def test_matched_rows_stand_in_their_own_table_alone() -> None:
    results = make_matched_results()
    plain = make_results(2, n_draws=2)
    for name, table in make_removal_tables(results).items():
        assert table.to_csv() == make_removal_tables(plain)[name].to_csv()
    assert summarise_removal(results) == summarise_removal(plain)
    table = make_matched_table(results)
    assert table is not None
    labels = [row[0].value for row in table.rows]
    assert labels == [
        "original tokens",
        *(f"without {group}-scope, matched {matching}" for matching in MATCHINGS for group in ("high", "low")),
    ]
    row = read(table, "without low-scope, matched frequency")
    runs = [r for r in results if r["variant"]["group"] == "low, matched frequency"]
    originals = [r for r in results if r["variant"]["role"] == "original"]
    assert row["n_latents"].mean == 38
    assert row["miou"].mean == pytest.approx(np.mean([r["metrics"]["segmentation"]["miou"] for r in runs]))
    differences = [
        a["metrics"]["segmentation"]["miou"] - b["metrics"]["segmentation"]["miou"]
        for a, b in zip(runs, originals, strict=True)
    ]
    assert row["miou_difference"].mean == pytest.approx(np.mean(differences))
    assert make_matched_table(plain) is None
    assert make_matched_table([]) is None


def test_matched_findings_are_no_stronger_than_their_intervals() -> None:
    results = make_matched_results(3)
    for result in results:  # in depth the groups are alike but for chance, on top-1 removing low scope costs less
        if result["variant"]["role"] == "group":
            sign = 1 if result["variant"]["group"].startswith("low") else -1
            result["metrics"]["depth"]["rmse_m"] = 1 + 0.1 * sign * (result["sae_seed"] - 1)
            result["metrics"]["classification/patch_mean"]["top1"] = 0.7 + sign * (0.1 + 0.001 * result["sae_seed"])
    *findings, brackets = make_one([make_scope_result(seed) for seed in range(3)], results)[1].findings[-5:]
    assert "95% interval over SAE seeds" in brackets
    for matching, finding in zip(MATCHINGS, findings, strict=True):
        beginning, more, alike, less = re.split("costs more than|is not told from|costs less than", finding)
        assert beginning == f"Matched in {matching} (38 features in each group), removing low-scope features "
        assert f"mIoU ({MINUS}" in more
        assert f"top-1 final CLS ({MINUS}" in more
        assert alike.startswith(f" removing high-scope ones in depth RMSE (0.000 m, {MINUS}")
        assert less.startswith(" removing high-scope ones in top-1 patch mean (+20.2 points, +19.7 to +20.7)")


def test_matched_groups_of_one_seed_are_not_judged() -> None:
    _, section = make_one([make_scope_result()], make_matched_results(1))
    (finding,) = (text for text in section.findings if "matched" in text)
    assert finding.startswith("One SAE seed does not tell scope from chance in groups matched in frequency (38 ")
    assert not any("costs" in text for text in section.findings if "removing" in text)


def test_empty_matched_groups_are_marked() -> None:
    _, section = make_one([make_scope_result()], make_matched_results(1, ("high", "low")))
    assert "∅" in section.tables["removal_matched"].to_markdown()
    assert "No high-scope feature could be matched with a low-scope one in mass." in section.findings


@pytest.mark.long
def test_it_renders(tmp_path: Path) -> None:
    _, section = make_one([make_scope_result(seed) for seed in range(2)], make_matched_results())
    files = write_report(Page("Test", sections=[section]), tmp_path)
    assert {"effects", "matching", "removal_matched"} <= files.tables.keys()
    assert "effects" in json.loads(files.summary.read_text())


def test_without_scores_it_says_so() -> None:
    scope = make_unscored_result()
    _, section = make_one([scope], [])
    assert "Too few features" in section.findings[0]
    assert section.tables["effects"].sentence


def test_groups_by_another_measure_are_told_by_their_names() -> None:
    """The same groups under other names: the same numbers, and no word of high or low scope."""
    scopes = [make_scope_result(seed) for seed in range(2)]
    results = make_matched_results(2, empty=())
    _, of_cds = make_one(scopes, results)
    divided = [
        replace(
            scope,
            by=By.extent,
            measured=scope.cds,
            partition=make_partition(scope.cds, scope.mass, PartitionConfig(By.extent, gamma=0.2)),
        )
        for scope in scopes
    ]
    renamed = json.loads(json.dumps(results).replace('"high', '"wide').replace('"low', '"narrow'))
    _, by_extent = make_one(divided, renamed)
    told = "\n".join([*of_cds.findings, *(table.to_markdown() for table in of_cds.tables.values())])
    again = "\n".join([*by_extent.findings, *(table.to_markdown() for table in by_extent.tables.values())])
    assert re.search(r"\bnarrow\b", again)
    assert not re.search(r"(high|low).scope|high minus", again)
    for word, other in (("high", "wide"), ("low", "narrow")):
        told = re.sub(rf"\b{word}[- ]scope\b", other, told)
    assert re.sub(r"\bhigh minus low\b", "wide minus narrow", told) == again
