"""The section on attributions: its tables, what it says, its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.attribution import AttributionResult
from infoscope.analyses.latent_orders import (
    ABLATION,
    DELETION,
    GRADIENT,
    INSERTION,
    INTEGRATED,
    METHODS,
    PLACES,
    RANDOM,
)
from infoscope.report.page import Page, write_report
from infoscope.stages.attribute.numbers import Found
from infoscope.stages.attribute.section import MAX_CLASSES, make_attribution_section
from infoscope.stages.score.result import ScopeResult
from tests.support.report_samples import make_scope_result, make_unscored_result

D_SAE, N_TESTED, N_STEPS = 200, 30, 5
AGREEMENT = {GRADIENT: 0.9, INTEGRATED: 0.5, ABLATION: 1.0, RANDOM: 0.0}
HEIGHT = {GRADIENT: 0.3, INTEGRATED: 0.2, ABLATION: 0.3, RANDOM: 0.6}
"""Of the deletion curves between their ends; insertion is 1 minus it. Other methods: 0.1 and 0.5."""


def make_result(scope: ScopeResult, seed: int = 0, n_classes: int = 3) -> AttributionResult:
    """High-scope latents have a fifth of the attribution that their activation says, in class 0 twice of it."""
    rng, high = np.random.default_rng(seed), scope.partition.groups["high"]
    wobble = rng.normal(0, 0.01, (len(METHODS), N_TESTED))
    agreement = np.array([AGREEMENT.get(name, 0.1) for name in METHODS])[:, None] + wobble
    curves = np.zeros((2, len(METHODS), N_STEPS + 1, N_TESTED, 2), dtype=np.float32)
    for name, place in PLACES.items():
        inner = HEIGHT.get(name, 0.5) + wobble[place]
        curves[DELETION, place, 1:-1], curves[INSERTION, place, 1:-1] = inner[..., None], 1 - inner[..., None]
    curves[DELETION, :, 0] = curves[INSERTION, :, -1] = 1
    mass = rng.uniform(1, 2, (n_classes, len(high))).astype(np.float32)
    factor = np.where(high, np.where(np.arange(n_classes) == 0, 2.0, 0.2)[:, None], 1)
    alignment = np.where(high, -0.1, 0.2)
    alignment[::7] = np.nan
    n_images = np.full(n_classes, 50)
    n_images[-1], mass[-1] = 0, 0
    return AttributionResult(
        "predicted",
        tuple(f"class {i}" for i in range(n_classes)),
        20,
        n_images,
        np.full(len(high), 9),
        rng.normal(0, 1, len(high)),
        (mass * factor).astype(np.float32),
        mass,
        alignment,
        np.where(np.isfinite(alignment), 1, -1),
        np.arange(N_TESTED),
        np.full(N_TESTED, 40),
        (mass[0] * np.where(high, 0.5, 1)).astype(np.float64),
        agreement.astype(np.float32),
        curves,
    )


SCOPES = [make_scope_result(seed) for seed in range(3)]
FOUND = [Found(scope.partition.groups, make_result(scope, seed)) for seed, scope in enumerate(SCOPES)]


def test_a_row_for_each_order_with_means_over_seeds_and_intervals_over_images() -> None:
    table = make_attribution_section(FOUND).tables["attribution"]
    records = {record["order"]: record for record in table.records()}
    assert list(records) == list(METHODS.values())
    row = records[METHODS[GRADIENT]]
    assert row["agreement"] == pytest.approx(0.9, abs=0.01)
    assert row["agreement_n"] == 3
    low, high = (float(str(row[f"agreement_{end}"])) for end in ("low", "high"))
    assert 0.89 < low < 0.9 < high < 0.91
    assert row["deletion_prob"] == pytest.approx((0.5 + 4 * 0.3) / 5, abs=0.01)  # trapezoids from 1 to 0
    assert row["insertion_cosine"] == pytest.approx((0.5 + 4 * 0.7) / 5, abs=0.01)
    text = table.to_markdown()
    assert "30 test images, 3 classes, 3 SAE seeds; in the mean 40 latents fire in an image" in text
    assert "halfway" not in text
    grouped = [one._replace(result=replace(one.result, n_groups=16)) for one in FOUND]
    text = make_attribution_section(grouped).tables["attribution"].to_markdown()
    assert "latents of an image are in 16 groups of equal activation" in text


def test_groups_have_shares_of_attribution_and_of_activation() -> None:
    table = make_attribution_section(FOUND).tables["attribution_groups"]
    records = {record["class"]: record for record in table.records()}
    assert list(records) == ["all", "all, integrated gradients", "class 0", "class 1"]  # class 2 has no image
    for name, n in (("all", 100), ("all, integrated gradients", 30), ("class 1", 50)):
        assert records[name]["n_images"] == n
    expected = []
    for scope in SCOPES:
        high, mass = scope.partition.groups["high"], make_result(scope, scope.sae_seed).mass[0]
        expected.append(2 * mass[high].sum() / (mass.sum() + mass[high].sum()))
    assert records["class 0"]["attribution_high"] == pytest.approx(np.mean(expected), rel=1e-4)
    ratio = {
        name: float(str(records[name]["attribution_high"])) / float(str(records[name]["activation_high"]))
        for name in ("class 0", "class 1")
    }
    assert ratio["class 0"] > 1.2
    assert ratio["class 1"] < 0.5
    assert records["all, integrated gradients"]["activation_high"] is None


def test_findings_follow_the_numbers() -> None:
    found = make_attribution_section(FOUND).findings
    assert found[0].startswith("Gradient attributions agree with exact ablation: over the 40 latents that fire")
    assert "by +0.90 (Spearman, mean of 30 test images" in found[0]
    assert "finds most first: integrated gradients 0.26" in found[1]
    assert (
        "Deletion, by the area under the curve of the cosine (95% intervals of differences over images): gradients beat"
        in found[2]
    )
    assert "lose to integrated gradients" in found[2]
    assert "random order" in found[2].partition("lose to")[0]
    text = " ".join(found)
    assert " (class 0) times what their share of the activation says; more than that share in 1 of 2 classes." in text
    assert "points, 95% interval over SAE seeds" in text
    assert found[-1].replace("\N{MINUS SIGN}", "-").endswith("median: -0.100 high-scope, +0.200 low-scope.")


def test_a_single_image_says_nothing_of_agreement() -> None:
    result = make_result(SCOPES[0])
    result.agreement[:, 1:] = np.nan
    found = make_attribution_section([Found(SCOPES[0].partition.groups, result)]).findings
    assert found[0].endswith("cannot be told from a single test image.")


@pytest.mark.parametrize(
    ("agreement", "words"),
    [
        (0.5, "Gradient attributions agree only in part with exact ablation:"),
        (0.0, "Gradient attributions do not agree with exact ablation:"),
        (-0.9, "Gradient attributions do not agree with exact ablation:"),
        (np.nan, "Whether gradient attributions agree with exact ablation cannot be told:"),
    ],
)
def test_agreement_is_named_by_its_size_and_sign(agreement: float, words: str) -> None:
    result = make_result(SCOPES[0])
    result.agreement[PLACES[GRADIENT]] += agreement - result.agreement[PLACES[GRADIENT]].mean()
    found = make_attribution_section([Found(SCOPES[0].partition.groups, result)]).findings
    assert found[0].startswith(words)


def test_without_scores_nothing_is_said_of_groups(tmp_path: Path) -> None:
    alone = make_attribution_section([Found({}, FOUND[0].result)])
    assert alone.tables.keys() == {"attribution"}
    assert alone.figures.keys() == {"attribution_curves"}
    assert not any("scope" in finding for finding in alone.findings)
    assert alone.findings[-1].endswith("median: +0.200.")
    written = write_report(Page("A page", {}, sections=[alone]), tmp_path)
    assert json.loads(written.summary.read_text())["attribution"]["groups"] == {}
    unscored = make_unscored_result()
    few = make_attribution_section([Found(unscored.partition.groups, make_result_of(unscored))])
    assert few.figures["attribution_groups"].draw().axes
    assert "High-scope features have 0.0% of the attribution" in " ".join(few.findings)


def make_result_of(scope: ScopeResult) -> AttributionResult:
    """Of an SAE without any score: as if half were of high scope."""
    half = make_scope_result(0, len(scope.cds))
    half.partition.groups["high"][: len(scope.cds) // 2] = True
    return make_result(half)


def test_many_classes_are_shown_from_both_ends() -> None:
    found = [Found(SCOPES[0].partition.groups, make_result(SCOPES[0], n_classes=MAX_CLASSES + 9))]
    section = make_attribution_section(found)
    records = section.tables["attribution_groups"].records()
    assert len(records) == 2 + MAX_CLASSES
    assert records[2]["class"] == "class 0"
    assert "8 classes are left out" in section.tables["attribution_groups"].to_markdown()  # one has no image


def test_the_figures_have_a_line_for_each_order_and_a_row_for_each_class(tmp_path: Path) -> None:
    section = make_attribution_section(FOUND)
    curves = section.figures["attribution_curves"].draw()
    assert len(curves.axes) == 4
    drawn = [line for line in curves.axes[0].lines if np.size(line.get_xdata()) == N_STEPS + 1]
    assert len(drawn) == len(METHODS)
    for name, line in zip(METHODS, drawn, strict=True):
        np.testing.assert_allclose(np.asarray(line.get_ydata())[1:-1], 100 * HEIGHT.get(name, 0.5), atol=1)
    groups = section.figures["attribution_groups"].draw()
    assert [label.get_text() for label in groups.axes[0].get_yticklabels()] == ["all", "class 0", "class 1"]
    written = write_report(Page("A page", {}, sections=[section]), tmp_path)
    assert written.figures.keys() == {"attribution_curves", "attribution_groups"}
