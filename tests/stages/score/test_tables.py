"""The scope table: its numbers are those of the features, with a column for each SAE seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from infoscope.report.tables import MISSING
from infoscope.scope.agreement import compute_split_half
from infoscope.scope.config import PartitionConfig
from infoscope.stages.score.tables import compute_mass_share, compute_zero_shares, make_scope_table, summarise_scope
from tests.support.report_samples import K_MAX, make_scope_result, make_scores, make_unscored_result


def test_scope_numbers() -> None:
    result = make_scope_result()
    summary = summarise_scope(result)
    scored = np.isfinite(result.cds)
    living = result.firing_rate > 0
    assert summary["n_scored"] == scored.sum() == summary["n_high"] + summary["n_low"]  # type: ignore[operator]
    assert summary["n_scored"] + summary["n_unscored"] + summary["n_dead"] == len(result.cds)  # type: ignore[operator]
    assert summary["unscored_mass"] == pytest.approx(result.mass[living & ~scored].sum() / result.mass.sum())
    assert summary["median_cds"] == pytest.approx(np.nanmedian(result.cds))
    assert summary["locked"] == pytest.approx(0.1)
    assert summary["uniform"] == pytest.approx(0.404, abs=5e-4)
    assert summary["sensitive"] > summary["mean_cds"]  # type: ignore[operator]
    assert summary["reliability"] == compute_split_half(result.scores.emd, K_MAX).reliability
    assert summary["n_undecided"] == result.undecided.sum() > 0
    assert summary["undecided_mass"] == pytest.approx(compute_mass_share(result, result.undecided))
    high = result.cds > 0.2
    assert summary["high_mass"] == pytest.approx(compute_mass_share(result, high))


def test_bands_leave_nobody_undecided() -> None:
    assert "n_undecided" not in summarise_scope(make_scope_result(config=PartitionConfig(n_bands=4)))


def test_zero_shares_count_ranked_pairs_only() -> None:
    one, zero, nan = 1.0, 0.0, math.nan
    emd = np.array([[0.1, 0.2, 0.3], [nan, nan, nan]])
    mass1 = np.array([[one, one, zero], [zero, nan, nan]])
    mass2 = np.array([[one, zero, zero], [zero, nan, nan]])
    result = replace(make_unscored_result(), k_cds=2, scores=make_scores(emd, mass1, mass2, emd))
    assert compute_zero_shares(result) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


def test_scope_table_has_a_column_per_seed() -> None:
    table = make_scope_table([make_scope_result(seed, 60) for seed in (4, 7)])
    assert [column.key for column in table.columns] == ["quantity", "seed_4", "seed_7", "mean"]
    assert [column.key for column in make_scope_table([make_scope_result(4, 60)]).columns] == ["quantity", "seed_4"]


def test_nothing_scored_is_a_table_of_dashes() -> None:
    text = make_scope_table([make_unscored_result()]).to_markdown()
    assert f"| median | {MISSING} |" in text
    assert "| scored | 0 |" in text
