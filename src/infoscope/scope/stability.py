"""How far contextual dependency scores depend on choices that should not matter: which images, crops, k, seed, solver.

Every comparison is between the scores as configured and the scores with one choice made otherwise, feature by feature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import lightning as L
import numpy as np
from jaxtyping import Float, Int

from infoscope.data.images import ImageSet
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.agreement import (
    Agreement,
    Interval,
    IntervalSummary,
    bootstrap_cds,
    compare_cds,
    match_latents,
    summarise_intervals,
)
from infoscope.scope.config import Diagonal, EMDMethod, ScopeConfig, StabilityConfig
from infoscope.scope.emd import ProgressHook
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import LatentMaps, compute_scores, fill_maps, make_maps, make_trainer
from infoscope.vision.backbone import Backbone


class Kind(Enum):
    """Which choice was made otherwise."""

    shift = "shift"
    diagonal = "diagonal"
    images = "images"
    k_cds = "k_cds"
    solver = "solver"
    seed = "seed"


@dataclass(frozen=True)
class Variation:
    """The scores with one choice made otherwise.

    name: unique within a result.
    setting: the choice in words.
    cds: [d_sae] by latent of the SAE that is compared; NaN where unscored, not scored again, or without a match.
    note: why nothing was measured; empty otherwise.
    gamma: that of these scores, where it is not the compared SAE's own.
    cosine: [d_sae], of kind seed, of the decoder rows of each latent and its match, whatever it is; NaN without one.
    """

    name: str
    kind: Kind
    setting: str
    cds: Float[np.ndarray, " d_sae"]
    note: str = ""
    gamma: float | None = None
    cosine: Float[np.ndarray, " d_sae"] | None = None


@dataclass(frozen=True)
class StabilityResult:
    """How stable the scores of one SAE's features are.

    configured: the choices of the configuration, in words.
    cds: [d_sae] as configured, which everything is compared with.
    gamma: what divides the features; None where nothing does.
    interval: by bootstrap over the images, of the share `level`.
    min_cosine: above it the features of two SAEs count as the same.
    """

    sae_seed: int
    configured: str
    k_cds: int
    gamma: float | None
    cds: Float[np.ndarray, " d_sae"]
    interval: Interval
    level: float
    n_draws: int
    min_cosine: float
    variations: tuple[Variation, ...]

    def compare(self, variation: Variation, all_pairs: bool = False) -> Agreement:
        """Return how a variation agrees with the scores as configured.

        Another SAE is compared over the pairs of features above `min_cosine`, or over all that were matched.
        """
        cds = variation.cds
        if variation.cosine is not None and not all_pairs:
            cds = np.where(variation.cosine > self.min_cosine, cds, np.nan)
        return compare_cds(self.cds, cds, self.gamma, variation.gamma)

    @property
    def intervals(self) -> IntervalSummary:
        """The intervals in a few numbers."""
        return summarise_intervals(self.cds, self.interval, self.gamma)

    def save(self, folder: Path) -> None:
        """Write stability.npz and stability.json into `folder` (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        none = np.full(len(self.cds), np.nan)
        cosines = [none if variation.cosine is None else variation.cosine for variation in self.variations]
        np.savez(
            folder / "stability.npz",
            cds=self.cds,
            lower=self.interval.lower,
            upper=self.interval.upper,
            variations=_stack([variation.cds for variation in self.variations], len(none)),
            cosines=_stack(cosines, len(none)),
        )
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["variations"] = [
            {name: getattr(variation, name) for name in _VARIATION_FACTS} | {"kind": variation.kind.name}
            for variation in self.variations
        ]
        (folder / "stability.json").write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> StabilityResult:
        """Read what `save` wrote."""
        facts = json.loads((folder / "stability.json").read_text())
        with np.load(folder / "stability.npz", allow_pickle=False) as arrays:
            variations = []
            for one, cds, cosine in zip(facts.pop("variations"), arrays["variations"], arrays["cosines"], strict=True):
                kind = Kind[one.pop("kind")]
                variations.append(Variation(**one, kind=kind, cds=cds, cosine=cosine if kind is Kind.seed else None))
            interval = Interval(arrays["lower"], arrays["upper"])
            return cls(**facts, cds=arrays["cds"], interval=interval, variations=tuple(variations))


def _stack(rows: Sequence[np.ndarray], width: int) -> Float[np.ndarray, "n_rows width"]:
    return np.stack(rows) if rows else np.zeros((0, width))


_FACTS = ("sae_seed", "configured", "k_cds", "gamma", "level", "n_draws", "min_cosine")
_VARIATION_FACTS = ("name", "setting", "note", "gamma")


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
    layer: int = -2,
    trainer_for: Callable[[str], L.Trainer] = lambda setting: make_trainer(),
    progress: ProgressHook | None = None,
    n_readers: int = 0,
) -> list[StabilityResult]:
    """Score the features again with one choice made otherwise, for all SAEs at once, and compare.

    Encodes each image once per shift, diagonal and image set, whatever the number of SAEs; the other comparisons read
    what the scores hold. Features that have no score as configured are not scored again.

    Args:
        scored: the SAEs, in the order of the results; several are compared with each other.
        scope: with which `scores` were made.
        trainer_for: makes what runs the encoding of a setting (in words); by default a bare trainer.
        progress: called with (pairs, all pairs) while distances are computed, from 0 again for each SAE and setting.

    Raises:
        InputError: if a ranking has fewer ranks than k_cds, an image cannot be read, or a token is not finite.
    """
    k = scope.k_cds
    base = [one.scores.cds(k).values for one in scored]
    for one in scored:
        one.ranking.check_enough_images(k)
    latents = [
        _draw_latents(cds, config.n_latents, [config.seed, one.seed]) for cds, one in zip(base, scored, strict=True)
    ]
    found: list[list[Variation]] = [[] for _ in scored]
    for plan in _plan_encoding(backbone.grid, scored, held_out_images, scope, config.shifts):
        again = [np.full(len(cds), np.nan) for cds in base]
        if not plan.note:
            images = train_images if plan.kind is not Kind.images else held_out_images
            wanted = _want_maps(scored, latents, plan, k, backbone.grid)
            assert images is not None
            fill_maps(backbone, images, wanted, plan.scope, layer, trainer_for(plan.setting), n_readers)
            again = [_score_maps(maps, plan.scope, len(cds), progress) for maps, cds in zip(wanted, base, strict=True)]
        for variations, cds in zip(found, again, strict=True):
            variations.append(Variation(plan.name, plan.kind, plan.setting, cds, plan.note))
    for variations, one, cds in zip(found, scored, base, strict=True):
        few = _draw_latents(cds, config.n_solver_latents, [config.seed, one.seed, 1])
        variations += [*_vary_k(one.scores, k), _vary_solver(one.scores, few, scope, progress)]
    for i, j in combinations(range(len(scored)), 2):
        for at, variation in zip((i, j), _vary_seed(scored[i], scored[j], base[i], base[j]), strict=True):
            found[at].append(variation)
    return [
        _assemble(one, cds, tuple(variations), scope, config)
        for one, cds, variations in zip(scored, base, found, strict=True)
    ]


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


