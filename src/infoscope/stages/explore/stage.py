"""stage=explore: a folder that a browser opens from the disk, to look at every latent, image and group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import features

from infoscope.analyses.levels import N_SLOTS
from infoscope.analyses.neighbours import Matchable
from infoscope.explorer.finding import INDEX
from infoscope.explorer.format import BYTES_PER_PATCH, FORMAT, put
from infoscope.explorer.page_files import write_page
from infoscope.explorer.tables import write_tables
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, NotBuiltYet, Shown, SingleStage, Work
from infoscope.runtime.environment import describe_environment
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import count_file_bytes, write_json
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.progress import format_bytes
from infoscope.runtime.read_only import MissingArtifact
from infoscope.runtime.store import Workspace
from infoscope.sae.origin import check_reads_patches
from infoscope.scope.sparse_maps import ACTIVE_SHARE
from infoscope.stages.explore.beside import read_besides, read_matchables, refuse_itself, take_views
from infoscope.stages.explore.extremes import log_latents
from infoscope.stages.explore.facts import LatentFacts, needs_of_facts
from infoscope.stages.explore.images import (
    count_browsed_bytes,
    count_browsed_forwards,
    key_of_browsed,
    needs_of_browsed,
    say_predictions,
    write_browsed_images,
)
from infoscope.stages.explore.latents import write_latents
from infoscope.stages.explore.matches import make_matchable, write_matches
from infoscope.stages.explore.past import advise_past, check_past
from infoscope.stages.explore.pictures import (
    PART_IMAGES,
    Thumbnails,
    find_gone,
    find_thumbnail_px,
    hash_all,
    list_shown,
    write_names,
)
from infoscope.stages.explore.views import name_view, write_view
from infoscope.stages.images import fingerprint_images, open_split, scenes_of
from infoscope.stages.latents import Latents
from infoscope.stages.publish import describe_experiment
from infoscope.stages.recalled import shows_past
from infoscope.stages.sae import count_latents, has_maps, origin_of
from infoscope.stages.score.stage import needs_of_groups
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.tracking.config import LoggerKind

FACTS = "explorer.json"
LARGE_BYTES = 10**9
"""From which on a command that serves the folder is named: others may want to look without a copy of it."""


@dataclass
class ExplorerFacts:
    """What an explorer holds, in numbers.

    n_latents: of all views together.
    n_images, n_missing: that are shown, and those of them that cannot be read any more.
    image_bytes, data_bytes: of the thumbnails, and of all other data.
    """

    n_views: int
    n_latents: int
    n_images: int
    n_missing: int
    image_bytes: int
    data_bytes: int

    @property
    def n_bytes(self) -> int:
        return self.image_bytes + self.data_bytes

    def save(self, folder: Path) -> None:
        """Write explorer.json into an existing folder."""
        write_json(folder / FACTS, vars(self))

    @classmethod
    def load(cls, folder: Path) -> ExplorerFacts:
        """Read what `save` wrote."""
        return cls(**json.loads((folder / FACTS).read_text(encoding="utf-8")))


class Explore(SingleStage[ExplorerFacts]):
    """The explorer of an experiment: a view for each SAE seed."""

    kind, holds = "explore", ExplorerFacts
    version = 1
    is_shared = False

    def name(self, ctx: Context) -> str:
        return ctx.title

    def describe(self, ctx: Context) -> str:
        if not has_maps(ctx):
            return self.kind
        return f"{self.kind}, {len(ctx.config.seeds) * count_latents(ctx):,} latents"

    def needs(self, ctx: Context) -> Needs:
        if not has_maps(ctx):  # it is refused
            return Needs()
        of_seeds: dict[str, Any] = {}
        for seed in ctx.config.seeds:
            groups, facts = needs_of_groups(ctx, seed), needs_of_facts(ctx, seed)
            of_images = needs_of_browsed(ctx, seed)
            nodes = {"latents": Latents.at(ctx, seed), **vars(groups), **vars(facts), **vars(of_images)}
            of_seeds |= {f"{role}_seed{seed}": node for role, node in nodes.items()}
        images = vars(scenes_of(ctx, ctx.config.data))
        return Needs(**of_seeds, tokens=Tokens.at(ctx, "train"), thumbnails=Thumbnails.at(ctx), **images)

    def key(self, ctx: Context, up: Needs) -> Key:
        made_from, besides = hash_all(up), read_besides(ctx)
        refuse_itself(besides, made_from)
        return {
            "format": FORMAT,
            "made_from": made_from,
            "explore": ctx.config.explore.cache_key_fields(),
            "browsed": key_of_browsed(ctx),
            **find_gone(ctx),
            **({"beside": [beside.hash for beside in besides]} if besides else {}),
        }

    def check(self, ctx: Context) -> None:
        check_reads_patches(origin_of(ctx))
        if not has_maps(ctx):
            raise InputError(
                "stage=explore shows where in a picture features fire, but this SAE reads one embedding of each image"
                " or caption (model.site=pooled), so that its features have no maps and no CDS: stage=describe shows"
                " such features, by what excites them most."
            )
        if not features.check("webp"):
            raise InputError(
                "stage=explore keeps thumbnails as WebP, which this Pillow was built without: install its wheel"
                " (pip install --force-reinstall pillow)."
            )
        if shows_past(ctx):
            check_past(ctx, self.at(ctx))
        else:
            advise_past(ctx)

    def build(self, ctx: Context, up: Needs, work: Workspace) -> ExplorerFacts:
        pictures, besides = up.thumbnails.load(), read_besides(ctx)
        own = {name_view(seed): make_matchable(ctx, seed) for seed in ctx.config.seeds}
        matchable = own | read_matchables(ctx, besides)
        views = _write_views(ctx, work.folder, matchable)
        sets = {
            split: _write_set(ctx, work.folder, split, images, pictures.missing[split])
            for split, images in list_shown(ctx).items()
        }
        pictures.link(work.folder)
        for beside in besides:
            with ctx.display.bar(f"views of {beside.folder.name}"):
                views += take_views(work.folder, beside, sets, matchable)
        title = f"{ctx.config.model.name} on {ctx.config.data.kind.name}"
        manifest = {
            "format": FORMAT,
            "title": title,
            "facts": {**describe_experiment(ctx), **_say_missing(sets)},
            "made": f"infoscope {describe_environment()['versions']['infoscope']}",
            "sets": sets,
            "views": views,
        }
        write_page(work.folder, title)
        write_tables(work.folder, manifest)
        found = _count_all(work.folder, manifest)
        sizes = {"images": found.image_bytes, "data": found.data_bytes, "total": found.n_bytes}
        put(work.folder, "manifest", {**manifest, "bytes": sizes})
        if ctx.config.logger.kind is not LoggerKind.none:
            with ctx.track(self.kind) as tracker, ctx.display.bar("logging the latents"):
                log_latents(tracker, work.folder, manifest)
        return found

    def work(self, ctx: Context) -> Work:
        n_latents = len(ctx.config.seeds) * count_latents(ctx)
        n_ranks, grid = min(ctx.config.explore.n_images, ctx.config.scope.n_ranks), find_sizes(ctx).grid
        like = [ctx.config.model.name, n_ranks]
        n_bytes = n_latents * _count_latent_bytes(n_ranks, grid) + len(ctx.config.seeds) * count_browsed_bytes(ctx)
        return Work(n_latents, like, count_browsed_forwards(ctx), disk_bytes=n_bytes)

    def closing(self, ctx: Context) -> Shown:
        folder, found = self.at(ctx).folder, self.at(ctx).load()
        said = say_explorer(folder, found)
        if found.n_missing and not shows_past(ctx):  # of the past what is gone is in the key
            thumbnails = ctx.store.folder(Thumbnails.at(ctx).spec)
            said.append(f"Once they can be read: delete {folder} and {thumbnails}, and repeat the command.")
        return said


def find_page(ctx: Context) -> Path | None:
    """Return the page of the experiment's explorer, if it was made; its thousands of files are not read for it."""
    try:
        name = f"*-{Explore.at(ctx).hash}"
    except (NotBuiltYet, MissingArtifact):
        return None
    pages = sorted((ctx.store.root / Explore.kind).glob(f"{name}/{INDEX}"))
    return pages[0] if pages else None


