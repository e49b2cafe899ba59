"""The cross: how whatever else is known of the latents goes with their scope, overall and at like firing rate.

Every quantity is held against the CDS by ranks, over the latents that have both: Spearman's rho with a percentile
interval; mean and quartiles of the quantity in quantile bands of the CDS. Since the firing rate goes with nearly
everything, there are also its means in bands of like firing rate, and rho within strata of it. Within a stratum rates
differ still, so that what goes with scope through the rate alone would go with it there too, and in thousands of
latents significantly: so the ranks within a stratum are freed of their cubic trend over the rank of the rate, and what
is left of them is correlated over all strata. Its p is that of permutations of what is left of the CDS's ranks within
strata, the new trend taken out again (Freedman and Lane, 1983); two-sided, (1 + those as far from 0) / (1 +
permutations).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.polynomial.legendre import legvander
from scipy.linalg import orth
from scipy.stats import rankdata

from infoscope.analyses.cds_bands import describe_bands, describe_matched
from infoscope.analyses.config import CrossConfig
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import Advance, ignore
from infoscope.scope.partial_ranks import MIN_LATENTS, NOTHING, estimate
from infoscope.scope.partition import make_bands

_DEGREE = 3
"""Of the trend over the rate. Of rank correlations of .9 that were through the rate alone five strata left .38, with a
linear trend .01, which is significant in 65,536 latents, with a cubic one nothing."""
_BLOCK = 2**22
"""Numbers held at a time: draws, or permutations, times latents."""


class Quantities(NamedTuple):
    """What is known of the latents of one SAE seed; NaN where something is not.

    cds: [d_sae] 0..1. rate: [d_sae] firing rate, 0..1. values: [d_sae, n_quantities].
    """

    cds: Float[np.ndarray, " d_sae"]
    rate: Float[np.ndarray, " d_sae"]
    values: Float[np.ndarray, "d_sae n_quantities"]


@dataclass(frozen=True)
class CrossResult:
    """How quantities go with the CDS, over some SAE seeds; NaN where fewer than `MIN_LATENTS` latents have both.

    names: of the quantities.
    rho: Spearman's correlation with the CDS, -1..1.
    low, high: the middle 95 % of the mean of rho over seeds, latents of each drawn anew.
    within: the same within strata of firing rate; NaN for what the rate determines.
    p: two-sided, of permutations within the strata of all seeds; 0..1, not corrected.
    n, n_lacking: latents that have both, and those with a CDS that lack the quantity.
    band_cds: median CDS of each band. band_means: mean of the quantity there. band_quartiles: its three quartiles.
    matched_cds, matched_means: the same in bands of like firing rate, see `cds_bands.match_bands`. matched_medians: the
    median of the quantity there.
    """

    names: list[str]
    rho: Float[np.ndarray, "n_seeds n_quantities"]
    low: Float[np.ndarray, " n_quantities"]
    high: Float[np.ndarray, " n_quantities"]
    within: Float[np.ndarray, "n_seeds n_quantities"]
    p: Float[np.ndarray, " n_quantities"]
    n: Int[np.ndarray, "n_seeds n_quantities"]
    n_lacking: Int[np.ndarray, "n_seeds n_quantities"]
    band_cds: Float[np.ndarray, "n_seeds n_bands"]
    band_means: Float[np.ndarray, "n_seeds n_quantities n_bands"]
    band_quartiles: Float[np.ndarray, "n_seeds n_quantities n_bands 3"]
    matched_cds: Float[np.ndarray, "n_seeds n_bands"]
    matched_means: Float[np.ndarray, "n_seeds n_quantities n_bands"]
    matched_medians: Float[np.ndarray, "n_seeds n_quantities n_bands"]

    @property
    def p_corrected(self) -> Float[np.ndarray, " n_quantities"]:
        """`p` after Holm's correction for all quantities that have one."""
        return correct_by_holm(self.p)

    def save(self, folder: Path) -> None:
        """Write cross.npz and cross.json into `folder` (made if missing)."""
        save_result(folder, "cross", vars(self))

    @classmethod
    def load(cls, folder: Path) -> CrossResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "cross")
        return cls(**arrays, **facts)


