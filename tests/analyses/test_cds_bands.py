"""Quantities in bands of the CDS, and in bands that firing rates are alike in."""

from __future__ import annotations

import numpy as np

from infoscope.analyses.cds_bands import describe_bands, describe_matched, match_bands


def test_bands_hold_means_and_quartiles_of_what_is_known() -> None:
    cds = np.arange(10) / 10
    values = np.stack([np.arange(10.0), np.where(np.arange(10) < 5, np.nan, 1)], axis=1)
    median_cds, means, quartiles = describe_bands(values, cds, 2)
    np.testing.assert_allclose(median_cds, [0.2, 0.7])
    np.testing.assert_allclose(means, [[2, 7], [np.nan, 1]])
    np.testing.assert_allclose(quartiles[0], [[1, 2, 3], [6, 7, 8]])


def test_matched_bands_rank_the_cds_among_latents_of_like_rate() -> None:
    rate = np.array([5, 1, 2, 6, 3, 4, 7])
    cds = np.array([0.1, 0.9, 0.2, 0.4, 0.3, 0.8, 0.5])
    assert match_bands(cds, rate, 3).tolist() == [0, 2, 0, 1, 0, 1, 2]  # rates 1 2 3 4 and 5 6 7
    assert match_bands(cds[:2], rate[:2], 3).tolist() == [0, 1]
    assert match_bands(cds[:0], rate[:0], 3).tolist() == []


def test_what_goes_with_scope_through_the_rate_alone_is_the_same_in_matched_bands() -> None:
    z, left, noise = np.random.default_rng(0).normal(size=(3, 2003))
    cds, rate = 1 / (1 + np.exp(z + 0.3 * left)), np.exp(1.5 * z - 5)
    values = np.stack([np.exp(0.3 * noise - z), -left, rate, cds], axis=1)
    values[::4] = np.nan
    _, means, _ = describe_bands(values, cds, 5)
    median_cds, matched, medians = describe_matched(values, cds, rate, 5)
    difference, at_like_rate = means[:, -1] - means[:, 0], matched[:, -1] - matched[:, 0]
    assert abs(at_like_rate[0]) < 0.03 * abs(difference[0])
    assert abs(at_like_rate[2]) < 0.03 * abs(difference[2])
    assert at_like_rate[1] > 0.5
    assert 0 < at_like_rate[3] < difference[3]
    assert (np.diff(median_cds) > 0).all()
    assert (np.diff(medians[1]) > 0).all()
    assert np.abs(medians[0] - np.nanmedian(values[:, 0])).max() < 0.1 * np.nanmedian(values[:, 0])
