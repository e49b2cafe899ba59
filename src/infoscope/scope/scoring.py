"""Contextual dependency scoring: maps of every ranked image on both crops, and the distances between them."""

from __future__ import annotations

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
from infoscope.scope.distances import DistancesAhead, KnownDistances, can_solve_ahead, compute_masses, solve_pairs
from infoscope.scope.maps import CropEncoder, WantedMaps
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.sparse_maps import SparseMaps
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
    n_readers: int = 0,
    progress: Advance = ignore,
    progress_folder: Path | None = None,
    solves_ahead: bool | None = None,
) -> Scores:
    """Score every latent on the images of its ranking.

    Args:
        image_set: the one the ranking's positions refer to.
        layer: the block after which the SAE reads tokens; negative from the end; None: the one it was trained on.
        check_origin: False insists on other tokens than the SAE was trained on, see `choose_layer`.
        n_readers: processes that read images ahead; 0 reads in this one.
        progress: called with (images, all images) while crops are encoded, with (pairs, all pairs) while distances are
            computed.
        progress_folder: where finished parts of the work are kept, to go on from after an interruption, and to share
            among processes (see `compute_parts`): as large as the maps.
        solves_ahead: whether exact distances are computed while other crops are encoded, by `config.n_workers`
            processes (if that is more than one); None: where the backbone lies on another device than the processor.
            The scores are the same.

    Raises:
        InputError: if the SAE was trained on another layer, backbone or on CLS alone, the ranking is of another number
            of latents, or has fewer images or ranks than k_cds, the shift leaves fewer than 2 x 2 shared patches, an
            image cannot be read, or a token is not finite.
    """
    check_has_maps(sae.origin, backbone.site)
    layer = choose_layer(sae, backbone, layer, check_origin)
    ranking.check(sae.d_sae, config.k_cds)
    crops.check_shift(backbone.grid, config.shift_patches)
    wanted, ranked = WantedMaps(sae, np.arange(ranking.d_sae), ranking.top_images), ranking.top_images >= 0
    encoder = CropEncoder(backbone, image_set, config, layer, n_readers)
    encoding = partial(progress, part="encoding crops")
    moved = partial(progress, part="computing EMD")
    if solves_ahead is None:
        solves_ahead = backbone.mean.device.type != "cpu"
    if not (solves_ahead and can_solve_ahead(config)):
        (maps,) = encoder.make_maps([wanted], encoding, progress_folder)
        return compute_scores(maps, ranked, config, moved, progress_folder=progress_folder)
    with DistancesAhead(ranked, backbone.grid, config) as ahead:
        (maps,) = encoder.make_maps([wanted], encoding, progress_folder, lambda _, *part: ahead.add(*part))
        known = ahead.finish(moved)
    return compute_scores(maps, ranked, config, moved, progress_folder=progress_folder, known=known)


def compute_scores(
    maps: SparseMaps | Float[np.ndarray, "d_sae k_max 2 grid grid"],
    ranked: np.ndarray,
    config: ScopeConfig,
    progress: Advance = ignore,
    with_chance: bool = True,
    progress_folder: Path | None = None,
    name: str = "distances",
    known: KnownDistances | None = None,
) -> Scores:
    """Turn both crops' maps into distances, masses and chance distances.

    Args:
        ranked: bool [d_sae, k_max], where there is an image at that rank.
        with_chance: False leaves the chance distances NaN, which halves the work.
        progress_folder, name: see `compute_parts`.
        known: masses and distances that are known already.
    """
    sparse, shift = maps if isinstance(maps, SparseMaps) else SparseMaps.of(maps), config.shift_patches
    grid = sparse.shape[-1]
    if known is None or np.isnan(known.masses[ranked]).any():
        masses = np.where(ranked[..., None], compute_masses(sparse, config), np.nan)
    else:
        masses = known.masses
    latents, ranks = np.nonzero((masses > 0).all(axis=-1))
    following = next_valid_ranks(latents, ranks)
    other = (following >= 0) & with_chance

    # the pairs themselves and the chance pairs are one list
    pairs = np.arange(ranked.size).reshape(ranked.shape)
    first = np.concatenate([pairs[latents, ranks], pairs[latents[other], ranks[other]]])
    second = np.concatenate([pairs[latents, ranks], pairs[latents[other], following[other]]])
    parts, distances = cut(len(first), PART_PAIRS[config.emd]), np.full(len(first), np.nan)
    if known is not None:
        distances[:] = np.concatenate([known.emd[latents, ranks], known.chance_emd[latents[other], ranks[other]]])

    def compute(number: int) -> Part:
        part, start = distances[parts[number]].copy(), parts[number].start
        missing = np.flatnonzero(np.isnan(part))
        both = sparse.take(first[start + missing]), sparse.take(second[start + missing])
        part[missing] = solve_pairs(*both, config, config.n_workers, lambda done: progress(start + done, len(first)))
        return {"distances": torch.from_numpy(part)}

    for number, part in enumerate(compute_parts(len(parts), compute, progress_folder, name)):
        distances[parts[number]] = part["distances"].numpy()
    distances /= cds_arithmetic.compute_d_grid(grid, shift)
    emd, chance_emd = np.full(ranked.shape, np.nan), np.full(ranked.shape, np.nan)
    emd[latents, ranks] = distances[: len(latents)]
    chance_emd[latents[other], ranks[other]] = distances[len(latents) :]
    mass1, mass2 = (np.ascontiguousarray(of_crop, np.float32) for of_crop in np.moveaxis(masses, -1, 0))
    return Scores(emd, mass1, mass2, chance_emd, maps, grid, shift, config.diagonal)


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
