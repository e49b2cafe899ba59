"""The CDS histogram: features without a score stand beside it, and bands say which end is which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infoscope.scope.config import PartitionConfig
from infoscope.scope.partition import Partition
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.tables import compute_mass_share
from tests.support.report_samples import make_scope_result, make_unscored_result


def find_axes(figure: Figure) -> tuple[Axes, Axes]:
    histogram, beside = figure.subfigs[0].axes[:2]
    return histogram, beside


def read_bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def read_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_features_without_a_score_stand_beside_the_histogram_on_its_scale() -> None:
    result = make_scope_result()
    unscored = (result.firing_rate > 0) & np.isnan(result.cds)
    assert unscored.any()
    histogram, beside = find_axes(draw_cds_histograms({"": [result]}))
    mass = compute_mass_share(result, unscored)
    assert read_texts(beside) == [f"{unscored.sum()}\n{mass:.0%} of\nmass", "10"]  # a twentieth never fires
    assert beside.get_ylim() == histogram.get_ylim()
    assert [bar.get_height() for bar in read_bars(beside)] == pytest.approx([min(unscored.sum(), top(beside)), 10])
    counts = sum(bar.get_height() for bar in read_bars(histogram))
    assert counts + unscored.sum() + 10 == len(result.cds)


def top(axes: Axes) -> float:
    return axes.get_ylim()[1]


def test_a_bar_of_more_features_than_the_axis_shows_is_broken_and_counted() -> None:
    seeds = [make_scope_result(seed, 2000) for seed in range(2)]
    for result in seeds:
        result.cds[200:1900] = np.nan
    _, beside = find_axes(draw_cds_histograms({"": seeds}))
    n = np.mean([((r.firing_rate > 0) & np.isnan(r.cds)).sum() for r in seeds])
    assert read_texts(beside)[0].startswith(f"{n:,.0f}")
    assert read_bars(beside)[0].get_height() == top(beside) < n
    assert len(beside.lines) == 1


def test_without_any_score_the_features_are_still_counted() -> None:
    _, beside = find_axes(draw_cds_histograms({"": [make_unscored_result()]}))
    assert read_texts(beside) == ["0", "10"]


def test_the_legend_says_which_band_is_the_lowest() -> None:
    result = make_scope_result(config=PartitionConfig(n_bands=3))
    (legend,) = draw_cds_histograms({"": [result]}).subfigs[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:3] == ["band 1 of 3\n(lowest CDS)", "band 2 of 3", "band 3 of 3\n(highest CDS)"]


def test_undecided_features_are_pale_and_counted_even_where_they_are_in_no_group() -> None:
    result = make_scope_result()
    for partition in (result.partition, drop(result.partition, result.undecided)):
        shown = replace(result, partition=partition)
        assert shown.undecided.any()
        histogram, _ = find_axes(draw_cds_histograms({"": [shown]}))
        pale = [bar.get_height() for bar in read_bars(histogram) if bar.get_alpha() == 0.4]
        assert sum(pale) == shown.undecided.sum()
        assert sum(bar.get_height() for bar in read_bars(histogram)) == np.isfinite(result.cds).sum()


def drop(partition: Partition, undecided: np.ndarray) -> Partition:
    return replace(partition, groups={name: members & ~undecided for name, members in partition.groups.items()})
