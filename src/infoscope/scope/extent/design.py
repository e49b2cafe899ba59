"""Which windows are measured: of how many latents, images and donors, at which radii, under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infoscope.runtime.errors import InputError
from infoscope.scope.config import POOL_IMAGES, Donor, ExtentConfig

FIRST_RADII = (0, 1, 2, 3, 5, 8, 13, 21, 34)
"""Radii in patches that are measured by default, as far as they go."""


@dataclass(frozen=True)
class Design:
    """What is measured of an SAE.

    n_latents: how many latents, drawn from those that fire.
    n_images: how many of each latent's top images.
    n_donors: how many for each patch; donor: what they are.
    radii: of the windows, in patches, ascending from 0.
    n_plain: pictures without a window that are encoded for each image: the image itself, and with donor=blur the
        blurred one too.
    n_pool: pictures from which all images draw donors.
    """

    n_latents: int
    n_images: int
    n_donors: int
    donor: Donor
    radii: tuple[int, ...]
    n_plain: int
    n_pool: int

    @property
    def n_windows(self) -> int:
        """Pictures with a window for each latent and image: kept, and replaced."""
        return 2 * self.n_donors * len(self.radii)

    @property
    def n_bytes(self) -> int:
        """What is kept for each latent and image: activations as float32, the image and the patch as int64."""
        return 4 * (1 + self.n_donors + self.n_windows) + 16

    @property
    def n_forwards(self) -> int:
        """Pictures that are encoded at most; fewer where latents peak at the same patch of an image."""
        return self.n_latents * self.n_images * (self.n_plain + self.n_windows) + self.n_pool

    @property
    def words(self) -> str:
        """What is measured of a latent, for display."""
        images, donors = (
            f"{n} {name}{'s' * (n > 1)}" for n, name in ((self.n_images, "image"), (self.n_donors, "donor"))
        )
        return f"{images}, {donors} ({self.donor.words}), radii {', '.join(map(str, self.radii))}"


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


def wish_design(d_sae: int, grid: int, n_ranks: int, config: ExtentConfig) -> Design:
    """Return all that is wanted, whatever it costs.

    Args:
        d_sae: latents of the SAE.
        n_ranks: images ranked for each.

    Raises:
        InputError: as `choose_radii`.
    """
    return Design(
        n_latents=min(config.n_latents or d_sae, d_sae),
        n_images=min(config.n_images, n_ranks),
        n_donors=config.donors_per_patch,
        donor=config.donor,
        radii=choose_radii(grid, config.radii),
        n_plain=2 if config.donor is Donor.blur else 1,
        n_pool={Donor.images: POOL_IMAGES, Donor.mean: 1, Donor.blur: 0}[config.donor],
    )


def choose_design(d_sae: int, grid: int, n_ranks: int, config: ExtentConfig) -> Design:
    """Return as much of what is wanted as the budget allows.

    Given up in this order until the windows fit: donors down to 2, images down to 2, every other radius down to 3
    (never the first or the last), the second donor, the second image, latents.

    Args:
        d_sae, n_ranks: as of `wish_design`.

    Raises:
        InputError: as `choose_radii`; the budget is too small for a single latent.
    """
    design, budget = wish_design(d_sae, grid, n_ranks, config), config.budget_images
    while design.n_forwards > budget:
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
            one = replace(design, n_latents=1)
            if one.n_forwards > budget:
                raise InputError(
                    f"Expected scope.extent.budget_images to be at least {one.n_forwards}, which the windows of one"
                    f" latent take, got {budget}: raise it."
                )
            return replace(design, n_latents=(budget - design.n_pool) // (one.n_forwards - design.n_pool))
    return design


def key_of_design(d_sae: int, design: Design, config: ExtentConfig) -> dict[str, Any]:
    """Return what decides an extent, as plain JSON values: what is measured, however it was asked for."""
    names = ("n_latents", "n_images", "n_donors")
    measured = {name: getattr(design, name) for name in names} | {"radii": list(design.radii)}
    blur = {"blur_patches": config.blur_patches} if config.donor is Donor.blur else {}
    is_drawn = config.donor is not Donor.blur or design.n_latents < d_sae
    return measured | {"donor": config.donor.name} | blur | ({"seed": config.seed} if is_drawn else {})


def say_design(d_sae: int, wanted: Design, design: Design, config: ExtentConfig) -> str:
    """Return in sentences what is measured of an SAE's latents, and what of it the budget or the ranks leave out."""
    n = f"all {d_sae:,}" if design.n_latents == d_sae else f"{design.n_latents:,} of {d_sae:,}"
    text = f"{design.words}; {n} latents: at most {design.n_forwards:,} pictures per SAE seed."
    if wanted.n_images < config.n_images:
        text += f" No more images are ranked than {wanted.n_images}, which scope.k_max sets ({config.n_images} wanted)."
    if design == wanted:
        return text
    return (
        f"{text} Wanted were {wanted.words} of {wanted.n_latents:,} latents ({wanted.n_forwards:,} pictures), more"
        f" than scope.extent.budget_images={config.budget_images:,} allows."
    )
