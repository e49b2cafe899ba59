"""Thumbnails of the images that an explorer shows, and what the images are called; each once, whoever shows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from infoscope.data.config import SKIP
from infoscope.data.images import ImageSet, Truth
from infoscope.data.reader import open_images
from infoscope.explorer.format import put, put_thumbnail
from infoscope.pipeline.context import Context
from infoscope.runtime import processes
from infoscope.runtime.files import write_json
from infoscope.runtime.parts import cut
from infoscope.stages.images import open_split
from infoscope.stages.tokens import find_sizes

PART_IMAGES = 1024
"""Images that an interruption costs at most, and names in a file."""
BATCH_IMAGES = 64
DONE = "thumbnails-{split}-{number:05d}.json"
"""What says that a part is written, in the folder of progress; it holds the images that could not be read."""


def write_thumbnails(ctx: Context, progress: Path, shown: Mapping[str, Int[np.ndarray, " n"]]) -> dict[str, list[int]]:
    """Write the thumbnails of the images that are shown; return those that cannot be read, by split.

    They wait in the folder of progress until `take_pictures`: what an interrupted build has left is not made again.

    Args:
        shown: positions in each split, ascending.
    """
    missing = {}
    for split, images in shown.items():
        with ctx.display.bar(f"thumbnails of {split} images", len(images), "images") as advance:
            missing[split] = []
            for n_done, lost in _write_parts(ctx, progress, split, images):
                missing[split] += lost
                advance(n_done)
    return missing


def _write_parts(ctx: Context, progress: Path, split: str, images: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Yield how many images are done, and which of the last ones cannot be read."""
    scope, sizes = ctx.config.scope, find_sizes(ctx)
    size_px = (sizes.grid + scope.shift_patches) * sizes.patch_px
    side = min(ctx.config.explore.thumbnail_px, size_px)
    n_workers, n_threads = ctx.config.data.n_workers, processes.count_cores()
    with open_images(open_split(ctx, split), size_px, SKIP, n_workers) as reader, ThreadPoolExecutor(n_threads) as pool:
        for number, part in enumerate(cut(len(images), PART_IMAGES)):
            done, wanted = progress / DONE.format(split=split, number=number), images[part]
            if done.exists():
                yield part.stop, json.loads(done.read_text(encoding="utf-8"))
                continue
            read, n_before = [], part.start
            for batch in reader.read(wanted, BATCH_IMAGES):
                index = batch.index.tolist()

                def write(image: int, pixels: Tensor) -> None:
                    put_thumbnail(progress, split, image, _shrink(pixels.permute(1, 2, 0).numpy(), side))

                list(pool.map(write, index, batch.images))
                read += index
                yield n_before + len(read), []
            lost = np.setdiff1d(wanted, read).tolist()
            write_json(done, lost)
            yield part.stop, lost


def _shrink(pixels: UInt8[np.ndarray, "size size 3"], side: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    return picture if picture.width <= side else picture.resize((side, side), Image.Resampling.LANCZOS)


def take_pictures(progress: Path, folder: Path) -> None:
    """Move the thumbnails to where the explorer is built, when all else is there: the progress ends with it."""
    for done in progress.glob("thumbnails-*.json"):
        done.unlink()
    made = progress / "data" / "images"
    if made.exists():
        shutil.move(made, folder / "data" / "images")


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