def compute_cross(
    names: Sequence[str], seeds: Sequence[Quantities], config: CrossConfig, progress: Advance = ignore
) -> CrossResult:
    """Hold each quantity against the CDS.

    Of 65,536 latents and 20 quantities 1,000 draws take about a second of a core, and so do 1,000 permutations for each
    of the different sets of latents that have a quantity.

    Args:
        names: of the quantities, in the order of their columns.
        progress: is told for how many of them the CDS was permuted.

    Raises:
        InputError: if shapes do not agree.
    """
    for one in seeds:
        expected = (len(one.cds), len(names))
        if one.values.shape != expected or one.rate.shape != one.cds.shape:
            raise InputError(
                f"Expected values of shape {expected} and as many rates, got {one.values.shape} and {one.rate.shape}."
            )
    seeds = [_keep_scored(one) for one in seeds]
    known = [np.isfinite(one.values) for one in seeds]
    draws = [draw_spearman(one.values, one.cds, config.n_draws, config.seed + i) for i, one in enumerate(seeds)]
    intervals = [estimate([of[:, place] for of in draws]) for place in range(len(names))]
    within, p = _compare_within(seeds, known, config, progress)
    bands = [describe_bands(one.values, one.cds, config.n_bands) for one in seeds]
    band_cds, band_means, band_quartiles = (np.stack(of) for of in zip(*bands, strict=True))
    matched = [describe_matched(one.values, one.cds, one.rate, config.n_bands) for one in seeds]
    matched_cds, matched_means, matched_medians = (np.stack(of) for of in zip(*matched, strict=True))
    return CrossResult(
        list(names),
        np.stack([of[0] for of in draws]),
        np.array([of.low for of in intervals]),
        np.array([of.high for of in intervals]),
        within,
        p,
        np.stack([of.sum(axis=0) for of in known]),
        np.stack([(~of).sum(axis=0) for of in known]),
        band_cds,
        band_means,
        band_quartiles,
        matched_cds,
        matched_means,
        matched_medians,
    )


def _keep_scored(of: Quantities) -> Quantities:
    """Return the latents that have a CDS and a rate, as float64."""
    scored = np.isfinite(of.cds) & np.isfinite(of.rate)
    return Quantities(*(np.asarray(one, dtype=np.float64)[scored] for one in of))


def draw_spearman(
    values: Float[np.ndarray, "n n_quantities"], cds: Float[np.ndarray, " n"], n_draws: int, seed: int = 0
) -> Float[np.ndarray, "n_draws_plus_1 n_quantities"]:
    """Return Spearman's rho of each quantity, over the latents that have it, and then those of draws of all latents.

    A draw takes as many latents, with replacement, and does not rank them anew: one that is drawn twice counts twice,
    as in `partial_ranks.Partial`, which is of latents that have every property. Here each quantity takes those that it
    has, and all share the draws.

    Args:
        cds: finite.
        seed: of the draws.

    Raises:
        InputError: if `n_draws` is below 1.
    """
    if n_draws < 1:
        raise InputError(f"Expected at least one bootstrap draw, got {n_draws}.")
    known = np.isfinite(values)
    n, n_quantities = values.shape
    if n < MIN_LATENTS:
        return np.full((1 + n_draws, n_quantities), np.nan)
    a, b = (np.zeros((n, n_quantities)) for _ in range(2))
    for place, have in enumerate(known.T):
        a[have, place], b[have, place] = _rank(values[have, place]), _rank(cds[have])
    terms = np.concatenate([known, a, b, a * a, b * b, a * b], axis=1)
    rng, found = np.random.default_rng(seed), [_correlate(terms.sum(axis=0)[None])]
    for size in _split(n_draws, n):
        drawn = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(size)])
        found.append(_correlate(drawn.astype(np.float64) @ terms))
    return np.where(known.sum(axis=0) < MIN_LATENTS, np.nan, np.concatenate(found))


