"""Calibration, entropy and distance against values by hand and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from infoscope.predictions.metrics import compute_ece, compute_entropy, compute_reliability, compute_total_variation


def test_ece_by_hand():
    # Two bins of fifteen: (9/15, 10/15] holds .62 and .66, one right of two; (14/15, 1] holds .95, .97, 1, all right.
    max_prob, right = np.array([0.62, 0.95, 0.66, 1.0, 0.97]), np.array([True, True, False, True, True])
    bins = compute_reliability(max_prob, right)
    assert bins.n.tolist() == [0] * 9 + [2] + [0] * 4 + [3]
    assert bins.confidence[9] == pytest.approx(0.64)
    assert bins.accuracy[[9, 14]].tolist() == [0.5, 1.0]
    assert np.isnan(bins.accuracy[0])
    assert compute_ece(bins) == pytest.approx((2 * abs(0.5 - 0.64) + 3 * abs(1 - 2.92 / 3)) / 5)


def test_a_bin_holds_its_upper_edge():
    assert compute_reliability(np.array([0.5, 0.51, 0.0]), np.zeros(3, dtype=bool), n_bins=2).n.tolist() == [2, 1]


def test_ece_is_that_of_torchmetrics():
    rng = np.random.default_rng(0)
    probabilities = torch.from_numpy(rng.dirichlet([0.3] * 6, 500))
    labels = torch.from_numpy(rng.integers(6, size=500))
    max_prob, predicted = probabilities.max(-1)
    theirs = MulticlassCalibrationError(6, n_bins=15, norm="l1")(probabilities, labels)
    ours = compute_ece(compute_reliability(max_prob.numpy(), (predicted == labels).numpy()))
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_without_predictions_there_is_no_ece():
    assert math.isnan(compute_ece(compute_reliability(np.zeros(0), np.zeros(0, dtype=bool))))


def test_entropy_in_nats():
    log_p = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]).log()
    torch.testing.assert_close(compute_entropy(log_p), torch.tensor([math.log(4), 0.0, math.log(2)]))


def test_total_variation_is_the_probability_that_moves():
    p = torch.tensor([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.4, 0.5, 0.1], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(compute_total_variation(p, q), torch.tensor([0.3, 1.0]))
    assert compute_total_variation(p, p).tolist() == [0.0, 0.0]
