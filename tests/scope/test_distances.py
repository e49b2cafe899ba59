"""Distances that helpers compute while maps are made are those that are computed afterwards."""

import numpy as np
import pytest

from infoscope.data.pictures import Pictures
from infoscope.runtime import parts
from infoscope.sae.activations import JumpReLU, TopK
from infoscope.scope import distances, scoring
from infoscope.scope.config import ScopeConfig
from infoscope.scope.distances import DistancesAhead
from infoscope.scope.scoring import compute_scores, next_valid_ranks, score_latents
from infoscope.scope.sparse_maps import SparseMaps
from tests.scope.test_scoring import assert_same, make_registers
from tests.support.scope_samples import make_noise, measure


def test_what_is_solved_ahead_is_the_same(monkeypatch):
    monkeypatch.setattr(parts, "PART_IMAGES", (3, 3))
    monkeypatch.setattr(distances, "CHUNK_PAIRS", 16)
    config, solved = ScopeConfig(k_cds=2, k_max=4, batch_images=2, n_workers=2), []
    _, expected = measure(*make_registers(), make_noise(11), config, solves_ahead=False)
    solve = scoring.solve_pairs

    def note(first, *others):
        solved.append(len(first))
        return solve(first, *others)

    monkeypatch.setattr(scoring, "solve_pairs", note)
    _, found = measure(*make_registers(), make_noise(11), config, solves_ahead=True)
    assert sum(solved) == 0  # nothing was left
    assert np.isfinite(expected.chance_emd).sum() > 20
    assert_same(found, expected)


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_the_cpu(monkeypatch):
    monkeypatch.setattr(parts, "PART_IMAGES", (4, 4))
    (backbone, sae), pictures = make_registers(), make_noise(11)
    for activation in (TopK(4), JumpReLU(40, 0.5)):
        sae.activation = activation
        config = ScopeConfig(k_cds=2, k_max=4, batch_images=2, n_workers=2)
        ranking, expected = measure(backbone.cpu(), sae.cpu(), pictures, config)
        images = Pictures(list(pictures))
        for n_readers in (0, 2):
            how = {"layer": -2, "n_readers": n_readers}
            found = score_latents(backbone.cuda(), sae.cuda(), images, ranking, config, **how)
            np.testing.assert_allclose(found.maps[:], expected.maps[:], atol=1e-3)
            np.testing.assert_allclose(found.emd, expected.emd, atol=1e-4)
            np.testing.assert_allclose(found.chance_emd, expected.chance_emd, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_each_chance_pair_is_asked_for_once_and_as_soon_as_it_is_known(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    d_sae, k_max, grid = 30, 5, 4
    dense = np.where(rng.random((d_sae, k_max, 2, grid, grid)) < 0.06, 1, 0).astype(np.float32)  # many have no mass
    ranked = rng.random((d_sae, k_max)) < 0.8
    dense[~ranked] = 0
    asked = []
    monkeypatch.setattr(DistancesAhead, "_ask", lambda self, into, first, second: asked.append((into, first, second)))
    config = ScopeConfig(k_cds=2, n_workers=2)
    scores = compute_scores(dense, ranked, config)
    latents, ranks = np.nonzero(np.isfinite(scores.emd))
    following = next_valid_ranks(latents, ranks)
    expected = {(a * k_max + r, a * k_max + s) for a, r, s in zip(latents, ranks, following, strict=True) if s >= 0}
    own, chance = set(), set()
    with DistancesAhead(ranked, grid, config) as ahead:
        for some in np.split(rng.permutation(np.argwhere(ranked)), [20, 50, 51, 90]):
            ahead.add((some[:, 0], some[:, 1]), SparseMaps.of(dense[some[:, 0], some[:, 1]]))
            (_, first, same), (_, one, other) = asked[-2:]
            assert (first == same).all()
            assert not own & set(first.tolist())
            own |= set(first.tolist())
            new = set(zip(one.tolist(), other.tolist(), strict=True))
            assert not chance & new
            chance |= new
            known = ahead._is_known
            is_there = {pair for pair in expected if knows(known, *pair, k_max)}
            assert chance == is_there
    assert own == set((latents * k_max + ranks).tolist())
    assert chance == expected


def knows(known, first, second, k_max):
    """Whether all ranks from the first to the second, going round, are known."""
    latent, rank = divmod(first, k_max)
    steps = (second - first) % k_max or k_max
    return all(known[latent, (rank + step) % k_max] for step in range(steps + 1))
