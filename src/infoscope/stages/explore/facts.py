"""What an explorer says of each latent beside its top images: where else it fires, what is like it, what it is in
other views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from infoscope.analyses.levels import AT, N_BINS, Levels, Spread, compute_spread
from infoscope.analyses.neighbours import (
    Matchable,
    ViewMatches,
    compute_class_shares,
    find_coactive,
    find_decoder_neighbours,
    find_matches,
)
from infoscope.analyses.top_sets import TopSets
from infoscope.data.images import Truth
from infoscope.explorer.format import pack_maps, shorten
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Needs
from infoscope.stages.explore.matches import Matches, list_matches, make_matchable, say_matches
from infoscope.stages.images import open_split
from infoscope.stages.levels import LevelMaps, has_levels
from infoscope.stages.rank import Rank
from infoscope.stages.sae import sae_of

N_CLASSES = 5
"""Classes that are named of a latent, at most."""


def needs_of_facts(ctx: Context, seed: int) -> Needs:
    """Return what the facts of a seed's latents are read from; of other seeds theirs."""
    levels = {"levels": LevelMaps.at(ctx, seed)} if has_levels(ctx, seed) else {}
    return Needs(**levels, sae=sae_of(ctx, seed), ranking=Rank.at(ctx, seed))


@dataclass(frozen=True)
class LatentFacts:
    """What is said of the latents of one SAE beside their top images.

    levels: images at quantiles of activation and at random, with maps; None: they cannot be measured any more, and so
        neither spread, coactive nor classes are known.
    decoder, coactive: the nearest other latents, see `find_decoder_neighbours`, `find_coactive`; None: not asked for.
    classes: shares of activation by class, see `compute_class_shares`; None: the images have no classes.
    matches: by other view, see `find_matches`.
    n_all: training images that could be read, of which the levels' are a sample.
    """

    levels: Levels | None
    spread: Spread | None
    decoder: TopSets | None
    coactive: TopSets | None
    classes: TopSets | None
    matches: Matches
    n_all: int

    @classmethod
    def read(cls, ctx: Context, seed: int, others: Mapping[str, Matchable | str]) -> LatentFacts:
        """Return what is said of the latents of a seed; what is like them is computed here.

        Args:
            others: the other views of the explorer by id, see `make_matchable`; a sentence: why one is not matched.
        """
        levels = LevelMaps.at(ctx, seed).load() if has_levels(ctx, seed) else None
        one, n_near = make_matchable(ctx, seed), ctx.config.explore.n_near
        decoder = coactive = None
        if n_near and levels is not None:
            with ctx.display.bar(f"latents that fire together, seed {seed}", len(one.W_dec), "latents") as advance:
                coactive = find_coactive(levels.codes, n_near, advance)
        if n_near:
            with ctx.display.bar(f"nearest decoder rows, seed {seed}", len(one.W_dec), "latents") as advance:
                decoder = find_decoder_neighbours(one.W_dec, one.is_alive, n_near, advance)
        matches = dict[str, ViewMatches | str]()
        for view, other in others.items():
            with ctx.display.bar(f"matching the latents of seed {seed}", len(one.W_dec), "latents") as advance:
                matches[view] = find_matches(one, other, advance)
        images, classes = open_split(ctx, "train"), None
        if Truth.labels in images.truths and levels is not None:
            labels = images.labels("class")[np.asarray(levels.codes.image_index)]
            classes = compute_class_shares(levels.codes, labels, images.n_classes, N_CLASSES)
        spread = None if levels is None else compute_spread(levels.codes)
        return cls(levels, spread, decoder, coactive, classes, matches, Rank.at(ctx, seed).load().n_images)

    @property
    def of_view(self) -> dict[str, Any]:
        """What the explorer's manifest says of the view: on which images levels are measured, and by what its latents
        are matched with those of each other view, or why they are not."""
        if self.levels is None:
            return say_matches(self.matches)
        n = self.levels.codes.n_images
        sample = (
            f"{n:,} of {self.n_all:,} training images, drawn at random" if n < self.n_all else "all training images"
        )
        return {"levels_of": sample, **say_matches(self.matches)}

    def of_latents(self, latents: range) -> list[dict[str, Any]]:
        """Return the facts of consecutive latents, one after the other, as their pages want them; maps are read now."""
        if self.levels is None:
            return [self._list_others(latent) for latent in latents]
        some = slice(latents.start, latents.stop)
        images, maps = self.levels.images[some], self.levels.maps[some][:, :, 0]
        return [self._describe(*one) for one in zip(latents, images, maps, strict=True)]

    def _describe(self, latent: int, images: np.ndarray, maps: np.ndarray) -> dict[str, Any]:
        slots = np.arange(len(images))
        at, drawn = (slots[is_one & (images >= 0)] for is_one in (slots < len(AT), slots >= len(AT)))
        assert self.levels is not None
        assert self.spread is not None
        return {
            "levels": {"at": [AT[slot] for slot in at], **_show(images[at], maps[at])},
            "random": _show(images[drawn], maps[drawn]),
            "spread": {
                "edges": shorten(np.linspace(0, self.spread.largest[latent], N_BINS + 1)),
                "counts": self.spread.counts[latent],
                "n_firing": self.spread.n_firing[latent],
                "n_images": self.levels.codes.n_images,
            },
            **self._list_others(latent),
        }

    def _list_others(self, latent: int) -> dict[str, Any]:
        near = {"decoder": self.decoder, "coactive": self.coactive}
        found: dict[str, Any] = {
            "near": {name: _list(of, latent, "latents") for name, of in near.items() if of is not None}
        }
        if self.classes is not None:
            found["classes"] = _list(self.classes, latent, "classes")
        found["elsewhere"] = list_matches(latent, self.matches)
        return found


def _show(images: np.ndarray, maps: np.ndarray) -> dict[str, Any]:
    """Return images with what the latent does in them: its largest activation on a patch, and its map."""
    peaks = maps.reshape(len(maps), maps.shape[1] * maps.shape[2]).max(axis=1)
    return {"images": images, "activation": shorten(peaks), "maps": pack_maps(maps)}


def _list(found: TopSets, row: int, name: str) -> dict[str, Any]:
    known = found.columns[row] >= 0
    return {name: found.columns[row, known], "values": shorten(found.values[row, known])}
