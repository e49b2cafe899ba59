"""A score's reliability, and how it agrees with what is known of latents, when these are drawn anew.

Everything is computed for many draws at once, from how often each latent counts in each: `weights` [n_draws, d_sae],
the first row all ones, which gives the number itself. The same weights for two scores give draws of their difference.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from infoscope.runtime.errors import InputError
from infoscope.scope.agreement import correct_halves, split_pairs
from infoscope.scope.variants import Variant

Weights = Float[np.ndarray, "n_draws d_sae"]
Draws = Float[np.ndarray, " n_draws"]


def draw_weights(strata: Bool[np.ndarray, "n_strata d_sae"], n_draws: int, seed: int = 0) -> Weights:
    """Return ones, then `n_draws` rows in which the latents of each stratum are drawn anew, with replacement.

    Latents in no stratum are one of their own.

    Raises:
        InputError: if there are no draws.
    """
    if n_draws < 1:
        raise InputError(f"Expected at least one draw, got {n_draws}.")
    weights = np.ones((1 + n_draws, strata.shape[1]))
    rng = np.random.default_rng(seed)
    for members in (*strata, ~strata.any(axis=0)):
        if n := int(members.sum()):
            weights[1:, members] = rng.multinomial(n, np.full(n, 1 / n), n_draws)
    return weights


def draw_split_half(variant: Variant, weights: Weights, n_splits: int = 20, seed: int = 0) -> Draws:
    """Return the reliability of a variant (see `compute_split_half`) over the latents that it scores."""
    rhos, scored = [], np.isfinite(variant.scores)
    for one, other in split_pairs(np.where(variant.valid, 0.0, np.nan), n_splits, seed):
        rhos.append(draw_spearman(variant.summarise(one), np.where(scored, variant.summarise(other), np.nan), weights))
    return np.array([correct_halves(rho) for rho in np.mean(rhos, axis=0)])


def draw_auroc(
    scores: Float[np.ndarray, " d_sae"],
    positive: Bool[np.ndarray, " d_sae"],
    negative: Bool[np.ndarray, " d_sae"],
    weights: Weights,
) -> Draws:
    """Return the chance that a positive latent scores above a negative one, ties counting half; NaN without any."""
    positive, negative = positive & np.isfinite(scores), negative & np.isfinite(scores)
    above, below = scores[positive][:, None], scores[negative][None]
    wins = (above > below) + 0.5 * (above == below)
    of, against = weights[:, positive], weights[:, negative]
    n_pairs = of.sum(axis=1) * against.sum(axis=1)
    return np.divide(((of @ wins) * against).sum(axis=1), n_pairs, out=np.full(len(weights), np.nan), where=n_pairs > 0)


def draw_partial(
    a: Float[np.ndarray, " d_sae"], b: Float[np.ndarray, " d_sae"], given: Float[np.ndarray, " d_sae"], weights: Weights
) -> Draws:
    """Return the partial rank correlation of two columns, given a third, over the latents that have all of them."""
    there = np.isfinite([a, b, given]).all(axis=0)
    a, b, given = (np.where(there, column, np.nan) for column in (a, b, given))
    ab, ag, bg = (draw_spearman(one, other, weights) for one, other in ((a, b), (a, given), (b, given)))
    left = np.sqrt((1 - ag**2) * (1 - bg**2))
    return np.divide(ab - ag * bg, left, out=np.full(len(weights), np.nan), where=left > 1e-9)


def draw_spearman(a: Float[np.ndarray, " d_sae"], b: Float[np.ndarray, " d_sae"], weights: Weights) -> Draws:
    """Return Spearman's correlation over the latents that have both; NaN for fewer than three."""
    there = np.isfinite(a) & np.isfinite(b)
    if there.sum() < 3:
        return np.full(len(weights), np.nan)
    weights = weights[:, there]
    total = weights.sum(axis=1, keepdims=True)
    ranks = [_rank(values[there], weights) for values in (a, b)]
    left = [of - (weights * of).sum(axis=1, keepdims=True) / total for of in ranks]
    both, *sizes = ((weights * left[i] * left[j]).sum(axis=1) for i, j in ((0, 1), (0, 0), (1, 1)))
    size = np.sqrt(sizes[0] * sizes[1])
    return np.divide(both, size, out=np.full(len(weights), np.nan), where=size > 1e-9)


def _rank(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n_draws n"]) -> Float[np.ndarray, "n_draws n"]:
    """Return ranks from the lowest; equal values share the middle of theirs."""
    levels, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    counts = np.add.reduceat(weights[:, order], np.searchsorted(codes[order], np.arange(len(levels))), axis=1)
    return (np.cumsum(counts, axis=1) - counts / 2)[:, codes]
