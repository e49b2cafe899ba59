from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from infoscope.data.pictures import Pictures
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import TopK
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope import agreement
from infoscope.scope.agreement import (
    MAX_ASSIGNED,
    Interval,
    bootstrap_cds,
    compare_cds,
    match_latents,
    summarise_intervals,
)
from infoscope.scope.cds import compute_cds
from infoscope.scope.config import Diagonal, EMDMethod, ScopeConfig
from infoscope.scope.ranking import ImageTokens
from infoscope.scope.rescoring import ScoredSAE, StabilityConfig, compare_at_hand, compute_stability
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import score_latents
from infoscope.scope.stability import Kind, StabilityResult
from infoscope.vision.planted import PlantedRegisters
from tests.support.closed_forms import CONTEXT_RGB, PlantedJump
from tests.support.scope_samples import GRID, PATCH_PX, make_jump_pictures, make_noise, make_sae, measure, rank

# -- the other diagonal ------------------------------------------------------------------------------------------------


def test_a_planted_jump_scores_the_same_on_both_diagonals():
    pictures = make_jump_pictures(9)
    pictures[:, :PATCH_PX, : 2 * PATCH_PX] = CONTEXT_RGB  # the top left patch of crop 1 on either diagonal
    backbone = PlantedJump(GRID, PATCH_PX, offsets=[(3, 4), (0, 0), (1, 0)])
    for diagonal in Diagonal:
        _, scores = measure(backbone, make_sae(3), pictures, ScopeConfig(k_cds=8, diagonal=diagonal))
        np.testing.assert_allclose(scores.cds(8).values, np.array([5, 0, 1]) / 14.142135623730951, atol=1e-9)


def test_maps_of_the_other_diagonal_are_those_of_its_crops():
    backbone, sae, n = PlantedRegisters(6, 4, 32), make_sae(32, 40, TopK(4)), 4
    config = ScopeConfig(k_cds=2, k_max=2, shift_patches=2, diagonal=Diagonal.anti)
    ranking, scores = measure(backbone, sae, make_noise(5), config)
    images = Pictures(list(make_noise(5)))
    for latent, place in ((0, 0), (7, 1), (20, 0)):
        whole = torch.from_numpy(images.load(ranking.top_images[latent, place], 8 * n)).permute(2, 0, 1)[None]
        for side, crop in enumerate((whole[..., : 6 * n, 2 * n :], whole[..., 2 * n :, : 6 * n])):
            acts = sae.encode(backbone.tokens(crop, -2).patches)[0, :, latent].reshape(6, 6)
            np.testing.assert_allclose(scores.maps[latent, place, side], acts, atol=1e-4)


def test_scores_remember_their_diagonal_and_old_files_have_the_main_one(tmp_path):
    _, scores = measure(
        PlantedJump(GRID, PATCH_PX, offsets=[(0, 1)]),
        make_sae(1),
        make_jump_pictures(2),
        ScopeConfig(k_cds=2, k_max=2, diagonal=Diagonal.anti),
    )
    scores.save(tmp_path)
    assert Scores.load(tmp_path).diagonal is Diagonal.anti
    (tmp_path / "scores.json").write_text('{"grid": 12, "shift_patches": 1}')
    assert Scores.load(tmp_path).diagonal is Diagonal.main


# -- comparison --------------------------------------------------------------------------------------------------------


def test_comparison_is_scipys_over_what_both_have():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 80)) / 10  # many ties
    b[:40] = a[:40]
    a[3], b[5] = np.nan, np.nan
    both = np.isfinite(a) & np.isfinite(b)
    found = compare_cds(a, b, 0.2)
    assert found.rank_correlation == pytest.approx(spearmanr(a[both], b[both]).statistic)
    assert found.median_difference == np.median(np.abs(a - b)[both])
    assert found.same_side == np.mean((a > 0.2)[both] == (b > 0.2)[both])
    assert found.n == 78
    halves = compare_cds(a, b / 2, 0.2, gamma_b=0.1)
    assert halves.same_side == found.same_side


