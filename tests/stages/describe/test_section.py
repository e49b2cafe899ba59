"""The section on what features are: its numbers are those of the features, and it says what the data cannot give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.analyses.config import DescribeConfig
from infoscope.analyses.description import Description
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import Stat, Table
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.config import PartitionConfig, Rule
from infoscope.stages.describe.numbers import MEASURES, Found, count_class_latents
from infoscope.stages.describe.section import make_describe_section
from infoscope.stages.score.result import ScopeResult
from tests.support.report_samples import make_examples, make_scope_result, make_unscored_result

N_CLASSES, N_FEW = 6, 7
CHANCE = {"ms": 0.25, "clarity": 0.25, "top_overlap": 0.01}
PERMUTED = ["label_entropy", "label_entropy_all", "label_entropy_share", "top_class_share", "tree_depth"]
LABELS = (
    *("label_entropy", "label_entropy_all", "label_entropy_share", "top_class", "top_class_share", "n_classes_held"),
    *("class_latents", "class_names", "class_images", "tree_depth"),
)


def make_description(scope: ScopeResult, n_classes: int = N_CLASSES) -> Description:
    """Features of high scope are more alike; the first N_FEW fire in few images; the last class has no images."""
    rng = np.random.default_rng(scope.sae_seed)
    n = len(scope.cds)
    few = np.arange(n) < N_FEW

    def draw(low: float, high: float) -> np.ndarray:
        return np.where(few, np.nan, rng.uniform(low, high, n))

    class_latents = np.stack([rng.permutation(np.arange(min(N_FEW, n - 4), n))[:4] for _ in range(n_classes)])
    class_latents[:, 0] = n - 1  # every class has it
    class_latents[2, 3] = class_latents[-1] = -1
    return Description(
        n_images=500,
        n_label_images=10,
        strong_above=0.2,
        n_firing=np.where(few, 4, 100),
        mean_firing=np.where(np.arange(n) < 3, np.nan, rng.uniform(1, 2, n)),
        strong_rate=rng.uniform(0, 0.1, n),
        ms=draw(0.3, 0.4) + 0.1 * scope.partition.groups.get("high", few),
        clarity=draw(0.3, 0.8),
        top_overlap=draw(0.01, 0.05),
        top_images=np.zeros((n, 2), dtype=np.int64),
        overlap_shares=np.linspace(0.2, 0.0, 10),
        chance=CHANCE,
        label_entropy=draw(0.5, 2),
        label_entropy_all=draw(1, 2),
        label_entropy_share=draw(0.5, 1),
        top_class=rng.integers(0, n_classes, n),
        top_class_share=draw(0, 1),
        n_classes_held=np.bincount(class_latents[class_latents >= 0], minlength=n),
        class_latents=class_latents,
        class_names=[f"class {number}" for number in range(n_classes)],
        class_images=[*[20] * (n_classes - 1), 0],
        tree_depth=draw(0, 2),
        permuted=PERMUTED,
        by_permuted=np.stack([[draw(0, 2) for _ in range(3)] for _ in PERMUTED]),
    )


def make_found(scope: ScopeResult, *without: str, n_classes: int = N_CLASSES, level: bool = False) -> Found:
    said = replace(make_description(scope, n_classes), **dict.fromkeys(without))
    columns = {"cds": scope.cds, **{name: getattr(said, name) for name in MEASURES}}
    if level:
        columns["level"] = np.arange(len(scope.cds)) // 100
    known = (LatentColumn(name, of, name) for name, of in columns.items() if of is not None)
    return Found(said, scope, LatentTable(scope.sae_seed, known))


def make_section(*found: Found, others: str = "") -> ReportSection:
    return make_describe_section(found, DescribeConfig(n_class_latents=4), "judge", others)


def read(table: Table, label: str) -> dict[str, Any]:
    row = next(row for row in table.rows if row[0].value == label)
    return {column.key: cell.value for column, cell in zip(table.columns, row, strict=True)}


def test_it_is_said_where_all_that_fires_is_strong() -> None:
    found = make_found(make_scope_result(0))
    typical = f"of the median feature, where it fires, is {np.nanmedian(found.description.mean_firing):.3g} SAE units."
    for share, words in (
        (0.99, "99% of these SAEs' activations are"),
        (0.5, ""),
        (0, "None of these SAEs' activations"),
    ):
        strong = replace(found.description, strong_rate=share * found.scope.firing_rate)
        (note,) = [
            one for one in make_section(found._replace(description=strong)).tables["describe"].notes if "Strong" in one
        ]
        assert words in note
        assert (typical in note) == bool(words)


def test_it_is_said_where_no_class_has_a_latent() -> None:
    found = make_found(make_scope_result(0))
    of, held = found.description.class_latents, found.description.n_classes_held
    assert of is not None
    assert held is not None
    none = replace(found.description, class_latents=np.full_like(of, -1), n_classes_held=np.zeros_like(held))
    text = " ".join(make_section(found._replace(description=none)).findings)
    assert "Classes have no latents: no activation is above describe.strong_above=0.2" in text


def test_of_classes_with_one_image_each_nothing_is_told() -> None:
    found = make_found(make_scope_result(0))
    alone = found._replace(description=replace(found.description, class_images=[1] * N_CLASSES))
    for one, is_told in ((found, True), (alone, False)):
        text = " ".join(make_section(one).findings)
        assert ("The further it is below that with permuted labels" in text) == is_told
        assert ("No class has two training images" in text) != is_told


def test_medians_are_those_of_the_groups() -> None:
    seeds = [make_found(make_scope_result(seed)) for seed in range(2)]
    section = make_section(*seeds)
    row = read(section.tables["describe"], MEASURES["ms"].name)
    for group in ("high", "low"):
        expected = [np.nanmedian(found.table["ms"][found.scope.partition.groups[group]]) for found in seeds]
        assert row[group].mean == pytest.approx(np.mean(expected))
        assert row[group].sd == pytest.approx(np.std(expected, ddof=1))
    assert row["all"].mean == pytest.approx(np.mean([np.nanmedian(found.table["ms"]) for found in seeds]))
    assert row["at_random"] == CHANCE["ms"]
    assert row["n_without"].mean == N_FEW
    assert read(section.tables["describe"], MEASURES["mean_firing"].name)["n_without"].mean == 3
    assert read(section.tables["describe"], "number")["all"].mean == 200
    assert read(section.tables["describe"], "that fire in fewer than 10 images")["all"].mean == N_FEW
    assert section.summary["medians"]["ms"]["high"] == row["high"]
    said = f"Monosemanticity, median: high-scope features {row['high'].mean:.3f}, low-scope features"
    assert section.findings[0].startswith(said)
    assert "judge=dinov2_s14" not in section.findings[0]


def test_a_group_is_held_against_its_own_latents_with_the_labels_permuted() -> None:
    seeds = [make_found(make_scope_result(seed)) for seed in range(2)]
    section = make_section(*seeds)
    table = section.tables["describe"]
    assert read(table, MEASURES["label_entropy"].name)["at_random"] is None
    for measure in PERMUTED:
        row = read(table, f"{MEASURES[measure].name}, labels permuted")
        for group in ("high", "low"):
            by_seed = []
            for found in seeds:
                by_chance = found.description.by_chance(measure)
                assert by_chance is not None
                by_seed.append(np.nanmedian(by_chance[:, found.scope.partition.groups[group]], axis=1).mean())
            assert row[group].mean == pytest.approx(np.mean(by_seed))
            assert section.summary["labels_permuted"][measure][group] == row[group]
    own, chance = (read(table, MEASURES["label_entropy"].name + end)["high"].mean for end in ("", ", labels permuted"))
    assert f"high-scope features {own:.2f} (labels permuted {chance:.2f})" in section.findings[1]
    assert "images at random" not in section.findings[1]


def test_class_latents_are_held_against_what_is_expected() -> None:
    found = make_found(make_scope_result())
    high, scored = found.scope.partition.groups["high"], ~found.scope.partition.unscored
    said, counts = found.description, count_class_latents(found, "high")
    assert said.class_latents is not None
    assert counts.n.tolist() == [4, 4, 3, 4, 4, 0]
    for number, of in enumerate(said.class_latents[:-1]):
        of = of[of >= 0]
        assert counts.share[number] == pytest.approx(high[of[scored[of]]].mean())
    assert np.isnan(counts.share[-1])
    assert counts.n_everywhere == 1
    assert counts.by_patches == pytest.approx(np.average(high[scored], weights=said.strong_rate[scored]))
    section = make_section(found)
    table = section.tables["class_latents"]
    assert read(table, "class 2")["n_latents"].mean == 3
    assert read(table, "latents drawn by patches")["share"].mean == counts.by_patches
    assert any("Classes without training images: 1" in note for note in table.notes)
    assert "of the 5 classes" in section.findings[2]
    assert "1 of which every class has" in section.findings[2]


def test_of_many_classes_the_ends_are_shown() -> None:
    table = make_section(make_found(make_scope_result(), n_classes=50)).tables["class_latents"]
    shares = [row[3].number for row in table.sections[0].rows]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)


def test_of_many_classes_the_few_with_shares_are_shown_once() -> None:
    found = make_found(make_scope_result(), n_classes=50)
    class_latents = np.array(found.description.class_latents)
    class_latents[7:] = -1
    one = found._replace(description=replace(found.description, class_latents=class_latents))
    table = make_section(one).tables["class_latents"]
    names = [row[0].value for row in table.sections[0].rows]
    assert len(names) == 7
    assert set(names) == {f"class {number}" for number in range(7)}


def test_levels_have_a_table_where_the_sae_has_levels() -> None:
    found = make_found(make_scope_result(), level=True)
    table = make_section(found).tables["describe_levels"]
    assert [row[0].value for row in table.rows] == [0, 1]
    depth = next(i for i, column in enumerate(table.columns) if column.key == "tree_depth")
    assert found.description.tree_depth is not None
    assert table.rows[1][depth].number == pytest.approx(found.description.tree_depth[100:].mean())
    chance = next(i for i, column in enumerate(table.columns) if column.key == "label_entropy_permuted")
    by_chance = found.description.by_chance("label_entropy")
    assert by_chance is not None
    assert table.rows[1][chance].number == pytest.approx(by_chance[:, 100:].mean())
    assert "describe_levels" not in make_section(make_found(make_scope_result())).tables


def test_what_the_data_cannot_give_is_said() -> None:
    section = make_section(make_found(make_scope_result(), *LABELS), others="judge=clip_b16")
    assert section.tables.keys() == {"describe"}
    assert "The data know no classes" in section.findings[1]
    assert "another one (judge=clip_b16) judges from outside" in section.findings[0]
    assert "label" not in section.tables["describe"].to_markdown()
    flat = make_section(make_found(make_scope_result(), "tree_depth"))
    assert any("describe.tree=FILE" in finding for finding in flat.findings)


@pytest.mark.parametrize(
    "scope", [make_unscored_result(), make_scope_result(config=PartitionConfig(rule=Rule.bands, n_bands=4))]
)
def test_a_report_renders_whatever_is_missing(scope: ScopeResult, tmp_path: Path) -> None:
    found = make_found(scope)
    nothing = replace(found.description, n_firing=np.zeros_like(found.description.n_firing))
    for folder, one in (("some", found), ("none", found._replace(description=nothing))):
        section = make_section(one)
        made = write_report(Page("Title", {}, sections=[section]), tmp_path / folder)
        summary = json.loads(made.summary.read_text())["describe"]
        assert summary["medians"].keys() == MEASURES.keys()
        assert "nan" not in " ".join(section.findings)
    assert section.findings[0].startswith("No feature fires in at least 10 of the 500 training images")


def test_examples_have_a_figure() -> None:
    found = [make_found(make_scope_result())]
    section = make_describe_section(found, DescribeConfig(), "judge", "", make_examples())
    assert section.figures.keys() == {"monosemantic"}
    assert len(section.figures["monosemantic"].draw().axes) > len(make_examples())
    assert not make_section(*found).figures


def test_bands_are_columns() -> None:
    scope = make_scope_result(config=PartitionConfig(rule=Rule.bands, n_bands=4))
    section = make_section(make_found(scope))
    keys = [column.key for column in section.tables["describe"].columns]
    assert keys[1:7] == [*(f"band_{number}_of_4" for number in range(1, 5)), "unscored", "all"]
    assert section.findings[0].startswith("Monosemanticity, median: band 4 of 4 (highest CDS) features ")
    assert isinstance(read(section.tables["describe"], MEASURES["clarity"].name)["band_1_of_4"], Stat)
