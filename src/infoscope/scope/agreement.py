"""How far scores can be relied on: comparison of two sets, intervals by resampling, reliability, features matched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.scope.cds import compute_cds, mean_of_known
from infoscope.scope.config import PartitionConfig, StabilityConfig
from infoscope.scope.energy import Cumulate
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.scope.partition import Partition, make_partition

MAX_ASSIGNED = 4096
"""Latents per SAE up to which two SAEs are matched by the best assignment; above, by mutual nearest neighbours."""

CHUNK_VALUES = 2**22
"""Means of resampled ranks, or cosines, held at a time (32 MiB in float64)."""


class Agreement(NamedTuple):
    """How two sets of scores of the same features agree, over the features that have both.

    rank_correlation: Spearman's; NaN if either is constant or fewer than two features have both.
    median_difference: median of the absolute differences; NaN without features.
    same_side: share of features on the same side of gamma; NaN without a gamma or features.
    n: features that have both.
    """

    rank_correlation: float
    median_difference: float
    same_side: float
    n: int


def compare_cds(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], gamma: float | None, gamma_b: float | None = None
) -> Agreement:
    """Compare scores (NaN: unscored) of the same features; `gamma_b` is that of `b` where it is another one."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    if len(a) == 0:
        return Agreement(np.nan, np.nan, np.nan, 0)
    gamma_b = gamma if gamma_b is None else gamma_b
    same_side = np.nan if gamma is None else float(((a > gamma) == (b > gamma_b)).mean())
    return Agreement(
        rank_correlation=compute_spearman(a, b)[0],
        median_difference=float(np.median(np.abs(a - b))),
        same_side=same_side,
        n=len(a),
    )


class Interval(NamedTuple):
    """Bounds of each latent's score; NaN where it is unscored or has fewer than two valid pairs."""

    lower: Float[np.ndarray, " d_sae"]
    upper: Float[np.ndarray, " d_sae"]


