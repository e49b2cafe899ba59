"""The removal curve: growing shares of the activation mass, from the low end of the scores, the high end, at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.config import By

ORDERS = ("low", "high", "random")
"""In which features are removed."""


def name_orders(by: By) -> dict[str, str]:
    """Return what each order is called for display."""
    return {"low": f"lowest {by.words} first", "high": f"highest {by.words} first", "random": "random order"}


def name_part(end: str, share: float) -> str:
    """Return the name of what is removed: "low 0.2", so much of the mass from the low end."""
    return f"{end} {share:g}"


def make_curve_ablations(
    scores: Float[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
    shares: Sequence[float],
    n_draws: int,
    seed: int = 0,
) -> list[Ablation]:
    """Return the variants of the curve, while the SAE's error stays: for each share, from each end and at random.

    Each removes the first features of an order, so many that their mass comes closest to the share, one at least. The
    random orders are the same for every share.

    Args:
        scores: CDS, or what else features are divided by; those without one (NaN), or without mass, are never removed.
        mass: activation mass of each latent on the training split; only ratios matter.
        shares: of the mass of all features that may be removed, 0..1.
        n_draws: random orders.
        seed: of these.
    """
    mass = np.asarray(mass, dtype=np.float64)
    pool = np.flatnonzero(~np.isnan(scores) & (mass > 0))
    if len(pool) == 0:
        return []
    by_score = pool[np.argsort(scores[pool], kind="stable")]
    orders: list[tuple[str, int | None, np.ndarray]] = [("low", None, by_score), ("high", None, by_score[::-1])]
    for draw in range(n_draws):
        orders.append(("random", draw, np.random.default_rng([seed, 20, draw]).permutation(pool)))
    variants = []
    for share in shares:
        for end, draw, order in orders:
            removed = _take(order, mass, share)
            variants.append(
                Ablation(
                    f"curve_{end}_{share:g}" + ("" if draw is None else f"_{draw}"),
                    EditMode.error_preserving,
                    removed,
                    Role.part,
                    name_part(end, share),
                    draw=draw,
                    mass_share_train=float(mass[removed].sum() / mass.sum()),
                )
            )
    return variants


def _take(order: np.ndarray, mass: Float[np.ndarray, " d_sae"], share: float) -> Bool[np.ndarray, " d_sae"]:
    """Return the first latents of an order whose mass comes closest to a share of that of all of them."""
    reached = np.cumsum(mass[order])
    removed = np.zeros(len(mass), dtype=bool)
    removed[order[: int(np.argmin(np.abs(reached - share * reached[-1]))) + 1]] = True
    return removed
