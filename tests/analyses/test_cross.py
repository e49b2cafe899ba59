"""How quantities go with the CDS: exact against plain loops, and no more significant than what was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest, rankdata, spearmanr

from infoscope.analyses.config import CrossConfig
from infoscope.analyses.cross import (
    CrossResult,
    Quantities,
    Stratum,
    compute_cross,
    correct_by_holm,
    correlate_within,
    draw_spearman,
    make_strata,
    permute_within,
)
from infoscope.runtime.errors import InputError
from infoscope.scope.partial_ranks import MIN_LATENTS
from infoscope.scope.partition import make_bands

QUICK = CrossConfig(n_draws=50, n_permutations=200)


def make_latents(n: int = 300, n_quantities: int = 3, seed: int = 0, noise: float = 0.3) -> Quantities:
    """Latents whose CDS falls with their firing rate, and whose quantities do so too, through the rate alone."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    cds = 1 / (1 + np.exp(z + noise * rng.normal(size=n)))
    return Quantities(cds, np.exp(1.5 * z - 5), np.exp(noise * rng.normal(size=(n, n_quantities)) - z[:, None]))


def test_rho_is_that_of_the_latents_that_have_both() -> None:
    latents = make_latents()
    latents.values[::3, 1] = np.nan
    latents.values[:, 2] = np.round(latents.values[:, 2])  # ties
    rho = draw_spearman(latents.values, latents.cds, 5)[0]
    for place, column in enumerate(latents.values.T):
        have = np.isfinite(column)
        assert rho[place] == pytest.approx(spearmanr(column[have], latents.cds[have])[0], abs=1e-12)


def test_a_draw_counts_the_ranks_of_all_as_often_as_it_has_drawn_them() -> None:
    latents = make_latents(40, 2)
    latents.values[:7, 1] = np.nan
    draws = draw_spearman(latents.values, latents.cds, 4, seed=9)
    rng = np.random.default_rng(9)
    for draw in draws[1:]:
        chosen = rng.integers(40, size=40)
        for place, column in enumerate(latents.values.T):
            have = np.isfinite(column)
            ranks = np.full((2, 40), np.nan)
            ranks[:, have] = rankdata([column[have], latents.cds[have]], axis=1)
            of_draw = ranks[:, chosen]
            of_draw = of_draw[:, np.isfinite(of_draw[0])]
            assert draw[place] == pytest.approx(np.corrcoef(of_draw)[0, 1], abs=1e-12)


def test_blocks_change_no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, strata = make_latents(), make_strata(make_latents(), 4)
    whole = draw_spearman(latents.values, latents.cds, 20), permute_within(strata[:1], 20)
    monkeypatch.setattr("infoscope.analyses.cross._BLOCK", 1)
    np.testing.assert_allclose(draw_spearman(latents.values, latents.cds, 20), whole[0], atol=1e-12)
    np.testing.assert_array_equal(permute_within(strata[:1], 20), whole[1])