def bootstrap_cds(
    emd: Float[np.ndarray, "d_sae k_max"], k: int, n_draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the percentile bootstrap interval of each latent's CDS over its valid pairs among the first `k` ranks.

    It says how far a score hangs on which of its few images it was averaged over. The images are a latent's best, no
    random sample, and percentile intervals of 8 values are too narrow (95% covers about 90%): a lower bound of the
    doubt. Latents with equally many valid pairs share one set of resamplings, so intervals do not depend on each other
    and all of them are one product of matrices.

    Raises:
        InputError: if `k` is not in 1..k_max, or there are no draws, or the level is not between 0 and 1.
    """
    if n_draws < 1 or not 0 < level < 1:
        raise InputError(f"Expected at least one draw and a level between 0 and 1, got {n_draws} and {level}.")
    cds, n_valid = compute_cds(emd, k)
    first = np.sort(emd[:, :k], axis=1)  # NaN last
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    bounds = np.full((2, len(emd)), np.nan)
    n_at_once = max(1, CHUNK_VALUES // n_draws)
    for n in np.unique(n_valid[np.isfinite(cds) & (n_valid >= 2)]).tolist():
        counts = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), n_draws)  # of each pair in a draw
        latents = np.flatnonzero(np.isfinite(cds) & (n_valid == n))
        for start in range(0, len(latents), n_at_once):
            part = latents[start : start + n_at_once]
            bounds[:, part] = np.quantile(first[part, :n] @ (counts.T / n), tails, axis=1)
    return Interval(*bounds)


class IntervalSummary(NamedTuple):
    """Of all intervals; NaN where there is nothing to count.

    median_width: from lower to upper bound.
    undecided_share: share of the scored features that are undecided, see `find_undecided`.
    undecided_share_high: the same among features whose score lies above gamma.
    n: intervals.
    """

    median_width: float
    undecided_share: float
    undecided_share_high: float
    n: int


def summarise_intervals(cds: Float[np.ndarray, " d_sae"], interval: Interval, gamma: float | None) -> IntervalSummary:
    """Summarise the intervals of the latents that have one, and how many scored latents are undecided."""
    widths = (interval.upper - interval.lower)[np.isfinite(interval.lower)]
    width = float(np.median(widths)) if len(widths) else np.nan
    if gamma is None:
        return IntervalSummary(width, np.nan, np.nan, len(widths))
    undecided = find_undecided(cds, interval, gamma)
    of_all, of_high = (
        float(undecided[members].mean()) if members.any() else np.nan for members in (np.isfinite(cds), cds > gamma)
    )
    return IntervalSummary(width, of_all, of_high, len(widths))


def find_undecided(
    cds: Float[np.ndarray, " d_sae"], interval: Interval, gamma: float | None
) -> Bool[np.ndarray, " d_sae"]:
    """Return which latents are undecided: scored, but their interval holds gamma, or there is none of a single pair.

    An interval holds gamma if it reaches into both groups; gamma itself belongs to the low one. gamma counts as known:
    that it is found on the same scores is not in the intervals. Without gamma no one is undecided.
    """
    if gamma is None:
        return np.zeros(len(cds), dtype=bool)
    return np.isfinite(cds) & ~((interval.lower > gamma) | (interval.upper <= gamma))  # NaN lies on neither side


def explain_undecided(level: float) -> str:
    """Return the note that says what `find_undecided` finds."""
    return (
        f"Undecided: the {100 * level:g}% bootstrap interval of the feature's CDS over its pairs holds gamma, or there"
        " is none because only one pair has a distance."
    )


def partition_scores(
    emd: Float[np.ndarray, "d_sae k_max"],
    k: int,
    mass: Float[np.ndarray, " d_sae"],
    config: PartitionConfig,
    energy: Cumulate | None = None,
    stability: StabilityConfig | None = None,
) -> Partition:
    """Divide latents by their CDS over the first `k` ranks under the configured rule, see `make_partition`.

    With `config.decided_only` the undecided, by the interval of `stability`, are in no group; gamma is that of all
    scored latents.

    Raises:
        InputError: if `k` is not in 1..k_max, or as `make_partition`.
    """
    cds = compute_cds(emd, k).values
    partition = make_partition(cds, mass, config, energy)
    if not config.decided_only:
        return partition
    interval = bootstrap_cds(emd, k, **(stability or StabilityConfig()).interval)
    decided = ~find_undecided(cds, interval, partition.gamma)
    return replace(partition, groups={name: members & decided for name, members in partition.groups.items()})


class SplitHalf(NamedTuple):
    """How well scores of these features would repeat with as many other pairs of the same kind.

    reliability: correlation of halves (Spearman, over features), mean over random splits, corrected to the full number
        of pairs (Spearman-Brown): 1 repeats the order, 0 is noise; NaN with fewer than three features, or without
        order.
    n: features that have a score from both halves.
    """

    reliability: float
    n: int


def compute_split_half(emd: Float[np.ndarray, "d_sae k_max"], k: int, n_splits: int = 100, seed: int = 0) -> SplitHalf:
    """Return the reliability of the CDS over the first `k` ranks, by random halves of each latent's valid pairs.

    The images are those that excite a latent most: it says nothing of other kinds of images.

    Raises:
        InputError: if `k` is not in 1..k_max, or there are no splits.
    """
    first = emd[np.isfinite(compute_cds(emd, k).values), :k]
    found = []
    for halves in split_pairs(first, n_splits, seed):
        found.append(compute_spearman(*(mean_of_known(np.where(half, first, np.nan), axis=1) for half in halves)))
    rhos, (n, *_) = zip(*found, strict=True)
    return SplitHalf(correct_halves(float(np.mean(rhos))) if n > 2 else np.nan, n)


def split_pairs(
    values: Float[np.ndarray, "n k"], n_splits: int, seed: int = 0
) -> Iterator[tuple[Bool[np.ndarray, "n k"], Bool[np.ndarray, "n k"]]]:
    """Yield random halves of the entries of each row that are not NaN, drawn for each row apart.

    Of an odd number one half has one more; of one entry the second half has none.

    Raises:
        InputError: if there are no splits.
    """
    if n_splits < 1:
        raise InputError(f"Expected at least one split, got {n_splits}.")
    rng, valid = np.random.default_rng(seed), np.isfinite(values)
    for _ in range(n_splits):
        keys = np.where(valid, rng.random(values.shape), np.inf)
        place = keys.argsort(axis=1).argsort(axis=1)  # of each valid pair in a random order
        yield valid & (place % 2 == 0), valid & (place % 2 == 1)


def correct_halves(rho: float) -> float:
    """Return what a correlation of halves means for the whole (Spearman, 1910; Brown, 1910): 2 rho / (1 + rho)."""
    return 2 * rho / (1 + rho) if rho > -1 else np.nan


class Matches(NamedTuple):
    """Pairs of latents of two SAEs, ascending in `a`: positions in each, and the cosine of their rows."""

    a: Int[np.ndarray, " n_pairs"]
    b: Int[np.ndarray, " n_pairs"]
    cosine: Float[np.ndarray, " n_pairs"]


def match_latents(
    rows_a: Float[np.ndarray, "n_a width"],
    rows_b: Float[np.ndarray, "n_b width"],
    device: torch.device | str = "cpu",
    some: Int[np.ndarray, " n_some"] | None = None,
) -> Matches:
    """Match latents of two SAEs one to one by the cosine of what stands for each: rows of their decoders, by default.

    Up to `MAX_ASSIGNED` latents each it is the assignment of the largest sum of cosines, in which every latent of the
    smaller SAE has a partner, however unlike; above, pairs that are each other's nearest, which are fewer. None with
    no latent.

    Args:
        device: where nearest ones are found.
        some: latents of the first SAE, ascending: of the pairs that are each other's nearest, theirs alone, which takes
            the less time; None: all.

    Raises:
        InputError: if the rows differ in width.
    """
    if rows_a.ndim != 2 or rows_b.ndim != 2 or rows_a.shape[1] != rows_b.shape[1]:
        raise InputError(
            f"Expected two decoders [d_sae, d_in] of one width d_in, got {list(rows_a.shape)} and"
            f" {list(rows_b.shape)}: match SAEs of the same tokens."
        )
    if not len(rows_a) or not len(rows_b):
        return Matches(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    unit_a, unit_b = _unit_rows(rows_a), _unit_rows(rows_b)
    if max(len(unit_a), len(unit_b)) <= MAX_ASSIGNED:
        assert some is None, "an assignment is of all latents"
        a, b = linear_sum_assignment(unit_a @ unit_b.T, maximize=True)
    else:
        one, other = (torch.from_numpy(unit).to(device) for unit in (unit_a, unit_b))
        if some is None:
            a = np.arange(len(unit_a))
            b, back = _find_nearest(one, other)
            back = back[b]
        else:
            a, (b, _) = some, _find_nearest(one[some], other)
            back, _ = _find_nearest(other[b], one)
        mutual = back == a
        a, b = a[mutual], b[mutual]
    return Matches(a, b, np.einsum("nd,nd->n", unit_a[a], unit_b[b]))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _find_nearest(
    a: Float[Tensor, "n_a width"], b: Float[Tensor, "n_b width"]
) -> tuple[Int[np.ndarray, " n_a"], Int[np.ndarray, " n_b"]]:
    """Return for each unit row of `a` which of `b` has the largest cosine, and the reverse; of equals the first."""
    nearest, best = [], a.new_full((len(b),), -torch.inf)
    back = torch.zeros(len(b), dtype=torch.int64, device=a.device)
    n_at_once = max(1, CHUNK_VALUES // max(1, len(b)))
    for start in range(0, len(a), n_at_once):
        cosines = a[start : start + n_at_once] @ b.T
        nearest.append(cosines.argmax(dim=1))
        most, which = cosines.max(dim=0)
        back = torch.where(most > best, which + start, back)
        best = torch.maximum(most, best)
    return torch.cat(nearest).cpu().numpy(), back.cpu().numpy()
