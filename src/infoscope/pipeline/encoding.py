"""What everything stands on: backbones, images, and their tokens, kept or encoded as they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from infoscope.data.config import DataConfig, DataKind
from infoscope.data.images import (
    CHECK_PX,
    ImageBatch,
    ImageError,
    ImageSet,
    iterate_images,
)
from infoscope.data.scene_set import save_scenes
from infoscope.data.sets import make_image_sets
from infoscope.pipeline.specs import Specs
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Artifact
from infoscope.runtime.store import Workspace
from infoscope.vision.backbone import Backbone
from infoscope.vision.extract import TokenCache, compute_cache_bytes, extract_tokens
from infoscope.vision.live_tokens import LiveTokens
from infoscope.vision.open_clip_backbone import make_backbone

TOKEN_BATCH_IMAGES = 64


class Encoding(Specs):
    """The images and the tokens of one configuration."""

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen backbone: loaded when something has to be encoded, not before."""
        with self.display.bar("loading the backbone"):
            backbone = make_backbone(self.config.model, self._trained_folder).to(self.device)
        if backbone.notes:
            self.display.say(backbone.notes)
        return backbone

    def backbone_at(self, image_px: int) -> Backbone:
        """Return the backbone for images of a side in pixels, its position embeddings interpolated if it is another.

        Raises:
            InputError: if the model takes images of its own size alone, or the side is no multiple of its patch.
        """
        if image_px == self.backbone.image_px:
            return self.backbone
        if image_px not in self._backbones_at:
            loaded = make_backbone(replace(self.config.model, image_px=image_px), self._trained_folder)
            if loaded.image_px != image_px:
                raise InputError(
                    f"Expected a model that takes crops of {image_px} px, but {self.config.model.name} takes images of"
                    f" {loaded.image_px} px alone: set crop_px to that, or probe whole images."
                )
            self._backbones_at[image_px] = loaded.to(self.device)
        return self._backbones_at[image_px]

    @cached_property
    def _backbones_at(self) -> dict[int, Backbone]:
        return {}

    def scenes(self, split: str, n_images: int, data: DataConfig | None = None) -> Artifact:
        """Render a split of the scenes."""
        data = data or self.config.data

        def build(work: Workspace) -> None:
            n_workers = data.n_workers or processes.count_cores()
            with self.display.bar(f"rendering {split} scenes", n_images, "images") as advance:
                save_scenes(work.folder, data.seed, split, n_images, data.size_px, n_workers, advance)

        return self.get(self.scenes_spec(split, n_images, data), build)

    @cached_property
    def image_sets(self) -> tuple[ImageSet, ImageSet]:
        """The training and the test images of the experiment."""
        data = self.config.data
        return self._open_scenes(data) if data.kind is DataKind.scenes else self.sets_on_disk(data)

    def open_sets(self, data: DataConfig) -> tuple[ImageSet, ImageSet]:
        """Return the training and the test images of a data set, which may be the experiment's own."""
        if data == self.config.data:
            return self.image_sets
        return self._open_scenes(data) if data.kind is DataKind.scenes else self.sets_on_disk(data)

    def _open_scenes(self, data: DataConfig) -> tuple[ImageSet, ImageSet]:
        folders = {s: self.scenes(s, self.n_images(s, data), data).folder for s in ("train", "test")}
        return make_image_sets(data, folders)

    def tokens(self, split: str, data: DataConfig | None = None) -> Artifact:
        """Encode every image of a split once; of the experiment's own data unless others are given."""
        config, data = self.config, data or self.config.data
        self.check_split(split, data)
        images = self.open_sets(data)[0 if split == "train" else 1]

        def build(work: Workspace) -> None:
            backbone, dtype = self.backbone, data.cache_dtype if data.store_tokens else None
            if dtype is not None:
                self.check_disk(compute_cache_bytes(backbone, len(images), dtype))

            def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
                size_px, n_done = backbone.image_px, 0
                for batch in iterate_images(images, size_px, batch_images, positions, data.on_error, data.n_workers):
                    yield batch
                    n_done += len(batch.index)
                    advance(n_done, len(positions))

            with self.display.bar(f"encoding {split} images", len(images), "images") as advance:
                made = extract_tokens(
                    backbone,
                    read,
                    len(images),
                    config.model.layer,
                    work.folder,
                    dtype,
                    work.progress,
                    batch_images=TOKEN_BATCH_IMAGES,
                )
            if processes.is_main():
                write_json(work.folder / "skipped.json", find_skipped(images, made.image_index))

        artifact = self.get(self.tokens_spec(split, data), build, shared=True)
        skipped = artifact.read_json("skipped.json")
        if skipped:
            names = ", ".join(list(skipped)[:5]) + (", ..." if len(skipped) > 5 else "")
            self.display.say(f"{len(skipped)} of {len(images)} {split} images were skipped: {names} (skipped.json)")
        return artifact

    def check_split(self, split: str, data: DataConfig) -> None:
        """Refuse a split of nothing.

        Raises:
            InputError: it holds no images.
        """
        if self.n_images(split, data) == 0:
            raise InputError(f"The {split} split holds no images: raise data.test_share, or add images.")

    def open_tokens(self, split: str, data: DataConfig | None = None) -> TokenCache | LiveTokens:
        """Return the tokens of a split, to be read from the disk or encoded as they are asked for."""
        data = data or self.config.data
        folder = self.tokens(split, data).folder
        if data.store_tokens:
            return TokenCache(folder)
        images, backbone = self.open_sets(data)[0 if split == "train" else 1], self.backbone

        def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
            return iterate_images(images, backbone.image_px, batch_images, positions, n_workers=data.n_workers)

        return LiveTokens(folder, backbone, read)


def find_skipped(images: ImageSet, read: np.ndarray) -> dict[str, str]:
    """Return why images could not be read, by id: all that are not among those read, whichever process or run did it.

    Args:
        read: positions of the images that were.
    """
    reasons = {}
    for i in np.setdiff1d(np.arange(len(images)), read).tolist():
        try:
            images.load(i, CHECK_PX)
            reason = "could not be read when its tokens were made"
        except ImageError as error:
            reason = error.reason
        reasons[images.image_ids[i]] = reason
    return reasons


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
