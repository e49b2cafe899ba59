"""Tokens for trainings, made once for each module."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.sae_samples import Tokens


@pytest.fixture(scope="module")
def cache() -> Tokens:
    """Tokens that are sums of 3 of 20 directions, off centre."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(20, 12))
    codes = rng.uniform(0.5, 1.5, size=(60, 9, 20)) * (rng.random((60, 9, 20)) < 0.15)
    patches = (codes @ directions + 2.0).astype(np.float32)
    mean = patches.mean((0, 1))
    scale = float(12**0.5 / np.linalg.norm(patches - mean, axis=-1).mean())
    return Tokens(patches, patches[:, :1].copy(), mean, scale)
