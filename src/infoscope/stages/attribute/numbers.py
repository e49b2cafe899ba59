"""What SAE seeds have found of attributions, joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infoscope.analyses.attribution import AttributionResult
from infoscope.analyses.latent_orders import PLACES
from infoscope.report.tables import Stat, compute_stat
from infoscope.scope.cds import mean_of_known


class Found(NamedTuple):
    """What was found of one SAE seed.

    groups: by score; none where nothing is scored.
    """

    groups: Mapping[str, Bool[np.ndarray, " d_sae"]]
    result: AttributionResult


def join_images(
    by_seed: Sequence[Float[np.ndarray, "n_methods n_images"]], name: str
) -> Float[np.ndarray, " n_images"]:
    """Return what a method has of each image, mean over SAE seeds: all of them have the same images."""
    return mean_of_known(np.stack([of[PLACES[name]] for of in by_seed]), axis=0)


def join_seeds(by_seed: Sequence[Float[np.ndarray, "n_methods n_images"]], name: str) -> Stat:
    """Return the mean over images of a method, over SAE seeds."""
    return compute_stat(compute_stat(of[PLACES[name]]).mean for of in by_seed)