def say_explorer(folder: Path, found: ExplorerFacts) -> list[str]:
    """Return what an explorer is, in sentences: what to open first."""
    said = [
        f"explorer  {folder / INDEX}",
        f"Open it in a browser: {found.n_latents:,} latents in {_say_number(found.n_views, 'view')}"
        f" and {_say_number(found.n_images, 'image')}, {format_bytes(found.n_bytes)} (images"
        f" {format_bytes(found.image_bytes)}, data {format_bytes(found.data_bytes)})."
        " The folder can be copied as it is.",
    ]
    if found.n_missing:
        each = "it" if found.n_missing == 1 else "each"
        said.append(f"{_say_number(found.n_missing, 'image')} cannot be read any more; a grey tile stands for {each}.")
    if found.n_bytes > LARGE_BYTES:
        said.append(f"To look at it from another machine: infoscope view {folder}")
    return said


def _write_views(ctx: Context, folder: Path, matchable: Mapping[str, Matchable | str]) -> list[dict[str, Any]]:
    """Write the views of all SAE seeds; return what the manifest says of them.

    Args:
        matchable: by what the latents of all views of the explorer are matched, see `find_matches`.
    """
    names, views = {seed: name_view(seed) for seed in ctx.config.seeds}, []
    browsed = write_browsed_images(ctx, names, folder)
    for seed, view in names.items():
        facts = LatentFacts.read(ctx, seed, {other: of for other, of in matchable.items() if other != view})
        of_images = {"images": browsed, "predictions": say_predictions(ctx, seed)}
        views.append(write_view(ctx, folder, seed) | facts.of_view | of_images)
        write_matches(folder, view, facts.matches)
        write_latents(ctx, folder, view, seed, facts)
    return views


