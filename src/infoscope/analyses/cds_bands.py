"""What latents of low and of high CDS have: quantities in bands of the CDS, and in bands of like firing rate."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from infoscope.scope.partition import make_bands


def describe_bands(
    values: Float[np.ndarray, "n n_quantities"], cds: Float[np.ndarray, " n"], n_bands: int
) -> tuple[
    Float[np.ndarray, " n_bands"],
    Float[np.ndarray, "n_quantities n_bands"],
    Float[np.ndarray, "n_quantities n_bands 3"],
]:
    """Return of each quantile band of the CDS its median CDS, and mean and quartiles of what is known of each quantity.

    Args:
        cds: finite.
    """
    n_quantities = len(values.T)
    median_cds, means = np.full(n_bands, np.nan), np.full((n_quantities, n_bands), np.nan)
    quartiles = np.full((n_quantities, n_bands, 3), np.nan)
    for band, members in enumerate(make_bands(cds, n_bands).values()):
        median_cds[band] = np.median(cds[members]) if members.any() else np.nan
        for place, column in enumerate(values[members].T):
            if len(of := column[np.isfinite(column)]):
                means[place, band] = of.mean()
                quartiles[place, band] = np.quantile(of, [0.25, 0.5, 0.75])
    return median_cds, means, quartiles


def match_bands(cds: Float[np.ndarray, " n"], rate: Float[np.ndarray, " n"], n_bands: int) -> Int[np.ndarray, " n"]:
    """Return the band of each latent, 0 for low CDS, so that all bands have like firing rates.

    Of every n_bands latents that follow each other by rate the one of lowest CDS is in band 0, the next in band 1, ...

    Args:
        cds, rate: finite.
    """
    n = len(cds)
    n_blocks = max(n // n_bands, 1)
    block = np.empty(n, dtype=np.int64)
    # a block has n_bands latents, or a few more
    block[np.argsort(rate, kind="stable")] = np.arange(n) * n_blocks // max(n, 1)
    size = np.bincount(block, minlength=n_blocks)
    order = np.lexsort((cds, block))
    place = np.arange(n) - (np.cumsum(size) - size)[block[order]]
    band = np.empty(n, dtype=np.int64)
    band[order] = place * n_bands // size[block[order]]
    return band


def describe_matched(
    values: Float[np.ndarray, "n n_quantities"],
    cds: Float[np.ndarray, " n"],
    rate: Float[np.ndarray, " n"],
    n_bands: int,
) -> tuple[
    Float[np.ndarray, " n_bands"], Float[np.ndarray, "n_quantities n_bands"], Float[np.ndarray, "n_quantities n_bands"]
]:
    """Return of each band of like firing rate its median CDS, and mean and median of what is known of each quantity.

    Each quantity has bands of its own, of the latents that have it.

    Args:
        cds, rate: finite.
    """
    median_cds = np.full(n_bands, np.nan)
    means, medians = np.full((2, len(values.T), n_bands), np.nan)
    band = match_bands(cds, rate, n_bands)
    for number in np.unique(band):
        median_cds[number] = np.median(cds[band == number])
    for place, column in enumerate(values.T):
        have = np.isfinite(column)
        band, known = match_bands(cds[have], rate[have], n_bands), column[have]
        for number in np.unique(band):
            of = known[band == number]
            means[place, number], medians[place, number] = of.mean(), np.median(of)
    return median_cds, means, medians
