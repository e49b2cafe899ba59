from itertools import combinations

import numpy as np
import pytest
from scipy.sparse import csr_array

from infoscope.analyses import top_sets
from infoscope.analyses.top_sets import TopSets, compute_overlaps, expect_overlap, find_top


def test_the_largest_entries_come_first_and_equal_ones_by_column() -> None:
    table = csr_array(np.array([[1.0, 3, 2, 3], [0, 0, 0, 5], [0, 0, 0, 0], [2, 2, 2, 2]]))
    found = find_top(table, 2)
    assert found.columns.tolist() == [[1, 3], [3, -1], [-1, -1], [0, 1]]
    assert found.values.tolist() == [[3, 3], [5, 0], [0, 0], [2, 2]]
    assert found.first(1).columns.tolist() == [[1], [3], [-1], [0]]


def test_overlaps_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_sets, "_LATENTS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    columns = np.stack([rng.choice(20, 5, replace=False) for _ in range(30)])
    columns[3, 2:] = -1  # a set of two
    columns[[8, 29]] = -1  # no sets
    columns[12] = columns[11][::-1]  # the same set
    found = compute_overlaps(TopSets(columns, np.ones(columns.shape)), 20)
    sets = {row: set(images[images >= 0]) for row, images in enumerate(columns) if images[0] >= 0}
    pairs = {(a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in combinations(sets, 2)}
    for row in range(30):
        of = [index for pair, index in pairs.items() if row in pair]
        expected = np.mean(of) if of else np.nan
        np.testing.assert_allclose(found.of_latent[row], expected, rtol=1e-12)
    np.testing.assert_allclose(np.nanmean(found.of_latent), np.mean(list(pairs.values())), rtol=1e-12)
    shares = [np.mean([index > step / 10 for index in pairs.values()]) for step in range(10)]
    np.testing.assert_allclose(found.shares, shares)
    assert pairs[11, 12] == 1


def test_a_single_set_overlaps_with_none() -> None:
    found = compute_overlaps(TopSets(np.array([[0, 1], [-1, -1]]), np.ones((2, 2))), 3)
    assert np.isnan(found.of_latent).all()
    assert np.isnan(found.shares).all()


def test_the_expected_overlap_is_that_of_draws() -> None:
    rng = np.random.default_rng(0)
    columns = np.stack([rng.choice(24, 8, replace=False) for _ in range(400)])
    found = compute_overlaps(TopSets(columns, np.ones(columns.shape)), 24)
    assert np.mean(found.of_latent) == pytest.approx(expect_overlap(8, 24), abs=0.003)
    assert expect_overlap(8, 5) == 1


def test_none_of_a_row_are_no_columns() -> None:
    found = find_top(csr_array(np.array([[1.0, 2, 0], [0, 0, 0]])), 0)
    assert found.columns.shape == found.values.shape == (2, 0)
