"""The feature-removal tables: rows, means, differences, marks, and the paper's numbers only on request."""

from __future__ import annotations

import copy
import csv
import io
import math
from typing import Any

import numpy as np
import pytest

from infoscope.report.tables import Cell, Stat, Table
from infoscope.stages.probe.paper import PAPER_TITLES, PAPER_VALUES
from infoscope.stages.probe.stage import PAPER_ARCHS
from infoscope.stages.probe.tables import make_removal_tables, summarise_removal
from tests.support.report_samples import make_result, make_results


def read(table: Table, label: str, section: str = "") -> dict[str, Cell]:
    """The cells of one row by column key."""
    for block in table.sections:
        for row in block.rows:
            if row[0].value == label and block.title == section:
                return {column.key: cell for column, cell in zip(table.columns, row, strict=True)}
    raise AssertionError(f"no row {label!r} in section {section!r}")


def top1(results: list[dict[str, Any]], **wanted: Any) -> np.ndarray:
    chosen = [r for r in results if all(r["variant"][key] == value for key, value in wanted.items())]
    return np.array([r["metrics"]["classification/patch_mean"]["top1"] for r in chosen])


def test_rows_in_order() -> None:
    table = make_removal_tables(make_results())["removal"]
    groups = [
        "without high-scope",
        "random, size of high",
        "random, mass of high",
        "without low-scope",
        "random, size of low",
        "random, mass of low",
    ]
    assert [section.title for section in table.sections] == ["", "error-preserving", "reconstruct"]
    labels = [[row[0].value for row in section.rows] for section in table.sections]
    assert labels == [["original tokens"], [*groups, "all removed"], ["nothing removed", *groups, "all removed"]]


def test_means_and_spreads_are_over_seeds_and_draws() -> None:
    results = make_results(n_seeds=3, n_draws=5)
    table = make_removal_tables(results)["removal"]
    cell = read(table, "random, mass of low", "reconstruct")["top1_patch_mean"].value
    values = top1(results, role="control", control="mass", group="low", mode="reconstruct")
    assert isinstance(cell, Stat)
    assert cell.n == 15
    assert cell.mean == pytest.approx(values.mean(), abs=1e-12)
    assert cell.sd == pytest.approx(values.std(ddof=1), abs=1e-12)


def test_differences_are_within_a_run() -> None:
    results = make_results(n_seeds=3)
    table = make_removal_tables(results)["removal_delta"]
    cell = read(table, "without low-scope", "error-preserving")["top1_patch_mean_difference"].value
    group = top1(results, role="group", group="low", mode="error_preserving")
    differences = group - top1(results, role="original")
    assert isinstance(cell, Stat)
    assert cell.mean == pytest.approx(differences.mean(), abs=1e-12)
    assert cell.sd == pytest.approx(differences.std(ddof=1), abs=1e-12)
    assert "original tokens" not in [row[0].value for row in table.rows]


def test_frozen_head_is_compared_with_the_original_row() -> None:
    results = [make_result(0, "original"), make_result(0, "group", group="low")]
    results[1]["frozen_head"]["segmentation"]["miou"] = 0.1
    cell = read(make_removal_tables(results)["removal_frozen_head"], "without low-scope", "error-preserving")
    assert cell["miou_difference"].value.mean == pytest.approx(  # type: ignore[union-attr]
        0.1 - results[0]["metrics"]["segmentation"]["miou"], abs=1e-12
    )


def test_without_frozen_heads_there_is_no_such_table() -> None:
    results = make_results(1)
    for result in results:
        result["frozen_head"] = None
    assert "removal_frozen_head" not in make_removal_tables(results)


def test_no_results_no_tables() -> None:
    assert make_removal_tables([]) == {}


@pytest.mark.parametrize("reference", [None, *PAPER_VALUES])
def test_the_papers_values_stand_only_where_asked_for(reference: str | None) -> None:
    text = "".join(
        table.to_markdown() + table.to_csv() + table.to_latex()
        for table in make_removal_tables([make_result(0, "original"), make_result(0, "all")], reference).values()
    )
    for name, rows in PAPER_VALUES.items():
        figures = [f"{100 * row.top1:.1f}" for row in rows.values()] + [f"{row.rmse_m:.3f}" for row in rows.values()]
        assert all((figure in text) == (name == reference) for figure in figures)
    assert ("the paper" in text) == (reference is not None)


def test_every_model_that_is_known_as_the_papers_has_its_values() -> None:
    assert set(PAPER_ARCHS.values()) == PAPER_VALUES.keys() == PAPER_TITLES.keys()


def test_paper_differences() -> None:
    results = [make_result(0, "original"), make_result(0, "group", group="high")]
    table = make_removal_tables(results, "clip_b16")["removal_delta"]
    row = read(table, "without low-scope", "the paper, CLIP-B/16")
    assert row["miou_difference"].value == pytest.approx(0.1165 - 0.2587)
    assert row["depth_rmse_m_difference"].value == pytest.approx(0.9481 - 0.8841)


