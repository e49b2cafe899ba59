"""Scoring features again with one choice made otherwise, and comparing: what stability is measured by."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from infoscope.data.images import ImageSet
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Checkpoint
from infoscope.runtime.progress import Advance, ShowBar, show_nothing
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import choose_layer
from infoscope.scope.agreement import bootstrap_cds, match_latents
from infoscope.scope.config import Diagonal, EMDMethod, ScopeConfig, StabilityConfig
from infoscope.scope.maps import CropEncoder, WantedMaps
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import compute_scores
from infoscope.scope.sparse_maps import SparseMaps
from infoscope.scope.stability import Kind, StabilityResult, Variation
from infoscope.vision.backbone import Backbone


@dataclass(frozen=True)
class ScoredSAE:
    """One SAE and what is known of its features.

    ranking, scores: on the training images, as configured.
    held_out: the ranking on the held-out images; None leaves them out.
    """

    seed: int
    sae: SparseAutoencoder
    ranking: Ranking
    scores: Scores
    gamma: float | None
    held_out: Ranking | None = None

    def cds(self, k: int) -> Float[np.ndarray, " d_sae"]:
        """Return the scores over the first `k` ranks."""
        return self.scores.cds(k).values


def compute_stability(
    backbone: Backbone,
    scored: Sequence[ScoredSAE],
    train_images: ImageSet,
    held_out_images: ImageSet | None,
    scope: ScopeConfig,
    config: StabilityConfig,
    *,
    layer: int | None = None,
    show_bar: ShowBar = show_nothing,
    n_readers: int = 0,
    progress_folder: Path | None = None,
) -> list[StabilityResult]:
    """Score the features again with one choice made otherwise, for all SAEs at once, and compare.

    Encodes each image once per shift, diagonal and image set; the other comparisons read
    what the scores hold. Features that have no score as configured are not scored again.

    Args:
        scored: the SAEs, in the order of the results; several are compared with each other.
        scope: with which `scores` were made.
        layer, n_readers: as for `score_latents`.
        progress_folder: where finished parts of the work are kept, to go on from after an interruption, and to share
            among processes (see `compute_parts`): as large as the maps of one comparison.

    Returns:
        One per SAE; none in other processes than the main one.

    Raises:
        InputError: if an SAE was trained on another layer or backbone, a ranking has fewer ranks than k_cds, an image
            cannot be read, or a token is not finite.
    """
    base = [one.cds(scope.k_cds) for one in scored]
    for one in scored:
        one.ranking.check(one.sae.d_sae, scope.k_cds)
    layer = _choose_layer(backbone, scored, layer)

    def draw(n: int | None, *of: int) -> list[Int[np.ndarray, " n"]]:
        return [_draw_latents(cds, n, [config.seed, one.seed, *of]) for cds, one in zip(base, scored, strict=True)]

    rescorer = _Rescorer(backbone, layer, scored, draw(config.n_latents), show_bar, n_readers, progress_folder)
    plans = _plan_encoding(backbone.grid, scored, (train_images, held_out_images), scope, config.shifts)
    found: list[list[Variation]] = [[] for _ in scored]
    for plan in plans:
        for variations, cds in zip(found, rescorer.score(plan), strict=True):
            variations.append(Variation(plan.name, plan.kind, plan.setting, cds, plan.note))
    for variations, one, few in zip(found, scored, draw(config.n_solver_latents, 1), strict=True):
        with show_bar(f"other solver, seed {one.seed}") as progress:
            variations.append(_vary_solver(one, few, scope, progress, progress_folder))
    if not processes.is_main():
        return []
    with show_bar("bootstrap over images"):
        return compare_at_hand(scored, scope, config, found)


def compare_at_hand(
    scored: Sequence[ScoredSAE],
    scope: ScopeConfig,
    config: StabilityConfig,
    measured: Sequence[Sequence[Variation]] | None = None,
    max_latents: int | None = None,
) -> list[StabilityResult]:
    """Compare with what the scores hold: fewer or more images per feature, other SAEs. Nothing is encoded.

    Args:
        scored: the SAEs, in the order of the results.
        measured: comparisons to put before these, of each SAE.
        max_latents: SAEs of more latents are not matched with each other, which takes minutes.
    """
    found = [
        [*of, *_vary_k(one.scores, scope.k_cds)] for of, one in zip(measured or [[]] * len(scored), scored, strict=True)
    ]
    cds = [one.cds(scope.k_cds) for one in scored]
    is_small = max_latents is None or max(map(len, cds)) <= max_latents
    for i, j in combinations(range(len(scored)), 2) if is_small else ():
        for at, variation in zip((i, j), _vary_seed(scored[i], scored[j], cds[i], cds[j]), strict=True):
            found[at].append(variation)
    return [_assemble(*one, scope, config) for one in zip(scored, cds, found, strict=True)]


def _choose_layer(backbone: Backbone, scored: Sequence[ScoredSAE], layer: int | None) -> int:
    chosen = {choose_layer(one.sae, backbone, layer) for one in scored}
    if len(chosen) > 1:
        raise InputError(f"Expected SAEs of one layer, got SAEs of blocks {', '.join(map(str, sorted(chosen)))}.")
    return chosen.pop()


def _assemble(
    one: ScoredSAE, cds: np.ndarray, variations: list[Variation], scope: ScopeConfig, config: StabilityConfig
) -> StabilityResult:
    solver = "exact EMD" if scope.emd is EMDMethod.exact else f"Sinkhorn, blur {scope.sinkhorn_blur:g} patches"
    geometry = f"shift {scope.shift_patches}, {scope.diagonal.name} diagonal"
    return StabilityResult(
        sae_seed=one.seed,
        configured=f"{geometry}, training images, k_CDS {scope.k_cds}, {solver}",
        k_cds=scope.k_cds,
        gamma=one.gamma,
        cds=cds,
        interval=bootstrap_cds(one.scores.emd, scope.k_cds, **config.interval),
        level=config.level,
        n_draws=config.n_draws,
        min_cosine=config.min_cosine,
        variations=tuple(variations),
    )


class _Plan(NamedTuple):
    """A comparison that needs images encoded, or in `note` why it cannot be made."""

    name: str
    kind: Kind
    setting: str
    images: ImageSet
    scope: ScopeConfig
    note: str = ""


def _plan_encoding(
    grid: int,
    scored: Sequence[ScoredSAE],
    images: tuple[ImageSet, ImageSet | None],
    scope: ScopeConfig,
    shifts: Sequence[int],
) -> list[_Plan]:
    (train, held_out), plans = images, []
    for shift in shifts:
        if shift != scope.shift_patches:
            note = "" if grid - shift >= 2 else f"it leaves fewer than 2 x 2 of {grid} x {grid} patches to compare"
            shifted = replace(scope, shift_patches=shift)
            plans.append(_Plan(f"shift_{shift}", Kind.shift, f"shift {shift}", train, shifted, note))
    other = Diagonal.anti if scope.diagonal is Diagonal.main else Diagonal.main
    plans.append(_Plan("diagonal", Kind.diagonal, "other diagonal", train, replace(scope, diagonal=other)))
    n_images = [one.held_out.n_images for one in scored if one.held_out is not None]
    if held_out is not None and len(n_images) == len(scored):
        enough = min(n_images) >= scope.k_cds
        note = "" if enough else f"there are {min(n_images)} held-out images, fewer than k_CDS {scope.k_cds}"
        plans.append(_Plan("held_out", Kind.images, "held-out images", held_out, scope, note))
    return plans


def _draw_latents(cds: np.ndarray, n: int | None, seed: list[int]) -> Int[np.ndarray, " n"]:
    """Return `n` of the scored latents, ascending; all of them where there are no more."""
    latents = np.flatnonzero(np.isfinite(cds))
    if n is None or n >= len(latents):
        return latents
    rng = np.random.default_rng([part % 2**32 for part in seed])  # NumPy takes no negative seeds
    return np.sort(rng.choice(latents, n, replace=False))


class _Rescorer(NamedTuple):
    """Scores some latents of each SAE with one choice made otherwise, and keeps what it has found in a folder."""

    backbone: Backbone
    layer: int
    scored: Sequence[ScoredSAE]
    latents: Sequence[Int[np.ndarray, " n"]]
    show_bar: ShowBar
    n_readers: int
    folder: Path | None

    def score(self, plan: _Plan) -> list[Float[np.ndarray, " d_sae"]]:
        """Return the scores of the latents of each SAE as a comparison wants them, NaN for the others.

        Once they are known, the maps and distances they were made of are deleted.
        """
        if plan.note:
            return [np.full(one.sae.d_sae, np.nan) for one in self.scored]
        kept = Checkpoint(self.folder and self.folder / f"{plan.name}.pt")
        known = kept.load()
        if known is not None:
            return [cds.numpy() for cds in known["cds"]]
        folder = self.folder and self.folder / plan.name
        if folder is not None:
            folder.mkdir(exist_ok=True)
        again = self._score(plan, folder)
        processes.barrier()  # all have read the parts
        if folder is not None and processes.is_main():
            kept.save({"cds": [torch.from_numpy(cds) for cds in again]})
            shutil.rmtree(folder, ignore_errors=True)
        return again

    def _score(self, plan: _Plan, folder: Path | None) -> list[Float[np.ndarray, " d_sae"]]:
        k, wanted = plan.scope.k_cds, []
        for one, some in zip(self.scored, self.latents, strict=True):
            ranking = one.held_out if plan.kind is Kind.images else one.ranking
            assert ranking is not None
            assert ranking.k_max >= k, (ranking.k_max, k)
            wanted.append(WantedMaps(one.sae, some, ranking.top_images[some, :k]))
        with self.show_bar(f"encoding crops, {plan.setting}") as progress:
            encoder = CropEncoder(self.backbone, plan.images, plan.scope, self.layer, self.n_readers)
            made = encoder.make_maps(wanted, progress, folder)
        again = []
        for one, part, maps in zip(self.scored, wanted, made, strict=True):
            with self.show_bar(f"computing EMD, {plan.setting}") as progress:
                kept = folder, f"distances-{one.seed}"
                again.append(_score_maps(one, part.latents, maps, part.top_images >= 0, plan.scope, progress, *kept))
        return again


def _score_maps(
    one: ScoredSAE,
    latents: Int[np.ndarray, " n"],
    maps: SparseMaps | Float[np.ndarray, "n k 2 grid grid"],
    ranked: Bool[np.ndarray, "n k"],
    scope: ScopeConfig,
    progress: Advance,
    folder: Path | None,
    name: str,
) -> Float[np.ndarray, " d_sae"]:
    """Return the scores of some latents from their maps, NaN for the others."""
    cds, scores = np.full(one.sae.d_sae, np.nan), compute_scores(maps, ranked, scope, progress, False, folder, name)
    cds[latents] = scores.cds(scope.k_cds).values
    return cds


def _vary_k(scores: Scores, k_cds: int) -> list[Variation]:
    """Average over 1, 2, 4, ... ranks and over all that there are."""
    powers = (2**i for i in range(scores.k_max.bit_length()))
    others = [k for k in sorted({*powers, scores.k_max}) if k != k_cds]
    return [Variation(f"k_{k}", Kind.k_cds, f"k_CDS {k}", scores.cds(k).values) for k in others]


def _vary_solver(
    one: ScoredSAE, latents: Int[np.ndarray, " n"], scope: ScopeConfig, progress: Advance, folder: Path | None
) -> Variation:
    """Compute the distances of some latents from the maps that are kept, by the solver that was not used."""
    scores = one.scores
    if scope.emd is EMDMethod.exact:
        method, setting = EMDMethod.sinkhorn, f"Sinkhorn, blur {scope.sinkhorn_blur:g}"
    else:
        method, setting = EMDMethod.exact, "exact EMD"
    maps, ranked = scores.maps[latents, : scope.k_cds], ~np.isnan(scores.mass1[latents, : scope.k_cds])
    name, scope = f"solver-{one.seed}", replace(scope, emd=method)
    cds = _score_maps(one, latents, maps, ranked, scope, progress, folder, name)
    return Variation(method.name, Kind.solver, setting, cds)


def _vary_seed(
    one: ScoredSAE, other: ScoredSAE, cds_one: np.ndarray, cds_other: np.ndarray
) -> tuple[Variation, Variation]:
    """Match the scored latents of two SAEs; return the other's scores by latent of one, and the reverse."""
    scored_one, scored_other = np.flatnonzero(np.isfinite(cds_one)), np.flatnonzero(np.isfinite(cds_other))
    a, b, cosine = match_latents(_decoder_rows(one.sae)[scored_one], _decoder_rows(other.sae)[scored_other])
    of_one, of_other = scored_one[a], scored_other[b]

    def make_variation(source: ScoredSAE, into: np.ndarray, values: np.ndarray, d_sae: int) -> Variation:
        cds, cosines = np.full((2, d_sae), np.nan)
        cds[into], cosines[into] = values, cosine
        name, setting = f"seed_{source.seed}", f"SAE seed {source.seed}"
        return Variation(name, Kind.seed, setting, cds, gamma=source.gamma, cosine=cosines)

    return (
        make_variation(other, of_one, cds_other[of_other], len(cds_one)),
        make_variation(one, of_other, cds_one[of_one], len(cds_other)),
    )


def _decoder_rows(sae: SparseAutoencoder) -> np.ndarray:
    return sae.W_dec.detach().float().cpu().numpy()