def _want_maps(
    scored: Sequence[ScoredSAE], latents: Sequence[Int[np.ndarray, " n"]], plan: _Plan, k: int, grid: int
) -> list[LatentMaps]:
    """Return what is to be filled, for each SAE: maps of its latents on the images that they rank."""
    wanted = []
    for one, some in zip(scored, latents, strict=True):
        ranking = one.held_out if plan.kind is Kind.images else one.ranking
        assert ranking is not None
        assert ranking.k_max >= k, (ranking.k_max, k)
        top_images = ranking.top_images[some, :k]
        wanted.append(LatentMaps(one.sae, some, top_images, make_maps((*top_images.shape, 2, grid, grid), None)))
    return wanted


def _score_maps(
    made: LatentMaps, scope: ScopeConfig, d_sae: int, progress: ProgressHook | None
) -> Float[np.ndarray, " d_sae"]:
    """Return the scores of the latents whose maps are given, NaN for the others."""
    scores = compute_scores(made.maps, made.top_images >= 0, scope, progress, with_chance=False)
    cds = np.full(d_sae, np.nan)
    cds[made.latents] = scores.cds(made.top_images.shape[1]).values
    return cds


def _vary_k(scores: Scores, k_cds: int) -> list[Variation]:
    """Average over 1, 2, 4, ... ranks and over all that there are."""
    powers = (2**i for i in range(scores.k_max.bit_length()))
    others = [k for k in sorted({*powers, scores.k_max}) if k != k_cds]
    return [Variation(f"k_{k}", Kind.k_cds, f"k_CDS {k}", scores.cds(k).values) for k in others]


def _vary_solver(
    scores: Scores, latents: Int[np.ndarray, " n"], scope: ScopeConfig, progress: ProgressHook | None
) -> Variation:
    """Compute the distances of some latents from the maps that are kept, by the solver that was not used."""
    if scope.emd is EMDMethod.exact:
        method, setting = EMDMethod.sinkhorn, f"Sinkhorn, blur {scope.sinkhorn_blur:g}"
    else:
        method, setting = EMDMethod.exact, "exact EMD"
    maps, ranked = scores.maps[latents, : scope.k_cds], ~np.isnan(scores.mass1[latents, : scope.k_cds])
    cds = np.full(len(scores.emd), np.nan)
    again = compute_scores(maps, ranked, replace(scope, emd=method), progress, with_chance=False)
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
