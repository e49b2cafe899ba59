"""Which windows are measured: of how many latents, images and donors, at which radii, under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infoscope.runtime.errors import InputError
from infoscope.scope.config import ExtentConfig

FIRST_RADII = (0, 1, 2, 3, 5, 8, 13, 21, 34)
"""Radii in patches that are measured by default, as far as they go."""


@dataclass(frozen=True)
class Design:
    """What is measured of an SAE.

    n_latents: of which windows are made, drawn from those that fire.
    n_images: of each latent's top images.
    n_donors: for each patch.
    radii: in patches, ascending from 0.
    """

    n_latents: int
    n_images: int
    n_donors: int
    radii: tuple[int, ...]

    @property
    def n_forwards(self) -> int:
        """Pictures that are encoded at most; fewer where latents peak at the same patch of an image."""
        return self.n_latents * self.n_images * (1 + 2 * self.n_donors * len(self.radii))


def choose_radii(grid: int, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the radii for a grid: those wanted, or the usual ones and the widest window smaller than the grid.

    Raises:
        InputError: one wanted covers the grid.
    """
    widest = max(0, (grid - 2) // 2)
    if wanted is None:
        return tuple(sorted({*(radius for radius in FIRST_RADII if radius < widest), 0, widest}))
    if wanted[-1] > widest:
        raise InputError(
            f"Expected scope.extent.radii to be at most {widest}, so that no window covers the grid of {grid} x {grid}"
            f" patches, got {wanted[-1]}: leave it out."
        )
    return tuple(wanted)


def choose_design(d_sae: int, grid: int, n_ranks: int, config: ExtentConfig) -> Design:
    """Return as much of what is wanted as the budget allows.

    Given up in this order until the windows fit: donors down to 2, images down to 2, every other radius down to 3
    (never the first or the last), the second donor, the second image, latents.

    Args:
        d_sae: latents of the SAE.
        n_ranks: images ranked for each.

    Raises:
        InputError: as `choose_radii`.
    """
    radii = choose_radii(grid, config.radii)
    n_latents = d_sae if config.n_latents is None else min(config.n_latents, d_sae)
    design = Design(n_latents, min(config.n_images, n_ranks), config.donors_per_patch, radii)
    while design.n_forwards > config.budget_images:
        if design.n_donors > 2:
            design = replace(design, n_donors=design.n_donors - 1)
        elif design.n_images > 2:
            design = replace(design, n_images=design.n_images - 1)
        elif len(design.radii) > 3:
            design = replace(design, radii=(*design.radii[:-1:2], design.radii[-1]))
        elif design.n_donors > 1:
            design = replace(design, n_donors=1)
        elif design.n_images > 1:
            design = replace(design, n_images=1)
        else:
            each = design.n_forwards // design.n_latents
            return replace(design, n_latents=max(1, config.budget_images // each))
    return design
