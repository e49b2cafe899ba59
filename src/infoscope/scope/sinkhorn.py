"""The approximate alternative to `infoscope.scope.emd`: entropic transport by geomloss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import ignore
from infoscope.scope.emd import check_pairs, normalise_maps

BATCH_PAIRS = 256


def compute_emd_sinkhorn(
    maps1: Float[np.ndarray, "n_pairs side side"],
    maps2: Float[np.ndarray, "n_pairs side side"],
    blur: float = 0.1,
    progress: Callable[[int], object] = ignore,
) -> Float[np.ndarray, " n_pairs"]:
    """Return approximate earth mover's distances in patches by geomloss' `SamplesLoss`, in float64.

    NaN where either map is all zero: such pairs are left out before the solver, which would return nonsense.

    Bias: entropy blurs the plan, so distances come out too large and identical maps above 0. Against the exact distance
    on 100 mixed pairs of 11 x 11 maps (`experiments/benchmarks/emd.py`), in units of D_grid: +0.020 on average and at
    most 0.041 at a blur of 0.2 patches, +0.007 and 0.017 at 0.1, +0.001 and 0.019 at 0.05.

    Args:
        blur: the blur of the plan in patches; smaller is more exact and slower.
        progress: called with the number of pairs done.

    Raises:
        InputError: if shapes differ or `blur` is not above 0.
    """
    from geomloss import SamplesLoss

    check_pairs(maps1, maps2)
    if not blur > 0:
        raise InputError(f"Expected scope.sinkhorn_blur to be above 0 patches, got {blur}: try 0.1.")
    side = maps1.shape[-1]
    row, column = np.divmod(np.arange(side * side), side)
    centres = torch.from_numpy(np.stack([row, column], axis=1)).double()
    # debiasing does not mend the error for a Euclidean cost: it turns it into one of the other sign
    loss = SamplesLoss(
        "sinkhorn", p=1, blur=blur, scaling=0.9, debias=False, backend="tensorized", diameter=side * 2**0.5
    )
    weights1, weights2 = normalise_maps(maps1), normalise_maps(maps2)
    valid = np.flatnonzero(weights1.any(axis=1) & weights2.any(axis=1))
    emd = np.full(len(maps1), np.nan)
    for start in range(0, len(valid), BATCH_PAIRS):
        pairs = valid[start : start + BATCH_PAIRS]
        a, b = (torch.from_numpy(weights[pairs]) for weights in (weights1, weights2))
        points = centres.expand(len(pairs), -1, -1).contiguous()
        emd[pairs] = loss(a, points, b, points).cpu().numpy()
        progress(start + len(pairs))
    return emd
