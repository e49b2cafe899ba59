"""Which features to draw: some of low, middle and high scope."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from infoscope.runtime.errors import InputError

QUANTILES = {"low": 0.05, "middle": 0.5, "high": 0.95}
"""Where in the order of scores each level is looked for: not the very ends, which outliers of the score hold."""


def choose_example_latents(cds: Float[np.ndarray, " d_sae"], n_each: int) -> dict[str, list[int]]:
    """Return up to `n_each` latents around the 5%, 50% and 95% quantile of the scores, by ascending score.

    Deterministic (equal scores by latent), without repeats, unscored (NaN) ones left out; fewer where there are not
    enough: each level keeps to its third of the order.

    Raises:
        InputError: if `n_each` is below 1.
    """
    if n_each < 1:
        raise InputError(f"Expected report.n_examples to be at least 1, got {n_each}.")
    order = np.argsort(cds, kind="stable")[: int((~np.isnan(cds)).sum())]  # argsort puts NaN last
    chosen = {}
    for level, third in zip(QUANTILES, np.array_split(np.arange(len(order)), len(QUANTILES)), strict=True):
        size = min(n_each, len(third))
        centre = round(QUANTILES[level] * (len(order) - 1)) if size else 0
        start = min(max(centre - size // 2, third[0]), third[-1] + 1 - size) if size else 0
        chosen[level] = [int(latent) for latent in order[start : start + size]]
    return chosen