def _correlate(sums: Float[np.ndarray, "n_draws six_n"]) -> Float[np.ndarray, "n_draws n"]:
    """Return correlations from the sums of 1, a, b, a^2, b^2 and ab; NaN where nothing varies."""
    n, a, b, aa, bb, ab = np.split(sums, 6, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        var_a, var_b = aa / n - (a / n) ** 2, bb / n - (b / n) ** 2
        return np.where((var_a > NOTHING) & (var_b > NOTHING), (ab / n - a * b / n**2) / np.sqrt(var_a * var_b), np.nan)


def _rank(values: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """Return centred ranks, -1/2..1/2, ties sharing theirs."""
    return (rankdata(values, axis=0) - (len(values) + 1) / 2) / max(len(values), 1)


def _split(n_draws: int, n: int) -> Iterator[int]:
    """Yield the sizes of blocks of draws of n latents."""
    size = max(_BLOCK // max(n, 1), 1)
    yield from (min(size, n_draws - start) for start in range(0, n_draws, size))


class Stratum(NamedTuple):
    """Latents of like firing rate: what is left of their ranks, 0..1, when the trend over the rate is gone.

    trends: orthonormal columns that span the trends, the mean among them; fewer where few rates occur.
    """

    values: Float[np.ndarray, "m n_quantities"]
    cds: Float[np.ndarray, " m"]
    trends: Float[np.ndarray, "m n_trends"]


def make_strata(of: Quantities, n_strata: int) -> list[Stratum]:
    """Divide latents into quantile bands of their firing rate, and rank them anew in each.

    Args:
        of: finite throughout.
    """
    strata = []
    for members in make_bands(of.rate, n_strata).values():
        if members.any():
            values, cds, rate = _rank(of.values[members]), _rank(of.cds[members]), _rank(of.rate[members])
            trends = orth(legvander(2 * rate, _DEGREE), rcond=1e-9)
            values, cds = (one - trends @ (trends.T @ one) for one in (values, cds))
            strata.append(Stratum(values, cds, trends))
    return strata


def correlate_within(strata: Sequence[Stratum]) -> Float[np.ndarray, " n_quantities"]:
    """Return the correlation over all strata of what is left of the ranks of a quantity and of the CDS.

    NaN where nothing is left: of a quantity that the rate determines, or where nothing varies.
    """
    both, size, cds, n = _sum_squares(strata)
    is_left = (size > NOTHING * n) & (cds > NOTHING * n)
    return np.divide(both, np.sqrt(size * cds), out=np.full(len(both), np.nan), where=is_left)


def _sum_squares(strata: Sequence[Stratum]) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Return sums over all latents: of products, of squares of the quantities, of squares of the CDS; their number."""
    both = np.sum([one.cds @ one.values for one in strata], axis=0)
    size = np.sum([(one.values**2).sum(axis=0) for one in strata], axis=0)
    return both, size, float(sum(one.cds @ one.cds for one in strata)), sum(len(one.cds) for one in strata)


def permute_within(strata: Sequence[Stratum], n_permutations: int, seed: int = 0) -> Float[np.ndarray, " n_quantities"]:
    """Return the two-sided p of `correlate_within`: the CDS permuted within strata, its new trend taken out again.

    Args:
        seed: of the permutations.

    Raises:
        InputError: if `n_permutations` is below 1.
    """
    if n_permutations < 1:
        raise InputError(f"Expected at least one permutation, got {n_permutations}.")
    observed, rng = correlate_within(strata), np.random.default_rng(seed)
    _, size, cds, _ = _sum_squares(strata)
    n_as_far = np.zeros(len(observed), dtype=np.int64)
    for n_rows in _split(n_permutations, max(len(one.cds) for one in strata)):
        both, trend = np.zeros((n_rows, len(observed))), np.zeros(n_rows)
        for one in strata:
            permuted = rng.permuted(np.tile(one.cds, (n_rows, 1)), axis=1)
            both += permuted @ one.values
            trend += ((permuted @ one.trends) ** 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = both / np.sqrt(size * (cds - trend)[:, None])
        n_as_far += (np.abs(drawn) >= np.abs(observed) - 1e-12).sum(axis=0)
    return np.where(np.isnan(observed), np.nan, (1 + n_as_far) / (1 + n_permutations))


def _compare_within(
    seeds: Sequence[Quantities],
    known: Sequence[Bool[np.ndarray, "n n_quantities"]],
    config: CrossConfig,
    progress: Advance,
) -> tuple[Float[np.ndarray, "n_seeds n_quantities"], Float[np.ndarray, " n_quantities"]]:
    """Return the correlations within the strata of each seed, and p over the strata of all.

    Quantities that the same latents have share strata and permutations. Seeds with too few latents are left out.
    """
    n_quantities = len(known[0].T)
    within, p = np.full((len(seeds), n_quantities), np.nan), np.full(n_quantities, np.nan)
    n_done, patterns = 0, dict[bytes, list[int]]()
    for place, have in enumerate(np.concatenate(known).T):
        patterns.setdefault(np.packbits(have).tobytes(), []).append(place)
    for places in patterns.values():
        pooled = []
        for i, (one, of) in enumerate(zip(seeds, known, strict=True)):
            have = of[:, places[0]]
            if have.sum() >= MIN_LATENTS:
                some = Quantities(one.cds[have], one.rate[have], one.values[have][:, places])
                strata = make_strata(some, config.n_strata)
                within[i, places] = correlate_within(strata)
                pooled += strata
        if pooled:
            p[places] = permute_within(pooled, config.n_permutations, config.seed)
        n_done += len(places)
        progress(n_done, n_quantities)
    return within, p


def correct_by_holm(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return p-values after Holm's (1979) step-down correction for all of them; NaN takes no part and stays."""
    corrected, known = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1)
    return corrected
