"""Images: scenes, rendered once, and data sets on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from infoscope.data.check import check_sample
from infoscope.data.config import RAISE, DataConfig, DataKind
from infoscope.data.images import ImageError, ImageSet, Truth
from infoscope.data.photographs import N_READERS
from infoscope.data.recognition import name_settings
from infoscope.data.scenes.scene_set import SceneSet, choose_scene_set, make_scenes_fingerprint, save_scenes
from infoscope.data.sets import make_image_sets
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import ArtifactStage, Key, Needs, Work
from infoscope.probes.config import Task
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError, list_some
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.store import Workspace
from infoscope.stages.recalled import recall_sets, shows_past

SPLITS = ("train", "test")


class Scenes(ArtifactStage[SceneSet]):
    """A split of the procedural scenes; an item is (split, number of images, data)."""

    kind = "scenes"
    is_shared = False

    def name(self, ctx: Context, split: str, n_images: int, data: DataConfig) -> str:
        return split

    def describe(self, ctx: Context, split: str, n_images: int, data: DataConfig) -> str:
        return f"scenes, {split}"

    def key(self, ctx: Context, up: Needs, split: str, n_images: int, data: DataConfig) -> Key:
        return make_scenes_fingerprint(data.seed, split, n_images, data.size_px, data.planted)

    def build(self, ctx: Context, up: Needs, work: Workspace, split: str, n_images: int, data: DataConfig) -> None:
        n_workers = data.n_workers or processes.count_cores()
        with ctx.display.bar(f"rendering {split} scenes", n_images, "images") as advance:
            save_scenes(work.folder, data.seed, split, n_images, data.size_px, n_workers, advance, data.planted)

    def load(self, ctx: Context, folder: Path, split: str, n_images: int, data: DataConfig) -> SceneSet:
        return choose_scene_set(data.planted)(folder)

    def work(self, ctx: Context, split: str, n_images: int, data: DataConfig) -> Work:
        # three bytes of colour, one of label, two of depth
        return Work(n_images, [data.size_px], disk_bytes=n_images * data.size_px**2 * 6)


def scenes_of(ctx: Context, data: DataConfig, splits: tuple[str, ...] = SPLITS) -> Needs:
    """Return the scenes that a data set consists of, by split; none where it lies on the disk."""
    if data.kind is not DataKind.scenes:
        return Needs()
    return Needs(**{f"scenes_{split}": Scenes.at(ctx, split, count_images(ctx, split, data), data) for split in splits})


def open_sets(ctx: Context, data: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images of a data set; scenes are rendered if they are missing."""
    if data.kind is DataKind.scenes:
        return _open_scenes(ctx, data)
    key = repr(data)
    if key not in ctx.image_sets:
        if shows_past(ctx):
            ctx.image_sets[key] = recall_sets(ctx, data)
            return ctx.image_sets[key]
        with ctx.display.bar(f"listing the images of data={data.kind.name}"), naming_settings(ctx, data):
            ctx.image_sets[key] = sets = _open_as_they_are(ctx, data)
        if data.kind is DataKind.image_folder:
            held_out = f"{len(sets[1]):,} held out as test images (data.test_share={data.test_share:g})"
            ctx.display.say(f"          {data.root}: {len(sets[0]):,} training images, {held_out}")
        if data.kind is DataKind.class_folders:
            ctx.display.say(f"          {data.root}: {_say_classes(*sets)}")
        for left_out in dict.fromkeys(images.left_out.describe() for images in sets if images.left_out):
            ctx.display.say(f"          {data.root}: left out {left_out}")
    return ctx.image_sets[key]


def _open_as_they_are(ctx: Context, data: DataConfig) -> tuple[ImageSet, ImageSet]:
    try:
        return make_image_sets(data)
    except InputError as error:
        if ctx.config.stage.name != "explore" or type(error) is not InputError:
            raise
        advice = "explore.of=OUTPUT_DIR/artifacts/score/NAME shows scores that exist, without their images too"
        raise InputError(f"{str(error).removesuffix('.')}; {advice}.") from error


def _say_classes(train: ImageSet, test: ImageSet) -> str:
    """Return which classes were found, where, with how many images."""
    said = f"{train.n_classes:,} classes ({list_some(train.class_names)}), {train.describe()['layout']}:"
    said += f" {len(train):,} training images, {len(test):,} test images"
    for images, of in ((train, "training"), (test, "test")):
        if n_without := images.n_classes - len(np.unique(images.labels("class"))):
            said += f"; classes without a {of} image: {n_without:,}"
    return said


@once
def _open_scenes(ctx: Context, data: DataConfig) -> tuple[ImageSet, ImageSet]:
    return make_image_sets(data, {s: Scenes.at(ctx, s, count_images(ctx, s, data), data).folder for s in SPLITS})


