"""What an explorer says of each latent beside its row of the table: its top images, with the maps on both crops."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infoscope.explorer.format import pack_maps, put
from infoscope.pipeline.context import Context
from infoscope.scope.config import RankBy
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.stages.explore.facts import LatentFacts
from infoscope.stages.rank import Rank
from infoscope.stages.score.stage import Score

BLOCK_LATENTS = 64
"""Latents in a file: with 16 ranks of ViT-L/14's maps 3 MB."""
RANKED_BY = {RankBy.max: "activation", RankBy.mean: "mean_activation"}
"""What the value by which images are ranked is called; one that was drawn says nothing of the image."""


def write_latents(ctx: Context, folder: Path, view: str, seed: int, facts: LatentFacts) -> None:
    """Write the details of all latents, a file for each block of them; maps are read as they are written."""
    scores, ranking, n_ranks = Score.at(ctx, seed).load(), Rank.at(ctx, seed).load(), ctx.config.explore.n_images
    d_sae = ranking.d_sae
    with ctx.display.bar(f"pages of latents, seed {seed}", d_sae, "latents") as advance:
        for start in range(0, d_sae, BLOCK_LATENTS):
            block = range(start, min(start + BLOCK_LATENTS, d_sae))
            found = list_ranks(scores, ranking, block, n_ranks)
            for about, others in zip(found.values(), facts.of_latents(block), strict=True):
                about |= others
            put(folder, f"{view}/latents/{start // BLOCK_LATENTS}", found)
            advance(block.stop)


def list_ranks(scores: Scores, ranking: Ranking, latents: range, n_ranks: int) -> dict[int, dict[str, Any]]:
    """Return {latent: {"ranks": ...}} of consecutive latents: images, distances, activations (see `RANKED_BY`) and maps
    of the ranks that have an image."""
    by = RANKED_BY.get(ranking.rank_by)
    some = slice(latents.start, latents.stop)
    maps = np.asarray(scores.maps[some, :n_ranks])
    found: dict[int, dict[str, Any]] = {}
    for latent, of_ranks in zip(latents, maps, strict=True):
        ranks = np.flatnonzero(ranking.top_images[latent, :n_ranks] >= 0)
        about: Mapping[str, Any] = {
            "images": ranking.top_images[latent, ranks],
            "emd": scores.emd[latent, ranks],
            **({by: ranking.top_values[latent, ranks]} if by else {}),
            "maps": pack_maps(of_ranks[ranks].reshape(-1, scores.grid, scores.grid)),
        }
        found[latent] = {"ranks": about}
    return found
