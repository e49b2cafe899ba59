"""The section on extents: its numbers are those of the features, its first sentence says which measure is right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from infoscope.report.figure_style import save_figure
from infoscope.report.page import Page, write_report
from infoscope.report.section import ReportSection
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.config import By, PartitionConfig, Rule
from infoscope.scope.confounds import ConfoundResult, LatentProperties
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.partition import make_partition
from infoscope.scope.separation import compute_auroc
from infoscope.stages.confounds.stage import list_columns as list_confounds
from infoscope.stages.extent.corners import CORNERS, N_IMAGES, Corner, choose_corners, read_corners
from infoscope.stages.extent.figures import draw_corners
from infoscope.stages.extent.numbers import Found
from infoscope.stages.extent.section import make_extent_section
from infoscope.stages.extent.stage import list_columns
from infoscope.stages.score.result import ScopeResult
from tests.support.report_samples import make_scope_result, make_unscored_result

GRID, RADII, DESIGN = 8, (0, 1, 3), "3 images; all 200 latents."


def make_extents(scope: ScopeResult, seed: int = 0) -> ExtentResult:
    """Curves that rise from a random response of the patch alone; dead latents have none."""
    rng = np.random.default_rng([seed, 7])
    n, fires = len(scope.cds), np.asarray(scope.firing_rate) > 0
    first = rng.uniform(0, 1, n)
    kept = np.stack([first, first + 0.4 * (1 - first), first + 0.8 * (1 - first)])[..., None, None]
    shape = (n, 3, 1)
    return ExtentResult(
        grid=GRID,
        radii=np.array(RADII),
        images=np.where(fires[:, None], np.arange(3), -1),
        patches=np.where(fires[:, None], rng.integers(0, GRID**2, (n, 3)), -1),
        whole=np.where(fires[:, None], np.ones((n, 3)), 0),
        donor=np.where(fires[:, None, None], np.zeros(shape), np.nan),
        kept=np.broadcast_to(kept, (3, *shape)).copy(),
        replaced=np.broadcast_to(0.3 * (1 - kept), (3, *shape)).copy(),
        n_encoded=0,
    )


def make_confounds(scope: ScopeResult, broad: np.ndarray, has_truth: bool = True) -> ConfoundResult:
    """A third of the latents is known-global, where `broad` is largest, and a third known-local."""
    rate = np.asarray(scope.firing_rate, dtype=np.float64)
    order = np.argsort(np.argsort(np.nan_to_num(broad))) / len(broad)
    support = np.where(rate > 0, 0.1, np.nan)
    properties = LatentProperties(rate, (rate > 0).astype(float), np.ones((len(rate), 16)), support, support)
    if not has_truth:
        return ConfoundResult(properties, 500, {}, None)
    image, label = np.where(order > 2 / 3, 0.5, 0.0), np.where(order < 1 / 3, 0.5, 0.0)
    return ConfoundResult(properties, 500, {"light": image}, label)


def make_found(seed: int = 0, truth: str | None = "cds", scope: ScopeResult | None = None) -> Found:
    scope = scope or make_scope_result(seed)
    extent = make_extents(scope, seed)
    confounds = make_confounds(scope, extent.extent if truth == "extent" else scope.cds, truth is not None)
    chance = np.nan_to_num(scope.scores.chance(scope.k_cds))
    known = {"firing_rate": scope.firing_rate, "cds": scope.cds, "cds_minus_chance": scope.cds - chance}
    table = LatentTable(seed, (LatentColumn(name, values, name) for name, values in known.items()))
    table.add("confounds", list_confounds(confounds, scope.k_cds))
    table.add("extent", list_columns(extent))
    return Found(extent, scope, confounds, table)


def replace_extents(found: Found, **arrays: np.ndarray) -> Found:
    """Return what is found of other activations, with the columns that they make."""
    extent = replace(found.extent, **arrays)
    made = {of.name: of for of in list_columns(extent)}
    columns = (made.get(of.name, of) for of in found.table)
    return found._replace(extent=extent, table=LatentTable(found.table.seed, columns))


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infoscope.report.figure_style.DPI", 60)


def draw_all(section: ReportSection, folder: Path) -> None:
    for name, figure in section.figures.items():
        (path,) = save_figure(figure.draw, name, folder)
        assert path.stat().st_size > 1500


def test_the_first_sentence_says_which_measure_is_right() -> None:
    (first, *_) = make_extent_section([make_found()], DESIGN).findings
    assert first.startswith("The extent tells known-global from known-local features worse than the CDS: AUROC 0.")
    assert "against 1.00 (95 % interval 1.00 to 1.00)" in first
    (first, *_) = make_extent_section([make_found(truth="extent")], DESIGN).findings
    assert first.startswith("The extent tells known-global from known-local features better than the CDS: AUROC 1.00")
    found = make_found()
    columns = (LatentColumn(of.name, found.table["cds" if of.name == "extent" else of.name], "") for of in found.table)
    (first, *_) = make_extent_section([found._replace(table=LatentTable(0, columns))], DESIGN).findings
    assert first.startswith("The extent tells known-global from known-local features as well as the CDS: AUROC 1.00")


def test_features_that_every_donor_excites_are_counted() -> None:
    found = make_found()
    assert not any(said.startswith("No extent") for said in make_extent_section([found], DESIGN).findings)
    (fires,) = np.nonzero(found.scope.firing_rate)
    donor = found.extent.donor.copy()
    donor[fires[:4]] = 0.95 * found.extent.whole[fires[:4], :, None]
    said = make_extent_section([found._replace(extent=replace(found.extent, donor=donor))], DESIGN).findings
    expected = f"No extent: 4 of {len(fires)} measured features, which donors excite nearly as much as their"
    expected += " own images do."
    assert expected in said


def test_features_that_are_all_alike_go_with_nothing() -> None:
    found = make_found()
    section = make_extent_section([replace_extents(found, kept=np.ones_like(found.extent.kept))], DESIGN)
    expected = "The extent goes with nothing here: it, or what it is held against, is the same for all features."
    assert expected in section.findings
    columns = (
        LatentColumn(of.name, np.zeros(len(found.scope.cds)), "") if of.name == "cds" else of for of in found.table
    )
    said = make_extent_section([found._replace(table=LatentTable(0, columns))], DESIGN).findings
    (of_cds,) = (text for text in said if text.startswith("Spearman"))
    assert of_cds.endswith("; with CDS none, as all features are alike in it.")
    assert not any("\u2013" in text for text in said)


def test_where_no_feature_has_an_extent_nothing_is_said_of_its_size() -> None:
    found = make_found()
    whole = np.zeros_like(found.extent.whole)
    said = make_extent_section([replace_extents(found, whole=whole)], DESIGN).findings
    assert "No feature has an extent." in said
    assert not any("\u2013" in text or "no share" in text for text in said)


def test_broad_facts_come_first() -> None:
    found = make_found()
    effects = {"alike": make_confounds(found.scope, found.extent.extent).image_effects["light"]}
    broad, known_global, *_ = make_extent_section(
        [found._replace(confounds=replace(found.confounds, fact_effects=effects))], DESIGN
    ).findings
    assert "known-broad" in broad
    assert "known-global from known-local features worse" in known_global


def test_too_little_truth_is_said() -> None:
    found = make_found()
    few = {"light": np.zeros(len(found.scope.cds))}
    section = make_extent_section([found._replace(confounds=replace(found.confounds, image_effects=few))], DESIGN)
    assert section.findings[0].startswith("Too few known-global and known-local features have an extent to tell")
    section = make_extent_section([make_found(truth=None)], DESIGN)
    assert section.findings[0].startswith("With nothing but its own patch left")
    assert any(text.startswith("Which features are global is not known of these data") for text in section.findings)
    assert "extent_auroc" not in section.tables


def test_numbers_are_those_of_the_features() -> None:
    seeds = [make_found(seed) for seed in range(2)]
    section = make_extent_section(seeds, DESIGN)
    high = [found.scope.partition.groups["high"] & np.isfinite(found.extent.extent) for found in seeds]
    groups = section.summary["groups"]["high"]
    medians = [np.median(found.extent.extent[of]) for found, of in zip(seeds, high, strict=True)]
    assert groups["extent"].mean == pytest.approx(np.mean(medians))
    assert groups["n"].mean == np.mean([of.sum() for of in high])
    at_0 = [(found.extent.extent[of] == 0).mean() for found, of in zip(seeds, high, strict=True)]
    assert groups["at_0"].mean == pytest.approx(np.mean(at_0))
    assert 0 < groups["at_0"].mean < 1
    kept = [found.extent.response[1, of].mean() for found, of in zip(seeds, high, strict=True)]
    row = section.tables["extent"].rows[1]
    assert [cell.value for cell in row[:2]] == [1, "3 x 3"]
    assert row[4].number == pytest.approx(np.mean(kept))
    rhos = []
    for found in seeds:
        known = np.isfinite(found.scope.cds) & np.isfinite(found.extent.extent)
        rhos.append(stats.spearmanr(found.extent.extent[known], found.scope.cds[known])[0])
    assert section.summary["spearman"]["extent"]["cds"]["rho"].mean == pytest.approx(np.mean(rhos))
    of_extent = []
    for found in seeds:
        scored = np.isfinite(found.scope.cds)
        sides = found.confounds.known_global & scored, found.confounds.known_local & scored
        of_extent.append(compute_auroc(found.extent.extent, *sides).value)
    assert section.summary["auroc"]["all"]["extent"].mean == pytest.approx(np.mean(of_extent))
    assert f"Measured: {DESIGN} Encoded were 0." == section.findings[-1]


def keep_extents(found: Found, n: int, of_scored: int | None = None) -> Found:
    """Leave out the extents of all but `n` features, of which only some have a CDS."""
    known, scored = np.isfinite(found.table["extent"]), np.isfinite(found.table["cds"])
    n_scored = n if of_scored is None else of_scored
    kept = [*np.flatnonzero(known & scored)[:n_scored], *np.flatnonzero(known & ~scored)[: n - n_scored]]
    assert len(kept) == n
    spared = np.isin(np.arange(len(known)), kept)
    columns = (
        LatentColumn(of.name, np.where(spared, of.values, np.nan) if of.name == "extent" else of.values, of.name)
        for of in found.table
    )
    return found._replace(table=LatentTable(found.table.seed, columns))


def test_too_few_features_go_with_nothing() -> None:
    found = make_found()
    section = make_extent_section([keep_extents(found, 29), keep_extents(found, 29)], DESIGN)
    assert section.findings[-2] == "Too few features have an extent to say what it goes with (29, fewer than 30)."
    table = section.tables["extent_correlates"]
    assert "No number with fewer than 30 features" in table.notes[0]
    assert all(row[1].number is None for row in table.rows)
    assert all(row[-1].number == 29 for row in table.rows)
    section = make_extent_section([keep_extents(found, 30)], DESIGN)
    assert section.findings[-2].startswith("Spearman correlation of the extent with CDS ")
    assert "too few" not in section.findings[-2]


def test_what_too_few_have_is_named() -> None:
    section = make_extent_section([keep_extents(make_found(), 33, of_scored=29)], DESIGN)
    said = section.findings[-2]
    assert said.startswith("Spearman correlation of the extent with context effect ")
    assert said.endswith("; of CDS and CDS - chance too few features have both (fewer than 30).")


class Pictures:
    def load(self, i: int, image_px: int) -> np.ndarray:
        return np.full((image_px, image_px, 3), 40 * i, np.uint8)


def test_corners_are_the_features_furthest_out() -> None:
    found = make_found()
    corners = choose_corners(found)
    assert corners.keys() == CORNERS.keys()
    assert len({latent for latents in corners.values() for latent in latents}) == 2 * len(CORNERS)
    for name, (moves, is_wide) in CORNERS.items():
        for latent in corners[name]:
            assert (found.scope.cds[latent] > np.nanmedian(found.scope.cds)) == moves
            assert (found.extent.extent[latent] > np.nanmedian(found.extent.extent)) == is_wide
    read = read_corners(found, Pictures(), 32)  # pyright: ignore[reportArgumentType]
    assert [corner.latent for corner in read] == [latent for latents in corners.values() for latent in latents]
    assert all(corner.images.shape == (N_IMAGES, 32, 32, 3) for corner in read)
    few = make_found(scope=make_unscored_result())
    assert choose_corners(few) == {}


def test_no_feature_is_shown_in_a_corner_where_it_does_not_lie() -> None:
    found = make_found()
    alike = replace_extents(found, kept=np.ones_like(found.extent.kept))
    assert set(alike.extent.extent[np.isfinite(alike.extent.extent)]) == {0}
    assert choose_corners(alike) == {}
    one = np.flatnonzero(np.isfinite(alike.extent.extent) & (found.scope.cds > np.nanmedian(found.scope.cds)))[:1]
    kept = alike.extent.kept.copy()
    kept[:, one] = 0
    wide = replace_extents(alike, kept=kept)
    assert wide.extent.extent[one] == 1
    corners = choose_corners(wide)
    assert corners["moves, wide"] == one.tolist()
    assert corners.keys() == {"stays, narrow", "moves, narrow", "moves, wide"}


def test_features_in_no_group_have_rows_of_their_own() -> None:
    found = make_found()
    unscored = np.isnan(found.scope.cds) & np.isfinite(found.extent.extent)
    assert unscored.any()
    section = make_extent_section([found], DESIGN)
    groups = section.summary["groups"]
    assert list(groups) == ["all features", "high", "low", "in no group"]
    assert groups["in no group"]["n"].mean == unscored.sum()
    assert sum(groups[name]["n"].mean for name in ("low", "high", "in no group")) == groups["all features"]["n"].mean
    scored = replace_extents(found, donor=np.where(unscored[:, None, None], np.nan, found.extent.donor))
    assert "in no group" not in make_extent_section([scored], DESIGN).summary["groups"]


@pytest.mark.parametrize(
    ("responses", "radius"), [((0.5, 0.6, 1), 0), ((0.4, 0.5, 1), 1), ((0, 0.2, 0.4), None), ((np.nan,) * 3, None)]
)
def test_the_window_that_is_enough(responses: tuple[float, ...], radius: int | None) -> None:
    corner = Corner(
        "", 0, 0, 0, "", 8, np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, int), np.array(RADII), np.zeros(0)
    )
    assert replace(corner, responses=np.array(responses)[:, None]).find_radius(0) == radius


@pytest.mark.parametrize(
    ("responses", "words"),
    [
        ((0.5, 0.6, 1), "0.50"),
        ((0.2, 0.6, 1), "0.20, 0.60 in 3 x 3"),
        ((0, 0.2, 0.4), "0.00, none"),
        ((np.nan,) * 3, "unknown"),
    ],
)
def test_pictures_say_which_window_is_enough(responses: tuple[float, ...], words: str) -> None:
    (corner, *_) = read_corners(make_found(), Pictures(), 32)  # pyright: ignore[reportArgumentType]
    figure = draw_corners([replace(corner, images=corner.images[:1], responses=np.array(responses)[:, None])])
    assert [axes.get_xlabel() for axes in figure.axes] == [words]


def test_it_renders(tmp_path: Path) -> None:
    found = make_found()
    corners = read_corners(found, Pictures(), 32)  # pyright: ignore[reportArgumentType]
    section = make_extent_section([found, make_found(1)], DESIGN, corners)
    assert section.figures.keys() == {"extent_response", "extent_cds", "extent_examples"}
    files = write_report(Page("title", {}, sections=[section]), tmp_path)
    assert json.loads(files.summary.read_text())["extent"]["radii"] == list(RADII)


@pytest.mark.parametrize("n_images", [1, 2, N_IMAGES])
def test_pictures_fill_the_width_however_few_there_are(n_images: int) -> None:
    read = read_corners(make_found(), Pictures(), 32)  # pyright: ignore[reportArgumentType]
    figure = draw_corners([replace(corner, images=corner.images[:n_images]) for corner in read])
    assert len(figure.axes) == len(read) * n_images
    assert max(axes.get_position().x1 for axes in figure.axes) == pytest.approx(0.994)


def test_it_renders_where_there_is_nothing(tmp_path: Path) -> None:
    scope = make_unscored_result()
    section = make_extent_section([make_found(scope=scope, truth=None)], DESIGN)
    draw_all(section, tmp_path)
    bands = make_scope_result(config=PartitionConfig(rule=Rule.bands, n_bands=3))
    draw_all(make_extent_section([make_found(scope=bands, truth=None)], DESIGN), tmp_path)


def test_groups_by_extent_have_their_names() -> None:
    scope = make_scope_result()
    extent = make_extents(scope).extent
    partition = make_partition(extent, scope.mass, PartitionConfig(By.extent, quantile=0.5))
    section = make_extent_section(
        [make_found(scope=replace(scope, by=By.extent, measured=extent, partition=partition))], DESIGN
    )
    assert {row[0].value for row in section.tables["extent_groups"].rows} == {"all features", "wide", "narrow"}


def test_the_readme_names_the_columns_of_the_table_of_latents() -> None:
    readme = (Path(__file__).parents[3] / "src" / "infoscope" / "README.md").read_text(encoding="utf-8")
    told = readme.partition("After `stage=extent` there are")[2].partition("Each column")[0]
    assert all(f"`{column.name}`" in told for column in list_columns(make_found().extent))
