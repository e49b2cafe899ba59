"""Reading the features that the report shows as examples, with their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from infoscope.data.images import ImageSet
from infoscope.pipeline.context import Context
from infoscope.scope.cds import CDS
from infoscope.scope.config import By
from infoscope.scope.examples import choose_example_latents
from infoscope.scope.partition import name_group
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.stages.images import open_split
from infoscope.stages.rank import Rank
from infoscope.stages.score.example_figure import MAX_PAIRS, Example
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.tokens import Tokens

N_EXAMPLES = 6


def read_examples(ctx: Context, scope: ScopeResult) -> list[Example]:
    """Return some features of each group of one seed with their top pictures, the lowest of what is divided first."""
    ranking, scores, k = Rank.at(ctx, scope.sae_seed).load(), scope.scores, scope.k_cds
    images, patch_px = open_split(ctx, "train"), Tokens.at(ctx, "train").read_json("tokens.json")["patch_px"]
    measured = CDS(scope.measure, scores.cds(k).n_valid)
    chosen = choose_example_latents(measured, scope.partition, scope.undecided, N_EXAMPLES, k)
    return [
        make_example(scope, latent, group, scores, ranking, images, patch_px)
        for group, latents in chosen.items()
        for latent in latents
    ]


def make_example(
    scope: ScopeResult,
    latent: int,
    group: str,
    scores: Scores,
    ranking: Ranking,
    images: ImageSet,
    patch_px: int,
    ranks: Int[np.ndarray, " n"] | None = None,
) -> Example:
    """Return a feature of a group on the images that excite it most.

    Args:
        scores, ranking: on these images, which need not be those that `scope` was measured on.
        ranks: which of its images, all of which there are; None: the best, as many as a row holds.

    Raises:
        ImageError: one cannot be read.
    """
    if ranks is None:
        ranks = np.flatnonzero(ranking.top_images[latent] >= 0)[:MAX_PAIRS]
    size_px = (scores.grid + scores.shift_patches) * patch_px
    return Example(
        latent=latent,
        cds=float(scope.cds[latent]),
        group=group,
        images=np.stack([images.load(int(i), size_px) for i in ranking.top_images[latent, ranks]]),
        maps=np.array(scores.maps[latent, ranks]),
        emd=scores.emd[latent, ranks],
        ranks=tuple(ranks.tolist()),
        diagonal=scores.diagonal,
        n_valid=int(scope.scores.cds(scope.k_cds).n_valid[latent]),
        k_cds=scope.k_cds,
        is_undecided=bool(scope.undecided[latent]),
        is_locked=bool(scope.position_locked[latent]),
        note="" if scope.by is By.cds else f"{scope.by.words} {scope.measure[latent]:.2f}",
    )


def count_locked(scope: ScopeResult) -> dict[str, int]:
    """Return how many features of each group are position-locked."""
    return {name: int((members & scope.position_locked).sum()) for name, members in scope.partition.groups.items()}


def say_locked(scopes: Sequence[ScopeResult]) -> str:
    """Say how many features of each group are position-locked in each SAE seed."""
    parts = []
    for name in dict.fromkeys(name for scope in scopes for name in scope.partition.groups):
        groups = [scope.partition.groups.get(name, np.zeros(len(scope.cds), dtype=bool)) for scope in scopes]
        locked = [(group & scope.position_locked).sum() for group, scope in zip(groups, scopes, strict=True)]
        counts = [f"{n} of {group.sum()}" for n, group in zip(locked, groups, strict=True)]
        parts.append(f"{name_group(name)} {', '.join(counts)}")
    per_seed = ", by SAE seed" if len(scopes) > 1 else ""
    return f"Position-locked: at one place of the grid whatever the picture ({'; '.join(parts)} features{per_seed})."