def test_what_cannot_be_compared_is_nan():
    some, nan = np.array([0.1, 0.2, 0.4]), np.full(3, np.nan)
    constant = compare_cds(some, np.full(3, 0.3), None)
    assert np.isnan([constant.rank_correlation, constant.same_side]).all()
    assert constant.median_difference == pytest.approx(0.1)
    assert compare_cds(some, nan, 0.2) == (pytest.approx(np.nan, nan_ok=True),) * 3 + (0,)
    one = compare_cds(some, np.array([0.2, np.nan, np.nan]), 0.15)
    assert np.isnan(one.rank_correlation)
    assert one[1:] == (pytest.approx(0.1), 0, 1)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_interval_equals_that_of_all_resamplings():
    emd = np.array([[0.3, np.nan, 0.1, 0.7, 0.9], [0.2, 0.2, 0.2, 0.2, np.nan]])
    means = [np.mean(draw) for draw in product([0.3, 0.1, 0.7], repeat=3)]  # the first four ranks
    lower, upper = bootstrap_cds(emd, 4, n_draws=50_000, level=0.8)
    assert [lower[0], upper[0]] == pytest.approx(np.quantile(means, [0.1, 0.9]))
    assert [lower[1], upper[1]] == pytest.approx([0.2, 0.2])


def test_unscored_latents_have_no_interval(monkeypatch):
    rng = np.random.default_rng(0)
    emd = np.where(rng.random((300, 8)) < 0.5, np.nan, rng.random((300, 8)))
    lower, upper = bootstrap_cds(emd, 8, n_draws=50)
    cds = compute_cds(emd, 8).values
    assert 0 < np.isnan(cds).sum() < 300
    assert np.array_equal(np.isnan(lower), np.isnan(cds))
    assert ((lower <= cds) & (cds <= upper))[np.isfinite(cds)].mean() > 0.95
    monkeypatch.setattr(agreement, "CHUNK_VALUES", 50 * 7)  # seven latents at a time
    np.testing.assert_allclose(bootstrap_cds(emd, 8, n_draws=50), [lower, upper])
    assert np.isnan(bootstrap_cds(emd, 1).lower).all()  # one image says nothing about another


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(0.4, 0.1, (1000, 16))
    lower, upper = bootstrap_cds(drawn, 16, n_draws=500, level=0.9)
    assert 0.82 < np.mean((lower < 0.4) & (upper > 0.4)) < 0.91


def test_undecided_latents_are_counted_among_the_scored_ones():
    interval = Interval(np.array([0.1, 0.2, np.nan, 0.3, np.nan]), np.array([0.2, 0.4, np.nan, 0.6, np.nan]))
    cds = np.array([0.15, 0.3, np.nan, 0.5, 0.1])
    found = summarise_intervals(cds, interval, 0.2)  # 0.2 itself is low; the last one has no interval
    assert found == (pytest.approx(0.2), pytest.approx(2 / 4), pytest.approx(1 / 2), 3)
    assert np.isnan(summarise_intervals(cds, interval, None)[1:3]).all()
    assert np.isnan(summarise_intervals(cds, interval, 0.5).undecided_share_high)
    nothing = summarise_intervals(cds[:3], Interval(*np.full((2, 3), np.nan)), 0.2)
    assert (nothing.n, nothing.undecided_share) == (0, 1)


# -- matching ----------------------------------------------------------------------------------------------------------


def test_what_the_scores_hold_is_compared_without_encoding(backbone, scored, results):
    backbone.n_images_encoded = 0
    at_hand = compare_at_hand(scored, SCOPE, StabilityConfig(n_draws=50))
    assert backbone.n_images_encoded == 0
    for one, whole in zip(at_hand, results, strict=True):
        assert [variation.kind for variation in one.variations] == [Kind.k_cds, Kind.k_cds, Kind.seed]
        for variation in one.variations:
            np.testing.assert_array_equal(variation.cds, find(whole, variation.name).cds)
        np.testing.assert_array_equal(one.interval, whole.interval)
    large = compare_at_hand(scored, SCOPE, StabilityConfig(n_draws=50), max_latents=39)
    assert {variation.kind for one in large for variation in one.variations} == {Kind.k_cds}


