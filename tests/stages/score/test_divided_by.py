"""Tables and figures on scores where groups are divided by another measure: gamma is no score, nobody is undecided."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from infoscope.commands.collect.table import make_rows_table
from infoscope.scope.config import By, PartitionConfig, Rule
from infoscope.scope.partition import ENDS, make_partition, name_group
from infoscope.stages.confounds.declared import find_cuts
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.result import ScopeResult, list_columns, name_groups
from infoscope.stages.score.stage import make_scope_section
from infoscope.stages.score.tables import make_scope_table, summarise_scope, tell_ungrouped
from tests.support.report_samples import make_scope_result


def divide(measured: np.ndarray, by: By = By.extent, **options: Any) -> ScopeResult:
    scope, config = make_scope_result(), PartitionConfig(by, **options)
    partition = make_partition(measured, scope.mass, config)
    return replace(scope, by=by, measured=measured, partition=partition, rule=config.rule_in_words)


def read_rows(scope: ScopeResult) -> dict[str, object]:
    return {str(row[0].value): row[1].value for row in make_scope_table([scope]).rows}


@pytest.fixture
def extents() -> np.ndarray:
    """Half are 0; of three of the latents nothing is known."""
    extents = np.where(np.arange(200) % 2, np.linspace(0, 1, 200), 0)
    extents[[0, 50, 199]] = np.nan
    return extents


def test_the_table_says_what_is_divided_and_nothing_of_undecided_features(extents: np.ndarray) -> None:
    scope = divide(extents, gamma=0.4)
    rows, table = read_rows(scope), make_scope_table([scope])
    assert rows["wide (evidence extent > gamma)"] == np.sum(extents > 0.4)
    assert rows["narrow (evidence extent ≤ gamma)"] == np.sum(extents <= 0.4)
    assert rows["firing, evidence extent not known"] == np.sum(np.isnan(extents) & (scope.firing_rate > 0))
    assert (rows["rule"], rows["gamma"]) == ("given, by evidence extent", 0.4)
    assert "ndecided" not in " ".join([*rows, *table.notes])
    assert "Groups are by evidence extent" in table.notes[0]
    assert rows["mean"] == pytest.approx(np.nanmean(scope.cds))  # of the CDS as ever
    of_cds = read_rows(make_scope_result())
    assert {"undecided", "high-scope (CDS > gamma)"} <= of_cds.keys()
    assert summarise_scope(scope)["n_wide"] == rows["wide (evidence extent > gamma)"]


def test_features_in_no_group_are_told_with_their_mass(extents: np.ndarray) -> None:
    scope = divide(extents, gamma=0.4)
    fires, unknown = scope.firing_rate > 0, np.isnan(extents)
    mass = 100 * scope.mass[unknown].sum() / scope.mass.sum()
    assert tell_ungrouped([scope]) == (
        f"{(unknown & fires).sum()} of {fires.sum()} features that fire ({mass:.1f}% of the mass) are in no group:"
        " evidence extent not known"
    )
    assert tell_ungrouped([make_scope_result()] * 2).endswith("are in no group: not scored")
    assert not tell_ungrouped([divide(np.linspace(0, 1, 200), gamma=0.4)])


def test_bands_end_at_the_highest_value_of_what_is_divided(extents: np.ndarray) -> None:
    scope = divide(extents, by=By.context_effect, n_bands=2)
    heading = [quantity.value for row in make_scope_table([scope]).rows for quantity in row[:1]]
    assert "band 1 of 2 (lowest context effect)" in heading
    assert summarise_scope(scope)["band_2_of_2_by_context_effect_end"] == np.nanmax(extents)


def test_gamma_of_another_measure_stands_on_no_axis_of_the_cds(extents: np.ndarray) -> None:
    scope = divide(extents, gamma=0.2)  # of CDS it would be in the middle of the axis
    for one, gammas in ((scope, 0), (make_scope_result(), 1)):
        figure = draw_cds_histograms({"": [one]})
        texts = [text.get_text() for legend in figure.subfigs[0].legends for text in legend.get_texts()]
        assert sum("gamma" in text for text in texts) == gammas
        plt.close("all")
    assert scope.cds_gamma is None
    assert not scope.undecided.any()
    names = [column.name for column in list_columns(scope)]
    assert "undecided" not in names
    assert "group" in names
    assert set(name_groups(scope)) == {"wide", "narrow", "unscored"}


def test_the_captions_say_what_the_colours_are(extents: np.ndarray) -> None:
    captions = [figure.caption for figure in make_scope_section([divide(extents)], []).figures.values()]
    assert "Colours: groups by evidence extent." in captions[0]
    assert "ndecided" not in " ".join(captions)


@pytest.mark.parametrize("rule", [Rule.mass, Rule.quantile, Rule.otsu, Rule.bands])
@pytest.mark.parametrize("value", [np.nan, 0.0], ids=["unknown", "alike"])
def test_measures_without_a_difference_are_sentences_and_no_errors(rule: Rule, value: float) -> None:
    scope = divide(np.full(200, value), rule=rule)
    sizes = [int(members.sum()) for members in scope.partition.groups.values()]
    assert sum(sizes) == (0 if np.isnan(value) else 200)
    assert sizes.count(0) >= len(sizes) - 1
    draw_cds_histograms({"": [scope]})
    plt.close("all")
    section = make_scope_section([scope], [])
    assert section.tables["scope"].rows
    assert section.summary


def test_a_cut_between_declared_features_is_none_of_another_measure(extents: np.ndarray) -> None:
    declared: Any = SimpleNamespace(known_global=np.arange(200) % 4 == 1, known_local=np.arange(200) % 4 == 2)
    cuts = find_cuts([(divide(extents, gamma=0.2), declared)])
    assert np.isnan(cuts["gamma"][0][0])
    assert np.isfinite(cuts["best"][0][0])


@pytest.mark.parametrize("by", By)
def test_a_sweep_shows_how_many_lie_above_gamma_and_their_mass(by: By, extents: np.ndarray) -> None:
    above, _ = ENDS[by]
    summary = summarise_scope(divide(extents, by=by, gamma=0.4))
    shown = {column.heading: summary.get(column.key) for column in make_rows_table([summary]).columns}
    assert shown[name_group(above, " ")] == np.sum(extents > 0.4)
    assert shown["their mass"] == summary[f"{above}_mass"]
