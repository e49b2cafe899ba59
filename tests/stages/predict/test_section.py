"""The predictions' section: its table, its findings, its figures."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

from infoscope.predictions.responsible import ResponsibleFeature
from infoscope.predictions.results import ChangedImage, PredictionResult
from infoscope.report.figure_style import save_figure
from infoscope.stages.predict.figures import (
    Bins,
    _cut,
    compute_interval,
    draw_changed_predictions,
    draw_reliability,
    join_bins,
)
from infoscope.stages.predict.section import make_prediction_section

N_IMAGES, NAMES = 200, ("ball", "cube", "a very long name of a class", "ring")
PICTURES = {i: np.full((16, 16, 3), 20 * i, np.uint8) for i in range(6)}


def make_variant(role: str, mode: str = "error_preserving", **given) -> dict:
    defaults = {"group": None, "control": None, "draw": None, "n_latents": 40, "empty": False, "overlap": None}
    name = "_".join(map(str, (role, mode, *given.values())))
    return {"name": name, "mode": mode, "role": role, **defaults, "mass_share_train": 0.3, "energy_share": 0.2, **given}


def make_ablations(n_draws: int = 3) -> list[dict]:
    controls = [
        make_variant("control", group=group, control=control, draw=draw)
        for group in ("high", "low")
        for control in ("size", "mass")
        for draw in range(n_draws)
    ]
    both = [
        make_variant(role, mode, group=group)
        for mode in ("error_preserving", "reconstruct")
        for role, group in (("group", "high"), ("group", "low"), ("all", None))
    ]
    return [make_variant("original"), make_variant("nothing", "reconstruct"), *both, *controls]


CHANGE = {"high": 0.05, "low": 0.5}


def make_result(
    seed: int = 0, variants: list[dict] | None = None, change: dict[str, float] = CHANGE
) -> PredictionResult:
    """Predictions of which a share is redrawn: `change` for each group, a twentieth for random ones."""
    rng = np.random.default_rng(seed)
    variants = variants or make_ablations()
    labels = np.random.default_rng(9).integers(len(NAMES), size=N_IMAGES)
    predicted, max_prob = [], []
    for variant in variants:
        share = {"original": 0, "group": change.get(variant["group"], 0), "all": 0.9}.get(variant["role"], 0.05)
        share = 0 if variant["empty"] else share
        redrawn = rng.random(N_IMAGES) < share
        predicted.append(np.where(redrawn, rng.integers(len(NAMES), size=N_IMAGES), labels))
        max_prob.append(np.where(redrawn, 0.6, 0.9))
    probabilities = np.array(max_prob, np.float32)
    shown = [
        ChangedImage(group, index, 0, 0, index % 3, 0.9, 0.1, 0.8, 1, 4.2, (ResponsibleFeature(17, 2.5),))
        for group in ("high", "low")
        for index in range(6)
    ]
    return PredictionResult(
        tuple(variants),
        NAMES,
        50.0,
        np.arange(N_IMAGES),
        labels,
        np.array(predicted, np.int16),
        probabilities,
        entropy=1 - probabilities,
        original_prob=probabilities,
        total_variation=1 - probabilities,
        changed=tuple(shown),
    )


def test_a_row_for_each_variant_and_means_over_seeds_and_draws():
    results = {seed: make_result(seed) for seed in range(3)}
    section = make_prediction_section(results)
    table = section.tables["predictions"]
    rows = {(record["section"], record["variant"]): record for record in table.records()}
    assert len(rows) == 12
    assert rows["error-preserving", "random, mass of high"]["top1_n"] == 9
    row = rows["error-preserving", "without low-scope"]
    places = [[v["group"] == "low" and v["role"] == "group" for v in r.variants].index(True) for r in results.values()]
    expected = [r.metrics(place)["top1"] for r, place in zip(results.values(), places, strict=True)]
    assert row["top1"] == pytest.approx(np.mean(expected))
    assert row["top1_sd"] == pytest.approx(np.std(expected, ddof=1))
    assert "3 SAE seeds, 3 draws of each random group" in table.to_markdown()
    assert row["energy_share"] == pytest.approx(0.2)
    assert "differ in mass" not in table.to_markdown()
    by_role = {(v["role"], v["mode"], v["group"], v["control"]): v for v in section.summary["variants"]}
    assert by_role["group", "error_preserving", "low", None]["top1"] == row["top1"]


def test_groups_of_unequal_mass_are_said_to_be_so():
    variants = [v | {"mass_share_train": 0.6 if v["group"] == "low" else 0.3} for v in make_ablations()]
    table = make_prediction_section({0: make_result(0, variants)}).tables["predictions"]
    assert "The groups differ in mass (high-scope 30.0%, low-scope 60.0%)" in table.to_markdown()


def test_findings_follow_the_numbers():
    strong = " ".join(make_prediction_section({0: make_result(0), 1: make_result(1)}).findings)
    assert (
        "Zero-shot top-1 on 200 test images and 4 classes is 100.0% on the original tokens (guessing: 25.0%)" in strong
    )
    assert "Without low-scope features" in strong
    assert "more, by more than two standard deviations" in strong
    weak = make_prediction_section({s: make_result(s, change={"high": 0.05, "low": 0.05}) for s in range(3)}).findings
    assert all("nothing special to this group" in finding for finding in weak[1:3])
    fewer = make_prediction_section({s: make_result(s, change={"high": 0.0, "low": 0.5}) for s in range(3)}).findings
    assert "fewer, by more than two" in fewer[1]


def test_without_labels_nothing_is_called_right():
    result = replace(make_result(), labels=np.zeros(0, np.int64))
    section = make_prediction_section({0: result})
    assert "no labels, so no accuracy" in section.findings[0]
    assert not any("calibration" in finding for finding in section.findings)
    assert {"top1", "ece"}.isdisjoint(column.key for column in section.tables["predictions"].columns)
    assert section.figures == {}
    assert section.summary["variants"][0]["top1"] is math.nan


def test_an_empty_group_is_marked_and_told():
    variants = [make_variant("original"), make_variant("group", group="high", empty=True, n_latents=0)]
    section = make_prediction_section({0: make_result(0, variants)})
    row = section.tables["predictions"].records()[1]
    assert math.isnan(row["top1"])
    assert "∅" in row["marks"]
    assert "The group 'high' has no features in any run" in " ".join(section.findings)


def test_reliability_has_a_panel_for_each_group():
    figure = draw_reliability([make_result(seed) for seed in range(2)])
    assert [axes.get_title() for axes in figure.axes] == ["without high-scope", "without low-scope"]
    confidence, accuracy = figure.axes[0].lines[1].get_data()  # the original, after the diagonal
    np.testing.assert_allclose(confidence, [0.9], rtol=1e-6)
    np.testing.assert_allclose(accuracy, [1.0])
    assert not any(text.get_text() for axes in figure.axes for text in axes.texts)


def test_bins_of_few_images_are_joined_and_never_lost() -> None:
    nan = math.nan
    bins = Bins(np.array([0.0, 20, 40, 30, 60]), np.array([nan, 0.3, 0.5, 0.7, 0.9]), np.array([nan, 1.0, 0, 0.5, 1]))
    joined = join_bins(bins, 50)
    np.testing.assert_allclose(joined.n, [90, 60])
    np.testing.assert_allclose(joined.confidence, [(20 * 0.3 + 40 * 0.5 + 30 * 0.7) / 90, 0.9])
    np.testing.assert_allclose(joined.accuracy, [35 / 90, 1])
    assert len(join_bins(bins, 151).n) == 0
    low, high = compute_interval(np.array([0.0, 0.5, 1.0]), np.array([50.0, 100.0, 50.0]))
    np.testing.assert_allclose(low, [0, 0.4038, 0.9287], atol=1e-4)  # Wilson's, as published tables have them
    np.testing.assert_allclose(high, [0.0713, 0.5962, 1], atol=1e-4)


def test_a_reliability_curve_of_a_handful_of_images_is_not_drawn() -> None:
    result = make_result()
    few = replace(
        result,
        image_index=result.image_index[:30],
        labels=result.labels[:30],
        predicted=result.predicted[:, :30],
        max_prob=result.max_prob[:, :30],
    )
    figure = draw_reliability([few, few])  # two SAEs, many draws, and still thirty images
    for axes in figure.axes:
        assert len(axes.lines) == 1
        assert [text.get_text() for text in axes.texts] == ["fewer than 50 images"]


def test_changed_images_stand_with_their_classes_and_features(tmp_path):
    section = make_prediction_section({0: make_result()}, PICTURES)
    assert set(section.figures) == {"reliability", "changed_predictions"}
    figure = draw_changed_predictions(make_result().changed, NAMES, PICTURES)
    assert len(figure.axes) == 10  # five of each group
    texts = [text.get_text() for text in figure.texts]
    assert {"without high-scope", "ball 0.90", "→ cube 0.80", "→ the same 0.80", "feature 17: −2.50"} <= set(texts)  # noqa: RUF001
    for name, drawn in section.figures.items():
        paths = save_figure(drawn.draw, name, tmp_path)
        assert all(path.stat().st_size > 1000 for path in paths)


def test_without_pictures_or_changes_there_is_no_such_figure():
    assert set(make_prediction_section({0: make_result()}).figures) == {"reliability"}
    unchanged = replace(make_result(), changed=())
    assert set(make_prediction_section({0: unchanged}, PICTURES).figures) == {"reliability"}
    with mpl.rc_context():
        figure = draw_changed_predictions((), NAMES, PICTURES)
    assert "No prediction lost probability" in figure.axes[0].texts[0].get_text()


def test_a_long_name_is_cut_and_not_lost() -> None:
    assert _cut("ball", 8) == "ball"
    assert _cut("rhododendron", 8) == "rhodode…"
    assert _cut("sea lion pup", 9) == "sea lion…"
