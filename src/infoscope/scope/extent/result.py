"""What windows tell of each latent: its response to its own surroundings, the extent of its evidence, its context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from infoscope.runtime.arrays import load_result, save_result
from infoscope.scope.cds import mean_of_known

HALF = 0.5
"""The response at which the extent is read."""
SPOILED = 0.5
"""A donor that excites the latent by itself to such a share of its activation tells nothing, and is left out."""


@dataclass(frozen=True)
class ExtentResult:
    """Activations of each latent at the patch where it fires most, under windows that are kept or replaced.

    grid: patches a side.
    radii: [n_radii] of the windows of (2 r + 1)^2 patches, ascending from 0; at the border of the grid they are cut.
    images: [d_sae, n_images] positions in the image set, best first; -1: none, or the latent was not measured.
    patches: [d_sae, n_images] where it fires most, counted through the grid; -1 likewise.
    whole: [d_sae, n_images] its activation there in the whole picture; 0 where there is no image.
    donor: [d_sae, n_images, n_donors] its activation there in the donor itself; NaN where there is none.
    kept: [n_radii, d_sae, n_images, n_donors] the same with the window of the picture in the donor.
    replaced: [n_radii, d_sae, n_images, n_donors] the same with the window of the donor in the picture.
    n_encoded: pictures that were encoded.
    """

    grid: int
    radii: Int[np.ndarray, " n_radii"]
    images: Int[np.ndarray, "d_sae n_images"]
    patches: Int[np.ndarray, "d_sae n_images"]
    whole: Float[np.ndarray, "d_sae n_images"]
    donor: Float[np.ndarray, "d_sae n_images n_donors"]
    kept: Float[np.ndarray, "n_radii d_sae n_images n_donors"]
    replaced: Float[np.ndarray, "n_radii d_sae n_images n_donors"]
    n_encoded: int

    @property
    def valid(self) -> Bool[np.ndarray, "d_sae n_images n_donors"]:
        """The pairs of picture and donor that count: the donor alone excites the latent to less than half."""
        return self.donor < SPOILED * self.whole[:, :, None]  # NaN and silent pictures are false

    @property
    def n_valid(self) -> Int[np.ndarray, " d_sae"]:
        """Images of each latent that have a donor that counts."""
        return self.valid.any(axis=2).sum(axis=1)

    @property
    def response(self) -> Float[np.ndarray, "n_radii d_sae"]:
        """What the window alone keeps: 0 is what the donor gives, 1 the whole picture; NaN without a valid donor.

        Of each image the sum over donors of (kept - donor) / (whole - donor), then the mean over images. It is below 0
        where the window silences what the donor excites, and above 1 where the surroundings held the latent down.
        """
        return self._respond(self.kept)

    @property
    def response_without(self) -> Float[np.ndarray, "n_radii d_sae"]:
        """What the surroundings keep without the window, on the same scale: does it fire without its own evidence?"""
        return self._respond(self.replaced)

    def _respond(self, activations: np.ndarray) -> Float[np.ndarray, "n_radii d_sae"]:
        valid, donor = self.valid, self.donor.astype(np.float64)
        gained = np.where(valid, activations - donor, 0).sum(axis=-1)
        whole = np.where(valid, self.whole[:, :, None] - donor, 0).sum(axis=-1)
        return mean_of_known(np.where(whole > 0, gained / np.where(whole > 0, whole, 1), np.nan), axis=-1)

    @property
    def extent(self) -> Float[np.ndarray, " d_sae"]:
        """Side of the smallest window that keeps half of the response, less the patch itself, as a share of the grid's.

        2 r / (grid - 1), at most 1, with the radius r in patches at which the response first reaches one half,
        interpolated between those measured. 0: its own patch is enough. 1: no measured window is. NaN: unknown.
        """
        response = self.response
        reached = response >= HALF
        first = reached.argmax(axis=0)
        upper, latent = np.maximum(first, 1) if len(self.radii) > 1 else first, np.arange(response.shape[1])
        lower = np.maximum(upper - 1, 0)
        low, high = response[lower, latent], response[upper, latent]
        rise = np.where(high > low, high - low, 1)
        radius = self.radii[lower] + (self.radii[upper] - self.radii[lower]) * (HALF - low) / rise
        extent = np.where(first == 0, 0.0, np.minimum(1, 2 * radius / max(1, self.grid - 1)))
        extent = np.where(reached.any(axis=0), extent, 1.0)
        return np.where(np.isnan(response[0]), np.nan, extent)

    @property
    def context_effect(self) -> Float[np.ndarray, " d_sae"]:
        """Share of the variance of a patch's activation that contexts make: 0 context free, 1 blind to its own patch.

        Two patches (its own, the donor's) in two contexts (its own, the donor's): the sum of squares within the same
        patch between contexts, over the whole one, both summed over images and donors. It is the total effect of the
        context in the sense of Sobol (Homma & Saltelli, 1996). NaN: unknown, or nothing varies.
        """
        valid, whole = self.valid, self.whole[:, :, None].astype(np.float64)
        own_patch, own_context, donor = self.kept[0], self.replaced[0], self.donor.astype(np.float64)
        of_patch = np.where(valid, whole + own_patch - own_context - donor, 0)
        within = np.where(valid, (whole - own_patch) ** 2 + (own_context - donor) ** 2, 0).sum(axis=(1, 2)) / 2
        total = within + (of_patch**2).sum(axis=(1, 2)) / 4
        return np.where(total > 0, within / np.where(total > 0, total, 1), np.nan)

    def take(self, images: slice = slice(None), donors: slice = slice(None)) -> ExtentResult:
        """Return what some of the images and donors alone tell."""
        return replace(
            self,
            images=self.images[:, images],
            patches=self.patches[:, images],
            whole=self.whole[:, images],
            donor=self.donor[:, images, donors],
            kept=self.kept[:, :, images, donors],
            replaced=self.replaced[:, :, images, donors],
        )

    def save(self, folder: Path) -> None:
        """Write extent.npz and extent.json into `folder` (made if missing)."""
        save_result(folder, "extent", vars(self))

    @classmethod
    def load(cls, folder: Path) -> ExtentResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "extent")
        fields: dict[str, Any] = {**arrays, **facts}
        return cls(**fields)