@pytest.mark.parametrize("max_assigned", [1000, 0], ids=["assignment", "mutual"])
def test_matching_recovers_a_permutation(max_assigned, monkeypatch):
    monkeypatch.setattr(agreement, "MAX_ASSIGNED", max_assigned)
    monkeypatch.setattr(agreement, "CHUNK_VALUES", 1000)
    rng = np.random.default_rng(0)
    rows, order = rng.standard_normal((60, 16)), rng.permutation(60)
    others = rows[order] * rng.uniform(0.5, 2, (60, 1)) + 0.02 * rng.standard_normal((60, 16))
    a, b, cosine = match_latents(rows, others[:50])
    assert (order[b] == a)[cosine > 0.9].all()
    assert (cosine > 0.9).sum() == 50
    assert len(set(a.tolist())) == len(set(b.tolist())) == len(a) == 50
    exact = (rows[a] * others[b]).sum(1) / np.linalg.norm(rows[a], axis=1) / np.linalg.norm(others[b], axis=1)
    np.testing.assert_allclose(cosine, exact, rtol=1e-4)


def test_decoders_of_two_widths_are_refused():
    with pytest.raises(InputError, match=r"one width d_in, got \[4, 3\] and \[4, 5\]"):
        match_latents(np.ones((4, 3)), np.ones((4, 5)))


@pytest.mark.parametrize("n", [3, MAX_ASSIGNED + 1])
def test_no_latents_have_no_partners(n: int) -> None:
    for one, other in ((0, n), (n, 0)):
        found = match_latents(np.ones((one, 2)), np.ones((other, 2)))
        assert [len(of) for of in found] == [0, 0, 0]


# -- the whole comparison ----------------------------------------------------------------------------------------------

SCOPE = ScopeConfig(k_cds=2, k_max=3)
TRAIN, HELD_OUT = make_noise(12), make_noise(9, seed=2)


def make_scored(backbone, sae, seed=0, scope=SCOPE, gamma=0.3):
    ranking, scores = measure(backbone, sae, TRAIN, scope)
    held_out = ImageTokens(backbone, Pictures(list(HELD_OUT)), -2)
    return ScoredSAE(seed, sae, ranking, scores, gamma, rank(sae, held_out, scope.n_ranks))


def permute_latents(sae, order):
    """The same SAE with its latents in another order."""
    other = SparseAutoencoder(sae.d_in, sae.d_sae, sae.activation)
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.W_dec.copy_(sae.W_dec[order])
    return other.requires_grad_(False)


def measure_stability(backbone, scored, scope=SCOPE, **config):
    images = [Pictures(list(pictures)) for pictures in (TRAIN, HELD_OUT)]
    config = StabilityConfig(n_draws=50, **config)
    return compute_stability(backbone, scored, *images, scope, config, layer=-2)


@pytest.fixture(scope="module")
def backbone():
    return PlantedRegisters(6, 4, 32)


@pytest.fixture(scope="module")
def scored(backbone):
    sae = make_sae(32, 40, TopK(4))
    order = np.random.default_rng(0).permutation(40)
    return [make_scored(backbone, sae), make_scored(backbone, permute_latents(sae, order), seed=7)]


@pytest.fixture(scope="module")
def results(backbone, scored):
    return measure_stability(backbone, scored)


def find(result, name):
    (variation,) = [variation for variation in result.variations if variation.name == name]
    return variation


