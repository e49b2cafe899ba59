"""Two views side by side: groups crossed, matched latents, thresholds; all of it in the address."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

COLUMNS = """async () => {
    const of = async (view) => {
        const group = await infoscope.column(view, "group");
        return { group: Array.from(group.values, (code) => group.texts[code]),
            cds: Array.from((await infoscope.column(view, "cds")).values, (value) => isNaN(value) ? null : value),
            mass: Array.from((await infoscope.column(view, "mass")).values) };
    };
    const matches = await infoscope.findMatches(infoscope.view("seed0"), infoscope.view("seed1"));
    return [await of("seed0"), await of("seed1"), Array.from(matches.latents), Array.from(matches.values)];
}"""


def _read(page):
    one, other, latents, values = page.evaluate(COLUMNS)
    for side in (one, other):
        side["cds"], side["group"] = np.array(side["cds"], dtype=float), np.array(side["group"])
    return one, other, np.array(latents), np.array(values, dtype=float)


def _cells(page, group):
    texts = page.locator(f".crossed tr[data-group='{group}'] td").all_inner_texts()
    return [(int(n), float(share.rstrip("%"))) for n, share in (text.split() for text in texts)]


def test_groups_crossed_by_matched_latents(open_page, sample):
    page = open_page(f"{sample.as_uri()}#/compare?minimal=0.4")
    page.wait_for_selector(".crossed")
    one, other, latents, values = _read(page)
    is_matched = (latents >= 0) & (values >= 0.4)
    assert 0 < is_matched.sum() < (latents >= 0).sum()
    partner = np.where(is_matched, other["group"][latents], "no match")
    mass = np.array(one["mass"])
    headings = page.locator(".crossed thead th").all_inner_texts()[1:-1]
    assert headings == ["low", "high", "unscored", "no match"]
    for group in ("low", "high", "unscored"):
        for (n, share), name in zip(_cells(page, group), headings, strict=False):
            members = (one["group"] == group) & (partner == name)
            assert n == members.sum()
            assert share == pytest.approx(100 * mass[members].sum() / mass.sum(), abs=0.051)
    assert _cells(page, "all")[-1] == (300, 100)
    known = is_matched & np.isfinite(one["cds"]) & np.isfinite(other["cds"][latents])
    rho = spearmanr(one["cds"][known], other["cds"][latents[known]]).statistic
    assert f"{known.sum()} pairs with a CDS in both, Spearman {float(f'{rho:.3g}')}" in page.inner_text("main")
    assert "Matched by: cosine of decoder rows, at least 0.4." in page.inner_text("main")


def test_one_view_under_two_thresholds(open_page, sample):
    page = open_page(f"{sample.as_uri()}#/compare?other=seed0&gamma=0.05")
    page.wait_for_selector(".crossed")
    one, *_ = _read(page)
    page.get_by_label("threshold gamma").nth(1).fill("0.1")
    page.wait_for_url("**otherGamma=0.1**")
    cds = one["cds"]
    page.wait_for_selector("text=gamma 2")
    assert [n for n, _ in _cells(page, "high")] == [
        0 + ((cds > 0.05) & (cds <= 0.1)).sum(),
        (cds > 0.1).sum(),
        0,
        (cds > 0.05).sum(),
    ]
    assert [n for n, _ in _cells(page, "low")][:2] == [(cds <= 0.05).sum(), 0]
    assert _cells(page, "unscored")[2][0] == np.isnan(cds).sum()


def test_list_of_pairs_opens_them(open_page, sample):
    page = open_page(f"{sample.as_uri()}#/compare")
    page.wait_for_selector(".matches")
    one, other, latents, values = _read(page)
    row = page.locator(".matches tbody tr").first
    best = int(np.nanargmax(values))
    assert row.locator("a").all_inner_texts()[:2] == [str(best), str(latents[best])]
    page.get_by_role("button", name="second \u2212 first").click()
    page.wait_for_selector("th[aria-sort='descending']:has-text('second \u2212 first')")
    difference = np.where(latents >= 0, other["cds"][latents] - one["cds"], np.nan)
    top = int(np.nanargmax(difference))
    assert row.locator("a").first.inner_text() == str(top)
    page.get_by_role("link", name=f"latent {top} and latent {latents[top]} side by side").press("Enter")
    page.wait_for_selector(".halves .pair >> nth=7")
    assert page.evaluate("document.activeElement.textContent").startswith(
        f"Latent {top} beside latent {latents[top]}, match"
    )
    assert page.locator(".halves section").count() == 2
    page.go_back()
    page.wait_for_selector(".halves", state="detached")


def test_views_that_were_not_matched(open_page, sample):
    page = open_page(sample.as_uri())
    page.evaluate(
        """Object.assign(infoscope.view('seed0'),
            { matched_by: {}, unmatched: { seed1: 'They read other layers.' } })"""
    )
    page.evaluate("infoscope.go({ page: 'compare', other: 'seed1' })")
    page.wait_for_selector("text=They read other layers.")
    page.wait_for_selector("text=CDS of both")
    assert page.locator(".crossed").count() == 0
