"""Features whose maps stay or move, on narrow or wide evidence: choosing them, and reading their windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy.stats import rankdata

from infoscope.data.images import ImageSet
from infoscope.scope.extent.result import HALF
from infoscope.stages.extent.numbers import Found

N_EACH = 2
"""Features of each corner."""
N_IMAGES = 3
"""Images of each feature."""
CORNERS = {
    "stays, narrow": (False, False),
    "stays, wide": (False, True),
    "moves, narrow": (True, False),
    "moves, wide": (True, True),
}
"""Whether the CDS is high, and the extent."""


@dataclass(frozen=True)
class Corner:
    """A feature on the images that excite it most, best first, with its windows.

    name: of the corner.
    latent: index into the SAE; cds, extent: its own, 0..1.
    truth: what is known of the feature, in a word; empty: nothing.
    grid: patches a side.
    images: RGB, of the size that the backbone reads.
    patches: where it fires most in each, counted through the grid.
    radii: of the windows, in patches, ascending from 0.
    responses: to the window alone, of each image; NaN where donors excite the feature nearly as much as it does.
    """

    name: str
    latent: int
    cds: float
    extent: float
    truth: str
    grid: int
    images: UInt8[np.ndarray, "n px px 3"]
    patches: Int[np.ndarray, " n"]
    radii: Int[np.ndarray, " n_radii"]
    responses: Float[np.ndarray, "n_radii n"]

    def find_radius(self, place: int) -> int | None:
        """Return the smallest measured radius that keeps half of the response in an image; None: none does."""
        reached = self.responses[:, place] >= HALF
        return int(self.radii[reached.argmax()]) if reached.any() else None


def choose_corners(found: Found) -> Mapping[str, list[int]]:
    """Return the latents that lie furthest in each corner of CDS and extent; none where too few have both.

    Furthest: the lesser of both ranks, towards the corner, is as great as can be. Both are on its side of the middle
    rank: a corner where no latent lies is left out.
    """
    extent, cds = found.extent.extent, found.scope.cds
    full = found.extent.n_measured >= min(N_IMAGES, found.extent.images.shape[1])
    latents = np.flatnonzero(np.isfinite(extent) & np.isfinite(cds) & full)
    if len(latents) < N_EACH * len(CORNERS):
        return {}
    ranks = [(rankdata(of[latents]) - 0.5) / len(latents) for of in (cds, extent)]  # 0.5: the middle
    chosen = {}
    for name, sides in CORNERS.items():
        towards = np.array([of if is_high else 1 - of for of, is_high in zip(ranks, sides, strict=True)])
        order = np.lexsort((-towards.sum(axis=0), -towards.min(axis=0)))[:N_EACH]
        if there := latents[order[towards.min(axis=0)[order] > 0.5]].tolist():
            chosen[name] = there
    return chosen


def read_corners(found: Found, images: ImageSet, image_px: int) -> list[Corner]:
    """Return the features of every corner with their images.

    Raises:
        ImageError: one cannot be read.
    """
    return [
        _read(found, name, latent, images, image_px)
        for name, latents in choose_corners(found).items()
        for latent in latents
    ]


def _read(found: Found, name: str, latent: int, images: ImageSet, image_px: int) -> Corner:
    of, confounds = found.extent, found.confounds
    places = np.flatnonzero(of.images[latent] >= 0)[:N_IMAGES].tolist()
    truths = {
        "known-broad": confounds.known_broad,
        "known-global": confounds.known_global,
        "known-local": confounds.known_local,
    }
    return Corner(
        name=name,
        latent=latent,
        cds=float(found.scope.cds[latent]),
        extent=float(of.extent[latent]),
        truth=next((truth for truth, members in truths.items() if members[latent]), ""),
        grid=of.grid,
        images=np.stack([images.load(int(i), image_px) for i in of.images[latent, places]]),
        patches=of.patches[latent, places],
        radii=of.radii,
        responses=np.stack([of.take(slice(i, i + 1)).response[:, latent] for i in places], axis=1),
    )
