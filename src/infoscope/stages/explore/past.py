"""Explorers of scores that exist (explore.of): what is made for them, and what must be there."""

from __future__ import annotations

from infoscope.data.config import DataKind
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Node, list_needed
from infoscope.runtime.errors import InputError
from infoscope.runtime.experiments import list_differing, read_settings
from infoscope.runtime.manifests import flatten_determining, read_manifest
from infoscope.stages.energy import Sample
from infoscope.stages.explore.pictures import Thumbnails
from infoscope.stages.images import Scenes, fingerprint_images
from infoscope.stages.latents import Latents
from infoscope.stages.levels import LevelMaps, has_levels
from infoscope.stages.predict.stage import EmbeddedClasses
from infoscope.stages.recalled import WHERE
from infoscope.stages.score.stage import Score

_MADE = (Latents, LevelMaps, Sample, Thumbnails, EmbeddedClasses, Scenes)
"""What is made where it is missing: from other artifacts, and from the images that are left."""
_N_LOOKED_AT = 100
"""Newest scores among which those of the same settings are looked for."""


def advise_past(ctx: Context) -> None:
    """Say which scores the same settings have made, where these are not of the images as they are now.

    Else a folder in which one file is gone would have all made anew without a word.
    """
    if ctx.config.data.kind is DataKind.scenes or Score.at(ctx, ctx.config.seeds[0]).find() is not None:
        return
    settings, places = flatten_determining(ctx.tree), (ctx.store.root / Score.kind).glob("[!.]*")
    newest = sorted(places, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)[:_N_LOOKED_AT]
    images = fingerprint_images(ctx, "train")
    same = [
        folder
        for folder in newest
        if (made := read_manifest(folder)) is not None and made["key"].get("images") != images
        if (of := read_settings(folder)) and not list_differing(settings, of).keys() - WHERE
    ]
    if same:
        ctx.display.say(
            f"The same settings have scored other images before, so all is made anew. explore.of={same[0]} shows those"
            " scores, with the images that are left of them."
        )


def check_past(ctx: Context, explorer: Node) -> None:
    """Refuse to make anew what `explore.of` is there to keep, or to read images for it of which some may be gone.

    Raises:
        InputError: something that the explorer needs is not there.
    """
    for node in list_needed([explorer]):
        if node is explorer or not isinstance(node, Handle) or node.find() is not None:
            continue
        is_of_tokens = isinstance(node.stage, Sample) and not ctx.config.data.store_tokens
        if not isinstance(node.stage, _MADE) or is_of_tokens:
            raise InputError(
                "explore.of shows scores that exist and makes nothing before them anew, but what belongs to them"
                f" ({node.stage.describe(node.ctx, *node.item)}) is not in {ctx.store.root}: give seeds= whose scores"
                " are there, trainer.precision as they were made with, or make all anew, without explore.of."
            )
    if not all(has_levels(ctx, seed) for seed in ctx.config.seeds):
        ctx.display.say(
            "What each latent does in weaker and in random images is left out, and what fires together with it: the"
            " tokens were not stored (data.store_tokens=false), and some of the images that they come from are gone."
        )
