"""Which features are shown, and which are locked to a place of the grid."""

from __future__ import annotations

import numpy as np
import pytest

from infoscope.scope import examples
from infoscope.scope.cds import CDS
from infoscope.scope.config import PartitionConfig
from infoscope.scope.examples import choose_example_latents, find_locked
from infoscope.scope.partition import make_partition

K, GRID = 8, 6
VALUES = np.random.default_rng(1).permutation(np.linspace(0, 1, 101))
VALUES[::10] = np.nan
FULL = CDS(VALUES, np.full(101, K))
SETTLED = np.zeros(101, bool)
GROUPS = make_partition(VALUES, np.ones(101), PartitionConfig(gamma=0.5))


def test_each_group_shows_features_from_all_over_its_scores() -> None:
    chosen = choose_example_latents(FULL, GROUPS, SETTLED, 6, K)
    assert list(chosen) == ["low", "high"]
    np.testing.assert_allclose(VALUES[chosen["low"]], [1 / 12, 3 / 12, 5 / 12], atol=0.05)
    np.testing.assert_allclose(VALUES[chosen["high"]], [7 / 12, 9 / 12, 11 / 12], atol=0.05)


def test_settled_features_with_all_their_pairs_are_shown_where_there_are_such() -> None:
    cds = CDS(VALUES, np.where(VALUES > 0.9, K - 1, K))
    chosen = choose_example_latents(cds, GROUPS, np.abs(VALUES - 0.5) < 0.3, 6, K)
    assert (VALUES[chosen["low"]] < 0.2).all()
    assert ((VALUES[chosen["high"]] > 0.8) & (VALUES[chosen["high"]] <= 0.9)).all()
    few = choose_example_latents(cds, GROUPS, VALUES < 0.98, 6, K)
    assert (VALUES[few["high"]] >= 0.98).all()  # fewer pairs, but settled
    assert len(few["low"]) == 3  # none is settled: some are shown all the same


def test_of_many_bands_the_ends_and_the_middle_are_shown() -> None:
    bands = make_partition(VALUES, np.ones(101), PartitionConfig(n_bands=5))
    chosen = choose_example_latents(FULL, bands, SETTLED, 6, K)
    assert [name.split()[1] for name in chosen] == ["1", "3", "5"]
    assert [len(latents) for latents in chosen.values()] == [2, 2, 2]
    nothing = np.full(4, np.nan)
    empty = make_partition(nothing, np.ones(4), PartitionConfig())
    assert choose_example_latents(CDS(nothing, np.zeros(4, int)), empty, np.zeros(4, bool), 6, K) == {}


@pytest.mark.parametrize("chunk", [1, 2**20])
def test_a_feature_is_locked_if_nearly_all_maps_peak_at_one_place(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(examples, "CHUNK_VALUES", chunk)
    maps = np.zeros((6, K + 2, 2, GRID, GRID), dtype=np.float32)
    maps[0, :K, :, 2, 3] = maps[1, :K, :, 2, 3] = 1
    maps[1, :2, 0, 4, 4] = 2  # two of sixteen maps peak elsewhere
    maps[2, :K, 0, 2, 3] = maps[2, :K, 1, 1, 2] = 1  # stays where its evidence is
    maps[3, :3, :, 2, 3] = 1  # six of sixteen maps have any activation
    maps[4, :K, :, 2, 3] = maps[4, K:, :, 0, 0] = 1  # elsewhere only beyond the k first
    maps[4, 0, 0] = 0
    maps[5, :K] = 0.9  # everywhere
    maps[5, :K, :, 2, 3] = 1
    assert find_locked(maps, K).tolist() == [True, False, False, False, True, False]
