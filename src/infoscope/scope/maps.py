"""Activation maps of shifted crops: every image that any latent ranks is cropped and encoded once, for all latents."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.data.images import ImageSet
from infoscope.data.reader import iterate_images
from infoscope.runtime import processes
from infoscope.runtime.parts import Part, compute_parts, cut, cut_images
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import iterate_latents
from infoscope.scope import crops
from infoscope.scope.config import ScopeConfig
from infoscope.vision.backbone import Backbone

PART_BYTES = 2**28
"""Maps in a part of the encoding, about: a part is held in memory, and a few images may be ranked by all latents."""


@dataclass(frozen=True)
class WantedMaps:
    """Maps to be made: those of some latents of one SAE on the images that each ranks.

    latents: [n] which of the SAE's.
    top_images: [n, k] positions in the image set; -1 for none.
    file: where to keep the maps, memory-mapped; None keeps them in memory.
    """

    sae: SparseAutoencoder
    latents: Int[np.ndarray, " n"]
    top_images: Int[np.ndarray, "n k"]
    file: Path | None = None


class PairLookup:
    """For an image, or for those of a range, the (row, rank) pairs of `top_images` [n, k] that want its maps."""

    def __init__(self, top_images: Int[np.ndarray, "n k"]) -> None:
        flat = top_images.ravel()
        self._positions = np.argsort(flat, kind="stable")
        self._images = flat[self._positions]
        self._k = top_images.shape[1]

    def __call__(
        self, image: int, last: int | None = None
    ) -> tuple[Int[np.ndarray, " n_pairs"], Int[np.ndarray, " n_pairs"]]:
        """Return rows and ranks, by image."""
        start, stop = np.searchsorted(self._images, [image, (image if last is None else last) + 1])
        return np.divmod(self._positions[start:stop], self._k)


class PairMaps:
    """The maps of some (latent, image) pairs of one SAE: [n_pairs, 2, grid, grid] float32, on both crops, to be filled.

    Args:
        latents: of each pair, one of the SAE's.
        images: of each pair, a position in the image set.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        latents: Int[np.ndarray, " n_pairs"],
        images: Int[np.ndarray, " n_pairs"],
        grid: int,
    ) -> None:
        self.sae, self.latents, self.pairs_of = sae, latents, PairLookup(images[:, None])
        self.maps = np.zeros((len(latents), 2, grid, grid), np.float32)

    def keep(self, image: int, side: int, acts: Float[Tensor, "n_patches d_sae"]) -> None:
        """Keep what the latents of an image's pairs do on one of its crops; what is below 0 does not fire."""
        pairs, _ = self.pairs_of(image)
        latents = torch.from_numpy(self.latents[pairs]).to(acts.device)
        wanted = acts[:, latents].clamp_min(0) if self.sae.activation.is_signed else acts[:, latents]
        self.maps[pairs, side] = wanted.T.float().cpu().numpy().reshape(-1, *self.maps.shape[2:])


@dataclass(frozen=True)
class CropEncoder:
    """Encodes both crops of images, once for all latents and SAEs.

    layer: the block after which tokens are read, from 0.
    n_readers: processes that read images ahead; 0 reads in this one.
    """

    backbone: Backbone
    image_set: ImageSet
    config: ScopeConfig
    layer: int
    n_readers: int = 0

    def make_maps(
        self, wanted: Sequence[WantedMaps], progress: Advance = ignore, folder: Path | None = None
    ) -> list[Float[np.ndarray, "n k 2 grid grid"]]:
        """Encode every image that is ranked, and return the maps asked for: raw, and 0 where there is no image.

        Maps in a file are written by the main process alone.

        Args:
            progress: called with (images encoded, all images).
            folder: where finished parts are kept, see `compute_parts`.

        Raises:
            InputError: if the shift leaves fewer than 2 x 2 shared patches, an image cannot be read, or a token is not
                finite.
        """
        grid, indices = self.backbone.grid, np.unique(np.concatenate([one.top_images.ravel() for one in wanted]))
        indices = indices[indices >= 0]
        lookups = [PairLookup(one.top_images) for one in wanted]
        parts = _cut_ranked(len(indices), wanted, grid)

        def find_pairs(number: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
            images = indices[parts[number]]
            for which, pairs_of in enumerate(lookups):
                yield which, *pairs_of(images[0], images[-1])

        def encode(number: int) -> Part:
            made = [
                PairMaps(wanted[i].sae, wanted[i].latents[rows], wanted[i].top_images[rows, ranks], grid)
                for i, rows, ranks in find_pairs(number)
            ]
            for n_encoded in self._fill(made, indices[parts[number]]):
                progress(parts[number].start + n_encoded, len(indices))
            return {str(i): torch.from_numpy(one.maps) for i, one in enumerate(made)}

        found = compute_parts(len(parts), encode, folder, "crops")
        is_main = processes.is_main()
        own = {
            i: make_maps((*one.top_images.shape, 2, grid, grid), one.file)
            for i, one in enumerate(wanted)
            if is_main or one.file is None
        }
        for number, part in enumerate(found if own else ()):
            for i, rows, ranks in find_pairs(number):
                if i in own:
                    own[i][rows, ranks] = part[str(i)].numpy()
        for maps in own.values():
            if isinstance(maps, np.memmap):
                maps.flush()
        processes.barrier()
        return [own[i] if i in own else np.load(str(one.file), mmap_mode="r") for i, one in enumerate(wanted)]

    def _fill(self, wanted: Sequence[PairMaps], indices: Int[np.ndarray, " n_images"]) -> Iterator[int]:
        """Encode both crops of some images, batch by batch, for the maps that want them; yield how many are done."""
        backbone, config, n_encoded = self.backbone, self.config, 0
        geometry = backbone.patch_px, backbone.grid, config.shift_patches
        size_px = crops.scc_size_px(backbone.grid, backbone.patch_px, config.shift_patches)
        for batch in iterate_images(
            self.image_set, size_px, config.batch_images, indices=indices, n_workers=self.n_readers
        ):
            for side, images in enumerate(crops.shifted_crops(batch.images, *geometry, config.diagonal)):
                patches = backbone.tokens(images, self.layer).patches
                for maps in wanted:
                    for part, latent_acts in iterate_latents(maps.sae, patches):
                        for image, acts in zip(batch.index[part].tolist(), latent_acts, strict=True):
                            maps.keep(image, side, acts)
                        del latent_acts, acts  # before the next part is encoded
            n_encoded += len(batch.index)
            yield n_encoded


def _cut_ranked(n_images: int, wanted: Sequence[WantedMaps], grid: int) -> list[slice]:
    """Return the parts of an encoding: as for any pass over images, but of no more maps than memory should hold."""
    n_bytes = sum(int((one.top_images >= 0).sum()) for one in wanted) * 2 * grid**2 * 4
    parts = cut_images(n_images)
    if not parts or n_bytes <= PART_BYTES * len(parts):
        return parts
    return cut(n_images, max(1, n_images * PART_BYTES // n_bytes))


def make_maps(shape: tuple[int, ...], file: Path | None) -> Float[np.ndarray, "d_sae k_max 2 grid grid"]:
    """Return float32 zeros, memory-mapped from a new .npy file where one is given."""
    if file is None:
        return np.zeros(shape, dtype=np.float32)
    maps = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    with file.open("r+b") as opened:  # claim the space now: writing through the map to a full disk kills the process
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return maps
