"""Activation maps of shifted crops: every image that any latent ranks is cropped and encoded once, for all latents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import dropwhile, islice
from math import ceil
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from infoscope.data.images import ImageBatch, ImageSet
from infoscope.data.reader import ImageReader, open_images
from infoscope.runtime import processes
from infoscope.runtime.behind import Behind
from infoscope.runtime.copies import Leaver, Leaving, lock
from infoscope.runtime.parts import Part, compute_parts, cut, cut_images, list_missing
from infoscope.runtime.profile import Kind, spent_on
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.model import MAX_PRE_ACTS, SparseAutoencoder
from infoscope.scope import crops
from infoscope.scope.config import ScopeConfig
from infoscope.scope.sparse_maps import SparseMaps
from infoscope.vision.backbone import Backbone
from infoscope.vision.checks import LaterChecks

PART_BYTES = 2**28
"""Maps in a part of the encoding, were they dense, about: a few images may be ranked by all latents."""
EVEN_IMAGES = 256
"""Images in a part are a multiple of it, where maps allow so many: no batch is cut short at a part's end."""
N_BEHIND = 2
"""Batches that may be encoded and not be packed yet."""
GATE_IMAGES = 8
"""Images for which a gate's latents are encoded at a time, at most: more images want more latents."""

Pairs = tuple[Int64[np.ndarray, " n_pairs"], Int64[np.ndarray, " n_pairs"]]
Watch = Callable[[int, Pairs, SparseMaps], object]
"""Takes which of the wanted maps they are of, the rows and ranks of some pairs, and their maps."""


