"""Contextual dependency scoring: maps of every ranked image on both crops, and the distances between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from infoscope.data.images import ImageSet
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps, choose_layer
from infoscope.scope import cds as cds_arithmetic
from infoscope.scope import crops
from infoscope.scope.config import EMDMethod, ScopeConfig
from infoscope.scope.emd import compute_emd
from infoscope.scope.maps import CropEncoder, WantedMaps
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.sinkhorn import compute_emd_sinkhorn
from infoscope.vision.backbone import Backbone

PART_PAIRS = {EMDMethod.exact: 2**16, EMDMethod.sinkhorn: 2**10}
"""Pairs in a part of the distances: less than a minute's work of one core."""


def score_latents(
    backbone: Backbone,
    sae: SparseAutoencoder,
    image_set: ImageSet,
    ranking: Ranking,
    config: ScopeConfig,
    *,
    layer: int | None = None,
    check_origin: bool = True,
    maps_file: Path | None = None,
    n_readers: int = 0,
    progress: Advance = ignore,
    progress_folder: Path | None = None,
) -> Scores:
    """Score every latent on the images of its ranking.

    Args:
        image_set: the one the ranking's positions refer to.
        layer: the block after which the SAE reads tokens; negative from the end; None: the one it was trained on.
        check_origin: False insists on other tokens than the SAE was trained on, see `choose_layer`.
        maps_file: where to keep the maps memory-mapped while they are made; None keeps them in memory.
        n_readers: processes that read images ahead; 0 reads in this one.
        progress: called with (images, all images) while crops are encoded, with (pairs, all pairs) while distances are
            computed.
        progress_folder: where finished parts of the work are kept, to go on from after an interruption, and to share
            among processes (see `compute_parts`): as large as the maps.

    Raises:
        InputError: if the SAE was trained on another layer, backbone or on CLS alone, the ranking is of another number
            of latents, or has fewer images or ranks than k_cds, the shift leaves fewer than 2 x 2 shared patches, an
            image cannot be read, or a token is not finite.
    """
    check_has_maps(sae.origin)
    layer = choose_layer(sae, backbone, layer, check_origin)
    ranking.check(sae.d_sae, config.k_cds)
    crops.check_shift(backbone.grid, config.shift_patches)
    wanted = WantedMaps(sae, np.arange(ranking.d_sae), ranking.top_images, maps_file)
    encoder = CropEncoder(backbone, image_set, config, layer, n_readers)
    (maps,) = encoder.make_maps([wanted], partial(progress, part="encoding crops"), progress_folder)
    moved = partial(progress, part="computing EMD")
    return compute_scores(maps, ranking.top_images >= 0, config, moved, progress_folder=progress_folder)


def compute_scores(
    maps: Float[np.ndarray, "d_sae k_max 2 grid grid"],
    ranked: np.ndarray,
    config: ScopeConfig,
    progress: Advance = ignore,
    with_chance: bool = True,
    progress_folder: Path | None = None,
    name: str = "distances",
) -> Scores:
    """Turn both crops' maps into distances, masses and chance distances.

    Args:
        ranked: bool [d_sae, k_max], where there is an image at that rank.
        with_chance: False leaves the chance distances NaN, which halves the work.
        progress_folder, name: see `compute_parts`.
    """
    shift = config.shift_patches
    shared = [crops.shared_region(maps[:, :, side], shift, side + 1, config.diagonal) for side in (0, 1)]
    mass1, mass2 = (np.where(ranked, part.sum(axis=(2, 3), dtype=np.float64), np.nan) for part in shared)
    latents, ranks = np.nonzero((mass1 > 0) & (mass2 > 0))
    following = next_valid_ranks(latents, ranks)
    other = (following >= 0) & with_chance

    # the pairs themselves and the chance pairs are one list
    of, first = np.concatenate([latents, latents[other]]), np.concatenate([ranks, ranks[other]])
    second = np.concatenate([ranks, following[other]])
    parts = cut(len(of), PART_PAIRS[config.emd])

    def compute(number: int) -> Part:
        some = parts[number]
        maps1, maps2 = shared[0][of[some], first[some]], shared[1][of[some], second[some]]
        distances = _distances(maps1, maps2, config, lambda done: progress(some.start + done, len(of)))
        return {"distances": torch.from_numpy(distances)}

    found = [part["distances"].numpy() for part in compute_parts(len(parts), compute, progress_folder, name)]
    distances = np.concatenate([np.empty(0), *found]) / cds_arithmetic.compute_d_grid(maps.shape[-1], shift)
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


def _distances(
    maps1: np.ndarray, maps2: np.ndarray, config: ScopeConfig, progress: Callable[[int], object]
) -> np.ndarray:
    if config.emd is EMDMethod.sinkhorn:
        return compute_emd_sinkhorn(maps1, maps2, config.sinkhorn_blur, progress)
    return compute_emd(maps1, maps2, config.n_workers, progress)
