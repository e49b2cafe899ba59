"""How sure predictions are, how far they are right when they say so, and how much they move: pure functions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_BINS = 15


class Reliability(NamedTuple):
    """Predictions sorted by confidence into bins of equal width over 0..1.

    n: how many are in each bin. confidence: their mean. accuracy: share that is right. NaN in an empty bin.
    """

    n: Int[np.ndarray, " n_bins"]
    confidence: Float[np.ndarray, " n_bins"]
    accuracy: Float[np.ndarray, " n_bins"]


def compute_reliability(
    max_prob: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], n_bins: int = N_BINS
) -> Reliability:
    """Sort predictions into the bins (0, 1/n_bins], ..., (1 - 1/n_bins, 1] (Guo et al., 2017)."""
    confidence = np.asarray(max_prob, dtype=np.float64)
    place = np.digitize(confidence, np.arange(1, n_bins) / n_bins, right=True)
    n = np.bincount(place, minlength=n_bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return Reliability(
            n,
            np.bincount(place, confidence, n_bins) / n,
            np.bincount(place, np.asarray(right, dtype=np.float64), n_bins) / n,
        )


def compute_ece(reliability: Reliability) -> float:
    """Return the expected calibration error in 0..1: |accuracy - confidence|, weighted by the bins' predictions.

    NaN without any prediction.
    """
    filled = reliability.n > 0
    if not filled.any():
        return float("nan")
    gaps = np.abs(reliability.accuracy - reliability.confidence)[filled]
    return float(gaps @ reliability.n[filled] / reliability.n.sum())


def compute_entropy(log_probabilities: Float[Tensor, "n n_classes"]) -> Float[Tensor, " n"]:
    """Return the entropy in nats, 0..ln n_classes."""
    return torch.special.entr(log_probabilities.exp()).sum(-1)


def compute_total_variation(p: Float[Tensor, "n n_classes"], q: Float[Tensor, "n n_classes"]) -> Float[Tensor, " n"]:
    """Return half the sum of absolute differences, 0..1: how much probability has to move."""
    return (p - q).abs().sum(-1) / 2
