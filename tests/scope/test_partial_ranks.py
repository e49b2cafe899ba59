"""Partial rank correlations of latents whose dependence is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from infoscope.runtime.errors import InputError
from infoscope.scope.partial_ranks import MIN_LATENTS, compute_partials, compute_spearman, estimate


def simulate(n: int, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A target, a score that knows something of it, one that knows frequency alone, and two other properties."""
    rng = np.random.default_rng(seed)
    rate, mass = rng.normal(size=(2, n))
    score = -0.8 * rate + rng.normal(size=n)
    mistaken = -0.8 * rate + rng.normal(size=n)
    target = rate + 0.5 * mass - 0.5 * (score + 0.8 * rate) + rng.normal(size=n)
    return target, {"score": score, "mistaken": mistaken, "rate": np.exp(rate), "mass": mass}


GIVEN = {"score": ["rate", "mass"], "mistaken": ["rate", "mass"]}


def test_a_known_partial_correlation_is_found() -> None:
    target, properties = simulate(20_000)
    found = compute_partials(target, properties, GIVEN, n_bootstrap=50)
    # given rate and mass, target and score are -.5 e + f and e, with e and f normal of unit variance
    rho = -0.5 / np.sqrt(1.25)
    assert found["score"].partial[0] == pytest.approx(6 / np.pi * np.arcsin(rho / 2), abs=0.02)
    assert found["mistaken"].partial[0] == pytest.approx(0, abs=0.02)
    assert found["mistaken"].spearman[0] < -0.3
    assert found["mistaken"].added[0] < 0.001 < 0.05 < found["score"].added[0]


def test_numbers_are_those_of_regressions_of_ranks() -> None:
    target, properties = simulate(200)
    target[3], properties["mass"][5] = np.nan, np.nan
    known = np.isfinite(target) & np.isfinite(properties["mass"])
    ranks = {name: stats.rankdata(of[known]) for name, of in (properties | {"target": target}).items()}

    def regress(of: str, on: list[str]) -> np.ndarray:
        design = np.stack([np.ones(known.sum()), *(ranks[name] for name in on)], axis=1)
        return ranks[of] - design @ np.linalg.lstsq(design, ranks[of], rcond=None)[0]

    found = compute_partials(target, properties, GIVEN, n_bootstrap=1)["score"]
    left = regress("target", ["rate", "mass"]), regress("score", ["rate", "mass"])
    total = regress("target", [])
    assert found.n == known.sum() == 198
    assert found.spearman[0] == pytest.approx(stats.spearmanr(target[known], properties["score"][known])[0])
    assert found.partial[0] == pytest.approx(np.corrcoef(left)[0, 1])
    full = regress("target", ["rate", "mass", "score"])
    assert found.added[0] == pytest.approx((left[0] @ left[0] - full @ full) / (total @ total))


def test_one_other_property_gives_the_partial_correlation_of_compute_spearman() -> None:
    target, properties = simulate(300)
    found = compute_partials(target, properties, {"score": ["rate"]}, n_bootstrap=1)["score"]
    assert found.partial[0] == pytest.approx(compute_spearman(target, properties["score"], properties["rate"])[0])


def test_intervals_hold_the_truth_as_often_as_they_should() -> None:
    truth = 6 / np.pi * np.arcsin(-0.5 / np.sqrt(1.25) / 2)
    n_held, n_zero = 0, 0
    for seed in range(100):
        target, properties = simulate(150, seed)
        found = compute_partials(target, properties, GIVEN, n_bootstrap=300, seed=seed)
        score, mistaken = (estimate([found[name].partial]) for name in GIVEN)
        n_held += score.low <= truth <= score.high
        n_zero += not mistaken.is_decided
    assert 88 <= n_held <= 100
    assert 88 <= n_zero <= 100


def test_draws_are_shared_by_the_scores_and_a_function_of_the_seed() -> None:
    target, properties = simulate(100)
    twice = properties | {"same": properties["score"]}
    found = compute_partials(target, twice, {name: ["rate"] for name in ("score", "same")}, n_bootstrap=20, seed=4)
    assert np.array_equal(found["score"].added, found["same"].added)
    again = compute_partials(target, twice, {"score": ["rate"]}, n_bootstrap=20, seed=4)["score"]
    assert np.array_equal(found["score"].partial, again.partial)


def test_what_others_tell_wholly_adds_nothing_that_could_be_computed() -> None:
    target, properties = simulate(100)
    copied = properties | {"copy": 3 * properties["rate"], "constant": np.ones(100)}
    given = {"copy": ["rate"], "constant": ["rate"], "score": ["rate", "copy", "constant"]}
    found = compute_partials(target, copied, given, n_bootstrap=5)
    assert np.isnan(found["copy"].partial).all()
    assert np.isnan([found["constant"].spearman, found["constant"].partial, found["constant"].added]).all()
    alone = compute_partials(target, properties, {"score": ["rate"]}, n_bootstrap=5)["score"]
    assert found["score"].partial == pytest.approx(alone.partial)


def test_few_latents_say_nothing() -> None:
    target, properties = simulate(MIN_LATENTS - 1)
    found = compute_partials(target, properties, GIVEN, n_bootstrap=3)["score"]
    assert np.isnan(found.partial).all()
    assert found.n == MIN_LATENTS - 1
    assert np.isnan(estimate([found.partial])).all()


def test_an_estimate_is_the_mean_over_seeds_that_have_one() -> None:
    nothing = np.full(4, np.nan)
    assert estimate([np.array([1.0, 0, 0, 0]), np.array([3.0, 2, 2, 2]), nothing]) == (2.0, 1.0, 1.0)


def test_no_draw_is_refused() -> None:
    with pytest.raises(InputError, match="bootstrap"):
        compute_partials(*simulate(50), GIVEN, n_bootstrap=0)