def _write_set(
    ctx: Context, folder: Path, split: str, shown: Int[np.ndarray, " n"], missing: Sequence[int]
) -> Mapping[str, Any]:
    """Write what the images of a split are called; return what the manifest says of them."""
    images = open_split(ctx, split)
    write_names(folder, split, images, shown.tolist(), set(missing))
    return {
        "name": split,
        "fingerprint": compute_hash(fingerprint_images(ctx, split)),
        "n_images": len(images),
        "n_shown": len(shown),
        "n_missing": len(missing),
        "block_size": PART_IMAGES,
        "classes": list(images.class_names) or None,
        "thumbnail_px": find_thumbnail_px(ctx),
    }


def _say_missing(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return how many images are missing, as a fact of the explorer; nothing where none is."""
    n, n_missing = (sum(of[name] for of in sets.values()) for name in ("n_shown", "n_missing"))
    if not n_missing:
        return {}
    were = "was" if n_missing == 1 else "were"
    told = (
        f"{n_missing:,} of {_say_number(n, 'image')} {were} not there when this was written; grey tiles stand for them"
    )
    return {"missing images": told}


def _count_latent_bytes(n_ranks: int, grid: int) -> int:
    """Return about what a latent takes: its maps, what else is known of its ranks, its facts, its row of the table."""
    of_maps = 2 * grid**2 * ACTIVE_SHARE * BYTES_PER_PATCH
    return round(n_ranks * (of_maps + 60) + N_SLOTS * of_maps / 2 + 2000 + 300 + 400)


def _count_all(folder: Path, manifest: Mapping[str, Any]) -> ExplorerFacts:
    """Return what lies in an explorer's folder, but for its manifest."""
    views, sets = manifest["views"], manifest["sets"].values()
    image_bytes = count_file_bytes(folder / "data" / "images")
    return ExplorerFacts(
        n_views=len(views),
        n_latents=sum(view["d_sae"] for view in views),
        n_images=sum(of["n_shown"] for of in sets),
        n_missing=sum(of["n_missing"] for of in sets),
        image_bytes=image_bytes,
        data_bytes=count_file_bytes(folder) - image_bytes,
    )


def _say_number(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
