"""The whole report: tables, figures, page and summary, for ordinary and for degenerate inputs."""

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

from infoscope.report.figure_style import make_figure, save_figure
from infoscope.report.page import Page, print_report, write_report
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Column, Table, compute_stat
from infoscope.scope.config import PartitionConfig, Rule
from infoscope.stages.probe.section import make_removal_section
from infoscope.stages.report.tokens import draw_token_norms, make_token_section
from infoscope.stages.score.stage import make_scope_section
from infoscope.stages.score.tables import make_scope_table
from tests.support.report_samples import (
    make_examples,
    make_norms,
    make_results,
    make_scope_result,
    make_unscored_result,
)

NOTE = "Nothing was measured with features removed."
FULL, PHOTOS, NOTHING = (
    [make_scope_result(0), make_scope_result(1)],
    [make_scope_result(0, config=PartitionConfig(rule=Rule.bands, n_bands=3))],
    [make_unscored_result()],
)
PAGES = {
    "full": Page(
        "Full",
        {"model": "scenes_clip"},
        leads=[
            make_removal_section(FULL, make_results(2, 2)),
            make_scope_section(FULL, make_examples()),
            make_token_section(make_norms(), "median + 6 MAD"),
        ],
    ),
    "one seed, no labels, bands": Page(
        "Photos",
        note=NOTE,
        leads=[
            make_scope_section(PHOTOS, []),
            make_token_section(make_norms(False), "median + 6 MAD"),
        ],
    ),
    "nothing scored": Page(
        "Nothing",
        leads=[make_removal_section(NOTHING, make_results(1, 1)), make_scope_section(NOTHING, [])],
    ),
}


def test_position_locked_features_are_counted() -> None:
    first, second = make_scope_result(0), make_scope_result(1)
    first.scores.maps[first.partition.high, :, :, 2, 3] = 1
    section = make_scope_section([first, second], make_examples())
    n, m = (int(scope.partition.high.sum()) for scope in FULL)
    assert f"(high-scope {n} of {n}, 0 of {m}; low-scope 0 of" in section.figures["examples"].caption
    assert [of["n_locked"] for of in section.summary] == [{"high": n, "low": 0}, {"high": 0, "low": 0}]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.long
def test_report_is_whole(page: Page, tmp_path: Path) -> None:
    files = write_report(page, tmp_path / "report")
    text = files.page.read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 4
    assert all((files.folder / link).stat().st_size > 0 for link in links)
    for paths in files.figures.values():
        image = np.asarray(Image.open(paths["png"]).convert("L"))
        assert image.std() > 0
    json.loads(files.summary.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_report(page, files, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert (NOTE in text) == (NOTE in " ".join(printed.split())) == (page.note == NOTE)
    assert str(files.summary) in printed


def test_a_page_links_the_explorer_that_lies_beside_it(tmp_path: Path) -> None:
    page = Page("Linked", explorer=tmp_path / "explore" / "clip on a-1" / "index.html")
    files = write_report(page, tmp_path / "report" / "clip-2")
    assert "](../../explore/clip%20on%20a-1/index.html)" in files.page.read_text(encoding="utf-8")
    console = Console(width=100, file=io.StringIO(), color_system=None)
    print_report(page, files, console)
    assert str(page.explorer) in console.file.getvalue()  # type: ignore[attr-defined]
    write_report(Page("Alone"), tmp_path / "report" / "clip-2")
    assert "explore" not in files.page.read_text(encoding="utf-8")


@pytest.mark.long
def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        save_figure(lambda: draw_token_norms(make_norms(), "median + 6 MAD"), "norms", folder, ("png", "pdf"))
        make_scope_table([make_scope_result()]).save(folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["norms.pdf", "norms.png", "scope.csv", "scope.md", "scope.tex"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_figures_leave_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    save_figure(lambda: make_figure(1), "empty", tmp_path)
    assert dict(mpl.rcParams) == before


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
        {"spearman": -0.5, "none": math.nan, "by_seed": (1, math.inf), "stat": compute_stat([1.0])},
    )
    page = replace(PAGES["full"], sections=[section])
    files = write_report(page, tmp_path)
    assert set(files.tables["frequency"]) == {"md", "csv", "tex"}
    assert set(files.figures["cds_frequency"]) == {"png", "pdf"}
    text = files.page.read_text()
    own = text[text.index("## Confounds") :]
    assert all(
        part in own for part in ("It is mass.", "It is not scope.", "frequency.md", "cds_frequency.png", "drawn.")
    )
    assert "frequency" not in text[: text.index("## Confounds")]
    expected = {"spearman": -0.5, "none": None, "by_seed": [1, None], "stat": {"mean": 1.0, "sd": None}}
    assert json.loads(files.summary.read_text())["confounds"] == expected
    console = Console(file=io.StringIO(), width=100)
    print_report(page, files, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Confounds: It is mass." in printed
    assert "By firing frequency" not in printed
