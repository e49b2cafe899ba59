"""The latents of an explorer's views in its other views: by what they are matched, and how the files say it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infoscope.analyses.levels import Levels
from infoscope.analyses.neighbours import Matchable, ViewMatches
from infoscope.explorer.format import pack, put, shorten
from infoscope.pipeline.context import Context
from infoscope.runtime.manifests import compute_hash, read_manifest
from infoscope.scope.ranking import Ranking
from infoscope.stages.levels import LevelMaps, has_levels
from infoscope.stages.precision import load_frozen
from infoscope.stages.rank import Rank
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens
from infoscope.vision.hooks import RESID_POST
from infoscope.vision.tokens.source import TokenFacts

Matches = Mapping[str, ViewMatches | str]
"""Of a view with other views, by their ids; a sentence where nothing could be matched."""


def make_matchable(ctx: Context, seed: int) -> Matchable:
    """Return what the latents of a seed are matched by with those of other views."""
    levels = LevelMaps.at(ctx, seed).folder if has_levels(ctx, seed) else None
    sae, ranking, tokens = sae_of(ctx, seed), Rank.at(ctx, seed), Tokens.at(ctx, "train")
    return read_matchable(ctx, levels, sae.folder, ranking.folder, tokens.folder)


def read_matchable(ctx: Context, levels: Path | None, sae: Path, ranking: Path, tokens: Path) -> Matchable:
    """Return what the latents of an SAE are matched by, of this experiment or another: from its artifacts' folders.

    Args:
        levels: None: they were not measured.
        tokens: of the training images, of which levels and ranking are.
    """
    made, meta = read_manifest(tokens), TokenFacts(tokens).meta
    assert made is not None, f"{tokens} is no artifact"
    model = {
        name: of for name, of in made["key"]["model"].items() if name != "precision"
    }  # that moves them by rounding
    W_dec = load_frozen(ctx, sae).W_dec.detach()
    return Matchable(
        sae=hashlib.sha256(W_dec.cpu().contiguous().numpy().tobytes()).hexdigest(),  # imported again it is the same SAE
        reads=compute_hash({"model": model, "layer": meta["layer"], "site": meta.get("site", RESID_POST)}),
        images=compute_hash(made["key"]["images"]),
        W_dec=W_dec,
        is_alive=Ranking.load(ranking).firing_rate > 0,
        codes=None if levels is None else Levels.load(levels).codes,
    )


def say_matches(matches: Matches) -> dict[str, dict[str, str]]:
    """Return what the explorer's manifest says of a view: by what its latents are matched with those of each other
    view, or why they are not."""
    return {
        "matched_by": {view: found.how for view, found in matches.items() if isinstance(found, ViewMatches)},
        "unmatched": {view: why for view, why in matches.items() if isinstance(why, str)},
    }


def write_matches(folder: Path, view: str, matches: Matches) -> None:
    """Write the matches of all latents of a view, a file for each other view that it is matched with."""
    for other, found in matches.items():
        if isinstance(found, ViewMatches):
            about = {"latents": pack(found.latents), "values": pack(found.values)}
            put(folder, f"{view}/columns/match_{other}", about)


def list_matches(latent: int, matches: Matches) -> list[dict[str, Any]]:
    """Return what the page of a latent says of its matches in other views."""
    return [
        {"view": view, "latent": found.latents[latent], "value": shorten(found.values[latent])}
        for view, found in matches.items()
        if isinstance(found, ViewMatches) and found.latents[latent] >= 0
    ]
