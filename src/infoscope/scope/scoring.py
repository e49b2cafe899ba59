"""Contextual dependency scoring: every image that any latent ranks is cropped and encoded once, for all latents."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.data.images import ImageBatch, ImageSet, iterate_images
from infoscope.quiet import quiet_lightning
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope import cds as cds_arithmetic
from infoscope.scope import crops
from infoscope.scope.config import EMDMethod, ScopeConfig
from infoscope.scope.emd import ProgressHook, compute_emd
from infoscope.scope.ranking import Ranking, iterate_latents
from infoscope.scope.scores import Scores
from infoscope.scope.sinkhorn import compute_emd_sinkhorn
from infoscope.vision.backbone import Backbone


@dataclass(frozen=True)
class LatentMaps:
    """Maps to be made: those of some latents of one SAE on the images that each ranks.

    latents: [n] which of the SAE's.
    top_images: [n, k] positions in the image set; -1 for none.
    maps: [n, k, 2, grid, grid] float32, filled in place where there is an image; it may be memory-mapped.
    """

    sae: SparseAutoencoder
    latents: Int[np.ndarray, " n"]
    top_images: Int[np.ndarray, "n k"]
    maps: Float[np.ndarray, "n k 2 grid grid"]


class RankedImages:
    """Batches of the images that any latent ranks, each image once, at the size from which crops are cut.

    Lightning takes it as a data loader; reading in parallel is `iterate_images`' own matter.
    """

    def __init__(
        self,
        image_set: ImageSet,
        indices: Int[np.ndarray, " n_images"],
        size_px: int,
        batch_images: int,
        n_readers: int = 0,
    ) -> None:
        self.image_set, self.indices, self.size_px = image_set, indices, size_px
        self.batch_images, self.n_readers = batch_images, n_readers

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_images)

    def __iter__(self) -> Iterator[ImageBatch]:
        yield from iterate_images(
            self.image_set, self.size_px, self.batch_images, indices=self.indices, n_workers=self.n_readers
        )


class PairLookup:
    """For an image, the (row, rank) pairs of `top_images` [n, k] that want its maps."""

    def __init__(self, top_images: Int[np.ndarray, "n k"]) -> None:
        flat = top_images.ravel()
        self._positions = np.argsort(flat, kind="stable")
        self._images = flat[self._positions]
        self._k = top_images.shape[1]

    def __call__(self, image: int) -> tuple[Int[np.ndarray, " n_pairs"], Int[np.ndarray, " n_pairs"]]:
        """Return rows and ranks."""
        start, stop = np.searchsorted(self._images, [image, image + 1])
        return np.divmod(self._positions[start:stop], self._k)


class ScoringModule(L.LightningModule):
    """Fills the activation maps of both crops for every (latent, rank); run by `Trainer.test` over `RankedImages`.

    Every rank has one image and every image comes once, so each map is written once; several SAEs share what the
    backbone gives. Works on one device.
    """

    def __init__(self, backbone: Backbone, wanted: Sequence[LatentMaps], layer: int, config: ScopeConfig) -> None:
        super().__init__()
        self.backbone, self.layer = backbone, layer
        self.shift_patches, self.diagonal = config.shift_patches, config.diagonal
        self.saes = torch.nn.ModuleList(part.sae for part in wanted)  # Lightning moves them to the device
        self.wanted = [(part, PairLookup(part.top_images)) for part in wanted]

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        backbone = self.backbone
        both = crops.shifted_crops(batch.images, backbone.patch_px, backbone.grid, self.shift_patches, self.diagonal)
        for side, images in enumerate(both):
            patches = backbone.tokens(images, self.layer).patches
            for wanted, pairs_of in self.wanted:
                for part, latent_acts in iterate_latents(wanted.sae, patches):
                    for image, acts in zip(batch.index[part].tolist(), latent_acts, strict=True):
                        rows, ranks = pairs_of(image)
                        self._keep(wanted, rows, ranks, side, acts)

    def _keep(
        self,
        wanted: LatentMaps,
        rows: Int[np.ndarray, " n_pairs"],
        ranks: Int[np.ndarray, " n_pairs"],
        side: int,
        acts: Float[Tensor, "n_patches d_sae"],
    ) -> None:
        latents = torch.from_numpy(wanted.latents[rows]).to(acts.device)
        maps = acts[:, latents].T.float().cpu().numpy()
        wanted.maps[rows, ranks, side] = maps.reshape(-1, self.backbone.grid, self.backbone.grid)


def score_latents(
    backbone: Backbone,
    sae: SparseAutoencoder,
    image_set: ImageSet,
    ranking: Ranking,
    config: ScopeConfig,
    *,
    layer: int = -2,
    maps_file: Path | None = None,
    trainer: L.Trainer | None = None,
    callbacks: Sequence[L.Callback] = (),
    progress: ProgressHook | None = None,
    n_readers: int = 0,
) -> Scores:
    """Score every latent on the images of its ranking.

    Args:
        image_set: the one the ranking's positions refer to.
        layer: the block after which the SAE reads tokens; negative from the end.
        maps_file: where to keep the maps memory-mapped while they are made; None keeps them in memory.
        trainer: runs the module, on one device; by default a bare one with `callbacks`.
        progress: called with (pairs, all pairs) while distances are computed.
        n_readers: processes that read images ahead; 0 reads in this one.

    Raises:
        InputError: if the ranking has fewer images or ranks than k_cds, the shift leaves fewer than 2 x 2 shared
            patches, an image cannot be read, or a token is not finite.
    """
    ranking.check_enough_images(config.k_cds)
    crops.check_shift(backbone.grid, config.shift_patches)
    maps = make_maps((ranking.d_sae, ranking.k_max, 2, backbone.grid, backbone.grid), maps_file)
    wanted = LatentMaps(sae, np.arange(ranking.d_sae), ranking.top_images, maps)
    fill_maps(backbone, image_set, [wanted], config, layer, trainer or make_trainer(callbacks), n_readers)
    return compute_scores(maps, ranking.top_images >= 0, config, progress)


def fill_maps(
    backbone: Backbone,
    image_set: ImageSet,
    wanted: Sequence[LatentMaps],
    config: ScopeConfig,
    layer: int,
    trainer: L.Trainer,
    n_readers: int = 0,
) -> None:
    """Encode both crops of every image that is ranked, once for all latents and SAEs, and keep the maps asked for.

    Raises:
        InputError: if the shift leaves fewer than 2 x 2 shared patches, an image cannot be read, or a token is not
            finite.
    """
    size_px = crops.scc_size_px(backbone.grid, backbone.patch_px, config.shift_patches)
    indices = np.unique(np.concatenate([part.top_images.ravel() for part in wanted]))
    images = RankedImages(image_set, indices[indices >= 0], size_px, config.batch_images, n_readers)
    if not len(images):
        return
    module = ScoringModule(backbone, wanted, layer, config)
    device = wanted[0].sae.W_enc.device
    try:
        with quiet_lightning():
            trainer.test(module, dataloaders=images, verbose=False)
    finally:
        module.to(device)  # Lightning leaves it on the CPU


def make_maps(shape: tuple[int, ...], file: Path | None) -> Float[np.ndarray, "d_sae k_max 2 grid grid"]:
    """Return float32 zeros, memory-mapped from a new .npy file where one is given."""
    if file is None:
        return np.zeros(shape, dtype=np.float32)
    maps = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    with file.open("r+b") as opened:  # claim the space now: writing through the map to a full disk kills the process
        os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return maps


def make_trainer(callbacks: Sequence[L.Callback] = (), accelerator: str = "auto") -> L.Trainer:
    """Return a Lightning trainer for one device that only runs: no logger, no checkpoints, no output of its own."""
    with quiet_lightning():
        return L.Trainer(
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )


def compute_scores(
    maps: Float[np.ndarray, "d_sae k_max 2 grid grid"],
    ranked: np.ndarray,
    config: ScopeConfig,
    progress: ProgressHook | None = None,
    with_chance: bool = True,
) -> Scores:
    """Turn both crops' maps into distances, masses and chance distances.

    Args:
        ranked: bool [d_sae, k_max], where there is an image at that rank.
        with_chance: False leaves the chance distances NaN, which halves the work.
    """
    shift = config.shift_patches
    shared = [crops.shared_region(maps[:, :, side], shift, side + 1, config.diagonal) for side in (0, 1)]
    mass1, mass2 = (np.where(ranked, part.sum(axis=(2, 3), dtype=np.float64), np.nan) for part in shared)
    latents, ranks = np.nonzero((mass1 > 0) & (mass2 > 0))
    following = next_valid_ranks(latents, ranks)
    other = (following >= 0) & with_chance

    # the pairs themselves and the chance pairs are one list, so that workers start once
    distances = _distances(
        shared[0][np.concatenate([latents, latents[other]]), np.concatenate([ranks, ranks[other]])],
        shared[1][np.concatenate([latents, latents[other]]), np.concatenate([ranks, following[other]])],
        config,
        progress,
    ) / cds_arithmetic.compute_d_grid(maps.shape[-1], shift)
    emd, chance_emd = np.full(ranked.shape, np.nan), np.full(ranked.shape, np.nan)
    emd[latents, ranks] = distances[: len(latents)]
    chance_emd[latents[other], ranks[other]] = distances[len(latents) :]
    masses = mass1.astype(np.float32), mass2.astype(np.float32)
    return Scores(emd, *masses, chance_emd, maps, maps.shape[-1], shift, config.diagonal)


def next_valid_ranks(latents: Int[np.ndarray, " n"], ranks: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For valid pairs sorted by latent and rank, return the latent's next valid rank, cyclically; -1: no other."""
    n = len(latents)
    if n == 0:
        return ranks
    starts = np.flatnonzero(np.r_[True, latents[1:] != latents[:-1]])
    counts = np.diff(np.r_[starts, n])
    following = np.r_[ranks[1:], -1]
    following[starts + counts - 1] = ranks[starts]  # each latent's last goes round to its first
    following[np.repeat(counts == 1, counts)] = -1
    return following


def _distances(maps1: np.ndarray, maps2: np.ndarray, config: ScopeConfig, progress: ProgressHook | None) -> np.ndarray:
    if config.emd is EMDMethod.sinkhorn:
        return compute_emd_sinkhorn(maps1, maps2, config.sinkhorn_blur, progress=progress)
    return compute_emd(maps1, maps2, config.n_workers, progress)
