"""The section on outlier tokens: its tables, what it says of directions, and a model without outliers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.report.figure_style import save_figure
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import Cell, Stat, Table
from infoscope.scope.config import ScopeConfig
from infoscope.scope.group_activation import Acts, GroupActivation
from infoscope.scope.outliers import compute_norm_summary
from infoscope.scope.scoring import compute_scores
from infoscope.scope.token_outliers import MAPS, OutlierDistances, TokenOutliers, make_token_maps
from infoscope.stages.outliers.section import make_outlier_section

GRID, SHIFT, N_IMAGES = 6, 1, 24


def make_tokens(leaps: bool = True, has_outliers: bool = True, noise: float = 0.02) -> TokenOutliers:
    """Each image: ground that stays but for noise, and one token of norm 50 that stays too, or leaps to any place."""
    rng = np.random.default_rng(0)
    whole = rng.normal(10, 0.5, (N_IMAGES, GRID + SHIFT, GRID + SHIFT)).astype(np.float32)
    crops = np.stack([whole[:, :GRID, :GRID], whole[:, SHIFT:, SHIFT:]], axis=1)
    crops += rng.normal(0, noise, crops.shape)
    for image in range(N_IMAGES if has_outliers else 0):
        row, column = rng.integers(1, GRID, 2)
        crops[image, 0, row, column] = 50
        row, column = rng.integers(0, GRID - 1, 2) if leaps else (row - SHIFT, column - SHIFT)
        crops[image, 1, row, column] = 50
    norms = compute_norm_summary(crops[:, 0])
    maps = make_token_maps(crops, norms.threshold, SHIFT)
    scores = compute_scores(maps, np.ones(maps.shape[:2], dtype=bool), ScopeConfig(n_workers=1))
    distances = OutlierDistances(np.arange(N_IMAGES), crops, scores.emd, scores.chance_emd)
    n_with = N_IMAGES if has_outliers else 0
    pictures = rng.integers(0, 256, (min(4, n_with), 28, 28, 3), dtype=np.uint8)
    early = compute_norm_summary(whole)
    return TokenOutliers(
        "median + 6 x 1.4826 x MAD", 1, SHIFT, norms, N_IMAGES, n_with, distances, pictures, (early, norms, norms)
    )


def make_activation(
    high: tuple[float, float], low: tuple[float, float], n_high: int = 5, n_outlier: int = 24
) -> GroupActivation:
    everyone = Acts(n_high + 40, high[0] + low[0], high[1] + low[1])
    return GroupActivation({"high": Acts(n_high, *high), "low": Acts(40, *low)}, everyone, n_outlier, 840)


PAPER_LIKE = {0: make_activation((80.0, 2.0), (10.0, 30.0)), 1: make_activation((60.0, 3.0), (8.0, 32.0))}


def read(table: Table, label: str, section: int = 0) -> dict[str, Cell]:
    for row in table.sections[section].rows:
        if row[0].value == label:
            return {column.key: cell for column, cell in zip(table.columns, row, strict=True)}
    raise AssertionError(f"no row {label!r}")


def value(cell: Cell) -> Any:
    return cell.value.mean if isinstance(cell.value, Stat) else cell.value


def test_emd_table_has_a_row_per_map_and_the_paired_differences() -> None:
    tokens = make_tokens()
    table = make_outlier_section(tokens, {}).tables["outlier_emd"]
    rows = [read(table, label) for label in (row[0].value for row in table.sections[0].rows)]  # type: ignore[arg-type]
    for number, row in enumerate(rows):
        emd = tokens.distances.emd[number]
        assert row["emd"].value == pytest.approx(emd.mean())
        assert row["emd_se"].value == pytest.approx(emd.std(ddof=1) / math.sqrt(N_IMAGES))
        assert row["chance"].value == pytest.approx(tokens.distances.chance_emd[number].mean())
        assert row["n_pairs"].value == N_IMAGES
    paired = tokens.distances.emd[0] - tokens.distances.emd[MAPS.index("normal")]
    row = read(table, "all normal tokens", section=1)
    assert row["emd"].value == pytest.approx(paired.mean())
    assert row["emd_se"].value == pytest.approx(paired.std(ddof=1) / math.sqrt(N_IMAGES))
    assert "0.250" in " ".join(table.notes)  # locked to the grid: 1 / (6 - 1 - 1)


def test_activation_table_is_means_over_seeds_and_of_their_ratios() -> None:
    table = make_outlier_section(make_tokens(), PAPER_LIKE).tables["outlier_activation"]
    high, everyone = read(table, "high-scope"), read(table, "all features", section=1)
    assert value(high["on_outlier"]) == pytest.approx(70)
    assert value(high["on_normal"]) == pytest.approx(2.5)
    assert value(high["ratio"]) == pytest.approx((40 + 20) / 2)
    assert value(high["share_on_outlier"]) == pytest.approx((80 / 90 + 60 / 68) / 2)
    assert value(everyone["ratio"]) == pytest.approx((90 / 32 + 68 / 35) / 2)
    assert high["group"].mark == ""


def test_findings_follow_the_numbers() -> None:
    leaping = make_outlier_section(make_tokens(leaps=True), PAPER_LIKE).findings
    assert "farther than all normal tokens" in leaping[0]
    assert "and farther than as many next-highest normal tokens" in leaping[0]
    assert "they form a mode of their own" in leaping[1]
    assert "in both SAE seeds the paper's direction" in leaping[2]
    assert "(ratio 30.00)" in leaping[2]
    assert "after blocks 1, 2 of 0..2" in leaping[3]

    noisy = make_outlier_section(make_tokens(leaps=True, noise=2), {}).findings
    assert "not clearly farther or less far than as many next-highest" in noisy[0]

    tokens = make_tokens(leaps=False, noise=2)
    staying = make_outlier_section(tokens, {0: make_activation((3.0, 2.0), (20.0, 15.0))}).findings
    assert "moves by 0.000 diagonals" in staying[0]
    assert "less far than as many next-highest" in staying[0]
    assert ": not the paper's direction" in staying[2]

    mixed = {0: PAPER_LIKE[0], 1: make_activation((1.0, 2.0), (10.0, 15.0))}
    assert "in 1 of 2 SAE seeds alone" in make_outlier_section(make_tokens(), mixed).findings[2]


def test_a_group_that_is_silent_on_normal_tokens_still_has_a_direction() -> None:
    section = make_outlier_section(make_tokens(), {0: make_activation((20.0, 0.0), (0.0, 2.0))})
    assert "high-scope features 20.00 against 0.00, low-scope" in section.findings[2]
    assert ": the paper's direction" in section.findings[2]
    assert section.summary["activation"][0]["groups"]["high"]["ratio"] is math.nan


def test_an_empty_group_is_a_marked_row() -> None:
    groups = {0: make_activation((0.0, 0.0), (10.0, 30.0), n_high=0), 1: PAPER_LIKE[1]}
    section = make_outlier_section(make_tokens(), groups)
    row = read(section.tables["outlier_activation"], "high-scope")
    assert row["group"].mark == "∅"
    assert value(row["on_outlier"]) == 60  # of the other seed alone
    alone = make_outlier_section(make_tokens(), {0: groups[0]})
    assert "not known" in alone.findings[2]
    assert read(alone.tables["outlier_activation"], "high-scope")["on_outlier"].is_missing


def test_bands_are_told_by_their_ends() -> None:
    measured = make_activation((5.0, 10.0), (9.0, 3.0))
    bands = measured._replace(groups={"band 1 of 2": measured.groups["high"], "band 2 of 2": measured.groups["low"]})
    finding = make_outlier_section(make_tokens(), {0: bands}).findings[2]
    assert finding.index("(highest CDS) features 9.00 against 3.00") < finding.index("(lowest CDS) features 5.00")
    assert ": the paper's direction" in finding


def make_without_outliers() -> ReportSection:
    nan = math.nan
    return make_outlier_section(
        make_tokens(has_outliers=False), {0: make_activation((nan, 2.0), (nan, 30.0), n_outlier=0)}
    )


def test_no_outliers_at_all_is_one_sentence_instead_of_a_table() -> None:
    section = make_without_outliers()
    assert section.findings[0].startswith("None of the 864 patch tokens")
    assert section.findings[1] == "After none of the 3 blocks do outliers form a mode of their own."
    assert len(section.findings) == 2
    row = read(section.tables["outlier_emd"], "outlier tokens")
    assert row["emd"].is_missing
    assert row["n_pairs"].value == 0
    assert value(read(section.tables["outlier_emd"], "all normal tokens")["emd"]) > 0
    for table in section.tables.values():  # people read a sentence, programs the rows
        title, _, sentence = table.to_markdown().splitlines()
        assert title == f"**{table.title}**"
        assert sentence == "No token is an outlier."
        assert len(table.records()) == len(table.rows) > 2
    assert list(section.figures) == ["norms_by_layer"]
    found = section.summary["emd"]["outlier"]
    assert math.isnan(found["mean"])
    assert found["n_images"] == 0
    assert not section.summary["has_outlier_mode"]


@pytest.mark.parametrize("has_outliers", [True, False])
@pytest.mark.long
def test_the_section_is_a_part_of_a_report(has_outliers: bool, tmp_path: Path) -> None:
    section = make_outlier_section(make_tokens(), PAPER_LIKE) if has_outliers else make_without_outliers()
    files = write_report(Page("Made up", sections=[section]), tmp_path)
    assert {"outlier_emd", "outlier_activation"} <= files.tables.keys()
    page = files.page.read_text()
    assert "## Outlier tokens" in page
    assert all(finding in page for finding in section.findings)
    assert json.loads(files.summary.read_text())["outliers"]["n_outliers"] == (24 if has_outliers else 0)
    assert ("outlier_maps" in files.figures) == has_outliers


@pytest.mark.long
def test_figures_of_a_single_image_and_of_many_blocks_are_drawn(tmp_path: Path) -> None:
    tokens = make_tokens()
    distances = OutlierDistances(
        tokens.distances.image_index[:1],
        tokens.distances.crop_norms[:1],
        tokens.distances.emd[:, :1],
        np.full((len(MAPS), 1), np.nan),
    )
    changed = {"distances": distances, "pictures": tokens.pictures[:1], "by_layer": tokens.by_layer * 8}
    section = make_outlier_section(TokenOutliers(**{**vars(tokens), **changed}), {})
    assert "too few images" in section.findings[0]
    for name, figure in section.figures.items():
        [path] = save_figure(figure.draw, name, tmp_path)
        assert path.stat().st_size > 5000
