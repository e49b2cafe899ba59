"""Scoring features again with one choice made otherwise, and comparing: what stability is measured by."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int

from infoscope.data.images import ImageSet
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Checkpoint
from infoscope.runtime.progress import ShowBar, show_nothing
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import choose_layer
from infoscope.scope.agreement import bootstrap_cds, match_latents
from infoscope.scope.config import Diagonal, EMDMethod, ScopeConfig, StabilityConfig
from infoscope.scope.emd import ProgressHook
from infoscope.scope.maps import WantedMaps, encode_maps, make_trainer
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import compute_scores
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


def compute_stability(
    backbone: Backbone,
    scored: Sequence[ScoredSAE],
    train_images: ImageSet,
    held_out_images: ImageSet | None,
    scope: ScopeConfig,
    config: StabilityConfig,
    *,
    layer: int | None = None,
    check_origin: bool = True,
    trainer: L.Trainer | None = None,
    show_bar: ShowBar = show_nothing,
    n_readers: int = 0,
    progress_folder: Path | None = None,
) -> list[StabilityResult]:
    """Score the features again with one choice made otherwise, for all SAEs at once, and compare.

    Encodes each image once per shift, diagonal and image set, whatever the number of SAEs; the other comparisons read
    what the scores hold. Features that have no score as configured are not scored again.

    Args:
        scored: the SAEs, in the order of the results; several are compared with each other.
        scope: with which `scores` were made.
        layer, check_origin: as for `score_latents`.
        trainer: runs the encoding; by default a bare one.
        progress_folder: where finished parts of the work are kept, to go on from after an interruption, and to share
            among processes (see `compute_parts`): as large as the maps of one comparison.

    Returns:
        One per SAE; none in other processes than the main one.

    Raises:
        InputError: if an SAE was trained on another layer or backbone, a ranking has fewer ranks than k_cds, an image
            cannot be read, or a token is not finite.
    """
    k = scope.k_cds
    base = [one.scores.cds(k).values for one in scored]
    for one in scored:
        one.ranking.check_enough_images(k)
    layer = _choose_layer(backbone, scored, layer, check_origin)
    latents = [
        _draw_latents(cds, config.n_latents, [config.seed, one.seed]) for cds, one in zip(base, scored, strict=True)
    ]
    encoder = _Encoder(backbone, layer, trainer or make_trainer(), show_bar, n_readers, progress_folder)
    found: list[list[Variation]] = [[] for _ in scored]
    for plan in _plan_encoding(backbone.grid, scored, held_out_images, scope, config.shifts):
        again = [np.full(len(cds), np.nan) for cds in base]
        if not plan.note:
            images = train_images if plan.kind is not Kind.images else held_out_images
            assert images is not None
            again = encoder.score(plan, images, scored, latents, k)
        for variations, cds in zip(found, again, strict=True):
            variations.append(Variation(plan.name, plan.kind, plan.setting, cds, plan.note))
    for variations, one, cds in zip(found, scored, base, strict=True):
        few = _draw_latents(cds, config.n_solver_latents, [config.seed, one.seed, 1])
        with show_bar(f"other solver, seed {one.seed}") as progress:
            other = _vary_solver(one, few, scope, progress, progress_folder)
        variations += [*_vary_k(one.scores, k), other]
    if processes.current().rank > 0:
        return []
    for i, j in combinations(range(len(scored)), 2):
        for at, variation in zip((i, j), _vary_seed(scored[i], scored[j], base[i], base[j]), strict=True):
            found[at].append(variation)
    with show_bar("bootstrap over images"):
        return [
            _assemble(one, cds, tuple(variations), scope, config)
            for one, cds, variations in zip(scored, base, found, strict=True)
        ]


def _choose_layer(backbone: Backbone, scored: Sequence[ScoredSAE], layer: int | None, check_origin: bool) -> int:
    chosen = {choose_layer(one.sae, backbone, layer, check_origin) for one in scored}
    if len(chosen) > 1:
        raise InputError(f"Expected SAEs of one layer, got SAEs of blocks {', '.join(map(str, sorted(chosen)))}.")
    return chosen.pop()


def _assemble(
    one: ScoredSAE, cds: np.ndarray, variations: tuple[Variation, ...], scope: ScopeConfig, config: StabilityConfig
) -> StabilityResult:
    return StabilityResult(
        sae_seed=one.seed,
        configured=_describe(scope),
        k_cds=scope.k_cds,
        gamma=one.gamma,
        cds=cds,
        interval=bootstrap_cds(one.scores.emd, scope.k_cds, config.n_draws, config.seed, config.level),
        level=config.level,
        n_draws=config.n_draws,
        min_cosine=config.min_cosine,
        variations=variations,
    )


def _describe(scope: ScopeConfig) -> str:
    solver = "exact EMD" if scope.emd is EMDMethod.exact else f"Sinkhorn, blur {scope.sinkhorn_blur:g} patches"
    diagonal = f"{scope.diagonal.name} diagonal"
    return f"shift {scope.shift_patches}, {diagonal}, training images, k_CDS {scope.k_cds}, {solver}"


class _Plan(NamedTuple):
    """A comparison that needs images encoded, or in `note` why it cannot be made."""

    name: str
    kind: Kind
    setting: str
    scope: ScopeConfig
    note: str = ""


def _plan_encoding(
    grid: int,
    scored: Sequence[ScoredSAE],
    held_out_images: ImageSet | None,
    scope: ScopeConfig,
    shifts: Sequence[int],
) -> list[_Plan]:
    plans = []
    for shift in dict.fromkeys(shifts):
        if shift != scope.shift_patches:
            note = "" if grid - shift >= 2 else f"it leaves fewer than 2 x 2 of {grid} x {grid} patches to compare"
            plan = _Plan(f"shift_{shift}", Kind.shift, f"shift {shift}", replace(scope, shift_patches=shift), note)
            plans.append(plan)
    other = Diagonal.anti if scope.diagonal is Diagonal.main else Diagonal.main
    plans.append(_Plan("diagonal", Kind.diagonal, "other diagonal", replace(scope, diagonal=other)))
    n_images = [one.held_out.n_images for one in scored if one.held_out is not None]
    if held_out_images is not None and len(n_images) == len(scored):
        enough = min(n_images) >= scope.k_cds
        note = "" if enough else f"there are {min(n_images)} held-out images, fewer than k_CDS {scope.k_cds}"
        plans.append(_Plan("held_out", Kind.images, "held-out images", scope, note))
    return plans


def _draw_latents(cds: np.ndarray, n: int | None, seed: list[int]) -> Int[np.ndarray, " n"]:
    """Return `n` of the scored latents, ascending; all of them where there are no more."""
    latents = np.flatnonzero(np.isfinite(cds))
    if n is None or n >= len(latents):
        return latents
    rng = np.random.default_rng([part % 2**32 for part in seed])  # NumPy takes no negative seeds
    return np.sort(rng.choice(latents, n, replace=False))


class _Encoder(NamedTuple):
    """What encodes images anew, and where it keeps what it has found."""

    backbone: Backbone
    layer: int
    trainer: L.Trainer
    show_bar: ShowBar
    n_readers: int
    folder: Path | None

    def score(
        self,
        plan: _Plan,
        images: ImageSet,
        scored: Sequence[ScoredSAE],
        latents: Sequence[Int[np.ndarray, " n"]],
        k: int,
    ) -> list[Float[np.ndarray, " d_sae"]]:
        """Return the scores of some latents of each SAE as a comparison wants them, NaN for the others.

        Once they are known, the maps and distances they were made of are deleted.
        """
        kept = Checkpoint(self.folder and self.folder / f"{plan.name}.pt")
        known = kept.load()
        if known is not None:
            return [cds.numpy() for cds in known["cds"]]
        folder = self.folder and self.folder / plan.name
        if folder is not None:
            folder.mkdir(exist_ok=True)
        again = self._score(plan, images, scored, latents, k, folder)
        processes.barrier()  # all have read the parts
        if folder is not None and processes.current().rank == 0:
            kept.save({"cds": [torch.from_numpy(cds) for cds in again]})
            shutil.rmtree(folder, ignore_errors=True)
        return again

    def _score(
        self,
        plan: _Plan,
        images: ImageSet,
        scored: Sequence[ScoredSAE],
        latents: Sequence[Int[np.ndarray, " n"]],
        k: int,
        folder: Path | None,
    ) -> list[Float[np.ndarray, " d_sae"]]:
        wanted = []
        for one, some in zip(scored, latents, strict=True):
            ranking = one.held_out if plan.kind is Kind.images else one.ranking
            assert ranking is not None
            assert ranking.k_max >= k, (ranking.k_max, k)
            file = None if folder is None else folder / f"maps-{one.seed}.npy"
            wanted.append(WantedMaps(one.sae, some, ranking.top_images[some, :k], file))
        with self.show_bar(f"encoding crops, {plan.setting}") as progress:
            made = encode_maps(
                self.backbone,
                images,
                wanted,
                plan.scope,
                self.layer,
                self.trainer,
                n_readers=self.n_readers,
                progress=progress,
                progress_folder=folder,
            )
        again = []
        for one, part, maps in zip(scored, wanted, made, strict=True):
            with self.show_bar(f"computing EMD, {plan.setting}") as progress:
                name = f"distances-{one.seed}"
                scores = compute_scores(maps, part.top_images >= 0, plan.scope, progress, False, folder, name)
            cds = np.full(one.sae.d_sae, np.nan)
            cds[part.latents] = scores.cds(k).values
            again.append(cds)
        return again


def _vary_k(scores: Scores, k_cds: int) -> list[Variation]:
    """Average over 1, 2, 4, ... ranks and over all that there are."""
    powers = (2**i for i in range(scores.k_max.bit_length()))
    others = [k for k in sorted({*powers, scores.k_max}) if k != k_cds]
    return [Variation(f"k_{k}", Kind.k_cds, f"k_CDS {k}", scores.cds(k).values) for k in others]


def _vary_solver(
    one: ScoredSAE, latents: Int[np.ndarray, " n"], scope: ScopeConfig, progress: ProgressHook, folder: Path | None
) -> Variation:
    """Compute the distances of some latents from the maps that are kept, by the solver that was not used."""
    scores = one.scores
    if scope.emd is EMDMethod.exact:
        method, setting = EMDMethod.sinkhorn, f"Sinkhorn, blur {scope.sinkhorn_blur:g}"
    else:
        method, setting = EMDMethod.exact, "exact EMD"
    maps, ranked = scores.maps[latents, : scope.k_cds], ~np.isnan(scores.mass1[latents, : scope.k_cds])
    cds = np.full(len(scores.emd), np.nan)
    again = compute_scores(maps, ranked, replace(scope, emd=method), progress, False, folder, f"solver-{one.seed}")
    cds[latents] = again.cds(scope.k_cds).values
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