@dataclass(frozen=True)
class WantedMaps:
    """Maps to be made: those of some latents of one SAE on the images that each ranks.

    latents: [n] which of the SAE's.
    top_images: [n, k] positions in the image set, each once in a row; -1 for none.
    """

    sae: SparseAutoencoder
    latents: Int[np.ndarray, " n"]
    top_images: Int[np.ndarray, "n k"]

    @cached_property
    def _by_image(self) -> tuple[Int64[np.ndarray, " all"], Int[np.ndarray, " all"]]:
        """All pairs, counted through the rows, by image, and the image of each."""
        order = np.argsort(self.top_images, axis=None, kind="stable")
        return order, self.top_images.ravel()[order]

    def find_pairs(self, images: Int[np.ndarray, " n_images"]) -> Pairs:
        """Return rows and ranks of the pairs of some images, by image: ascending ones, without others in between."""
        order, image_of = self._by_image
        start, stop = np.searchsorted(image_of, [images[0], images[-1] + 1])
        return np.divmod(order[start:stop], self.top_images.shape[1])


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
        self,
        wanted: Sequence[WantedMaps],
        progress: Advance = ignore,
        folder: Path | None = None,
        watch: Watch | None = None,
    ) -> list[SparseMaps]:
        """Encode every image that is ranked, and return the maps asked for: raw, and 0 where there is no image.

        Args:
            progress: called with (images encoded, all images).
            folder: where finished parts are kept, see `compute_parts`.
            watch: called with every part that this process encodes, while it encodes the next.

        Returns:
            Of each of `wanted`, [n, k, 2, grid, grid].

        Raises:
            InputError: if the shift leaves fewer than 2 x 2 shared patches, an image cannot be read, or a token is not
                finite.
        """
        backbone, config, grid = self.backbone, self.config, self.backbone.grid
        images = np.unique(np.concatenate([one.top_images.ravel() for one in wanted]))
        images = images[images >= 0]
        parts = _cut_ranked(len(images), wanted, grid)
        size_px = crops.scc_size_px(grid, backbone.patch_px, config.shift_patches)
        n_at_once, device = config.choose_batch(backbone.mean.device.type), backbone.mean.device
        made = [
            SparseMaps.make_room((*one.top_images.shape, 2, grid, grid), int((one.top_images >= 0).sum()))
            for one in wanted
        ]
        _give_up_dense(folder)
        with (
            closing(Behind("pack_maps", N_BEHIND)) as behind,
            open_images(self.image_set, size_px, n_workers=self.n_readers, device=device) as reader,
        ):
            missing = [images[parts[number]] for number in list_missing(len(parts), folder, "maps")]
            batches = _read(reader, missing, n_at_once)

            def encode(number: int) -> Part:
                some, first = images[parts[number]], parts[number].start
                # if a lock was lost, another process may have made a part meanwhile that was missing
                from_part = dropwhile(lambda batch: batch.index[0] < some[0], batches)
                of_part = islice(from_part, ceil(len(some) / n_at_once))
                found = self._encode(wanted, of_part, behind, lambda n_done: progress(first + n_done, len(images)))
                if watch is not None:
                    for i, (one, maps) in enumerate(zip(wanted, found, strict=True)):
                        behind.submit(watch, i, one.find_pairs(some), maps)
                return {f"{i} {name}": of for i, maps in enumerate(found) for name, of in maps.to_tensors().items()}

            for number, part in enumerate(compute_parts(len(parts), encode, folder, "maps")):
                for i, (one, maps) in enumerate(zip(wanted, made, strict=True)):
                    rows, ranks = one.find_pairs(images[parts[number]])
                    found = SparseMaps.from_tensors({name: part[f"{i} {name}"] for name in SparseMaps.NAMES}, grid)
                    maps.put(rows * one.top_images.shape[1] + ranks, found)
            behind.finish()
        return made

    def _encode(
        self,
        wanted: Sequence[WantedMaps],
        batches: Iterable[ImageBatch],
        behind: Behind,
        progress: Callable[[int], object],
    ) -> list[SparseMaps]:
        """Return the maps of some images, [n_pairs, 2, grid, grid] of each of `wanted`, in the order of `find_pairs`.

        Args:
            behind: packs the maps of a batch while the device encodes the next one.
            progress: called with the number of images that are done.
        """
        packed: list[Future[list[SparseMaps]]] = []
        n_done, checks, leaver = 0, LaterChecks(), Leaver()
        for batch in batches:
            maps = self._encode_batch(wanted, batch, checks)
            leaving = leaver.start({"maps": torch.cat(maps)})
            with spent_on(Kind.copying):
                packed.append(behind.submit(_pack, leaving, [len(one) for one in maps]))
            n_done += len(batch.index)
            progress(n_done)
        checks.ask()
        with spent_on(Kind.copying):
            found = [future.result() for future in packed]
        return [SparseMaps.join(of_one) for of_one in zip(*found, strict=True)]

    @torch.inference_mode()
    def _encode_batch(
        self, wanted: Sequence[WantedMaps], batch: ImageBatch, checks: LaterChecks
    ) -> list[Float32[Tensor, "n_pairs 2 grid grid"]]:
        """Return the maps of a batch, of each of `wanted`, where the SAEs lie."""
        backbone, config, index = self.backbone, self.config, batch.index.numpy()
        geometry = backbone.patch_px, backbone.grid, config.shift_patches
        with spent_on(Kind.forward):
            both = torch.cat(crops.shifted_crops(batch.images, *geometry, config.diagonal))
            patches = backbone.tokens(both, self.layer, checks).patches.unflatten(0, (2, len(index)))
        made = []
        for one in wanted:
            rows, ranks = one.find_pairs(index)
            slots = np.searchsorted(index, one.top_images[rows, ranks])
            with spent_on(Kind.encoder):
                maps = encode_pairs(one.sae, patches, slots, one.latents[rows])
            made.append(maps.unflatten(2, (backbone.grid, backbone.grid)))
        return made


def encode_pairs(
    sae: SparseAutoencoder,
    patches: Float[Tensor, "n_views batch n_patches d_in"],
    slots: Int[np.ndarray, " n_pairs"],
    latents: Int[np.ndarray, " n_pairs"],
) -> Float32[Tensor, "n_pairs n_views n_patches"]:
    """Return how strongly some latents fire on views of some images, such as both crops; dense latents are not made.

    Args:
        patches: tokens of patches of each view of each image.
        slots: of each pair, which of these images; ascending.
        latents: of each pair, which of the SAE's; no pair twice.
    """
    patches = patches.to(sae.W_enc.device)
    if len(slots) == 0:
        return patches.new_zeros((0, patches.shape[0], patches.shape[2]), dtype=torch.float32)
    choose = _encode_gate if sae.activation.is_pointwise else _encode_entries
    return choose(sae, patches, slots, latents)