def remove_trends(values: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """What is left of the ranks of each column after a cubic in the rank of the rate."""
    ranks, of_rate = rankdata(values, axis=0) / len(values), rankdata(rate) / len(rate)
    return ranks - np.polynomial.Polynomial.fit(of_rate, ranks, 3)(of_rate)


def test_within_strata_what_the_rate_leaves_of_the_ranks_is_correlated() -> None:
    latents = make_latents(200, 1)
    both = np.stack([latents.values[:, 0], latents.cds])
    edges = np.quantile(latents.rate, [1 / 3, 2 / 3])
    of = np.searchsorted(edges, latents.rate)
    parts = [[remove_trends(column[of == i], latents.rate[of == i]) for i in range(3)] for column in both]
    expected = np.corrcoef([np.concatenate(part) for part in parts])[0, 1]
    assert correlate_within(make_strata(latents, 3))[0] == pytest.approx(expected, abs=1e-9)


def test_p_is_the_share_of_permutations_that_are_as_far_from_0() -> None:
    latents = make_latents(60, 1, noise=1)
    strata = make_strata(latents, 2)
    observed, rng, n_as_far = correlate_within(strata)[0], np.random.default_rng(3), 0
    permuted = [rng.permuted(np.tile(one.cds, (99, 1)), axis=1) for one in strata]
    rates = [latents.rate[members] for members in make_bands(latents.rate, 2).values()]
    for draw in range(99):
        left = []
        for of, rate in zip(permuted, rates, strict=True):
            x = rankdata(rate) / len(rate)
            left.append(of[draw] - np.polynomial.Polynomial.fit(x, of[draw], 3)(x))
        drawn = np.corrcoef(np.concatenate(left), np.concatenate([one.values[:, 0] for one in strata]))[0, 1]
        n_as_far += abs(drawn) >= abs(observed)
    assert 0 < n_as_far < 99
    assert permute_within(strata, 99, seed=3)[0] == pytest.approx((1 + n_as_far) / 100)


def test_rates_that_are_all_alike_take_nothing_but_the_mean() -> None:
    latents = make_latents(50, 1)._replace(rate=np.full(50, 0.1))
    (stratum,) = make_strata(latents, 5)
    assert stratum.trends.shape == (50, 1)
    assert correlate_within([stratum])[0] == pytest.approx(spearmanr(latents.values[:, 0], latents.cds)[0])


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less() -> None:
    p = np.array([0.03, np.nan, 0.01, 0.04, 0.9])
    np.testing.assert_allclose(correct_by_holm(p), [0.09, np.nan, 0.04, 0.09, 0.9])
    np.testing.assert_allclose(correct_by_holm(np.array([0.6, 0.7])), [1, 1])
    assert len(correct_by_holm(np.array([]))) == 0


def test_a_planted_relation_is_found_within_strata() -> None:
    """Noise, what grows with the CDS beyond the rate, and what falls with it."""
    latents = make_latents(400, 20, seed=1)
    z = -np.log(latents.rate)
    left = np.log(latents.cds / (1 - latents.cds)) - z / 1.5
    latents.values[:, 0] += np.exp(z / 1.5) * left
    latents.values[:, 1] = -left + 0.3 * latents.values[:, 1]
    found = compute_cross([f"q{i}" for i in range(20)], [latents], CrossConfig(n_draws=50))
    assert found.within[0, 0] > 0.5 > 0 > -0.5 > found.within[0, 1]
    assert set(np.flatnonzero(found.p_corrected < 0.05)) == {0, 1}


@pytest.mark.parametrize("n", [300, 20_000])
def test_what_goes_with_scope_through_the_rate_alone_is_not_significant(n: int) -> None:
    latents = make_latents(n, 10)
    names = [f"q{i}" for i in range(10)]
    found = compute_cross(names, [latents], CrossConfig(n_draws=50, n_permutations=400))
    assert (found.low > 0.8).all()
    assert np.abs(found.within).mean() < 2 / np.sqrt(n)
    assert (found.p_corrected > 0.05).all()


def test_p_is_uniform_where_nothing_is_to_be_found() -> None:
    p = [permute_within(make_strata(make_latents(100, 40, seed=seed), 5), 199, seed) for seed in range(10)]
    assert kstest(np.concatenate(p), "uniform").pvalue > 0.01
    assert 0.03 < (np.concatenate(p) <= 0.05).mean() < 0.08


def test_seeds_are_averaged_and_their_strata_pooled() -> None:
    seeds = [make_latents(200, 2, seed) for seed in range(3)]
    told: list[tuple[int, int | None]] = []
    found = compute_cross(["a", "b"], seeds, QUICK, lambda done, of=None, part="": told.append((done, of)))
    assert told == [(2, 2)]
    for seed, latents in enumerate(seeds):
        assert found.rho[seed, 1] == pytest.approx(spearmanr(latents.values[:, 1], latents.cds)[0])
        assert found.within[seed, 1] == pytest.approx(correlate_within(make_strata(latents, 5))[1])
    pooled = [stratum for latents in seeds for stratum in make_strata(latents, 5)]
    np.testing.assert_array_equal(found.p, permute_within(pooled, 200))
    assert (found.low < found.rho.mean(axis=0)).all()
    assert (found.rho.mean(axis=0) < found.high).all()


def test_latents_without_a_quantity_are_counted_and_take_no_part() -> None:
    whole = make_latents(120, 2)
    cds = np.append(whole.cds, [np.nan, 0.3])
    rate = np.append(whole.rate, [0.1, 0.1])
    values = np.append(whole.values, [[1, 1], [2, np.inf]], axis=0)
    found, alone = (compute_cross(["a", "b"], [of], QUICK) for of in (Quantities(cds, rate, values), whole))
    assert found.n.tolist() == [[121, 120]]
    assert found.n_lacking.tolist() == [[0, 1]]
    assert found.rho[0, 1] == pytest.approx(alone.rho[0, 1])
    assert found.p[1] == compute_cross(["b"], [whole._replace(values=whole.values[:, 1:])], QUICK).p[0]


def test_too_few_latents_give_no_number_but_their_count() -> None:
    few, many = make_latents(MIN_LATENTS - 1, 1), make_latents(100, 1, seed=1)
    found = compute_cross(["a"], [few], QUICK)
    assert found.n.tolist() == [[MIN_LATENTS - 1]]
    assert np.isnan([found.rho, found.within]).all()
    assert np.isnan([found.p, found.low, found.high, found.p_corrected]).all()
    assert np.isfinite(found.band_means).all()
    both = compute_cross(["a"], [few, many], QUICK)
    assert both.p == compute_cross(["a"], [many], QUICK).p
    nobody = compute_cross(["a"], [make_latents(0, 1)], QUICK)
    assert nobody.n.tolist() == [[0]]
    assert np.isnan([nobody.p, nobody.low]).all()
    assert np.isnan(nobody.band_means).all()
    assert np.isnan(nobody.matched_means).all()


def test_what_the_rate_determines_or_never_varies_has_no_p() -> None:
    latents = make_latents(200, 3)
    latents.values[:, 0], latents.values[:, 1] = 2 * latents.rate, 7
    found = compute_cross(["rate", "constant", "other"], [latents], QUICK)
    assert np.isnan(found.within[0, :2]).all()
    assert np.isnan(found.p[:2]).all()
    assert np.isfinite(found.rho[0, 0])
    assert np.isnan(found.rho[0, 1])
    assert found.p_corrected[2] == found.p[2]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = compute_cross(["a", "b"], [make_latents(60, 2)], QUICK)
    found.save(tmp_path)
    loaded = CrossResult.load(tmp_path)
    assert loaded.names == ["a", "b"]
    for name, values in vars(found).items():
        np.testing.assert_array_equal(getattr(loaded, name), values)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"Expected values of shape \(50, 3\)"):
        compute_cross(["a", "b", "c"], [make_latents(50, 2)], QUICK)
    with pytest.raises(InputError, match="at least one permutation"):
        permute_within([Stratum(np.zeros((0, 1)), np.zeros(0), np.zeros((0, 1)))], 0)
    with pytest.raises(InputError, match="at least one bootstrap draw"):
        draw_spearman(np.zeros((2, 1)), np.zeros(2), 0)
