"""Thumbnails of the images that an explorer shows, and what the images are called; each once, whoever shows it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from infoscope.analyses.levels import N_SLOTS
from infoscope.data.config import SKIP
from infoscope.data.images import ImageSet, Truth
from infoscope.data.reader import open_images
from infoscope.explorer.format import put, put_thumbnail
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, Key, Needs, SingleStage, Work
from infoscope.runtime import processes
from infoscope.runtime.files import write_json
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.parts import cut
from infoscope.runtime.store import Workspace
from infoscope.stages.explore.images import count_browsed, find_square_px, key_of_browsed, list_browsed
from infoscope.stages.images import SPLITS, count_images, open_split, scenes_of
from infoscope.stages.levels import LevelMaps, has_levels
from infoscope.stages.rank import Rank
from infoscope.stages.recalled import list_gone, shows_past
from infoscope.stages.sae import count_latents
from infoscope.stages.tokens import Tokens

PART_IMAGES = 1024
"""Images that an interruption costs at most, and names in a file."""
BATCH_IMAGES = 64
DONE = "{split}-{number:05d}.json"
"""What says that a part is written, in the folder of progress; it holds the images that could not be read."""
MISSING = "missing.json"
BYTES_PER_PX, BYTES_PER_IMAGE = 0.3, 600
"""Of thumbnails of scenes and photographs, roughly: WebP in base64."""

Shown = Mapping[str, Int[np.ndarray, " n"]]
"""Positions of images in each split, ascending."""


@dataclass(frozen=True)
class Pictures:
    """Thumbnails: where they lie, and which images could not be read, by split."""

    folder: Path
    missing: Mapping[str, Sequence[int]]

    @classmethod
    def load(cls, folder: Path) -> Pictures:
        """Return what lies in a folder."""
        return cls(folder, json.loads((folder / MISSING).read_text(encoding="utf-8")))

    def link(self, folder: Path) -> None:
        """Put the thumbnails into an explorer too: the same files where the disk allows that, else copies."""
        if (made := self.folder / "data").exists():  # not where none could be read
            shutil.copytree(made, folder / "data", copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk that knows no links
        shutil.copyfile(source, target)


class Thumbnails(SingleStage[Pictures]):
    """The thumbnails of an explorer: another threshold or another column of the table makes another explorer, and
    shows the same images."""

    kind, holds = "thumbnails", Pictures
    is_shared = False

    def name(self, ctx: Context) -> str:
        return ctx.title

    def describe(self, ctx: Context) -> str:
        n, is_bound = count_shown(ctx)
        return f"{self.kind}, {'at most ' if is_bound else ''}{n:,} images"

    def needs(self, ctx: Context) -> Needs:
        shown = {"ranking": Rank, "levels": LevelMaps}
        shown_by = {
            f"{role}_seed{seed}": of.at(ctx, seed)
            for role, of in shown.items()
            for seed in ctx.config.seeds
            if of is Rank or has_levels(ctx, seed)
        }
        return Needs(**shown_by, tokens=Tokens.at(ctx, "train"), **vars(scenes_of(ctx, ctx.config.data)))

    def key(self, ctx: Context, up: Needs) -> Key:
        return {
            "made_from": hash_all(up),
            "n_images": ctx.config.explore.n_images,
            "browsed": key_of_browsed(ctx),
            "size_px": find_square_px(ctx),
            "thumbnail_px": find_thumbnail_px(ctx),
            **find_gone(ctx),
        }

    def build(self, ctx: Context, up: Needs, work: Workspace) -> None:
        missing = write_thumbnails(ctx, work.progress, list_shown(ctx))
        for done in work.progress.glob("*.json"):  # before what they speak of is moved
            done.unlink()
        if (made := work.progress / "data").exists():
            shutil.move(made, work.folder / "data")
        write_json(work.folder / MISSING, missing)

    def work(self, ctx: Context) -> Work:
        (n, is_bound), side = count_shown(ctx), find_thumbnail_px(ctx)
        n_bytes = n * round(side**2 * BYTES_PER_PX + BYTES_PER_IMAGE)
        return Work(n, [ctx.config.data.kind.name, find_square_px(ctx), side], disk_bytes=n_bytes, is_bound=is_bound)


def hash_all(up: Needs) -> dict[str, str]:
    """Return the hash of each artifact by its role; scenes are in those of what was made from them."""
    return {role: node.hash for role, node in up if isinstance(node, Handle) and not role.startswith("scenes")}


def find_gone(ctx: Context) -> Key:
    """Return what of the images is gone, for a key; nothing where they are as they were, or rendered."""
    lost = {split: list_gone(open_split(ctx, split)).tolist() for split in SPLITS} if shows_past(ctx) else {}
    gone = {split: compute_hash(images) for split, images in lost.items() if images}
    return {"gone": gone} if gone else {}


def find_thumbnail_px(ctx: Context) -> int:
    """Return the side of a thumbnail, which is never larger than that square."""
    return min(ctx.config.explore.thumbnail_px, find_square_px(ctx))


def list_shown(ctx: Context) -> Shown:
    """Return the images that any latent of any seed shows, or that can be browsed."""
    of_latents, browsed = [find_shown(ctx, seed) for seed in ctx.config.seeds], list_browsed(ctx)
    of_train = np.concatenate([*of_latents, browsed.get("train", np.zeros(0, np.int64))])
    return {**browsed, "train": np.unique(of_train)}


def find_shown(ctx: Context, seed: int) -> Int[np.ndarray, " n"]:
    """Return the training images that the ranks or the levels of any latent of a seed show."""
    ranked = Rank.at(ctx, seed).load().top_images[:, : ctx.config.explore.n_images]
    levels = LevelMaps.at(ctx, seed).load().images if has_levels(ctx, seed) else []
    shown = np.union1d(ranked, levels).astype(np.int64)
    return shown[shown >= 0]


def count_shown(ctx: Context) -> tuple[int, bool]:
    """Return how many images will be shown, and whether that is a bound, before there are rankings."""
    seeds = ctx.config.seeds
    shown_by = [*(Rank.at(ctx, s) for s in seeds), *(LevelMaps.at(ctx, s) for s in seeds if has_levels(ctx, s))]
    if all(node.find() is not None for node in shown_by):
        return sum(map(len, list_shown(ctx).values())), False
    n_each = min(ctx.config.explore.n_images, ctx.config.scope.n_ranks) + N_SLOTS
    n_of_latents, browsed = len(ctx.config.seeds) * count_latents(ctx) * n_each, count_browsed(ctx)
    n_train = min(count_images(ctx, "train"), n_of_latents + browsed.get("train", 0))
    return n_train + browsed.get("test", 0), True


def write_thumbnails(ctx: Context, folder: Path, shown: Shown) -> dict[str, list[int]]:
    """Write the thumbnails of some images; return those that cannot be read, by split.

    Args:
        folder: that of progress: parts that an interrupted build has left there are not made again.
    """
    missing = {}
    for split, images in shown.items():
        with ctx.display.bar(f"thumbnails of {split} images", len(images), "images") as advance:
            missing[split] = []
            for n_done, lost in _write_parts(ctx, folder, split, images):
                missing[split] += lost
                advance(n_done)
    return missing


def _write_parts(ctx: Context, folder: Path, split: str, images: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Yield how many images are done, and which of the last ones cannot be read."""
    n_workers, n_threads, size_px = ctx.config.data.n_workers, processes.count_cores(), find_square_px(ctx)
    side = find_thumbnail_px(ctx)

    def write(image: int, pixels: Tensor) -> None:
        put_thumbnail(folder, split, image, _shrink(pixels.permute(1, 2, 0).numpy(), side))

    images_of_split = open_split(ctx, split)
    gone = list_gone(images_of_split)
    with open_images(images_of_split, size_px, SKIP, n_workers) as reader, ThreadPoolExecutor(n_threads) as pool:
        for number, part in enumerate(cut(len(images), PART_IMAGES)):
            done, wanted = folder / DONE.format(split=split, number=number), images[part]
            if done.exists():
                yield part.stop, json.loads(done.read_text(encoding="utf-8"))
                continue
            read: list[int] = []
            for batch in reader.read(np.setdiff1d(wanted, gone), BATCH_IMAGES):
                index = batch.index.tolist()
                for _ in pool.map(write, index, batch.images):  # raises what was raised in a thread
                    pass
                read += index
                yield part.start + len(read), []
            lost = np.setdiff1d(wanted, read).tolist()
            write_json(done, lost)
            yield part.stop, lost


def _shrink(pixels: UInt8[np.ndarray, "size size 3"], side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    return picture if picture.width <= side else picture.resize((side, side), Image.Resampling.LANCZOS)


def write_names(folder: Path, split: str, image_set: ImageSet, shown: Sequence[int], missing: Collection[int]) -> None:
    """Write what the images that are shown are called, and their class where that is known."""
    labels = image_set.labels("class") if Truth.labels in image_set.truths else None
    blocks: dict[int, dict[int, dict[str, object]]] = {}
    for image in shown:
        label = None if labels is None else int(labels[image])
        about: dict[str, object] = {"id": image_set.image_ids[image], "label": label}
        blocks.setdefault(image // PART_IMAGES, {})[image] = about | ({"is_missing": True} if image in missing else {})
    for number, names in blocks.items():
        put(folder, f"sets/{split}/names/{number}", names)