@pytest.mark.parametrize(
    ("masses", "is_said"),
    [
        ({"high": 0.47, "low": 0.52}, False),  # half and half, as close as the features allow
        ({"high": 0.45, "low": 0.549}, False),  # apart by less than a tenth of both
        ({"high": 0.44, "low": 0.56}, True),
        ({"high": 0.006, "low": 0.986}, True),
        ({"high": 0.02, "low": 0.05}, True),  # most features without a score
    ],
)
def test_groups_of_unequal_mass_are_said_to_be_so(masses: dict[str, float], is_said: bool) -> None:
    results = make_results(2, n_draws=1)
    for result in results:
        if result["variant"]["role"] == "group":
            result["variant"]["mass_share"] = masses[result["variant"]["group"]]
    told = f"differ in mass (high-scope {100 * masses['high']:.1f}%, low-scope {100 * masses['low']:.1f}%)"
    for name in ("removal", "removal_delta", "removal_frozen_head"):
        assert (told in make_removal_tables(results)[name].to_markdown()) is is_said


def test_an_empty_group_differs_in_mass_from_the_other() -> None:
    results = [make_result(0, "original"), *(make_result(0, "group", group=group) for group in ("high", "low"))]
    results[1]["variant"] |= {"n_latents": 0, "empty": True, "mass_share": 0.0}
    assert "high-scope 0.0%, low-scope 30.0%" in make_removal_tables(results)["removal"].to_markdown()


def test_an_empty_group_is_a_marked_row() -> None:
    results = make_results(1)
    for result in results:
        if result["variant"]["group"] == "high":
            result["variant"] |= {"n_latents": 0, "empty": result["variant"]["role"] == "group"}
    table = make_removal_tables(results)["removal"]
    for label in ("without high-scope", "random, size of high"):
        row = read(table, label, "error-preserving")
        assert row["variant"].mark == "∅"
        assert row["n_latents"].value == 0
        assert row["miou"].is_missing
    assert "∅ the group is empty" in table.to_markdown()


def test_a_group_empty_in_one_run_is_left_out_of_the_mean() -> None:
    results = make_results(2)
    for result in results:
        if result["variant"]["role"] == "group" and result["sae_seed"] == 1:
            result["variant"]["empty"] = True
    row = read(make_removal_tables(results)["removal"], "without low-scope", "reconstruct")
    assert row["variant"].mark == "∅"
    assert row["miou"].value.n == 1  # type: ignore[union-attr]


def test_a_rate_at_the_edge_is_flagged_where_it_was_chosen() -> None:
    results = make_results(2)
    results[1]["lr"]["depth"]["at_edge"] = True  # nothing removed, reconstruct
    tables = make_removal_tables(results)
    row = read(tables["removal"], "nothing removed", "reconstruct")
    assert (row["depth_rmse_m"].mark, row["miou"].mark) == ("†", "")
    assert "† the best learning rate" in tables["removal"].to_markdown()
    assert "†" not in tables["removal_frozen_head"].to_markdown()


def test_a_head_that_did_not_converge_is_flagged() -> None:
    results = make_results(2)
    results[1]["lr"]["classification/cls_final"] |= {"at_edge": True, "refit_converged": False}
    results[2]["lr"]["classification/cls_final"]["refit_converged"] = True
    table = make_removal_tables(results)["removal"]
    marks = [cell.mark for cell in read(table, "nothing removed", "reconstruct").values()]
    assert "†§" in marks
    assert sum("§" in cell.mark for row in table.rows for cell in row) == 1
    assert "§ L-BFGS had not converged" in table.to_markdown()


def test_missing_tasks_have_no_column_and_missing_values_a_dash() -> None:
    results = copy.deepcopy(make_results(2))
    for result in results:
        del result["metrics"]["depth"], result["metrics"]["classification/cls_final"]
        result["lr"] = {}
    results[0]["metrics"]["segmentation"]["miou"] = math.nan
    table = make_removal_tables(results)["removal"]
    assert [column.key for column in table.columns[-2:]] == ["top1_patch_mean", "miou"]
    assert read(table, "original tokens")["miou"].marks == "°"
    results[0]["metrics"]["segmentation"] = {"miou": None}
    for result in results:
        if result["variant"]["role"] == "all":
            result["metrics"]["segmentation"] = {}
    assert read(make_removal_tables(results)["removal"], "all removed", "reconstruct")["miou"].is_missing


def test_bands_have_rows_of_their_own() -> None:
    results = [make_result(0, "original")]
    for band in ("band 1 of 2", "band 2 of 2"):
        result = make_result(0, "group", group="low")
        result["variant"]["group"] = band
        results.append(result)
    table = make_removal_tables(results)["removal"]
    bands = ["without band 1 of 2 (lowest CDS)", "without band 2 of 2 (highest CDS)"]
    assert [row[0].value for row in table.rows] == ["original tokens", *bands]


def test_overlap_is_printed_for_controls_only() -> None:
    table = make_removal_tables(make_results(1))["removal"]
    assert read(table, "random, size of low", "reconstruct")["overlap"].value.mean == pytest.approx(0.31)  # type: ignore[union-attr]
    assert read(table, "without low-scope", "reconstruct")["overlap"].value is None
    assert read(table, "original tokens")["n_latents"].value is None


def test_summary_is_the_table() -> None:
    results = make_results(3)
    rows = summarise_removal(results)
    low = next(r for r in rows if r["group"] == "low" and r["role"] == "group" and r["mode"] == "error_preserving")
    table = list(csv.DictReader(io.StringIO(make_removal_tables(results)["removal"].to_csv())))
    line = next(r for r in table if r["variant"] == "without low-scope" and r["section"] == "error-preserving")
    assert low["miou"] == float(line["miou"])
    assert low["depth_rmse_m_sd"] == float(line["depth_rmse_m_sd"])
