"""Data sets as they lie on disk, and the procedural scenes.

Names are looked up when they are first used, so that a process that only renders scenes imports numpy and no more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infoscope.data.baseline import compute_pixel_baseline
    from infoscope.data.config import DataConfig, DataKind, OnError, Resize
    from infoscope.data.image_folder import ImageFolder
    from infoscope.data.images import (
        ImageBatch,
        ImageError,
        ImageSet,
        LabelledImages,
        iterate_images,
        resize_image,
    )
    from infoscope.data.scene_set import SceneSet, make_scenes_fingerprint, save_scenes
    from infoscope.data.sets import make_image_sets

_HOMES = {
    "baseline": ("compute_pixel_baseline",),
    "config": ("DataConfig", "DataKind", "OnError", "Resize"),
    "image_folder": ("ImageFolder",),
    "images": (
        "ImageBatch",
        "ImageError",
        "ImageSet",
        "LabelledImages",
        "iterate_images",
        "resize_image",
    ),
    "sets": ("make_image_sets",),
    "scene_set": ("SceneSet", "make_scenes_fingerprint", "save_scenes"),
}

__all__ = [
    "DataConfig",
    "DataKind",
    "ImageBatch",
    "ImageError",
    "ImageFolder",
    "ImageSet",
    "LabelledImages",
    "OnError",
    "Resize",
    "SceneSet",
    "compute_pixel_baseline",
    "iterate_images",
    "make_image_sets",
    "make_scenes_fingerprint",
    "resize_image",
    "save_scenes",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
