"""The section on what goes with scope: its numbers and sentences follow the latents, and it always renders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.analyses.config import CrossConfig
from infoscope.analyses.cross import Quantities, compute_cross
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import MINUS, Table
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.stages.cross.figures import N_DRAWN, draw_bands, pick_drawn
from infoscope.stages.cross.quantities import join_crossed, list_quantities
from infoscope.stages.cross.section import make_cross_section

CONFIG = CrossConfig(n_draws=50, n_permutations=999)


def make_table(seed: int = 0, n: int = 240, **more: np.ndarray) -> LatentTable:
    """Monosemantic features are local, whatever their rate; peaks go with scope through it alone; labels do not."""
    rng = np.random.default_rng(seed)
    z, beyond = rng.normal(size=(2, n))
    cds = 1 / (1 + np.exp(z - beyond + 2))
    cds[:6] = np.nan
    group = np.select([np.isnan(cds), cds > np.nanmedian(cds)], ["unscored", "high"], "low")
    table = LatentTable(seed)
    rate = np.exp(z - 4)
    table.add("rank", [LatentColumn("firing_rate", rate, "firing frequency", "share of patch tokens")])
    score = [LatentColumn("cds", cds, "CDS over 4 ranks", "share"), LatentColumn("group", group, "group")]
    table.add("score", [*score, LatentColumn("one_sided", rng.random(n), "one-sided zeros", "share")])
    peak = np.exp(z + 0.1 * rng.normal(size=n))
    peak[-20:] = np.nan
    values: dict[str, tuple[np.ndarray, str, str]] = {
        "peak": (peak, "peak activation", "SAE units"),
        "peak_again": (2 * peak * (1 + 1e-7), "twice the same", "SAE units"),
        "ms": (0.3 * rng.normal(size=n) - beyond, "monosemanticity: how alike its images are", "1"),
        "label_entropy_excess": (rng.random(n), "label entropy beyond chance", "nats"),
        "is_large": (cds > 0.2, "large", ""),
        "nothing": (np.full(n, np.nan), "nothing", "1"),
        "level": (np.repeat([0, 1], [n // 4, n - n // 4]), "Matryoshka level", "1"),
        "words": (np.full(n, "a"), "words", ""),
        "n_read": (np.arange(n) % 7, "images from which another is read", "images"),
        **{name: (of, name, "1") for name, of in more.items()},
    }
    table.add("describe", [LatentColumn(name, *of) for name, of in values.items()])
    return table


def cross(
    tables: Sequence[LatentTable], groups: Sequence[str] = ("high", "low"), config: CrossConfig = CONFIG
) -> ReportSection:
    names = [column.name for column in list_quantities(tables)]
    seeds = [
        Quantities(of["cds"], of["firing_rate"], np.stack([np.float64(of[name]) for name in names], axis=1))
        for of in tables
    ]
    return make_cross_section(compute_cross(names, seeds, config), tables, groups, config)


def without(table: LatentTable, *names: str) -> LatentTable:
    return LatentTable(table.seed, [column for column in table if column.name not in names])


def read(table: Table, label: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row[0].value == label)
    return {column.key: cell for column, cell in zip(table.columns, row, strict=True)}


def test_numbers_and_switches_are_quantities_once_and_the_score_is_none() -> None:
    tables = [make_table(0, more=np.arange(240)), make_table(1)]
    names = [column.name for column in list_quantities(tables)]
    assert names == ["firing_rate", "peak", "ms", "label_entropy_excess", "is_large", "level"]
    turned = make_table(0, turned=-tables[0]["peak"], moved=tables[0]["peak"] + 1, zero=np.zeros(240))
    assert [column.name for column in list_quantities([turned])] == [*names, "turned", "moved", "zero"]


def test_rows_are_means_over_seeds() -> None:
    tables = [make_table(seed) for seed in range(2)]
    section = cross(tables)
    shown, bands = section.tables["cross"], section.tables["cross_bands"]
    assert [row[0].value for row in bands.rows] == ["cds", *(row[0].value for row in shown.rows)]
    assert [row[0].value for row in shown.rows] == [
        "firing_rate",
        "peak",
        "ms",
        "label_entropy_excess",
        "is_large",
        "level",
    ]
    row = read(shown, "ms")
    rhos = [compute_spearman(of["ms"], of["cds"])[0] for of in tables]
    assert row["rho"].value.mean == pytest.approx(np.mean(rhos))
    assert row["rho"].value.sd == pytest.approx(np.std(rhos, ddof=1))
    assert row["rho_low"].value < row["rho"].value.mean < row["rho_high"].value < 0
    assert row["n_latents"].value.mean == 234
    lowest = [of["ms"][of["cds"] <= np.nanquantile(of["cds"], 0.2)].mean() for of in tables]
    assert read(bands, "ms")["band_1"].value == pytest.approx(np.mean(lowest))
    assert read(shown, "peak")["n_lacking"].value.mean == 20
    assert read(bands, "is_large")["band_5"].value == 1
    assert read(bands, "cds")["band_1"].value == pytest.approx(
        np.mean([np.median(of["cds"][of["cds"] <= np.nanquantile(of["cds"], 0.2)]) for of in tables])
    )
    rate, peak, ms = (read(bands, name) for name in ("firing_rate", "peak", "ms"))
    assert abs(rate["matched_difference"].value.mean) < 0.03 * abs(rate["band_5"].value - rate["band_1"].value)
    assert abs(peak["matched_difference"].value.mean) < 0.1 * abs(peak["band_5"].value - peak["band_1"].value)
    assert ms["matched_difference"].value.mean < -1
    assert ms["matched_difference"].value.mean == pytest.approx(ms["matched_5"].value - ms["matched_1"].value)


def test_what_is_told_at_like_frequency_is_marked_and_the_rate_itself_is_not_asked() -> None:
    section = cross([make_table(seed) for seed in range(2)])
    shown = section.tables["cross"]
    marks = {row[0].value: row[6].mark for row in shown.rows}
    assert {name for name, mark in marks.items() if mark} == {"ms", "is_large"}
    assert read(shown, "firing_rate")["within"].value is None
    assert shown.to_csv() != ""
    assert "for 5 quantities" in shown.notes[1]
    summary = section.summary["quantities"]
    assert summary["ms"]["p_corrected"] == pytest.approx(5 / 1000)
    assert summary["peak"]["p_corrected"] > 0.05


def test_findings_follow_the_numbers() -> None:
    section = cross([make_table(seed) for seed in range(2)])
    beyond, through, monosemantic, entropy, *levels = section.findings
    assert beyond.startswith(
        "At like firing frequency, after correction for 5 quantities, features of higher scope have more of: "
    )
    assert f"less of: monosemanticity ({MINUS}0." in beyond
    assert beyond.endswith("3 of 5 cannot be told from chance.")
    assert "peak activation" not in beyond
    assert through.startswith("These go with scope over all features")
    assert f"peak activation ({MINUS}" in through
    assert "how alike" not in beyond
    assert monosemantic.startswith(f"Monosemanticity: Spearman {MINUS}0.")
    assert monosemantic.endswith("features of higher scope have less of it.")
    assert entropy.startswith("Label entropy")
    assert entropy.endswith("not told from chance.")
    assert len(levels) == 2


def test_columns_that_are_not_there_have_no_sentence_and_no_levels_no_table() -> None:
    section = cross([without(make_table(), "ms", "label_entropy_excess", "level")])
    assert section.tables.keys() == {"cross", "cross_bands"}
    assert "levels" not in section.summary
    text = " ".join(section.findings)
    assert "Monosemanticity" not in text
    assert "ntropy" not in text
    assert "level" not in text


def test_permutations_that_can_tell_nothing_are_said_to() -> None:
    section = cross([make_table()], config=replace(CONFIG, n_permutations=99))
    assert section.findings[0] == (
        "99 permutations cannot tell any of 5 quantities from chance: raise cross.n_permutations."
    )


def test_levels_have_their_mean_score_and_shares_of_the_groups() -> None:
    tables = [make_table(seed) for seed in range(2)]
    section = cross(tables)
    shown = section.tables["levels"]
    assert [column.key for column in shown.columns[4:]] == ["high", "low", "unscored"]
    first, second = shown.rows
    assert [cell.value for cell in first[:2]] == [0, 60]
    assert [cell.value for cell in second[:2]] == [1, 180]
    assert first[2].number == 54
    assert first[3].number == pytest.approx(np.mean([np.nanmean(of["cds"][:60]) for of in tables]))
    assert first[4].number == pytest.approx(np.mean([(of["group"][:60] == "high").mean() for of in tables]))
    assert first[6].number == pytest.approx(0.1)
    mean = format(np.mean([np.nanmean(of["cds"][:60]) for of in tables]), ".3f")
    assert section.findings[-2].startswith(f"Mean CDS by Matryoshka level, from the first features on: {mean}, ")


def test_the_figure_has_no_more_panels_than_it_may() -> None:
    rng = np.random.default_rng(0)
    table = make_table(0, 240, **{f"noise_{i}": rng.random(240) for i in range(15)})
    names = [column.name for column in list_quantities([table])]
    values = np.stack([np.float64(table[name]) for name in names], axis=1)
    found = compute_cross(names, [Quantities(table["cds"], table["firing_rate"], values)], CONFIG)
    drawn = pick_drawn(join_crossed(found, table))
    assert len(drawn) == N_DRAWN
    assert [of.column.name for of in drawn[:2]] == ["firing_rate", "ms"]
    assert not {"level", "is_large"} & {of.column.name for of in drawn}
    titles = [axes.get_title() for axes in draw_bands(drawn, found.band_cds, found.matched_cds).axes]
    assert titles[0].startswith("firing frequency (share of patch\ntokens)\nrho ")
    assert titles[1].endswith("*")


@pytest.mark.long
def test_it_renders(tmp_path: Path) -> None:
    files = write_report(Page("Test", sections=[cross([make_table(seed) for seed in range(2)])]), tmp_path)
    assert {"cross", "cross_bands", "levels"} <= files.tables.keys()
    assert "cross" in json.loads(files.summary.read_text())


def test_without_scores_it_says_so() -> None:
    nothing = np.full(240, np.nan)
    section = cross(
        [LatentTable(0, [replace(one, values=nothing) if one.name == "cds" else one for one in make_table()])]
    )
    assert section.findings[0].startswith("Too few features have a CDS")
    assert section.tables["cross"].sentence
    assert section.tables["levels"].rows[0][2].number == 0
    figure = section.figures["cross"].draw()
    assert [text.get_text() for text in figure.axes[0].texts] == ["No quantity has a correlation with the CDS."]
