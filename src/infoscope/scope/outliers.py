"""Outlier tokens: patch tokens whose norm lies far above the others' (Darcet et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from infoscope.scope.config import OutlierConfig, OutlierRule

N_BINS = 200
MIN_PROMINENCE = 0.002
"""A mode must rise above its surroundings by this share of the highest one."""


@dataclass(frozen=True)
class NormSummary:
    """Norms of raw patch tokens.

    counts, edges: histogram over the range of the norms, bins of equal ratio.
    threshold: norms above it are outliers.
    has_outlier_mode: whether the histogram has a mode of its own above the threshold.
    """

    counts: Int[np.ndarray, " n_bins"]
    edges: Float[np.ndarray, " n_edges"]
    threshold: float
    n_outliers: int
    has_outlier_mode: bool

    @property
    def n_tokens(self) -> int:
        """All tokens counted."""
        return int(self.counts.sum())


def compute_outlier_threshold(norms: Float[np.ndarray, "..."], config: OutlierConfig | None = None) -> float:
    """Return the norm above which a token is an outlier, by default median + 6 * 1.4826 * MAD of the norms.

    That is robust: outliers do not hide themselves.
    """
    config = config or OutlierConfig()
    if config.rule is OutlierRule.absolute:
        assert config.value is not None
        return config.value
    if config.rule is OutlierRule.quantile:
        return float(np.quantile(norms, config.quantile))
    median = np.median(norms)
    return float(median + config.c * 1.4826 * np.median(np.abs(norms - median)))


def compute_norm_summary(norms: Float[np.ndarray, "..."], config: OutlierConfig | None = None) -> NormSummary:
    """Describe the norms of a data set's patch tokens, and whether outliers form a mode of their own.

    Modes are peaks of the histogram of log norms (200 bins over the range, smoothed by a Gaussian of 2 bins) that rise
    by at least 0.2% of the highest peak above the valleys around them.
    """
    flat = np.asarray(norms, dtype=np.float64).ravel()
    threshold = compute_outlier_threshold(flat, config)
    positive = np.maximum(flat, max(flat.max() * 1e-6, 1e-12))
    low, high = np.log(positive.min()), np.log(positive.max())
    edges = np.exp(np.linspace(low, max(high, low + 1e-6), N_BINS + 1))
    edges[0] = min(edges[0], positive.min())  # exp(log(x)) may round past x
    edges[-1] = np.nextafter(max(edges[-1], positive.max()), np.inf)
    counts = np.histogram(positive, edges)[0]
    smooth = gaussian_filter1d(counts.astype(np.float64), 2.0)
    peaks, _ = find_peaks(np.r_[0.0, smooth, 0.0], prominence=MIN_PROMINENCE * smooth.max())
    centres = np.sqrt(edges[:-1] * edges[1:])
    has_outlier_mode = bool((centres[peaks - 1] > threshold).any())
    return NormSummary(counts, edges, threshold, int((flat > threshold).sum()), has_outlier_mode)
