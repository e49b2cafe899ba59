"""Which way of making the score from pairs of crops is best: by reliability, and by agreement with the declared truth.

    python experiments/score_variants.py                       # the miniature, on other scenes than all other results
    python experiments/score_variants.py data.seed=0           # on the scenes of the other results
    python experiments/score_variants.py model=dinov2_s14 data.size_px=240 data.n_train=1000 sae=topk sae.k=16

Variants: median and trimmed mean instead of the mean over pairs; rules for maps that vanish in one crop; the chance
level taken away; both diagonals of each image (the distance is symmetric, so of the four directions of a diagonal
shift two differ); images drawn from all on which a feature fires instead of its top ones; and more images. Arguments
are overrides of the `infoscope` command.

Measures, each with the middle 95% of 500 draws in which features are drawn anew, as the mean over SAE seeds:
reliability (random halves of a feature's images, Spearman, Spearman-Brown); AUROC of known-global against known-local
features, of all and of as many of both that fire equally often (one draw of them, whose luck is in no interval);
agreement: at equal firing frequency, the correlation with what global factors explain of a feature minus that with
what patch labels explain (partial Spearman).

Declared before any run: a variant is better than the paper's mean if, over the features that both score, the interval
of its gain in one of the four measures lies above 0 and none lies below 0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from infoscope.commands.experiments.runs import Run, Shown, split_runs
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.data.images import ImageSet, Truth
from infoscope.pipeline.context import Context
from infoscope.report.tables import Align, Column, Table, compute_stat
from infoscope.runtime.errors import InputError
from infoscope.scope.config import Diagonal, RankBy
from infoscope.scope.confounds import ConfoundResult
from infoscope.scope.partial_ranks import estimate
from infoscope.scope.ranking import Ranking
from infoscope.scope.resampling import draw_auroc, draw_partial, draw_split_half, draw_weights
from infoscope.scope.scores import Scores
from infoscope.scope.separation import match_frequency
from infoscope.scope.variants import Variant, list_variants
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.images import open_split
from infoscope.stages.rank import Rank
from infoscope.stages.score.stage import Score

N_DRAWS = 500
MEASURES = {
    "reliability": "reliability",
    "auroc": "AUROC",
    "auroc_matched": "AUROC at matched frequency",
    "agreement": "agreement at equal frequency",
}
SCORINGS = [(rank_by, diagonal) for rank_by in (RankBy.max, RankBy.drawn) for diagonal in Diagonal]
"""What is needed to score all variants, in the order of `list_variants`."""


class OfSeed(NamedTuple):
    """What one configuration says of one SAE."""

    scores: Scores
    ranking: Ranking
    confounds: ConfoundResult


class Compared(NamedTuple):
    """A variant over SAE seeds: measures and gains over the paper's by name, the number itself and draws of it."""

    variant: Variant
    n_crops: float
    n_scored: float
    measures: Mapping[str, Float[np.ndarray, " draws"]]
    gains: Mapping[str, Float[np.ndarray, " draws"]]

    @property
    def is_better(self) -> bool:
        """Whether the rule that was declared calls it better than the paper's."""
        gains = [estimate([draws]) for draws in self.gains.values()]
        return any(gain.low > 0 for gain in gains) and not any(gain.high < 0 for gain in gains)


def has_truth(images: ImageSet) -> bool:
    """Return whether the images say what is global and what is local."""
    return bool(images.global_factors) and Truth.label_maps in images.truths


def measure(ctx: Context) -> list[OfSeed]:
    """Return scores, ranking and declared truth of all SAE seeds.

    Raises:
        InputError: if the images do not say what is global and what is local.
    """
    seeds = ctx.config.seeds
    if not has_truth(open_split(ctx, "train")):
        raise InputError(
            "Expected images with global factors and label maps, which say what is global and local, got others: take"
            " data=scenes."
        )
    return [OfSeed(Score.at(ctx, s).load(), Rank.at(ctx, s).load(), Confounds.at(ctx, s).load()) for s in seeds]


