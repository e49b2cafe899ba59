"""What a group costs beyond random features: differences within a seed, intervals over seeds, words, figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from infoscope.stages.probe.against_random import describe_excess, list_excess, make_table_against_random
from infoscope.stages.probe.figures import draw_against_random, draw_removal
from infoscope.stages.probe.section import make_removal_section
from tests.support.report_samples import make_result, make_results

MIOU = ("segmentation", "miou")


def set_miou(result: dict[str, Any], value: float) -> dict[str, Any]:
    result["metrics"] = {"segmentation": {"miou": value}}
    return result


def make_runs(group: list[float], **controls: list[list[float]]) -> list[dict[str, Any]]:
    """The mIoU without the low group by seed, and without each draw of its random groups by kind and seed."""
    runs = []
    for seed, value in enumerate(group):
        runs.append(set_miou(make_result(seed, "original"), 0.9))
        runs.append(set_miou(make_result(seed, "group", group="low"), value))
        for control, of_seeds in controls.items():
            for draw, drawn in enumerate(of_seeds[seed]):
                given = {"group": "low", "control": control, "draw": draw}
                runs.append(set_miou(make_result(seed, "control", **given), drawn))
    return runs


def test_differences_are_taken_within_a_seed() -> None:
    (one,) = list_excess(make_runs([0.5, 0.3], mass=[[0.6, 0.8], [0.2, 0.2]]))
    assert (one.metric.task, one.group, one.control) == ("segmentation", "low", "mass")
    assert one.by_seed == pytest.approx({0: -0.2, 1: 0.1})


def test_the_interval_is_students() -> None:
    rng = np.random.default_rng(0)
    group, random = rng.random(4), rng.random((4, 3))
    (one,) = list_excess(make_runs(group.tolist(), energy=random.tolist()))
    expected = ttest_1samp(group - random.mean(1), 0).confidence_interval(0.95)
    assert one.interval == pytest.approx((expected.low, expected.high))


def test_words_say_which_conclusion_holds_under_every_control() -> None:
    alike = [[0.7, 0.7], [0.71, 0.71], [0.69, 0.69]]
    wide = [[0.2, 0.2], [0.9, 0.9], [0.5, 0.5]]

    def describe(**controls: list[list[float]]) -> str:
        (sentence,) = describe_excess(list_excess(make_runs([0.5, 0.51, 0.5], **controls)))
        return sentence

    holds = describe(mass=alike, energy=alike)
    assert holds.startswith("mIoU: removing low-scope features costs more than removing random ones of equal mass (")
    assert holds.endswith(", under every control.")
    fails = describe(mass=alike, energy=wide)
    assert ", but is not told from removing random ones of equal energy (" in fails
    assert "under every control" not in fails
    assert "is not told from" in describe(mass=wide)
    assert "under every control" not in describe(mass=alike)  # it is the only one


def test_lower_is_better_for_depth() -> None:
    runs = make_runs([0.5, 0.5, 0.5], mass=[[0.7], [0.71], [0.72]])
    for run in runs:
        run["metrics"] = {"depth": {"rmse_m": run["metrics"]["segmentation"]["miou"]}}
    (one,) = list_excess(runs)
    assert one.sign == 1
    assert one.stat.mean < 0


def test_one_seed_has_no_interval() -> None:
    runs = make_runs([0.5], mass=[[0.7, 0.8]])
    (one,) = list_excess(runs)
    assert one.sign is None
    assert np.isnan(one.interval).all()
    table = make_table_against_random(runs)
    assert [row["finding"] for row in table.records()] == [""]
    assert "Interval" not in table.notes[0]
    assert table.notes[1:] == list(describe_excess([one]))
    assert table.notes[1].startswith("One SAE seed gives no interval")


def test_seeds_that_agree_to_the_last_digit_tell_nothing() -> None:
    """Counts of few images can; the interval has no width then."""
    (one,) = list_excess(make_runs([0.3, 0.3, 0.3], mass=[[0.4], [0.4], [0.4]]))
    assert one.stat.mean == pytest.approx(-0.1)
    assert one.sign == 0


def test_what_only_one_seed_has_is_in_no_finding() -> None:
    runs = make_runs([0.5, 0.52], mass=[[0.7], [0.71]])
    runs += [run for run in make_runs([0.2], energy=[[0.3]]) if run["variant"]["role"] == "control"]
    both, alone = describe_excess(list_excess(runs))
    assert both.startswith("mIoU: removing low-scope features costs more than removing random ones of equal mass (")
    assert "energy" not in both
    assert alone.startswith("One SAE seed gives no interval")


def test_a_seed_whose_group_is_empty_is_left_out() -> None:
    runs = make_runs([0.5, 0.5], mass=[[0.7], [0.8]])
    for run in runs:
        if run["sae_seed"] == 1 and run["variant"]["role"] == "group":
            run["variant"]["empty"] = True
    (one,) = list_excess(runs)
    assert list(one.by_seed) == [0]


def test_the_table_has_raw_numbers_for_programs_and_a_section_per_metric() -> None:
    table = make_table_against_random(make_results(3, n_draws=2))
    assert [section.title for section in table.sections] == [
        "top-1 patch mean ↑ (points)",
        "top-1 final CLS ↑ (points)",
        "mIoU ↑ (points)",
        "depth RMSE ↓ (m)",
    ]
    rows = table.records()
    assert len(rows) == 4 * 2 * 2
    (row,) = (row for row in rows if (row["metric"], row["group"], row["control"]) == ("miou", "low-scope", "mass"))
    (one,) = (
        one
        for one in list_excess(make_results(3, n_draws=2))
        if (one.metric.column.key, one.group, one.control) == ("miou", "low", "mass")
    )
    assert row["difference"] == pytest.approx(one.stat.mean)
    assert (row["low"], row["high"]) == pytest.approx(one.interval)
    assert row["finding"] == "costs more than random"


def test_without_controls_there_is_no_such_figure_or_table() -> None:
    runs = [run for run in make_results(2) if run["variant"]["role"] != "control"]
    section = make_removal_section([], runs)
    assert "removal_against_random" not in {*section.figures, *section.tables}
    assert {"removal_against_random"} <= {*make_removal_section([], make_results(2)).figures}


def test_dots_are_seeds_and_depth_is_turned_round() -> None:
    runs = make_results(3)
    panels = draw_against_random(runs).axes
    (miou,) = (axes for axes in panels if axes.get_title() == "mIoU")
    dots = [np.asarray(line.get_xdata()) for line in miou.lines if line.get_marker() == "o"]
    expected = [one for one in list_excess(runs) if one.metric.column.key == "miou"]
    assert len(dots) == len(expected) == 4
    for shown, one in zip(dots, expected, strict=True):
        np.testing.assert_allclose(shown, 100 * np.array(list(one.by_seed.values())))
    (depth,) = (axes for axes in panels if axes.get_title() == "depth RMSE")
    assert depth.xaxis_inverted()
    assert not miou.xaxis_inverted()


def test_the_removal_figure_is_absolute_and_not_squashed_by_all_removed() -> None:
    runs = make_results(3)
    panels = draw_removal(runs).axes
    (miou,) = (axes for axes in panels if axes.get_title() == "mIoU")
    low, high = miou.get_xlim()
    read = {
        is_all: [
            100 * run["metrics"]["segmentation"]["miou"] for run in runs if (run["variant"]["role"] == "all") == is_all
        ]
        for is_all in (True, False)
    }
    assert low < min(read[False]) < max(read[False]) < high
    assert max(read[True]) < low
    by_mode = [
        np.mean(
            [
                100 * run["metrics"]["segmentation"]["miou"]
                for run in runs
                if run["variant"]["role"] == "all" and run["variant"]["mode"] == mode
            ]
        )
        for mode in ("error_preserving", "reconstruct")
    ]
    assert [text.get_text() for text in miou.texts] == [f"← {value:.1f}" for value in by_mode]


def test_all_removed_is_drawn_whole_where_its_mean_has_room() -> None:
    runs = make_results(3)
    others = [run["metrics"]["segmentation"]["miou"] for run in runs if run["variant"]["role"] != "all"]
    values = [min(others) + shift for shift in (-0.1, 0.05, 0.05)]
    below = -0.08  # where the other mode comes into sight only because of the first
    for run in runs:
        if run["variant"]["role"] == "all":
            shift = below if run["variant"]["mode"] == "reconstruct" else 0
            run["metrics"]["segmentation"]["miou"] = values[run["sae_seed"]] + shift
    (miou,) = (axes for axes in draw_removal(runs).axes if axes.get_title() == "mIoU")
    assert miou.get_xlim()[0] < 100 * (min(values) + below)
    assert not miou.texts


@pytest.mark.parametrize("draw", [draw_removal, draw_against_random])
def test_nothing_to_draw_is_said(draw: Any) -> None:
    (axes,) = draw([]).axes
    assert axes.texts[0].get_text().startswith("No ")
