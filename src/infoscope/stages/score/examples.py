"""Reading the features that the report shows as examples, with their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from infoscope.pipeline.context import Context
from infoscope.scope.examples import choose_example_latents, find_certainty
from infoscope.scope.partition import name_group
from infoscope.stages.images import open_split
from infoscope.stages.rank import Rank
from infoscope.stages.score.example_figure import MAX_PAIRS, Example
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.tokens import Tokens

N_EXAMPLES = 6


def read_examples(ctx: Context, scope: ScopeResult, locked: Bool[np.ndarray, " d_sae"]) -> list[Example]:
    """Return some features of each group of one seed with their top pictures, those of low scores first.

    Args:
        locked: which features are position-locked.
    """
    ranking, scores, k = Rank.at(ctx, scope.sae_seed).load(), scope.scores, scope.k_cds
    images, patch_px = open_split(ctx, "train"), Tokens.at(ctx, "train").read_json("tokens.json")["patch_px"]
    size_px, examples = (scores.grid + scores.shift_patches) * patch_px, []
    certainty = find_certainty(scores, k, scope.partition.gamma)
    for group, latents in choose_example_latents(scope.cds, scope.partition, certainty, N_EXAMPLES, k).items():
        for latent in latents:
            ranks = np.flatnonzero(ranking.top_images[latent] >= 0)[:MAX_PAIRS]
            index = ranking.top_images[latent, ranks]
            examples.append(
                Example(
                    latent=latent,
                    cds=float(scope.cds[latent]),
                    group=group,
                    images=np.stack([images.load(int(i), size_px) for i in index]),
                    maps=np.array(scores.maps[latent, ranks]),
                    emd=scores.emd[latent, ranks],
                    n_valid=int(certainty.n_valid[latent]),
                    k_cds=k,
                    is_undecided=bool(certainty.undecided[latent]),
                    is_locked=bool(locked[latent]),
                )
            )
    return examples


def count_locked(scope: ScopeResult, locked: Bool[np.ndarray, " d_sae"]) -> dict[str, int]:
    """Return how many features of each group are position-locked."""
    return {name: int((members & locked).sum()) for name, members in scope.partition.groups.items()}


def say_locked(scopes: Sequence[ScopeResult], locked: Sequence[Bool[np.ndarray, " d_sae"]]) -> str:
    """Say how many features of each group are position-locked in each SAE seed."""
    parts = []
    for name in dict.fromkeys(name for scope in scopes for name in scope.partition.groups):
        groups = [scope.partition.groups.get(name, np.zeros(len(scope.cds), dtype=bool)) for scope in scopes]
        counts = [f"{(group & of).sum()} of {group.sum()}" for group, of in zip(groups, locked, strict=True)]
        parts.append(f"{name_group(name)} {', '.join(counts)}")
    per_seed = ", by SAE seed" if len(scopes) > 1 else ""
    return f"Position-locked: at one place of the grid whatever the picture ({'; '.join(parts)} features{per_seed})."