def test_every_choice_is_varied(results):
    first, second = results
    assert (first.sae_seed, second.sae_seed, first.k_cds, first.gamma) == (0, 7, 2, 0.3)
    names = ["shift_2", "shift_3", "shift_4", "diagonal", "held_out", "sinkhorn", "k_1", "k_3"]
    assert [variation.name for variation in first.variations] == [*names, "seed_7"]
    assert [variation.name for variation in second.variations] == [*names, "seed_0"]
    assert {variation.kind for variation in first.variations} == set(Kind)
    assert all(variation.note == "" for variation in first.variations)
    assert "shift 1, main diagonal, training images, k_CDS 2, exact EMD" in first.configured


@pytest.mark.parametrize(
    ("name", "changed"), [("shift_2", {"shift_patches": 2}), ("diagonal", {"diagonal": Diagonal.anti})]
)
def test_crops_are_varied_as_if_configured(backbone, scored, results, name, changed):
    config = ScopeConfig(k_cds=2, k_max=3, **changed)
    expected = score_latents(backbone, scored[0].sae, Pictures(list(TRAIN)), scored[0].ranking, config, layer=-2)
    known = np.isfinite(results[0].cds)
    assert known.sum() > 5
    found = find(results[0], name).cds
    np.testing.assert_allclose(found[known], expected.cds(2).values[known])
    assert np.isnan(found[~known]).all()
    assert not np.allclose(found[known], results[0].cds[known])


def test_held_out_images_are_ranked_and_scored_for_themselves(backbone, scored, results):
    expected = score_latents(backbone, scored[0].sae, Pictures(list(HELD_OUT)), scored[0].held_out, SCOPE, layer=-2)
    known = np.isfinite(results[0].cds)
    np.testing.assert_allclose(find(results[0], "held_out").cds[known], expected.cds(2).values[known])


def test_matched_seeds_of_one_sae_agree(results):
    first, second = results
    other = find(first, "seed_7")
    np.testing.assert_allclose(other.cds, first.cds)
    np.testing.assert_allclose(other.cosine, np.where(np.isfinite(first.cds), 1, np.nan), rtol=1e-5)
    found = first.compare(other)
    assert (found.rank_correlation, found.same_side) == (pytest.approx(1), 1)
    np.testing.assert_allclose(find(second, "seed_0").cds, second.cds)


def test_pairs_below_the_cosine_are_not_compared(backbone, scored):
    stranger = permute_latents(scored[0].sae, np.arange(40))
    with torch.no_grad():
        stranger.W_dec[:30].neg_()
    result, _ = measure_stability(backbone, [scored[0], replace(scored[0], seed=3, sae=stranger)], shifts=[])
    other = find(result, "seed_3")
    known, kept = np.isfinite(result.cds), np.isfinite(result.cds) & (np.arange(40) >= 30)
    np.testing.assert_array_equal(np.isfinite(other.cosine), known)  # everyone has a partner
    np.testing.assert_array_equal(other.cosine > 0.9, kept)
    assert result.compare(other).n == kept.sum()
    assert result.compare(other).median_difference == 0
    assert result.compare(other, all_pairs=True).n == known.sum()


def test_sinkhorn_ranks_as_the_exact_solver_does(results):
    for result in results:
        found = result.compare(find(result, "sinkhorn"))
        assert found.n == np.isfinite(result.cds).sum()
        assert found.rank_correlation > 0.98
        assert 0 < found.median_difference < 0.05


def test_the_other_solver_of_sinkhorn_is_the_exact_one(backbone, scored, results):
    scope = ScopeConfig(k_cds=2, k_max=3, emd=EMDMethod.sinkhorn)
    one = make_scored(backbone, scored[0].sae, scope=scope)
    (result,) = measure_stability(backbone, [one], scope, shifts=[1], n_solver_latents=6)
    exact = find(result, "exact").cds
    assert np.isfinite(exact).sum() == 6
    np.testing.assert_allclose(exact[np.isfinite(exact)], results[0].cds[np.isfinite(exact)])


