import numpy as np
import pytest
from scipy.optimize import check_grad

from tests.support import pixel_baseline as baseline
from tests.support.pixel_baseline import compute_pixel_baseline, compute_pixel_features


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)


def test_features_are_a_histogram_and_a_thumbnail():
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, :8] = (255, 0, 0)
    [features] = compute_pixel_features(image)
    assert features.shape == (8**3 + 8 * 8 * 3,)
    histogram, thumbnail = features[: 8**3], features[8**3 :].reshape(8, 8, 3)
    assert np.flatnonzero(histogram).tolist() == [0, 7 * 64]
    assert histogram[[0, 7 * 64]] == pytest.approx(np.sqrt(0.5))
    assert (thumbnail[:4] == (1, 0, 0)).all()
    assert (thumbnail[4:] == 0).all()


def test_colour_and_place_are_found():
    rng = np.random.default_rng(0)
    images, labels = noise(rng, 300), rng.integers(0, 3, 300)
    images[labels == 1, :, :, 0] += 100  # redder
    images[labels == 2, :8, :8] += 100  # brighter at the top left
    assert compute_pixel_baseline(images[:200], labels[:200], images[200:], labels[200:]) > 0.95


def test_without_a_signal_it_stays_at_chance_and_repeats():
    rng = np.random.default_rng(1)
    images, labels = noise(rng, 400), rng.integers(0, 4, 400)
    parts = images[:200], labels[:200], images[200:], labels[200:]
    accuracy = compute_pixel_baseline(*parts, seed=5)
    assert 0.12 < accuracy < 0.38  # 0.25 and four standard errors
    assert compute_pixel_baseline(*parts, seed=5) == accuracy


def test_the_fit_is_a_minimum(monkeypatch):
    """The gradient agrees with finite differences, and the optimum with that of another solver, torch's L-BFGS."""
    import torch

    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    seen = {}
    minimize = baseline.minimize

    def spy(loss, start, **options):
        point = rng.normal(size=start.shape)
        seen["error"] = check_grad(lambda w: loss(w)[0], lambda w: loss(w)[1], point)
        return minimize(loss, start, **options)

    monkeypatch.setattr(baseline, "minimize", spy)
    weights = baseline._fit(features, labels, np.zeros((5, 3)), ridge=0.1)
    assert seen["error"] < 1e-6

    w, b = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True), torch.zeros(3, dtype=torch.float64)
    b.requires_grad_()
    solver = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    x, y = torch.from_numpy(features), torch.from_numpy(labels)

    def closure():
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ w + b, y) + 0.05 * w.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    assert np.abs(weights[:-1] - w.detach().numpy()).max() < 1e-3
