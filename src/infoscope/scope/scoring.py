"""Contextual dependency scoring: every image that any latent ranks is cropped and encoded once, for all latents."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


class RankedImages:
    """Batches of the images that any latent ranks, each image once, at the size from which crops are cut.

    Lightning takes it as a data loader; reading in parallel is `iterate_images`' own matter.
    """

    def __init__(
        self, image_set: ImageSet, ranking: Ranking, size_px: int, batch_images: int, n_readers: int = 0
    ) -> None:
        self.image_set, self.size_px, self.batch_images, self.n_readers = image_set, size_px, batch_images, n_readers
        self.indices = ranking.unique_images()

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_images)

    def __iter__(self) -> Iterator[ImageBatch]:
        yield from iterate_images(
            self.image_set, self.size_px, self.batch_images, indices=self.indices, n_workers=self.n_readers
        )


class PairLookup:
    """For an image, the (latent, rank) pairs that want its maps."""

    def __init__(self, ranking: Ranking) -> None:
        flat = ranking.top_images.ravel()
        self._positions = np.argsort(flat, kind="stable")
        self._images = flat[self._positions]
        self._k_max = ranking.k_max

    def __call__(self, image: int) -> tuple[Int[np.ndarray, " n_pairs"], Int[np.ndarray, " n_pairs"]]:
        """Return latents and ranks."""
        start, stop = np.searchsorted(self._images, [image, image + 1])
        return np.divmod(self._positions[start:stop], self._k_max)


class ScoringModule(L.LightningModule):
    """Fills the activation maps of both crops for every (latent, rank); run by `Trainer.test` over `RankedImages`.

    `maps` [d_sae, k_max, 2, grid, grid], float32, is written in place; it may be memory-mapped. Every rank has one
    image and every image comes once, so each map is written once. Works on one device.
    """

    def __init__(
        self,
        backbone: Backbone,
        sae: SparseAutoencoder,
        ranking: Ranking,
        layer: int,
        shift_patches: int,
        maps: np.ndarray,
    ) -> None:
        super().__init__()
        self.backbone, self.sae = backbone, sae
        self.layer, self.shift_patches, self.maps = layer, shift_patches, maps
        self.pairs_of = PairLookup(ranking)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        both = crops.shifted_crops(batch.images, self.backbone.patch_px, self.backbone.grid, self.shift_patches)
        for side, images in enumerate(both):
            patches = self.backbone.tokens(images, self.layer).patches
            for part, latent_acts in iterate_latents(self.sae, patches):
                for image, acts in zip(batch.index[part].tolist(), latent_acts, strict=True):
                    self._keep(side, image, acts)

    def _keep(self, side: int, image: int, acts: Float[Tensor, "n_patches d_sae"]) -> None:
        latents, ranks = self.pairs_of(image)
        wanted = acts[:, torch.from_numpy(latents).to(acts.device)].T.float().cpu().numpy()
        self.maps[latents, ranks, side] = wanted.reshape(-1, self.backbone.grid, self.backbone.grid)


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
    size_px = crops.scc_size_px(backbone.grid, backbone.patch_px, config.shift_patches)
    shape = (ranking.d_sae, ranking.k_max, 2, backbone.grid, backbone.grid)
    maps = make_maps(shape, maps_file)
    module = ScoringModule(backbone, sae, ranking, layer, config.shift_patches, maps)
    images = RankedImages(image_set, ranking, size_px, config.batch_images, n_readers)
    if len(images):
        device = sae.W_enc.device
        try:
            with quiet_lightning():
                trainer = trainer or make_trainer(callbacks)
                trainer.test(module, dataloaders=images, verbose=False)
        finally:
            module.to(device)  # Lightning leaves it on the CPU
    return compute_scores(maps, ranking.top_images >= 0, config, progress)


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
) -> Scores:
    """Turn both crops' maps into distances, masses and chance distances.

    Args:
        ranked: bool [d_sae, k_max], where there is an image at that rank.
    """
    shift = config.shift_patches
    shared = [crops.shared_region(maps[:, :, side], shift, crop) for side, crop in ((0, 1), (1, 2))]
    mass1, mass2 = (np.where(ranked, part.sum(axis=(2, 3), dtype=np.float64), np.nan) for part in shared)
    latents, ranks = np.nonzero((mass1 > 0) & (mass2 > 0))
    following = next_valid_ranks(latents, ranks)
    other = following >= 0

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
    return Scores(emd, mass1.astype(np.float32), mass2.astype(np.float32), chance_emd, maps, maps.shape[-1], shift)


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
