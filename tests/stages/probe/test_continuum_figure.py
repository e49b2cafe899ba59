"""The figure of bands: its points are the table's differences at the bands' mean scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infoscope.scope.config import PartitionConfig, Rule
from infoscope.stages.probe.continuum_figure import draw_continuum
from infoscope.stages.score.result import ScopeResult
from tests.support.report_samples import make_result, make_scope_result

BANDS = ("band 1 of 2", "band 2 of 2")
LOSSES = dict(zip(BANDS, (0.3, 0.05), strict=True))


def make_runs() -> list[dict[str, Any]]:
    runs = []
    for seed in (0, 1):
        original = make_result(seed, "original")
        runs.append(original)
        for band, loss in LOSSES.items():
            run = make_result(seed, "group", group="low")
            run["variant"]["group"] = band
            run["metrics"]["segmentation"]["miou"] = original["metrics"]["segmentation"]["miou"] - loss - 0.1 * seed
            runs.append(run)
    return runs


def test_points_are_differences_at_mean_scores() -> None:
    config = PartitionConfig(rule=Rule.bands, n_bands=2)
    seeds = [make_scope_result(seed, config=config) for seed in (0, 1)]
    panels = draw_continuum(seeds, make_runs()).axes
    (miou,) = (axes for axes in panels if axes.get_title() == "mIoU")
    x, y = np.asarray(miou.lines[0].get_data(), float)
    members = [np.concatenate([s.cds[s.partition.groups[band]] for s in seeds]) for band in BANDS]
    np.testing.assert_allclose(x, [part.mean() for part in members])
    np.testing.assert_allclose(y, [-35.0, -10.0])  # points, mean of two seeds
    (depth,) = (axes for axes in panels if axes.get_title() == "depth RMSE")
    assert depth.yaxis_inverted()
    assert not miou.yaxis_inverted()


@pytest.mark.parametrize(("seeds", "runs"), [([make_scope_result()], []), ([], make_runs())])
def test_nothing_to_draw_is_said(seeds: list[ScopeResult], runs: list[dict[str, Any]]) -> None:
    (axes,) = draw_continuum(seeds, runs).axes
    assert axes.texts[0].get_text().startswith("No bands")
