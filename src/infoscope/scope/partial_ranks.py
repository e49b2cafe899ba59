"""Rank correlation, and what a score says of a target beyond other properties of the latents, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from infoscope.runtime.errors import InputError

N_BOOTSTRAP = 1000
MIN_LATENTS = 30
"""With fewer latents that have every property nothing is computed."""

NOTHING = 1e-9
"""A variance of ranks between 0 and 1 that is rounding alone; that of all of them is about 1/12."""

Draws = Float[np.ndarray, " n_draws_plus_1"]
"""A number of all latents first, then the same of each draw of as many latents, with replacement."""


class Partial(NamedTuple):
    """Of a score and a target, all by ranks among the latents, which a draw does not rank anew.

    spearman: rank correlation. partial: that of what is left of both ranks when those of the other properties have
    explained what they can, linearly. added: share of the variance of the target's ranks that the score explains beyond
    the others (increase of R^2); never below 0, so that not its interval says whether it is 0, but that of `partial`.
    NaN where nothing varies, or nothing is left.
    n: latents.
    """

    spearman: Draws
    partial: Draws
    added: Draws
    n: int


def compute_partials(
    target: Float[np.ndarray, " d_sae"],
    properties: Mapping[str, Float[np.ndarray, " d_sae"]],
    given: Mapping[str, Sequence[str]],
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> dict[str, Partial]:
    """Return {score: what it says of the target beyond others}, all over the same latents: those with every property.

    Args:
        properties: by name, scores among them.
        given: {score: the others}, names of properties.
        seed: of the draws, which are the same for all scores, so that they can be compared draw by draw.

    Raises:
        InputError: if `n_bootstrap` is below 1.
    """
    if n_bootstrap < 1:
        raise InputError(f"Expected at least one bootstrap draw, got {n_bootstrap}.")
    columns = np.stack([np.asarray(of, dtype=np.float64) for of in (target, *properties.values())], axis=1)
    columns = columns[np.isfinite(columns).all(axis=1)]
    n, places = len(columns), {name: place for place, name in enumerate(properties, start=1)}
    if n < MIN_LATENTS:
        nothing = np.full(1 + n_bootstrap, np.nan)
        return {score: Partial(nothing, nothing, nothing, n) for score in given}
    covariances = _draw_covariances(rankdata(columns, axis=0) / n, n_bootstrap, seed)
    return {
        score: Partial(*_compute_partial(covariances, places[score], [places[name] for name in others]), n)
        for score, others in given.items()
    }


def _draw_covariances(
    ranks: Float[np.ndarray, "n n_columns"], n_bootstrap: int, seed: int
) -> Float[np.ndarray, "n_draws_plus_1 n_columns n_columns"]:
    """Return the covariances of ranks, and those of draws: a latent that is drawn twice counts twice."""
    n, n_columns = ranks.shape
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    weights = np.concatenate([np.ones((1, n)), drawn]) / n
    ranks = ranks - ranks.mean(axis=0)
    products = (ranks[:, :, None] * ranks[:, None, :]).reshape(n, -1)
    means = weights @ ranks
    return (weights @ products).reshape(-1, n_columns, n_columns) - means[:, :, None] * means[:, None, :]


def _compute_partial(
    covariances: Float[np.ndarray, "n_draws n_columns n_columns"], score: int, others: Sequence[int]
) -> tuple[Draws, Draws, Draws]:
    """Return rank correlation, partial one, and increase of R^2 of the target, which is column 0, and a score."""
    pair = np.array([0, score])
    whole = covariances[:, pair[:, None], pair]
    across = covariances[:, pair[:, None], np.array(others, dtype=np.int64)]
    of_others = covariances[:, np.array(others, dtype=np.int64)[:, None], np.array(others, dtype=np.int64)]
    left = whole - across @ np.linalg.pinv(of_others, hermitian=True) @ across.transpose(0, 2, 1)
    varies, is_left = ((of[:, [0, 1], [0, 1]] > NOTHING).all(axis=1) for of in (whole, left))
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = whole[:, 0, 1] / np.sqrt(whole[:, 0, 0] * whole[:, 1, 1])
        partial = left[:, 0, 1] / np.sqrt(left[:, 0, 0] * left[:, 1, 1])
        added = left[:, 0, 1] ** 2 / (left[:, 1, 1] * whole[:, 0, 0])
    return np.where(varies, spearman, np.nan), np.where(is_left, partial, np.nan), np.where(is_left, added, np.nan)


def compute_spearman(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], given: Float[np.ndarray, " n"] | None = None
) -> tuple[float, int]:
    """Return Spearman's rank correlation over pairs of finite numbers, and how many those are.

    With `given`, the partial correlation, as in `Partial`. NaN if nothing is left of either.
    """
    columns = np.array([a, b] if given is None else [a, b, given], dtype=np.float64)
    columns = columns[:, np.isfinite(columns).all(axis=0)]
    n = columns.shape[1]
    if n < len(columns):
        return np.nan, n
    covariances = np.cov(rankdata(columns, axis=1) / n, bias=True)
    return float(_compute_partial(covariances[None], 1, range(2, len(columns)))[1][0]), n


class Estimate(NamedTuple):
    """A number and the middle 95 % of its draws; NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def estimate(seeds: Sequence[Draws]) -> Estimate:
    """Return the mean over SAE seeds, whose latents were drawn each by themselves; seeds without a number are left out.

    The interval is over latents, given the SAEs: another SAE may differ by more.
    """
    known = [draws for draws in seeds if np.isfinite(draws[0])]
    if not known:
        return Estimate(np.nan, np.nan, np.nan)
    means = np.mean(known, axis=0)
    low, high = np.nanquantile(means[1:], [0.025, 0.975])
    return Estimate(float(means[0]), float(low), float(high))
