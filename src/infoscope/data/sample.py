"""Some images of a set, drawn at random: what one can afford of ImageNet."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from infoscope.data.depth_units import DepthCounts
from infoscope.data.images import ImageSet


def draw_images(images: ImageSet, n_images: int | None, seed: int) -> ImageSet:
    """Return as many images as wanted, drawn without replacement in the order of the set; all of them for None.

    The draw is a function of (seed, the set's size). Classes keep their numbers, though some may have no image left.
    """
    if n_images is None or n_images >= len(images):
        return images
    chosen = np.sort(np.random.default_rng([seed, 21]).permutation(len(images))[:n_images])
    return _Sample(images, chosen, seed)


class _Sample(ImageSet):
    def __init__(self, images: ImageSet, chosen: Int64[np.ndarray, " n"], seed: int) -> None:
        super().__init__(images.split, [images.image_ids[i] for i in chosen])
        self.images, self.chosen, self.seed = images, chosen, seed
        self.is_text, self.on_error = images.is_text, images.on_error
        self.training_region, self.left_out = images.training_region, images.left_out
        self.truths, self.targets, self.global_factors = images.truths, images.targets, images.global_factors
        self.broad_facts = images.broad_facts
        self.decoder, self.resize = images.decoder, images.resize
        self.class_names, self.class_ids = images.class_names, images.class_ids
        self.label_names, self.spurious_target = images.label_names, images.spurious_target
        self.attributes = images.attributes

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The whole set's, and the draw."""
        return {"sample_of": self.images.fingerprint, "n_images": len(self), "seed": self.seed}

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        return self.images.load(int(self.chosen[index]), size_px)

    def photograph(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        return self.images.photograph(int(self.chosen[index]))

    def read_file(self, index: int) -> bytes | None:
        return self.images.read_file(int(self.chosen[index]))

    def list_contents(self, hashed: str | None = None) -> list[str]:
        of_all = self.images.list_contents(hashed)
        return [of_all[i] for i in self.chosen] if of_all else []

    def describe(self) -> dict[str, str]:
        return {**self.images.describe(), "sample": f"{len(self):,} of {len(self.images):,} images, seed {self.seed}"}

    def check_image(self, index: int) -> dict[str, str]:
        return self.images.check_image(int(self.chosen[index]))

    def examine(self, index: int) -> tuple[dict[str, str], DepthCounts]:
        return self.images.examine(int(self.chosen[index]))

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        return self.images.labels(target)[self.chosen]

    def n_target_classes(self, target: str) -> int:
        return self.images.n_target_classes(target)

    def label_map(self, index: int) -> UInt8[np.ndarray, "height width"]:
        return self.images.label_map(int(self.chosen[index]))

    def depth_m(self, index: int) -> Float32[np.ndarray, "height width"]:
        return self.images.depth_m(int(self.chosen[index]))

    def refuse_unit(self, depth: DepthCounts, n_maps: int) -> None:
        self.images.refuse_unit(depth, n_maps)

    def caption(self, index: int) -> str:
        return self.images.caption(int(self.chosen[index]))
