"""Pages of groups that divide another measure than the CDS: names, the cut and the words are those of that measure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infoscope.explorer.format import read
from infoscope.explorer.tables import find_divided, read_latents, write_tables
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.config import By, PartitionConfig
from infoscope.scope.partition import ENDS, make_partition
from infoscope.stages.explore.extremes import choose_extremes
from infoscope.stages.explore.views import describe_groups
from tests.support.explorer_sample import write_sample

N = 120
ONE_EACH = "cds,cds_minus_chance,extent,mean_extent,context_effect,group,undecided"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An explorer of two SAEs: of the first the extent is divided at 0.3, of the second the CDS at 0.06."""
    folder = tmp_path_factory.mktemp("divided")
    write_sample(folder, d_sae=N, n_images=20, by=By.extent)
    write_tables(folder, read(folder, "manifest"))
    return folder


@pytest.fixture
def page(open_page, folder: Path):
    return open_page((folder / "index.html").as_uri())


@pytest.fixture(scope="module")
def latents(folder: Path) -> LatentTable:
    return read_latents(folder, read(folder, "manifest")["views"][0])


def test_overview_shows_the_measure_and_its_cut(page, latents: LatentTable):
    page.wait_for_selector(".slick-row")
    extent = latents["extent"]
    assert np.isnan(extent[:3]).all()
    assert page.locator("figure h2").first.inner_text() == "Evidence extent"
    legend = page.locator(".legend li").all_inner_texts()
    counts = (extent <= 0.3).sum(), (extent > 0.3).sum(), 3
    names = "narrow", "wide", "unscored: evidence extent not known"
    assert legend == [f"{name} {n}" for name, n in zip(names, counts, strict=True)]
    words = page.locator("figure").first.inner_text()
    assert "3 latents have no evidence extent: not measured, or" in words
    assert "CDS" not in words
    said = page.locator(".chart").first.get_attribute("aria-label")
    assert said == f"Histogram of the evidence extent of {N - 3} latents, from 0 to 1.02. gamma: 0.3"
    assert page.locator(".axis-field select").evaluate_all("(all) => all.map((one) => one.value)") == ["extent", "cds"]
    ids = page.locator(".slick-header-column").evaluate_all("(all) => all.map((one) => one.dataset.id)")
    assert ",".join(ids[2:9]) == "extent,cds,cds_minus_chance,mean_extent,context_effect,group,undecided"
    rows = page.evaluate("infoscope.order(infoscope.view()).then((rows) => Array.from(rows))")
    assert rows == [*range(N - 1, 2, -1), 0, 1, 2]

    page.get_by_role("spinbutton", name="extent from").fill("0.5")
    page.get_by_role("spinbutton", name="extent from").press("Enter")
    n = int((extent >= 0.5).sum())
    page.wait_for_function(
        "(words) => document.querySelector('#n-rows').textContent === words", arg=f"{n} of {N} latents"
    )

    # the groups of the other divide the CDS, for which the range means nothing
    page.get_by_role("banner").get_by_label("SAE").select_option("seed1")
    page.wait_for_selector("figure h2:text-is('Scope')")
    assert page.locator("#n-rows").inner_text() == f"{N} latents"
    assert page.get_by_role("spinbutton", name="CDS from").input_value() == ""
    assert page.evaluate("infoscope.defaultColumns(infoscope.view()).slice(0, 7).join()") == ONE_EACH


