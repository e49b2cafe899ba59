"""The whole report: scope table, figures, page and summary, for ordinary and for degenerate inputs."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from infoscope.report.example_figure import draw_examples, lay_heat
from infoscope.report.figure_style import make_figure, save_figure
from infoscope.report.figures import draw_token_norms
from infoscope.report.inputs import Example, ReportInputs
from infoscope.report.report import NO_PROBES, print_report, write_report
from infoscope.report.scope_table import (
    compute_mass_share,
    compute_zero_shares,
    make_scope_table,
    summarise_scope,
)
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import MISSING, Column, Table
from infoscope.runtime.errors import InputError
from infoscope.scope.config import PartitionConfig, Rule
from tests.support.report_samples import (
    SHIFT,
    make_examples,
    make_results,
    make_scope_result,
    make_token_stats,
    make_unscored_result,
)

BANDS = PartitionConfig(rule=Rule.bands, n_bands=3)
INPUTS = {
    "full": ReportInputs(
        "Full",
        [make_scope_result(0), make_scope_result(1)],
        make_results(2, 2),
        make_examples(),
        make_token_stats(),
        {"model": "scenes_clip"},
    ),
    "one seed, no labels, bands": ReportInputs(
        "Photos", [make_scope_result(0, config=BANDS)], token_stats=make_token_stats(False)
    ),
    "nothing scored": ReportInputs("Nothing", [make_unscored_result()], make_results(1, 1)),
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.long
def test_report_is_whole(inputs: ReportInputs, tmp_path: Path) -> None:
    files = write_report(inputs, tmp_path / "report")
    page = files.page.read_text()
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(links) >= 4
    assert all((files.folder / link).stat().st_size > 0 for link in links)
    for paths in files.figures.values():
        image = np.asarray(Image.open(paths["png"]).convert("L"))
        assert image.std() > 0
    json.loads(files.summary.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_report(inputs, files, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert (NO_PROBES in page) == (NO_PROBES in " ".join(printed.split())) == (not inputs.results)
    assert str(files.summary) in printed


@pytest.mark.long
def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        save_figure(lambda: draw_token_norms(make_token_stats()), "norms", folder, ("png", "pdf"))
        make_scope_table([make_scope_result()]).save(folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["norms.pdf", "norms.png", "scope.csv", "scope.md", "scope.tex"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_unknown_paper_reference_is_refused() -> None:
    with pytest.raises(InputError, match="clip_b16, clip_l14 or null, got 'b16'"):
        ReportInputs("x", [], paper_reference="b16")


def test_figures_leave_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_figure(lambda: make_figure(1), "empty", tmp_path)
    assert dict(mpl.rcParams) == before


def test_scope_numbers() -> None:
    result = make_scope_result()
    summary = summarise_scope(result)
    scored = np.isfinite(result.cds)
    living = result.firing_rate > 0
    assert summary["n_scored"] == scored.sum() == summary["n_high"] + summary["n_low"]  # type: ignore[operator]
    assert summary["n_scored"] + summary["n_unscored"] + summary["n_dead"] == len(result.cds)  # type: ignore[operator]
    assert summary["unscored_mass"] == pytest.approx(result.mean_act[living & ~scored].sum() / result.mean_act.sum())
    assert summary["median_cds"] == pytest.approx(np.nanmedian(result.cds))
    assert summary["locked"] == pytest.approx(0.1)
    assert summary["uniform"] == pytest.approx(0.404, abs=5e-4)
    assert summary["sensitive"] > summary["mean_cds"]  # type: ignore[operator]
    high = result.cds > 0.2
    assert summary["high_mass"] == pytest.approx(compute_mass_share(result, high))


def test_zero_shares_count_ranked_pairs_only() -> None:
    one, zero, nan = 1.0, 0.0, math.nan
    result = replace(
        make_unscored_result(),
        k_cds=2,
        emd=np.array([[0.1, 0.2, 0.3], [nan, nan, nan]]),
        mass1=np.array([[one, one, zero], [zero, nan, nan]]),
        mass2=np.array([[one, zero, zero], [zero, nan, nan]]),
    )
    assert compute_zero_shares(result) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_scope_table_has_a_column_per_seed() -> None:
    table = make_scope_table([make_scope_result(seed, 60) for seed in (4, 7)])
    assert [column.key for column in table.columns] == ["quantity", "seed_4", "seed_7", "mean"]
    assert [column.key for column in make_scope_table([make_scope_result(4, 60)]).columns] == ["quantity", "seed_4"]


def test_nothing_scored_is_a_table_of_dashes() -> None:
    text = make_scope_table([make_unscored_result()]).to_markdown()
    assert f"| median | {MISSING} |" in text
    assert "| scored | 0 |" in text


def test_heat_is_one_flat_square_per_patch() -> None:
    image, heat = np.zeros((6, 6, 3), dtype=np.uint8), np.zeros((3, 3))
    heat[1, 2] = 1
    laid = lay_heat(image, heat)
    changed = np.abs(laid - lay_heat(image, 0 * heat)).sum(axis=-1) > 0
    expected = np.zeros((6, 6), dtype=bool)
    expected[2:4, 4:6] = True
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("n_pairs", [0, 1, 6])
def test_examples_with_few_or_many_images(n_pairs: int, tmp_path: Path) -> None:
    examples = [*make_examples(n_pairs), replace(make_examples(n_pairs)[0], cds=math.nan, band="band 1 of 3")]
    save_figure(lambda: draw_examples(examples, SHIFT), "examples", tmp_path)
    assert (tmp_path / "examples.png").stat().st_size > 0


def test_example_without_activation(tmp_path: Path) -> None:
    example = make_examples(1)[0]
    silent = Example(0, math.nan, "low", example.images, 0 * example.maps, np.full(1, math.nan))
    save_figure(lambda: draw_examples([silent], SHIFT), "examples", tmp_path)


@pytest.mark.long
def test_a_section_adds_its_tables_figures_findings_and_numbers(tmp_path: Path) -> None:
    table = Table("frequency", "By firing frequency", [Column("rate", "rate")])
    table.add_row(0.5)
    figure = SectionFigure(lambda: make_figure(1.0), "Nothing is drawn.")
    section = ReportSection(
        "confounds",
        "Confounds",
        ("It is mass.", "It is not scope."),
        {"frequency": table},
        {"cds_frequency": figure},
        {"spearman": -0.5},
    )
    inputs = replace(INPUTS["full"], sections=[section])
    files = write_report(inputs, tmp_path)
    assert set(files.tables["frequency"]) == {"md", "csv", "tex"}
    assert set(files.figures["cds_frequency"]) == {"png", "pdf"}
    page = files.page.read_text()
    own = page[page.index("## Confounds") :]
    assert all(
        text in own for text in ("It is mass.", "It is not scope.", "frequency.md", "cds_frequency.png", "drawn.")
    )
    assert "frequency" not in page[: page.index("## Confounds")]
    assert json.loads(files.summary.read_text())["confounds"] == {"spearman": -0.5}
    console = Console(file=io.StringIO(), width=100)
    print_report(inputs, files, console)
    text = console.file.getvalue()
    assert "Confounds: It is mass." in text
    assert "By firing frequency" not in text