def _encode_gate(
    sae: SparseAutoencoder, patches: Tensor, slots: np.ndarray, latents: np.ndarray
) -> Float32[Tensor, "n_pairs n_views n_patches"]:
    """Encode the latents that some images rank, and no others, for these images."""
    n_views, n_images, n_patches, d_in = patches.shape
    n_at_once = max(1, min(GATE_IMAGES, MAX_PRE_ACTS // (n_views * n_patches * sae.d_sae)))
    made = []
    for start in range(0, n_images, n_at_once):
        some = slice(*np.searchsorted(slots, [start, start + n_at_once]))
        if some.start < some.stop:
            chosen, columns = np.unique(latents[some], return_inverse=True)
            tokens = patches[:, start : start + n_at_once]
            acts = sae.encode_latents(tokens.reshape(-1, d_in), _to_device(chosen, tokens))
            acts = acts.view(*tokens.shape[:3], -1)
            made.append(acts[:, _to_device(slots[some] - start, tokens), :, _to_device(columns, tokens)].float())
    return torch.cat(made)


def _encode_entries(
    sae: SparseAutoencoder, patches: Tensor, slots: np.ndarray, latents: np.ndarray
) -> Float32[Tensor, "n_pairs n_views n_patches"]:
    """Encode all latents, a few entries per token, and keep those that a pair wants."""
    assert sae.activation.max_active is not None, sae.activation.kind  # else padding would stand where latent 0 does
    n_views, n_images, n_patches, d_in = patches.shape
    n_pairs, device = len(slots), patches.device
    pair_of = torch.full((n_images * sae.d_sae,), n_pairs, device=device)  # one more for what no pair wants
    pair_of[_to_device(slots * sae.d_sae + latents, patches)] = torch.arange(n_pairs, device=device)
    values, indices = sae.encode_sparse(patches.reshape(-1, d_in))
    token = torch.arange(len(values), device=device).unsqueeze(1)
    image, place = token // n_patches % n_images, token // (n_images * n_patches) * n_patches + token % n_patches
    places = pair_of[image * sae.d_sae + indices].mul_(n_views * n_patches).add_(place)
    maps = torch.zeros((n_pairs + 1) * n_views * n_patches, device=device)
    maps.scatter_(0, places.view(-1), values.float().clamp_min(0).view(-1))
    return maps.view(-1, n_views, n_patches)[:-1]


def _read(reader: ImageReader, parts: Sequence[Int[np.ndarray, " n_images"]], n_at_once: int) -> Iterator[ImageBatch]:
    """Yield batches of parts; none is of two parts, so that it is the same whichever of them were made before."""
    is_even = all(len(part) % n_at_once == 0 for part in parts[:-1])
    for part in [np.concatenate(parts)] if parts and is_even else parts:  # helpers do not stop at the end of a part
        yield from reader.read(part, n_at_once)


def _to_device(array: np.ndarray, like: Tensor) -> Tensor:
    """Return an array where a tensor lies; of CUDA nobody waits for it here."""
    on_cpu = torch.from_numpy(np.ascontiguousarray(array))
    return (lock(on_cpu) if like.is_cuda else on_cpu).to(like.device, non_blocking=True)


def _pack(leaving: Leaving, sizes: Sequence[int]) -> list[SparseMaps]:
    """Make maps [n, 2, grid, grid] sparse when they have arrived: `sizes` of them of each of those wanted."""
    packed = [SparseMaps.of(maps) for maps in np.split(leaving.wait()["maps"].numpy(), np.cumsum(sizes)[:-1])]
    leaving.release()
    return packed


def _give_up_dense(folder: Path | None) -> None:
    """Delete parts of a version that kept dense maps: maps made anew may differ from them in the last bits.

    Distances between them go first: then they are never taken for those of other maps.
    """
    dense = sorted(folder.glob("crops-*.pt")) if folder is not None and processes.is_main() else []
    if folder is not None and dense:
        for part in [*folder.glob("distances-*.pt"), *dense]:
            part.unlink()
        warnings.warn(
            f"Maps in {folder} are of an earlier version of infoscope: they are made anew, and so are their distances.",
            stacklevel=3,
        )
    processes.barrier()


def _cut_ranked(n_images: int, wanted: Sequence[WantedMaps], grid: int) -> list[slice]:
    """Return the parts of an encoding: as for any pass over images, but of no more maps than memory should hold."""
    n_bytes = sum(int((one.top_images >= 0).sum()) for one in wanted) * 2 * grid**2 * 4
    parts = cut_images(n_images)
    if not parts or n_bytes <= PART_BYTES * len(parts):
        return parts
    n_each = max(1, n_images * PART_BYTES // n_bytes)
    return cut(n_images, n_each - n_each % EVEN_IMAGES if n_each > EVEN_IMAGES else n_each)