def test_latents_are_told_by_the_measure(page):
    page.evaluate("infoscope.go({ page: 'latent', latent: 1 })")
    page.wait_for_selector(".facts dd")
    facts = dict(
        zip(*(page.locator(f".latent-head .facts {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True)
    )
    assert facts["group"] == "unscored"
    assert facts["extent"].startswith("none: not measured, or")
    assert facts["mean extent"].startswith("0.107")
    page.wait_for_selector(".plot .rank")
    assert page.locator(".plot .chance").count() == 1
    assert page.locator(".plot .level.gamma").count() == 0  # the cut of extents, among distances
    assert page.locator(".near th").all_inner_texts()[:4] == ["latent", "cosine", "extent", "group"]
    page.get_by_text("What the words mean, and keys").click()
    scope = page.locator("footer dt:text-is('scope') + dd").inner_text()
    assert scope.endswith("wide (evidence extent above gamma) or narrow (up to gamma)")

    page.evaluate("infoscope.go({ page: 'image', set: 'train', image: 0 })")
    page.wait_for_selector(".patch-latents")
    assert page.locator(".patch-latents thead button").all_inner_texts()[-1] == "extent"


def test_thresholds_side_by_side_are_of_the_measure(page, latents: LatentTable):
    extent = latents["extent"]
    page.evaluate("infoscope.go({ page: 'compare', other: 'seed0', gamma: '0.7' })")
    page.wait_for_selector(".crossed")
    cells = page.locator(".crossed tr[data-group=wide] .number").all_inner_texts()
    assert [int(text.split()[0]) for text in cells] == [0, (extent > 0.7).sum(), 0, (extent > 0.7).sum()]
    assert page.get_by_label("threshold gamma").nth(1).get_attribute("placeholder") == "0.3"
    assert page.locator("#both-scores").inner_text() == "Evidence extent of both"
    assert page.locator(".matches thead button").all_inner_texts()[2:4] == ["extent, first", "extent, second"]

    page.evaluate("infoscope.go({ other: 'seed1', gamma: '' })")  # of two measures neither divides both: the CDS shows
    page.wait_for_selector("#both-scores:text-is('CDS of both')")
    page.wait_for_selector(".crossed")
    headings = page.locator(".crossed thead th").all_inner_texts()[1:-1]
    assert "first divide the evidence extent, those of the second the CDS; both are shown by" in page.inner_text("main")
    assert headings == ["low", "high", "unscored", "no match"]
    assert page.locator(".crossed tbody tr").evaluate_all("(all) => all.map((one) => one.dataset.group)")[:2] == [
        "narrow",
        "wide",
    ]
    assert page.locator(".gamma-first").count() == 0
    assert page.locator(".gamma-second").count() == 1

    colour = "(all) => all.map((names) => names.map((name) => infoscope.groupColour(name, names)).join())"
    assert page.evaluate(colour, [[below, above] for above, below in ENDS.values()]) == ["#0072B2,#D55E00"] * 4


def test_log_axis_may_begin_at_any_number(page, folder: Path):
    view = read(folder, "manifest")["views"][1]
    least = read_latents(folder, view)["firing_rate"].min() / 1.2
    assert f"{least:e}" > "9.5"  # between this and the next power of ten uPlot's own ticks never end
    page.evaluate("infoscope.go({ view: 'seed1' })")
    page.wait_for_selector("figure h2:text-is('Scope')")
    assert page.get_by_role("checkbox", name="Horizontal: log scale").is_checked()
    page.locator(".chart .u-over").nth(1).wait_for()


def test_tables_without_javascript_are_of_the_measure(folder: Path):
    first, second = (folder / "tables.html").read_text().split("<section")[1:]
    assert "The 50 latents of lowest evidence extent, of 117 that have one" in first
    assert "mean of evidence extent" in first
    assert "unscored</th><td>3</td>" in first.partition("<caption>The 50")[0]
    assert first.index("wide</th>") < first.index("narrow</th>") < first.index("unscored</th>")
    assert "evidence extent, of" not in second
    assert "latents of lowest CDS, of" in second


def test_extremes_of_groups_are_of_the_measure(folder: Path, latents: LatentTable):
    divided = find_divided(read(folder, "manifest")["views"][0])
    assert divided == ("extent", "evidence extent")
    last = int((latents["extent"] <= 0.3).sum()) + 2
    assert choose_extremes(latents, 2, divided.name) == [3, 4, last - 1, last, last + 1, last + 2, N - 2, N - 1]


def test_manifest_says_what_is_divided_and_where():
    values, mass = np.array([0.1, 0.2, 0.9, np.nan]), np.ones(4)
    for by, (above, below) in ENDS.items():
        config = PartitionConfig(by=by, gamma=0.5)
        scope = SimpleNamespace(partition=make_partition(values, mass, config), rule=config.rule_in_words, by=by)
        found = describe_groups(scope)
        assert (found["names"], found["gamma"]) == ([below, above], 0.5)
        assert found["by"] == {"name": by.name, "words": by.words, "above": above, "below": below}