def open_split(ctx: Context, split: str, data: DataConfig | None = None) -> ImageSet:
    """Return the images of one split, of the experiment's own data unless others are given."""
    return open_sets(ctx, data or ctx.config.data)[SPLITS.index(split)]


@contextmanager
def naming_settings(ctx: Context, data: DataConfig) -> Iterator[None]:
    """State errors in the data of a probe in terms of `probe_data`; `data` are the experiment's own.

    Raises:
        InputError: what was raised inside.
    """
    try:
        yield
    except InputError as error:
        tasks = [task.name for task in ctx.config.probe.tasks if probe_data(ctx, task) == data != ctx.config.data]
        if not tasks or type(error) is not InputError:
            raise
        raise InputError(name_settings(str(error), f"probe_data.{tasks[0]}")) from error


def count_images(ctx: Context, split: str, data: DataConfig | None = None) -> int:
    """Return the number of images of a split, unreadable ones included."""
    data = data or ctx.config.data
    if data.kind is DataKind.scenes:
        return data.n_train if split == "train" else data.n_test
    return len(open_split(ctx, split, data))


def fingerprint_images(ctx: Context, split: str, data: DataConfig | None = None) -> dict[str, Any]:
    """Return what determines a split's images, known before they are rendered."""
    data = data or ctx.config.data
    if data.kind is DataKind.scenes:
        return Scenes.at(ctx, split, count_images(ctx, split, data), data).spec.key
    images = open_split(ctx, split, data)
    with ctx.display.bar(f"reading the checksum of {len(images):,} {split} images"):
        return images.fingerprint


def hash_each_image(ctx: Context, split: str, data: DataConfig) -> list[str]:
    """Return a hash for each image of a split, the same for the same picture however a data set is divided or named.

    Of scenes it is of what determines one, of files of their contents, and of pictures in a table of their names.

    Raises:
        ImageError: if a file cannot be read and `data.on_error` is "raise".
    """
    if data.kind is DataKind.scenes:
        made_from = make_scenes_fingerprint(data.seed, split, 1, data.size_px)
        return [compute_hash({**made_from, "size_px": 0, "scene": i}) for i in range(count_images(ctx, split, data))]
    images = open_split(ctx, split, data)

    def digest(index: int) -> str:
        try:
            content = images.read_file(index)
        except ImageError:
            if images.on_error is RAISE:
                raise
            content = None
        name = {"kind": data.kind.name, "image": images.image_ids[index]}
        return compute_hash(name) if content is None else hashlib.sha256(content).hexdigest()[:16]

    with ctx.display.bar(f"reading {len(images):,} {split} images"), ThreadPoolExecutor(N_READERS) as pool:
        return list(pool.map(digest, range(len(images))))


def check_split(ctx: Context, split: str, data: DataConfig) -> None:
    """Refuse a split of nothing.

    Raises:
        InputError: it holds no images.
    """
    if count_images(ctx, split, data) == 0:
        raise InputError(f"The {split} split holds no images: raise data.test_share, or add images.")


def probe_data(ctx: Context, task: Task) -> DataConfig:
    """Return what a task is probed on; tokens of whole images are not kept where it is shown crops instead."""
    data: DataConfig = getattr(ctx.config.probe_data, task.name)
    if data.kind is DataKind.own:
        return ctx.config.data
    return replace(data, store_tokens=False) if ctx.config.probe.crops(task) else data


def find_known(ctx: Context, data: DataConfig) -> tuple[ImageSet | type[SceneSet], ImageSet | type[SceneSet]]:
    """Return what knows the truth of each split; scenes need not be rendered for it."""
    if data.kind is DataKind.scenes:
        scenes = choose_scene_set(data.planted)
        return scenes, scenes
    return open_sets(ctx, data)


def knows(ctx: Context, truth: Truth, data: DataConfig) -> bool:
    """Return whether both splits of a data set know a truth."""
    return all(truth in known.truths for known in find_known(ctx, data))


def advise_classes(data: DataConfig) -> str:
    """Return what to give instead of data that know no classes, in words."""
    found = "data=class_folders if its subfolders are classes"
    return found if data.kind is DataKind.image_folder else "data whose folders are classes"


@once
def check_maps(ctx: Context, data: DataConfig) -> None:
    """Read some of the maps of a data set that a dense probe learns, once.

    Raises:
        InputError: maps of labels or depth that are not what they should be, see `check_sample`.
    """
    if data.kind is not DataKind.scenes:
        for images in open_sets(ctx, data):
            with naming_settings(ctx, data):
                check_sample(images)
