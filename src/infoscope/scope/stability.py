"""How far contextual dependency scores depend on choices that should not matter: which images, crops, k, seed, solver.

Every comparison is between the scores as configured and the scores with one choice made otherwise, feature by feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from jaxtyping import Float

from infoscope.runtime.arrays import load_result, save_result
from infoscope.scope.agreement import Agreement, Interval, IntervalSummary, compare_cds, summarise_intervals


class Kind(Enum):
    """Which choice was made otherwise."""

    shift = "shift"
    diagonal = "diagonal"
    images = "images"
    k_cds = "k_cds"
    solver = "solver"
    seed = "seed"


@dataclass(frozen=True)
class Variation:
    """The scores with one choice made otherwise.

    name: unique within a result.
    setting: the choice in words.
    cds: [d_sae] by latent of the SAE that is compared; NaN where unscored, not scored again, or without a match.
    note: why nothing was measured; empty otherwise.
    gamma: that of these scores, where it is not the compared SAE's own.
    cosine: [d_sae], of kind seed, of the decoder rows of each latent and its match; NaN without one.
    """

    name: str
    kind: Kind
    setting: str
    cds: Float[np.ndarray, " d_sae"]
    note: str = ""
    gamma: float | None = None
    cosine: Float[np.ndarray, " d_sae"] | None = None


@dataclass(frozen=True)
class StabilityResult:
    """How stable the scores of one SAE's features are.

    configured: the choices of the configuration, in words.
    cds: [d_sae] as configured, which everything is compared with.
    gamma: what divides the features; None where nothing does.
    interval: by bootstrap over the images, of the share `level`.
    min_cosine: above it the features of two SAEs count as the same.
    """

    sae_seed: int
    configured: str
    k_cds: int
    gamma: float | None
    cds: Float[np.ndarray, " d_sae"]
    interval: Interval
    level: float
    n_draws: int
    min_cosine: float
    variations: tuple[Variation, ...]

    def compare(self, variation: Variation, all_pairs: bool = False) -> Agreement:
        """Return how a variation agrees with the scores as configured.

        Another SAE is compared over the pairs of features above `min_cosine`, or over all that were matched.
        """
        cds = variation.cds
        if variation.cosine is not None and not all_pairs:
            cds = np.where(variation.cosine > self.min_cosine, cds, np.nan)
        return compare_cds(self.cds, cds, self.gamma, variation.gamma)

    @property
    def intervals(self) -> IntervalSummary:
        """The intervals in a few numbers."""
        return summarise_intervals(self.cds, self.interval, self.gamma)

    def save(self, folder: Path) -> None:
        """Write stability.npz and stability.json into `folder` (made if missing)."""
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["variations"] = [
            {name: getattr(one, name) for name in _VARIATION_FACTS} | {"kind": one.kind.name} for one in self.variations
        ]
        none = np.full(len(self.cds), np.nan)
        rows = [(one.cds, none if one.cosine is None else one.cosine) for one in self.variations]
        cds, cosines = np.array(rows).reshape(-1, 2, len(none)).swapaxes(0, 1)
        arrays = {"cds": self.cds, **self.interval._asdict(), "variations": cds, "cosines": cosines}
        save_result(folder, "stability", arrays, facts)

    @classmethod
    def load(cls, folder: Path) -> StabilityResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "stability")
        interval, variations = Interval(arrays["lower"], arrays["upper"]), []
        for one, cds, cosine in zip(facts.pop("variations"), arrays["variations"], arrays["cosines"], strict=True):
            kind = Kind[one.pop("kind")]
            variations.append(Variation(**one, kind=kind, cds=cds, cosine=cosine if kind is Kind.seed else None))
        return cls(**facts, cds=arrays["cds"], interval=interval, variations=tuple(variations))


_FACTS = ("sae_seed", "configured", "k_cds", "gamma", "level", "n_draws", "min_cosine")
_VARIATION_FACTS = ("name", "setting", "note", "gamma")