def test_each_image_is_encoded_once_for_all_saes(backbone, scored):
    backbone.n_images_encoded = 0
    measure_stability(backbone, scored, shifts=[1, 2])
    n_train, n_held_out = (
        len(np.unique([part.top_images[np.isfinite(one.scores.cds(2).values), :2] for one, part in pairs]))
        for pairs in ([(one, one.ranking) for one in scored], [(one, one.held_out) for one in scored])
    )
    assert backbone.n_images_encoded == 2 * (2 * n_train + n_held_out)


def test_a_part_of_the_latents_may_be_scored_again(backbone, scored, results):
    (result,) = measure_stability(backbone, scored[:1], shifts=[2], n_latents=5)
    found = find(result, "shift_2").cds
    assert 0 < np.isfinite(found).sum() <= 5
    chosen = np.isfinite(found)
    np.testing.assert_allclose(found[chosen], find(results[0], "shift_2").cds[chosen])
    assert np.isfinite(find(result, "k_1").cds).sum() > 5
    assert {variation.kind for variation in result.variations} == set(Kind) - {Kind.seed}


def test_what_cannot_be_measured_is_noted(backbone, scored):
    few = replace(scored[0], held_out=replace(scored[0].held_out, n_images=1))
    (result,) = measure_stability(backbone, [few], shifts=[5])
    shift, held_out = find(result, "shift_5"), find(result, "held_out")
    assert "2 x 2 of 6 x 6 patches" in shift.note
    assert "1 held-out images, fewer than k_CDS 2" in held_out.note
    for variation in (shift, held_out):
        assert result.compare(variation).n == 0


def test_without_held_out_images_that_row_is_left_out(backbone, scored):
    images = Pictures(list(TRAIN))
    config = StabilityConfig(shifts=[], n_draws=5)
    (result,) = compute_stability(backbone, scored[:1], images, None, SCOPE, config, layer=-2)
    assert Kind.images not in {variation.kind for variation in result.variations}


def test_results_are_read_as_they_were_written(results, tmp_path):
    results[0].save(tmp_path / "new")
    read = StabilityResult.load(tmp_path / "new")
    for name in ("sae_seed", "configured", "k_cds", "gamma", "level", "n_draws", "min_cosine"):
        assert getattr(read, name) == getattr(results[0], name)
    np.testing.assert_array_equal(read.cds, results[0].cds)
    np.testing.assert_array_equal(read.interval, results[0].interval)
    for ours, theirs in zip(read.variations, results[0].variations, strict=True):
        np.testing.assert_array_equal(ours.cds, theirs.cds)
        assert (ours.name, ours.kind, ours.setting, ours.note) == (theirs.name, theirs.kind, theirs.setting, "")
        assert ours.gamma == theirs.gamma
        if theirs.cosine is None:
            assert ours.cosine is None
        else:
            np.testing.assert_array_equal(ours.cosine, theirs.cosine)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"stability.npz", "stability.json"}


@pytest.mark.parametrize(
    "bad",
    [
        {"shifts": [0]},
        {"n_latents": 0},
        {"n_solver_latents": 0},
        {"n_draws": 0},
        {"level": 1.0},
        {"min_cosine": 2.0},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=rf"stability\.{next(iter(bad))}"):
        StabilityConfig(**bad)
    with pytest.raises(InputError, match="level between 0 and 1"):
        bootstrap_cds(np.zeros((2, 2)), 2, level=1.0)


def test_some_latents_have_the_partners_that_they_have_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MAX_ASSIGNED", 0)
    rng = np.random.default_rng(3)
    one, other = rng.standard_normal((60, 5)), rng.standard_normal((50, 5))
    every, some = match_latents(one, other), np.arange(0, 60, 3)
    found, known = match_latents(one, other, some=some), np.isin(every.a, some)
    assert 0 < len(found.a) < len(some)
    for values, expected in zip(found, every, strict=True):
        np.testing.assert_allclose(values, expected[known], rtol=1e-6)
