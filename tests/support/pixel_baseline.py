"""How far pixels alone go: a linear classifier on colours and a thumbnail, the floor under every probe."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

N_BINS = 8
"""Bins per colour channel."""
THUMBNAIL_PX = 8
RIDGES = (1.0, 0.1, 0.03, 0.01, 3e-3, 1e-3)
"""Strengths tried, strongest first: weights of |W|^2 / 2 beside the mean cross-entropy of standardised features."""
HELD_OUT_SHARE = 0.1


def compute_pixel_features(images: UInt8[np.ndarray, "n size size 3"]) -> Float[np.ndarray, "n n_features"]:
    """Return each image's joint colour histogram (8 x 8 x 8 bins, square roots of shares) and its mean colours in 8 x 8
    cells, in 0..1."""
    return np.stack([_one_image(np.asarray(image)) for image in images])


def _one_image(image: UInt8[np.ndarray, "size size 3"]) -> Float[np.ndarray, " n_features"]:
    bins = image.reshape(-1, 3).astype(np.int64) * N_BINS // 256
    joint = (bins[:, 0] * N_BINS + bins[:, 1]) * N_BINS + bins[:, 2]
    histogram = np.bincount(joint, minlength=N_BINS**3) / len(joint)
    thumbnail = Image.fromarray(image).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return np.concatenate([np.sqrt(histogram), np.asarray(thumbnail).reshape(-1) / 255])


def compute_pixel_baseline(
    train_images: UInt8[np.ndarray, "n_train size size 3"],
    train_labels: Int[np.ndarray, " n_train"],
    test_images: UInt8[np.ndarray, "n_test size size 3"],
    test_labels: Int[np.ndarray, " n_test"],
    seed: int = 0,
) -> float:
    """Return the top-1 accuracy, in 0..1, of multinomial logistic regression on pixel features."""
    train, test = compute_pixel_features(train_images), compute_pixel_features(test_images)
    return compute_linear_top1(train, train_labels, test, test_labels, seed)


def compute_linear_top1(
    train: Float[np.ndarray, "n_train n_features"],
    train_labels: Int[np.ndarray, " n_train"],
    test: Float[np.ndarray, "n_test n_features"],
    test_labels: Int[np.ndarray, " n_test"],
    seed: int = 0,
) -> float:
    """Return the top-1 accuracy, in 0..1, of multinomial logistic regression on any features.

    The ridge strength is chosen on a tenth of the training images, drawn with `seed`; the final fit uses them all.
    """
    mean, std = train.mean(0), train.std(0)
    std[std < 1e-6] = 1.0  # a colour that never occurs
    train, test = (train - mean) / std, (test - mean) / std
    n_classes = int(max(train_labels.max(), test_labels.max())) + 1

    order = np.random.default_rng(seed).permutation(len(train))
    n_held_out = max(1, round(HELD_OUT_SHARE * len(train)))
    held_out, kept = order[:n_held_out], order[n_held_out:]
    accuracies = []
    weights = np.zeros((train.shape[1] + 1, n_classes))
    for ridge in RIDGES:  # each fit starts from the one before
        weights = _fit(train[kept], train_labels[kept], weights, ridge)
        accuracies.append(_accuracy(weights, train[held_out], train_labels[held_out]))
    best = RIDGES[int(np.argmax(accuracies))]
    return _accuracy(_fit(train, train_labels, np.zeros_like(weights), best), test, test_labels)


def _fit(features: np.ndarray, labels: np.ndarray, start: np.ndarray, ridge: float) -> np.ndarray:
    """Return weights [n_features + 1, n_classes], the bias last and not penalised."""
    one_hot = np.eye(start.shape[1])[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        logits = features @ weights[:-1] + weights[-1]
        penalty = weights.copy()
        penalty[-1] = 0
        error = (softmax(logits, axis=1) - one_hot) / len(labels)
        gradient = np.vstack([features.T @ error, error.sum(0)]) + ridge * penalty
        value = -(log_softmax(logits, axis=1) * one_hot).sum() / len(labels) + ridge / 2 * (penalty**2).sum()
        return float(value), gradient.ravel()

    result = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300, "gtol": 1e-5})
    return result.x.reshape(start.shape)


def _accuracy(weights: np.ndarray, features: np.ndarray, labels: np.ndarray) -> float:
    return float(((features @ weights[:-1] + weights[-1]).argmax(1) == labels).mean())