def measure_variant(variant: Variant, found: ConfoundResult, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return `MEASURES` of the features that a variant scores, the number itself and draws of it."""
    scores, rate = variant.scores, found.properties.firing_rate
    scored = np.isfinite(scores)
    known = found.known_global & scored, found.known_local & scored
    matched = match_frequency(*known, rate)
    assert found.label_effect is not None
    declared = np.where(found.fires_enough, scores, np.nan)
    effects = found.image_effect, found.label_effect
    image, label = (draw_partial(declared, effect, rate, weights) for effect in effects)
    return {
        "reliability": draw_split_half(variant, weights),
        "auroc": draw_auroc(scores, *known, weights),
        "auroc_matched": draw_auroc(scores, *matched, weights),
        "agreement": image - label,
    }


def compare_variants(scorings: Sequence[OfSeed], k: int, seed: int) -> Iterator[Compared]:
    """Compare all variants of one SAE with the paper's.

    Args:
        scorings: in the order of `SCORINGS`.
        seed: of the draws, another one for each SAE: means over SAEs are of draws that have nothing in common.
    """
    found = scorings[0].confounds
    weights = draw_weights(np.stack([found.known_global, found.known_local]), N_DRAWS, seed)
    top, top_anti, drawn, drawn_anti = (one.scores for one in scorings)
    paper, *others = list_variants(top, top_anti, drawn, drawn_anti, k)
    for variant in (paper, *others):
        shared = np.isfinite(paper.scores) & np.isfinite(variant.scores)
        measures = measure_variant(variant, found, weights)
        pair = [one._replace(valid=one.valid & shared[:, None]) for one in (variant, paper)]
        ours, theirs = (measure_variant(one, found, weights) for one in pair)
        gains = {name: ours[name] - theirs[name] for name in MEASURES}
        images = scorings[2 if variant.is_drawn else 0].ranking.top_images[:, : variant.n_images]
        n_crops = 2 * len(np.unique(images[images >= 0])) * variant.n_pairs // variant.n_images
        yield Compared(variant, n_crops, int(np.isfinite(variant.scores).sum()), measures, gains)


def join_seeds(seeds: Sequence[Compared]) -> Compared:
    """Return means over SAE seeds, draw by draw."""
    measures, gains = (
        {name: np.mean([of[name] for of in many], axis=0) for name in MEASURES}
        for many in ([one.measures for one in seeds], [one.gains for one in seeds])
    )
    n_crops, n_scored = (compute_stat(of).mean for of in ([s.n_crops for s in seeds], [s.n_scored for s in seeds]))
    return Compared(seeds[0].variant, n_crops, n_scored, measures, gains)


def make_table(name: str, title: str, rows: Sequence[Compared], is_gain: bool) -> Table:
    """Return a row per variant, with its cost, and each measure or gain with its interval."""
    columns = [Column("variant", "score", Align.left), Column("n_pairs", "pairs", digits=0, is_count=True)]
    columns += [Column("n_crops", "crops encoded", digits=0), Column("n_scored", "scored", digits=0)]
    for key, heading in MEASURES.items():
        columns += [Column(key, heading, digits=3, signed=is_gain)]
        columns += [Column(f"{key}_{end}", end, digits=3, signed=is_gain) for end in ("from", "to")]
    table = Table(name, title, columns)
    for row in rows:
        cells = []
        for draws in (row.gains if is_gain else row.measures).values():
            cells += estimate([draws])
        table.add_row(row.variant.name, row.variant.n_pairs, row.n_crops, row.n_scored, *cells)
    return table


def show(runs: Sequence[Run[list[OfSeed]]]) -> Shown:
    """The measures of each variant and what it gains on the paper's."""
    tables = []
    for number, of in split_runs(runs, "scope.rank_by", "scope.diagonal").items():
        by_scoring = {(run.config.scope.rank_by, run.config.scope.diagonal): run for run in of}
        if not by_scoring.keys() >= set(SCORINGS):
            continue  # one has failed, which is said
        scorings = zip(*(by_scoring[scoring].found for scoring in SCORINGS), strict=True)
        k = of[0].config.scope.k_cds
        seeds = [list(compare_variants(one, k, seed)) for one, seed in zip(scorings, of[0].config.seeds, strict=True)]
        rows = [join_seeds(variant) for variant in zip(*seeds, strict=True)]
        gains = make_table(f"gains{number}", "Gain on the paper's mean, over the features that both score", rows, True)
        for cost, costs_more in (("of equal cost", False), ("that cost more", True)):
            better = [row.variant.name for row in rows if (row.variant.n_pairs > k) is costs_more and row.is_better]
            gains.notes.append(f"Variants {cost} that are better by the rule declared: {'; '.join(better) or 'none'}.")
        tables += [make_table(f"score_variants{number}", f"Variants of the score, {of[0].label}", rows, False), gains]
    if not tables:
        raise InputError(
            "Expected every combination of scope.rank_by=max,drawn and scope.diagonal=main,anti, which the variants are"
            " made of: give neither, or let the command go on from what it lacks."
        )
    return Shown(tables, {})


EXPERIMENT = Experiment(
    "score_variants",
    __doc__,
    measure,
    show,
    stages=["confounds"],
    defaults=["data.seed=1", "scope.k_max=32", "scope.rank_by=max,drawn", "scope.diagonal=main,anti"],
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
