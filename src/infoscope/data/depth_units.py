"""In which unit depth is stored, as far as the depths of a set tell: a wrong unit makes every metric wrong silently.

What is known of NYU Depth v2: its Kinect measures from about half a metre, and its maps end at 10 m (in the labelled
file they go from 0.71 to 9.995 m; Silberman et al., 2012); half of all pixels of a set lie below about 2.5 to 3 m.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from infoscope.runtime.errors import InputError

NEAREST_M, FARTHEST_M = 0.5, 10.0
"""What a Kinect measures."""
_FARTHEST_STORED_M = 10.5  # with some room for rounding and resampling
_NEAR_MEDIAN_M = 1.3  # with depths below NEAREST_M too, it is no room in metres
_MEDIANS_M = (1.0, 7.5)
_MANY_MAPS = 4  # one or two may show nothing but a desk; the median of so many lies within _MEDIANS_M
_FITTING_MEDIANS_M = (1.3, 4.6)  # of a set in the right unit: what a unit must lead to in order to be named
_USUAL_MEDIAN_M, _AS_LIKELY = 2.7, 0.3  # units are named together if their medians, as logarithms, are so close
_BIN_M, _END_M = 0.001, 20.0


class Spread(NamedTuple):
    """Quantiles of depth in metres: .01, .5 and .99."""

    near: float
    median: float
    far: float

    def is_a_room(self) -> bool:
        """Whether depths are those that a set of rooms has."""
        low, high = _FITTING_MEDIANS_M
        return self.near >= 0.9 * NEAREST_M and low <= self.median <= high and self.far <= FARTHEST_M * 1.02


_PNG_UNITS = {
    "1/256 m, as KITTI stores it": 1000 / 256,
    "centimetres": 10,
    "10 bits, 1023 for 10 m": 10_000 / 1023,
    "8 bits, 255 for 10 m": 10_000 / 255,
    "1/5000 m, as TUM stores it": 1000 / 5000,
    "1/4000 m": 1000 / 4000,
    "16 bits, 65535 for 10 m": 10_000 / 65535,
    "tenths of a millimetre": 0.1,
    "whole metres": 1000,
    "inverse depth (disparity)": None,
}
_FLOAT_UNITS = {
    "millimetres": 1 / 1000,
    "centimetres": 1 / 100,
    "0 to 1 for 0 to 10 m": 10,
    "1/256 m": 1 / 256,
    "1/5000 m": 1 / 5000,
    "0 to 255 for 0 to 10 m": 10 / 255,
    "0 to 65535 for 0 to 10 m": 10 / 65535,
    "inverse depth (disparity)": None,
}
"""Ways of storing depth, and what makes metres of what was read as metres; None: its inverse."""


class DepthCounts:
    """How often each depth occurs in maps, in steps of a millimetre; 0 is what was not measured.

    Args:
        counts: int64 [n_bins], to go on from.
    """

    def __init__(self, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros(round(_END_M / _BIN_M) + 1, np.int64) if counts is None else counts

    def __bool__(self) -> bool:
        return bool(self.counts.any())

    def add(self, depth_m: Float32[np.ndarray, "height width"]) -> DepthCounts:
        """Count the pixels of a map, of at most 20 m."""
        bins = np.minimum(np.rint(depth_m / _BIN_M).astype(np.int64), len(self.counts) - 1)
        bins[(bins == 0) & (depth_m > 0)] = 1
        self.counts += np.bincount(bins.ravel(), minlength=len(self.counts))
        return self

    def add_counts(self, other: DepthCounts) -> None:
        """Add what was counted elsewhere."""
        self.counts += other.counts

    def quantile(self, q: float) -> float:
        """Return the depth in metres, to the millimetre, that a share `q` of what was measured reaches; NaN: none."""
        sums = np.cumsum(self.counts[1:])
        if not sums[-1]:
            return float("nan")
        return float((np.searchsorted(sums, max(q * sums[-1], 1)) + 1) * _BIN_M)

    def spread(self) -> Spread:
        return Spread(*(self.quantile(q) for q in (0.01, 0.5, 0.99)))

    def summary(self) -> dict[str, float]:
        """Return range and median of what was measured, in metres, and its share of the pixels; empty: nothing was."""
        if not self.counts[1:].any():
            return {}
        found = {name: self.quantile(q) for name, q in (("min_m", 0.0), ("median_m", 0.5), ("max_m", 1.0))}
        return {
            **{name: round(value, 3) for name, value in found.items()},
            "measured_share": round(1 - float(self.counts[0] / self.counts.sum()), 4),
        }


def refuse_unit(counts: DepthCounts, n_maps: int, where: str, is_png: bool) -> None:
    """Refuse depths of indoor photographs, read as metres, that can be in no such unit.

    That is: more than a hundredth beyond 10.5 m; or more than a hundredth nearer than 0.5 m where half is nearer than
    1.3 m; or, of four maps or more, a median outside of 1 to 7.5 m.

    Args:
        where: which maps, for display.
        is_png: stored as integers that were read as millimetres; else as floating-point metres.

    Raises:
        InputError: such depths, with the unit that would fit.
    """
    if not counts.counts[1:].any():
        raise InputError(
            f"Expected depth in {where}, but in {n_maps} maps not one pixel was measured (all are 0): take the data"
            " set's own depth."
        )
    found = counts.spread()
    is_too_near = found.near < NEAREST_M and found.median < _NEAR_MEDIAN_M
    low, high = _MEDIANS_M
    is_median_odd = n_maps >= _MANY_MAPS and not low <= found.median <= high
    if not (is_too_near or is_median_odd or found.far > _FARTHEST_STORED_M):
        return
    raise InputError(
        f"Expected depths from {NEAREST_M:g} to {FARTHEST_M:g} m with a median of about 2.5 m, as a Kinect measures"
        f" rooms, but in {n_maps} maps of {where} the median is {found.median:.3g} m and 98% lie from"
        f" {found.near:.2g} to {found.far:.3g} m, which {name_unit(found, is_png)}."
    )


def name_unit(found: Spread, is_png: bool) -> str:
    """Say which unit depths look like that were read as millimetres (PNG) or metres, and what to do."""
    stored = "millimetres in PNG files of 16 bits" if is_png else "metres"
    inverse = f"store {1_000_000 if is_png else 1} / value instead of each value"
    named: list[tuple[float, str]] = []
    for name, factor in (_PNG_UNITS if is_png else _FLOAT_UNITS).items():
        metres = Spread(*sorted(read * factor if factor else 1 / max(read, 1e-9) for read in found))
        if metres.is_a_room():
            advice = f"multiply what is stored by {factor:.4g}" if factor else inverse
            how_far = abs(math.log(metres.median / _USUAL_MEDIAN_M))
            named.append((how_far, f"{name} (median {metres.median:.2f} m then): {advice}"))
    if not named:
        return f"is no unit that is known here (is it inverse depth, or scaled map by map?): store {stored}"
    closest = min(named)[0]
    likely = [text for how_far, text in sorted(named) if how_far <= closest + _AS_LIKELY]
    return f"looks like {'; or '.join(likely)}, to store {stored}"


def describe_wrong_map(depth_m: Float[np.ndarray, "height width"], is_png: bool) -> str:
    """Say why one map reaches further than any room."""
    valid = depth_m[depth_m > 0].astype(np.float64)
    end = valid.max()
    rest = valid[valid < end]
    if is_png and end == np.float32(65.535) and (not rest.size or rest.max() <= FARTHEST_M * 1.05):
        return "65535 seems to stand there for what was not measured: store 0 for that, and millimetres elsewhere"
    found = Spread(*np.quantile(valid, [0.01, 0.5, 0.99]).tolist())
    if found.is_a_room():
        return "the rest of it looks like metres: replace it by the data set's own"
    return f"it {name_unit(found, is_png)}"
