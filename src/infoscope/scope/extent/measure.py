"""Measuring how far the evidence of latents reaches: every window is encoded once, for all latents that share it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from infoscope.data.images import ImageBatch, ImageSet
from infoscope.data.reader import open_images
from infoscope.runtime.parts import N_PARTS, Part, compute_parts, cut
from infoscope.runtime.profile import Kind, spent_on
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps, choose_layer
from infoscope.scope.config import Donor, ExtentConfig
from infoscope.scope.extent.design import Design, choose_design
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.extent.windows import Donors, blur, check_donors, compose, make_windows, read_pool
from infoscope.scope.maps import Pairs, WantedMaps, encode_pairs
from infoscope.scope.ranking import Ranking
from infoscope.vision.backbone import Backbone

MAX_ACTS = 2**24
"""Places for activations of donors that are made at a time."""


def measure_extent(
    backbone: Backbone,
    sae: SparseAutoencoder,
    image_set: ImageSet,
    ranking: Ranking,
    config: ExtentConfig,
    *,
    layer: int | None = None,
    check_origin: bool = True,
    batch_images: int = 32,
    n_readers: int = 0,
    progress: Advance = ignore,
    progress_folder: Path | None = None,
) -> ExtentResult:
    """Measure every latent on the best images of its ranking, or as many latents as the budget allows.

    Args:
        image_set: the one the ranking's positions refer to.
        layer, check_origin, n_readers: as of `score_latents`.
        batch_images: pictures encoded at a time.
        progress: called with (images, all images): top images whose windows are done.
        progress_folder: as of `score_latents`; a few numbers per latent and window.

    Raises:
        InputError: as `score_latents`, `choose_design` and `check_donors`.
    """
    check_has_maps(sae.origin, backbone.site)
    layer = choose_layer(sae, backbone, layer, check_origin)
    ranking.check(sae.d_sae, 1)
    design = choose_design(sae.d_sae, backbone.grid, ranking.k_max, config)
    check_donors(len(image_set), config)
    top_images = _choose_images(ranking, design, config.seed)
    wanted = WantedMaps(sae, np.arange(sae.d_sae), top_images)
    images = np.unique(top_images[top_images >= 0])
    parts = cut(len(images), max(1, ceil(len(images) / N_PARTS)))
    result = _make_room(backbone.grid, top_images, design)
    n_encoded = min(design.n_pool, len(image_set))
    with open_images(image_set, backbone.image_px, n_workers=n_readers, device=backbone.mean.device) as reader:

        @cache
        def open_windows() -> _Windows:  # not where all parts are there
            pool = _encode_pool(backbone, image_set, layer, config, batch_images)
            return _Windows(backbone, wanted, layer, config, design, batch_images, pool)

        def measure(number: int) -> Part:
            some, first = images[parts[number]], parts[number].start
            windows, found = open_windows(), []
            for batch in reader.read(some, batch_images):
                found.append(windows.measure(batch))
                progress(first + int(np.searchsorted(some, batch.index.numpy()[-1], side="right")), len(images))
            return {name: torch.cat([one[name] for one in found]) for name in found[0]}

        for number, part in enumerate(compute_parts(len(parts), measure, progress_folder, "windows")):
            where = wanted.find_pairs(images[parts[number]])
            _put(result, where, part)
            n_encoded += int(part["n_encoded"].sum())
    return replace(result, n_encoded=n_encoded)


def _choose_images(ranking: Ranking, design: Design, seed: int) -> Int[np.ndarray, "d_sae n_images"]:
    """Return the best images of the latents that are measured, -1 in the rows of the others."""
    images = ranking.top_images[:, : design.n_images].copy()
    fire = np.flatnonzero(images[:, 0] >= 0)
    if len(fire) > design.n_latents:
        drawn = np.random.default_rng([seed, 2]).permutation(fire)[: design.n_latents]
        images[np.setdiff1d(np.arange(len(images)), drawn)] = -1
    return images


def _make_room(grid: int, top_images: Int[np.ndarray, "d_sae n_images"], design: Design) -> ExtentResult:
    n_donors, n_radii, shape = design.n_donors, len(design.radii), top_images.shape
    return ExtentResult(
        grid=grid,
        radii=np.array(design.radii),
        images=top_images,
        patches=np.full(shape, -1),
        whole=np.zeros(shape, np.float32),
        donor=np.full((*shape, n_donors), np.nan, np.float32),
        kept=np.full((n_radii, *shape, n_donors), np.nan, np.float32),
        replaced=np.full((n_radii, *shape, n_donors), np.nan, np.float32),
        n_encoded=0,
    )


def _put(result: ExtentResult, where: Pairs, part: Part) -> None:
    """Write what was found of some pairs of latent and image into its place."""
    for name in ("patches", "whole", "donor"):
        getattr(result, name)[where] = part[name].numpy()
    for name in ("kept", "replaced"):
        getattr(result, name)[:, *where] = np.moveaxis(part[name].numpy(), 1, 0)


def _encode_pool(
    backbone: Backbone, image_set: ImageSet, layer: int, config: ExtentConfig, batch_images: int
) -> Donors:
    """Read and encode what all images draw donors from; nothing where each is its own."""
    index, pictures = read_pool(image_set, backbone.image_px, config)
    pictures = pictures.to(backbone.mean.device)
    tokens = [backbone.tokens(some, layer).patches for some in pictures.split(batch_images) if len(some)]
    return Donors(index, pictures, torch.cat(tokens) if tokens else torch.zeros(0))


@dataclass(frozen=True)
class _Sites:
    """The patches of some images around which windows lie, and the pairs of latent and image that share each.

    slot, patch: [n_sites] which of the images, and which patch.
    pairs: which pairs have a patch at all; site: of each of these, which of the sites, ascending.
    """

    slot: Int[np.ndarray, " n_sites"]
    patch: Int[np.ndarray, " n_sites"]
    pairs: Int[np.ndarray, " n"]
    site: Int[np.ndarray, " n"]

    @classmethod
    def find(cls, slots: np.ndarray, patches: np.ndarray, fires: np.ndarray, n_patches: int) -> _Sites:
        """Return the sites of pairs (slot of the image, patch) that fire."""
        pairs = np.flatnonzero(fires)
        codes, site = np.unique(slots[pairs] * n_patches + patches[pairs], return_inverse=True)
        order = np.argsort(site, kind="stable")
        return cls(*np.divmod(codes, n_patches), pairs[order], site[order])

    def __len__(self) -> int:
        return len(self.slot)


@dataclass(frozen=True)
class _Windows:
    """Measures the pairs of some latents and images; `pool` is what all images draw donors from."""

    backbone: Backbone
    wanted: WantedMaps
    layer: int
    config: ExtentConfig
    design: Design
    batch_images: int
    pool: Donors

    @torch.inference_mode()
    def measure(self, batch: ImageBatch) -> Part:
        """Return what is found of all pairs of some images, in the order of `WantedMaps.find_pairs`."""
        index, images = batch.index.numpy(), batch.images.to(self.backbone.mean.device)
        rows, ranks = self.wanted.find_pairs(index)
        latents = self.wanted.latents[rows]
        slots = np.searchsorted(index, self.wanted.top_images[rows, ranks])
        tokens = self._read(images)
        peaks, patches = (of.cpu().numpy() for of in self._encode(tokens, slots, latents).max(dim=1))
        sites = _Sites.find(slots, patches, peaks > 0, tokens.shape[1])
        donors = self._blur(index, images) if self.config.donor is Donor.blur else self.pool
        chosen = self._draw(donors, index, sites)
        n_encoded = len(index) * self.design.n_plain
        found = {"donor": self._excite(donors, chosen, sites, latents[sites.pairs])}
        for name, is_kept in (("kept", True), ("replaced", False)):
            found[name] = self._fire(images, donors, chosen, sites, latents[sites.pairs], is_kept)
            n_encoded += chosen.size * len(self.design.radii)

        def put(values: np.ndarray) -> Tensor:
            all_pairs = np.full((len(rows), *values.shape[1:]), np.nan, np.float32)
            all_pairs[sites.pairs] = values
            return torch.from_numpy(all_pairs)

        return {
            "patches": torch.from_numpy(np.where(peaks > 0, patches, -1)),
            "whole": torch.from_numpy(peaks),
            "n_encoded": torch.tensor([n_encoded]),
            **{name: put(values) for name, values in found.items()},
        }

    def _encode(
        self, tokens: Float[Tensor, "n_images n_patches d_in"], slots: np.ndarray, latents: np.ndarray
    ) -> Float[Tensor, "n_pairs n_patches"]:
        with spent_on(Kind.encoder):
            return encode_pairs(self.wanted.sae, tokens[None], slots, latents)[:, 0]

    def _read(self, pictures: UInt8[Tensor, "n 3 px px"]) -> Float[Tensor, "n n_patches d_in"]:
        with spent_on(Kind.forward):
            return self.backbone.tokens(pictures, self.layer).patches

    def _blur(self, index: Int[np.ndarray, " n"], images: UInt8[Tensor, "n 3 px px"]) -> Donors:
        """Return the images themselves, blurred, as donors of their own."""
        pictures = blur(images, self.config.blur_patches * self.backbone.patch_px)
        return Donors(index, pictures, self._read(pictures))

    def _draw(
        self, donors: Donors, index: Int[np.ndarray, " n_images"], sites: _Sites
    ) -> Int[np.ndarray, "n_sites n_donors"]:
        """Return the donors of each site: the first of a permutation of the pool, another one for each site.

        Whether they show what a latent looks for does not matter: to draw these again would let a window count that
        tells nothing, as soon as what it shows is rare among the others.
        """
        if self.config.donor is Donor.blur:
            return sites.slot[:, None]
        chosen = np.empty((len(sites), self.design.n_donors), dtype=np.int64)
        for site, (image, patch) in enumerate(zip(index[sites.slot], sites.patch, strict=True)):
            order = np.random.default_rng([self.config.seed, image, patch]).permutation(len(donors.index))
            chosen[site] = order[donors.index[order] != image][: self.design.n_donors]  # none is its own donor
        return chosen

    def _excite(
        self,
        donors: Donors,
        chosen: Int[np.ndarray, "n_sites n_donors"],
        sites: _Sites,
        latents: Int[np.ndarray, " n"],
    ) -> Float[np.ndarray, "n n_donors"]:
        """Return how strongly each latent fires at its site's patch in each donor itself."""
        n_at_once = max(1, MAX_ACTS // (chosen.shape[1] * self.wanted.sae.d_sae))
        own = [np.zeros((0, chosen.shape[1]), np.float32)]
        for start in range(0, len(sites), n_at_once):
            some = slice(start, start + n_at_once)
            pairs = slice(*np.searchsorted(sites.site, [some.start, some.stop]))
            tokens = donors.tokens[chosen[some], sites.patch[some, None]]
            own.append(self._encode(tokens, sites.site[pairs] - start, latents[pairs]).cpu().numpy())
        return np.concatenate(own)

    def _fire(
        self,
        images: UInt8[Tensor, "n_images 3 px px"],
        donors: Donors,
        chosen: Int[np.ndarray, "n_sites n_donors"],
        sites: _Sites,
        latents: Int[np.ndarray, " n"],
        is_kept: bool,
    ) -> Float[np.ndarray, "n n_radii n_donors"]:
        """Return how strongly each latent fires at its site's patch where a window is kept, or replaced."""
        n_radii, n_donors = len(self.design.radii), self.design.n_donors
        n_each, grid = n_radii * n_donors, self.backbone.grid
        acts = np.empty((len(latents), n_each), np.float32)
        for start in range(0, len(sites) * n_each, self.batch_images):
            work = np.arange(start, min(start + self.batch_images, len(sites) * n_each))
            site, number = np.divmod(work, n_each)
            radius, donor = np.divmod(number, n_donors)
            windows = make_windows(grid, sites.patch[site], np.array(self.design.radii)[radius])
            own, other = images[sites.slot[site]], donors.pictures[chosen[site, donor]]
            pictures = compose(own, other, windows) if is_kept else compose(other, own, windows)
            at_site = self._read(pictures)[torch.arange(len(work)), sites.patch[site]][:, None]
            first, last = np.searchsorted(sites.site, site), np.searchsorted(sites.site, site, side="right")
            slots = np.repeat(np.arange(len(work)), last - first)
            pairs = np.concatenate([np.arange(*ends) for ends in zip(first, last, strict=True)])
            acts[pairs, number[slots]] = self._encode(at_site, slots, latents[pairs])[:, 0].cpu().numpy()
        return acts.reshape(len(latents), n_radii, n_donors)
