"""What windows tell of each latent: its response to its own surroundings, the extent of its evidence, its context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from infoscope.runtime.arrays import load_result, save_result

HALF = 0.5
"""The response at which the extent is read."""
LEAST_GAIN = 0.1
"""Where donors alone excite a latent to more than all but such a share of its activation, nothing is said of it."""
ROUNDING = 1e-5
"""A lesser share of an activation is not told from what rounding makes of it: such losses are 0."""


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
    def n_measured(self) -> Int[np.ndarray, " d_sae"]:
        """Images of each latent in which windows were measured."""
        return np.isfinite(self.donor).any(axis=2).sum(axis=1)

    @property
    def response(self) -> Float[np.ndarray, "n_radii d_sae"]:
        """What the window alone keeps: 0 is what donors give, 1 the whole picture.

        (kept - donor) / (whole - donor), both summed over images and donors. It is below 0 where windows silence what
        donors excite, and above 1 where the surroundings held the latent down. NaN where nothing was measured, or where
        donors alone excite the latent nearly as much as its own images do (`LEAST_GAIN`).

        All donors count, those as well that show what the latent looks for: so it is the mean activation given the
        window less the mean without it, and 0 for windows that tell nothing.
        """
        return self._respond(self.kept)

    @property
    def response_without(self) -> Float[np.ndarray, "n_radii d_sae"]:
        """What the surroundings keep without the window, on the same scale: does it fire without its own evidence?"""
        return self._respond(self.replaced)

    def _respond(self, activations: np.ndarray) -> Float[np.ndarray, "n_radii d_sae"]:
        donor, whole = self.donor.astype(np.float64), self.whole[:, :, None].astype(np.float64)
        gain, measured = np.nansum(whole - donor, axis=(1, 2)), np.isfinite(donor)
        gained = np.nansum(activations - donor, axis=(2, 3))
        known = (gain > 0) & (gain >= LEAST_GAIN * np.where(measured, whole, 0).sum(axis=(1, 2)))
        return np.where(known, gained / np.where(known, gain, 1), np.nan)

    @property
    def extent(self) -> Float[np.ndarray, " d_sae"]:
        """Side of the smallest window that keeps half of the response, less the patch itself, as a share of the grid's.

        2 r / (grid - 1), with the radius r in patches at which the response first reaches one half, interpolated
        between those measured. 0: its own patch is enough. 1: no measured window is. NaN: unknown.
        """
        response = self.response
        reached = response >= HALF
        first, latent = reached.argmax(axis=0), np.arange(response.shape[1])
        before = np.maximum(first - 1, 0)  # the same where the patch alone is enough
        low, high = response[before, latent], response[first, latent]
        rise = np.where(high > low, high - low, 1)
        radius = self.radii[before] + (self.radii[first] - self.radii[before]) * (HALF - low) / rise
        extent = np.where(reached.any(axis=0), 2 * radius / max(1, self.grid - 1), 1.0)
        return np.where(np.isnan(response[0]), np.nan, extent)

    @property
    def mean_extent(self) -> Float[np.ndarray, " d_sae"]:
        """The share of the response that windows lose, averaged over their sizes: 0..1, NaN: unknown.

        That is the area above the curve of the response, in 0..1, against the side of the window, less the patch, as a
        share of the grid's; the window as wide as the grid counts as the whole picture. Where the response never falls,
        it is the mean of the extents at all shares of the response instead of one half. Two latents are seldom alike in
        it, while all that keep half with their own patch have extent 0.
        """
        response = np.clip(self.response, 0, 1)
        sides = np.append(2 * self.radii / max(1, self.grid - 1), 1.0)
        lost = 1 - np.concatenate([response, np.where(np.isnan(response[:1]), np.nan, 1)])
        lost[lost < ROUNDING] = 0
        return (np.diff(sides)[:, None] * (lost[1:] + lost[:-1]) / 2).sum(axis=0)

    @property
    def context_effect(self) -> Float[np.ndarray, " d_sae"]:
        """Share of the variance of a patch's activation that contexts make: 0 context free, 1 blind to its own patch.

        Two patches (its own, the donor's) in two contexts (its own, the donor's): the sum of squares within the same
        patch between contexts, over the whole one, both summed over images and donors. It is the total effect of the
        context in the sense of Sobol (Homma & Saltelli, 1996). NaN: unknown, or nothing varies.
        """
        donor, whole = self.donor.astype(np.float64), self.whole[:, :, None].astype(np.float64)
        own_patch, own_context = self.kept[0], self.replaced[0]
        of_patch = np.nansum((whole + own_patch - own_context - donor) ** 2, axis=(1, 2)) / 4
        within = np.nansum((whole - own_patch) ** 2 + (own_context - donor) ** 2, axis=(1, 2)) / 2
        total = within + of_patch
        share = np.where(total > 0, within / np.where(total > 0, total, 1), np.nan)
        return np.where(share < ROUNDING**2, 0.0, share)

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
