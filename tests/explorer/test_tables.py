"""The tables without JavaScript: what a browser shows then, and what the csv holds."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from infoscope.explorer import tables
from infoscope.explorer.format import pack, put, read
from infoscope.explorer.tables import list_cells, read_latents, write_csv, write_tables
from infoscope.runtime.errors import InputError
from infoscope.sae.latent_table import LatentColumn, LatentTable
from tests.support.explorer_sample import EVIL, write_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An explorer of 120 latents with its tables."""
    folder = tmp_path_factory.mktemp("explorer")
    write_sample(folder, d_sae=120, n_images=20)
    write_tables(folder, read(folder, "manifest") | {"facts": {"data": EVIL}})
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_browser_without_javascript_gets_the_numbers(open_page, folder: Path):
    page = open_page((folder / "index.html").as_uri(), java_script_enabled=False)
    page.locator("noscript a, #app a").first.click()
    page.wait_for_selector("table")
    latents = read_latents(folder, read(folder, "manifest")["views"][0])
    cds = latents["cds"]
    best, least = int(np.nanargmax(cds)), int(np.nanargmin(cds))
    lowest, highest = page.locator("section").first.locator("table").all()[1:]
    for table, latent in ((lowest, least), (highest, best)):
        rows = table.locator("tbody tr")
        assert rows.count() == 50
        first = rows.first.locator("th, td").all_inner_texts()
        assert first[:2] == [str(latent), f"{cds[latent]:.3g}"]
    n_scored = np.isfinite(cds).sum()
    assert lowest.locator("caption").inner_text() == f"The 50 latents of lowest CDS, of {n_scored} that have one"
    assert page.locator("h2").all_inner_texts() == ["TopK, SAE seed0", "TopK, SAE seed1"]


def test_groups_are_summed(open_page, folder: Path):
    page = open_page((folder / "tables.html").as_uri())
    latents = read_latents(folder, read(folder, "manifest")["views"][0])
    rows = page.locator("section").first.locator("table").first.locator("tbody tr").all()
    found = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}
    assert list(found) == ["high", "low", "unscored"]
    for name, (n, share, cds, *_) in found.items():
        of = latents["group"] == name
        assert (n, share) == (str(of.sum()), f"{latents['mass'][of].sum() / latents['mass'].sum():.3g}")
        assert cds == ("" if name == "unscored" else f"{latents['cds'][of].mean():.3g}")


def test_what_comes_from_data_is_shown_and_not_run(open_page, folder: Path):
    page = open_page((folder / "tables.html").as_uri())
    assert page.title() == page.inner_text("h1") == "scenes_clip on scenes <b>sample</b>"
    assert page.locator("dd").first.inner_text() == EVIL
    assert page.locator("img, b, script").count() == 0


def test_links_lead_to_files(open_page, folder: Path):
    page = open_page((folder / "tables.html").as_uri())
    links = page.evaluate("[...document.links].map((link) => link.getAttribute('href'))")
    assert links == ["index.html", "latents_seed0.csv", "latents_seed1.csv"]
    assert all((folder / link).is_file() for link in links)
    assert page.evaluate("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"


def test_csv_has_all_columns_and_every_digit(folder: Path):
    view = read(folder, "manifest")["views"][1]
    latents, rows = read_latents(folder, view), read_rows(folder / "latents_seed1.csv")
    assert list(rows[0]) == ["latent", *(column["name"] for column in view["columns"])]
    assert [int(row["latent"]) for row in rows] == list(range(120))
    for name in ("cds", "firing_rate", "n_valid"):
        values = np.array([float(row[name] or "nan") for row in rows])
        np.testing.assert_array_equal(values, latents[name])
    ms = np.array([row["ms"] for row in rows]).astype(np.float32)
    np.testing.assert_array_equal(ms, latents["ms"])
    assert max(len(row["ms"]) for row in rows) < 14
    assert [row["undecided"] == "true" for row in rows] == latents["undecided"].tolist()
    assert rows[3]["name"] == EVIL


def test_cells_are_never_formulas():
    texts = ["=1+1", "+1", "-1", "@x", "\t=1", "\r", "a=b", "", "ü"]
    assert list_cells(np.array(texts)) == ["'=1+1", "'+1", "'-1", "'@x", "'\t=1", "'\r", "a=b", "", "ü"]
    assert list_cells(np.array([-1.5, np.nan, np.inf, 1e-300])) == ["-1.5", "", "", "1e-300"]
    assert list_cells(np.array([0.1], np.float32)) == ["0.1"]
    assert list_cells(np.array([-3])) == [-3]


def test_few_latents_are_all_shown_once(tmp_path: Path):
    write_sample(tmp_path, d_sae=30, n_images=20, n_views=1)
    write_tables(tmp_path, read(tmp_path, "manifest"))
    text = (tmp_path / "tables.html").read_text()
    n_scored = int(np.isfinite(read_latents(tmp_path, read(tmp_path, "manifest")["views"][0])["cds"]).sum())
    assert f"All {n_scored} latents that have a CDS, the lowest first" in text
    assert len(re.findall(r'<tr><th scope="row">\d+</th>', text)) == n_scored


@pytest.mark.parametrize(
    "broken",
    [{"dtype": "float64", "shape": [2], "base64": "AA=="}, {}, [], pack(np.zeros(3)), {"texts": [], "codes": 1}],
)
def test_damaged_column_is_named(tmp_path: Path, broken):
    write_sample(tmp_path, d_sae=20, n_images=20, n_views=1)
    put(tmp_path, "seed0/columns/cds", broken)
    with pytest.raises(InputError, match=r"^data/seed0/columns/cds\.js of the explorer in .* is damaged"):
        read_latents(tmp_path, read(tmp_path, "manifest")["views"][0])


def test_rows_go_on_from_part_to_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)
    values = np.random.default_rng(0).random(20)
    write_csv(tmp_path / "latents.csv", LatentTable(0, [LatentColumn("cds", values, "CDS")]))
    rows = read_rows(tmp_path / "latents.csv")
    assert [(int(row["latent"]), float(row["cds"])) for row in rows] == list(enumerate(values.tolist()))
