"""Groups of latents thinned out until they are alike in what could stand behind a score.

Either by frequency alone, in bins (`match_frequency`), or by pairs of nearest neighbours in any properties: each latent
of one group stands beside the one of the other group that is nearest to it, without replacement, and whoever has no
neighbour within the caliper is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

from infoscope.scope.partition import find_ends
from infoscope.scope.separation import match_frequency

CALIPER = 0.5
"""Paired latents are so far apart at most, in standard deviations of the properties (Euclidean distance)."""
PROPERTIES: tuple[str, ...] = ("frequency", "support", "mass")
FREQUENCY = "frequency"
MATCHINGS: Mapping[str, tuple[str, ...]] = {
    FREQUENCY: ("frequency",),
    "support": ("support",),
    "mass": ("mass",),
    "frequency, support and mass": PROPERTIES,
}
"""What groups are matched by, in words, and the properties that this means."""

Group = Bool[np.ndarray, " d_sae"]
Pair = tuple[Group, Group]


def name_matched(group: str, matching: str = FREQUENCY) -> str:
    """Return what the part of a group is called that is matched with its counterpart."""
    return f"{group}, matched {matching}"


def find_matching(group: str) -> str | None:
    """Return by what a group of such a name is matched; None: it is a whole group."""
    _, is_matched, matching = group.partition(", matched ")
    return matching if is_matched else None


def make_properties(
    firing_rate: Float[np.ndarray, " d_sae"],
    support: Float[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Return the properties that latents are paired by: log2 firing rate, support, log2 mass; NaN where there is none.

    Args:
        firing_rate: share of patch tokens on which each latent fires.
        support: share of the grid on which it fires, in the images in which it does.
        mass: only ratios matter.
    """

    def log2(values: Float[np.ndarray, " d_sae"]) -> Float[np.ndarray, " d_sae"]:
        values = np.asarray(values, dtype=np.float64)
        return np.log2(values, out=np.full(len(values), np.nan), where=values > 0)

    return {"frequency": log2(firing_rate), "support": np.asarray(support, dtype=np.float64), "mass": log2(mass)}


def match_groups(
    groups: Mapping[str, Group],
    firing_rate: Float[np.ndarray, " d_sae"],
    support: Float[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
    seed: int = 0,
) -> dict[str, Pair]:
    """Return {matching: (subgroup above gamma, subgroup up to it)}; both are empty where none can be made.

    Nothing without these two groups (bands).

    Args:
        firing_rate, support, mass: as for `make_properties`.
        seed: of the draw within bins of frequency.
    """
    if (ends := find_ends(groups)) is None:
        return {}
    high, low = (groups[name] for name in ends)
    properties = make_properties(firing_rate, support, mass)
    found = {FREQUENCY: match_frequency(high, low, firing_rate, seed)}
    for matching, names in MATCHINGS.items():
        if matching not in found:
            found[matching] = match_nearest(high, low, [properties[name] for name in names])
    return found


def match_nearest(
    high: Group, low: Group, properties: Sequence[Float[np.ndarray, " d_sae"]], caliper: float = CALIPER
) -> Pair:
    """Return subgroups of two groups, in pairs of neighbours: equally many latents of both.

    Distances are Euclidean, of the properties divided by their standard deviation over both groups. The closest pair is
    taken first, then the closest of the others, and so on; among equally close ones that with the smallest numbers.

    Args:
        properties: latents without one of them (NaN) are left out.
        caliper: pairs that are farther apart are none.
    """
    values = np.stack([np.asarray(of, dtype=np.float64) for of in properties], axis=1)
    known = np.isfinite(values).all(axis=1)
    members = [np.flatnonzero(group & known) for group in (high, low)]
    chosen = np.zeros_like(known), np.zeros_like(known)
    if not all(map(len, members)):
        return chosen
    spread = values[np.concatenate(members)].std(axis=0)
    points = [values[of] / np.where(spread > 0, spread, 1) for of in members]
    n_doublings = min(map(len, members)).bit_length()
    # Whoever is paired within a small radius is gone before it grows: so few pairs are looked at, where within the
    # caliper there can be nearly as many as latents of one group times latents of the other.
    for radius in caliper / 2.0 ** np.arange(n_doublings, -1, -1):
        near = KDTree(points[0]).sparse_distance_matrix(KDTree(points[1]), radius, output_type="ndarray")
        near = near[np.lexsort((near["j"], near["i"], near["v"]))]
        is_free = [[True] * len(of) for of in members]
        for i, j in zip(near["i"].tolist(), near["j"].tolist(), strict=True):
            if is_free[0][i] and is_free[1][j]:
                is_free[0][i] = is_free[1][j] = False
        for side in range(2):
            free = np.array(is_free[side])
            chosen[side][members[side][~free]] = True
            points[side], members[side] = points[side][free], members[side][free]
        if not all(map(len, members)):
            break
    return chosen


class Balance(NamedTuple):
    """How unlike two groups are in a property: differences of means in standard deviations of the whole groups.

    before: of the whole groups; after: of their matched parts. NaN where a group has no member, or nothing varies.
    """

    before: float
    after: float


def compute_balance(whole: Pair, matched: Pair, values: Float[np.ndarray, " d_sae"]) -> Balance:
    """Return the standardised mean difference (first group minus second) before and after matching.

    Both are divided by the root of the mean of the whole groups' variances, so that a difference does not seem larger
    because matched groups vary less (Stuart, 2010). Latents without the property are left out.
    """
    known = np.isfinite(values)
    if not all((group & known).any() for group in whole):
        return Balance(np.nan, np.nan)
    spread = float(np.sqrt(np.mean([np.var(values[group & known]) for group in whole])))

    def compare(pair: Pair) -> float:
        groups = [values[group & known] for group in pair]
        if not all(map(len, groups)) or spread == 0:
            return np.nan
        return float((groups[0].mean() - groups[1].mean()) / spread)

    return Balance(compare(whole), compare(matched))
