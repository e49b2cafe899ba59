"""The page of one latent: maps where they belong, what moves between crops, and the ways to other latents."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from infoscope.explorer.format import put, read
from tests.support.explorer_sample import EVIL, GRID, SHIFT

DETAIL = """(latent) => infoscope.latent(infoscope.view(), latent).then((found) => ({
    ranks: { emd: found.ranks.emd, images: found.ranks.images, activation: found.ranks.activation },
    maps: infoscope.unpackMaps(found.ranks.maps).map((map) => [Array.from(map.places), Array.from(map.values)]),
    scale: found.ranks.maps.scale, near: found.near, elsewhere: found.elsewhere,
}))"""
PIXELS = """(canvas) => Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)"""


def _open(open_page, sample, place, **options):
    page = open_page(f"{sample.as_uri()}#/{place}", **options)
    page.wait_for_selector(".pair, .absent")
    return page


def _read_maps(page, latent):
    found = page.evaluate(DETAIL, latent)
    maps = np.zeros((len(found["maps"]), GRID * GRID))
    for one, (places, values) in zip(maps, found["maps"], strict=True):
        one[places] = values
    return found, maps


def _read_canvas(page, nth):
    return np.array(page.locator(".pair canvas").nth(nth).evaluate(PIXELS)).reshape(GRID * GRID, 4)


def test_maps_lie_where_it_fires(open_page, sample):
    page = _open(open_page, sample, "latent/7?flow=off")
    found, maps = _read_maps(page, 7)
    assert page.locator(".pair").count() == 16
    assert page.locator(".flow").count() == 0
    for nth in (0, 1, 7):
        np.testing.assert_array_equal(_read_canvas(page, nth)[:, 3] > 0, maps[nth] > 0)
    heat = page.evaluate("(share) => infoscope.heatParts(share)", maps[0, 3 * GRID + 4] / found["scale"])
    # a canvas keeps colours times their opacity, so they come back rounded
    np.testing.assert_allclose(_read_canvas(page, 0)[3 * GRID + 4, :3], heat, atol=2)
    words = page.locator(".pair img").nth(1).get_attribute("alt")
    best = int(maps[1].argmax())
    assert words.startswith(f"Rank 1, crop 2: active on {(maps[1] > 0).sum()} of 64 patches, most (")
    assert words.endswith(f"in row {best // GRID + 1}, column {best % GRID + 1}")
    shared = page.locator(".pair .shared").nth(1).evaluate("(box) => [box.style.left, box.style.top, box.style.width]")
    assert shared == ["0%", "0%", f"{100 * (GRID - SHIFT) / GRID}%"]


def _change(sample, folder, **of_view):
    """Return the sample with other words about its first view."""
    changed = shutil.copytree(sample.parent, folder / "changed")
    manifest = read(changed, "manifest")
    manifest["views"][0] |= of_view
    put(changed, "manifest", manifest)
    return changed / "index.html"


def test_what_images_were_ranked_by_is_said(open_page, sample, tmp_path):
    page = _open(open_page, _change(sample, tmp_path, ranked_by="drawn"), "latent/7")
    assert "drawn from all in which it fires" in page.locator("[aria-labelledby=pairs]").inner_text()
    assert "fires most" not in page.locator("[aria-labelledby=pairs]").inner_text()
    found = page.evaluate("""(latent) => infoscope.latent(infoscope.view(), latent)""", 7)
    of_page = page.locator(".pair .numbers").nth(0)
    assert f"activation {page.evaluate('infoscope.show', found['ranks']['activation'][0])}" in of_page.inner_text()
    ranks = {**found["ranks"], "activation": None, "mean_activation": [0.25] * 16}
    block = read(tmp_path / "changed", "seed0/latents/0") | {"7": {**found, "ranks": ranks}}
    put(tmp_path / "changed", "seed0/latents/0", block)
    page.reload()
    assert of_page.inner_text().endswith("mean activation 0.25")


def test_a_score_over_more_ranks_than_are_kept_is_said(open_page, sample, tmp_path):
    page = _open(open_page, _change(sample, tmp_path, k_cds=32), "latent/7")
    assert "CDS is over 32, of which 16 are kept" in page.locator("[aria-labelledby=by-rank]").inner_text()
    page = _open(open_page, sample, "latent/7")
    assert "are kept" not in page.locator("[aria-labelledby=by-rank]").inner_text()


def test_an_emd_by_sinkhorn_is_no_damage(open_page, sample, tmp_path):
    changed = _change(sample, tmp_path, emd="sinkhorn")
    detail = read(changed.parent, "seed0/latents/0")
    detail["7"]["ranks"]["emd"][0] += 0.1
    put(changed.parent, "seed0/latents/0", detail)
    page = _open(open_page, changed, "latent/7")
    page.wait_for_selector(".pair .flow")
    assert page.locator(".pair .warning").count() == 0
    assert "by Sinkhorn's approximation" in page.locator("[aria-labelledby=pairs]").inner_text()


def test_controls_change_the_maps_and_the_address(open_page, sample):
    page = _open(open_page, sample, "latent/7")
    _, maps = _read_maps(page, 7)
    weak = int(maps[:8].max(axis=1).argmin())
    raw = _read_canvas(page, weak)
    page.locator(".map-controls select").select_option("normalised")
    page.wait_for_selector(".colour-bar:has-text('largest of each map')")
    assert "maps=normalised" in page.url
    best = int(maps[weak].argmax())
    assert _read_canvas(page, weak)[best, 3] == 255 > raw[best, 3]
    page.get_by_label("Opacity of maps").fill("0.25")
    page.wait_for_selector(".pair canvas[style*='opacity: 0.25']")
    assert "opacity=0.25" in page.url
    page.get_by_label("large pictures").check()
    page.wait_for_selector(".pair .picture[style*='288px']")


def test_flow_is_that_of_the_maps(open_page, sample):
    page = _open(open_page, sample, "latent/7", viewport={"width": 1200, "height": 6000})
    found, maps = _read_maps(page, 7)
    known = [rank for rank, emd in enumerate(found["ranks"]["emd"]) if emd is not None]
    assert 8 < len(known) < 16
    page.wait_for_selector(f".flow >> nth={len(known) - 1}")
    assert page.locator(".flow").count() == len(known)
    assert page.locator(".pair .warning").count() == 0  # kept distances are those of the maps
    ones, others = (_cut(maps[crop - 1 :: 2], crop) for crop in (1, 2))
    for nth, rank in enumerate(known):
        flow = page.locator(".flow").nth(nth)
        moved = np.clip(ones[rank] / ones[rank].sum() - others[rank] / others[rank].sum(), 0, None).sum()
        assert float(flow.get_attribute("data-moved")) == pytest.approx(moved, abs=1e-6)
        masses = flow.locator("polygon").evaluate_all("(all) => all.map((one) => Number(one.dataset.mass))")
        assert len(masses) == int(flow.get_attribute("data-moves"))
        assert sum(masses) == pytest.approx(moved, abs=1e-6)
        assert flow.locator("circle").count() > 0
        emd = flow.locator("title").text_content()
        assert float(re.search(r"([\d.]+) of the largest", emd)[1]) == pytest.approx(
            found["ranks"]["emd"][rank], rel=0.006
        )
    silent = page.locator(".why").all_inner_texts()
    assert len(silent) == 16 - len(known)
    for text, rank in zip(silent, sorted(set(range(16)) - set(known)), strict=True):
        crops = [crop for crop, cut in ((1, ones), (2, others)) if not cut[rank].any()]
        where = "both crops" if len(crops) == 2 else f"crop {crops[0]}"
        assert text.startswith(f"No EMD: silent on the shared region of {where}")


def _cut(maps, crop):
    square = maps.reshape(-1, GRID, GRID)
    return square[:, SHIFT:, SHIFT:] if crop == 1 else square[:, :-SHIFT, :-SHIFT]


def test_damaged_distance_is_told(open_page, sample, tmp_path):
    folder = shutil.copytree(sample.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("images"))
    file = folder / "data/seed0/latents/0.js"
    details = json.loads(file.read_text().split(", ", 1)[1].rstrip(");\n"))
    rank = next(i for i, emd in enumerate(details["7"]["ranks"]["emd"]) if emd is not None)
    details["7"]["ranks"]["emd"][rank] += 0.01
    put(folder, "seed0/latents/0", details)
    page = _open(open_page, folder / "index.html", "latent/7", viewport={"width": 1200, "height": 6000})
    page.wait_for_selector(".pair .warning")
    assert page.locator(".pair .warning").count() == 1
    assert "is not that of these maps" in page.locator(f".pair[data-rank='{rank + 1}'] .warning").inner_text()
    open_page.said.clear()  # of the images that were not copied


def test_ways_to_other_latents(open_page, sample):
    page = _open(open_page, sample, "latent/3?sort=latent")
    page.wait_for_selector("text=4 of 300 in the order of the table")
    assert page.locator("main h2").inner_text() == f"Latent 3 {EVIL}"
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=5 of 300 in the order of the table")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("main h2:has-text('Latent 3')")
    page.get_by_label("Latent", exact=True).fill("299")
    page.get_by_label("Latent", exact=True).press("ArrowLeft")  # a key of the field, not of the page
    page.get_by_role("button", name="Go").click()
    page.wait_for_selector("main h2:has-text('Latent 299')")
    assert page.get_by_text("next →").get_attribute("href") is None
    found = page.evaluate(DETAIL, 299)
    tables = page.locator("#near").locator("..").locator("table").all()
    for table, kind in zip(tables, ("decoder", "coactive"), strict=True):
        links = table.locator("a").all_inner_texts()
        assert links == [str(latent) for latent in found["near"][kind]["latents"]]
    page.locator("#near ~ .columns a").last.click()  # from far down to the beginning of another
    page.wait_for_selector(f"main h2:has-text('Latent {links[-1]}')")
    page.wait_for_function("() => scrollY === 0")
    page.go_back()
    page.wait_for_selector("#elsewhere")
    if found["elsewhere"]:
        page.get_by_role("link", name="side by side", exact=True).last.click()
        page.wait_for_url(re.compile(f"pair=299-{found['elsewhere'][0]['latent']}"))
    page.goto(f"{sample.as_uri()}#/latent/300")
    page.wait_for_selector("text=There is no latent 300")


def test_steps_follow_the_table(open_page, sample):
    page = open_page(f"{sample.as_uri()}#/overview?filter=cds+%3E+0.05&sort=-cds")
    cds = page.evaluate("infoscope.column('seed0', 'cds').then(({ values }) => Array.from(values, (of) => of || 0))")
    order = np.argsort(-np.array(cds), kind="stable")[: (np.array(cds) > 0.05).sum()]
    page.evaluate(f"infoscope.go({{ page: 'latent', latent: {order[1]} }})")
    page.wait_for_selector(f"text=2 of {len(order)} in the order of the table")
    page.get_by_role("link", name="next").click()
    page.wait_for_selector(f"text=3 of {len(order)} in the order of the table")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"main h2:has-text('Latent {order[1]}')")
    page.evaluate(f"infoscope.go({{ latent: {int(np.argmin(cds))} }})")
    page.wait_for_selector("text=not among those that the table shows")


def test_bare_view_breaks_nothing(open_page, sample):
    page = open_page(sample.as_uri() + "#/nothing", anew=True)
    page.evaluate("""() => {
        for (const view of infoscope.manifest.views) {
            Object.assign(view, { columns: [], groups: null, landmarks: [], images: {}, matched_by: undefined });
        }
        infoscope.manifest.sets.train.classes = null;
    }""")
    for place, n in {"latent/7": 16, "compare?pair=7-3&gamma=0.05": 8}.items():
        page.evaluate(f"location.hash = '#/{place}'")
        page.wait_for_selector(f".pair >> nth={n - 1}")
        assert page.locator(".pair").count() == n
        assert "not measured" in page.locator("main").inner_text()


def test_what_was_not_measured_is_told(open_page, sample, tmp_path):
    folder = shutil.copytree(sample.parent, tmp_path / "copy", ignore=shutil.ignore_patterns("images"))
    put(folder, "seed0/latents/0", {})
    page = open_page(
        f"{(folder / 'index.html').as_uri()}#/latent/7", color_scheme="dark", viewport={"width": 390, "height": 900}
    )
    page.wait_for_selector(".absent")
    said = " ".join(page.locator(".absent").all_inner_texts())
    for words in ("explore.n_images", "Co-activation was not measured", "Its matches were not measured"):
        assert words in said
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".facts dt").all_inner_texts()[3:6] == ["extent", "mean extent", "context effect"]
    assert page.locator(".facts dd").nth(3).inner_text().startswith("0.0234")  # 7 / 299
    page.get_by_text("All else that the table knows of it").click()
    page.wait_for_selector(".all-columns td")
    assert "monosemanticity" in page.locator(".all-columns").inner_text()
