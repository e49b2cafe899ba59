"""From a configuration to the images of both splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infoscope.data.config import DataConfig, DataKind
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageSet
from infoscope.data.scene_set import SceneSet


def make_image_sets(config: DataConfig, scene_folders: Mapping[str, Path] | None = None) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images.

    Args:
        scene_folders: for `scenes`, the folders that `save_scenes` wrote: {"train": ..., "test": ...}.

    Raises:
        InputError: if the folder of images is missing, unreadable or empty.
    """
    if config.kind is DataKind.scenes:
        assert scene_folders is not None, "scenes are rendered into a folder before they are opened"
        return SceneSet(scene_folders["train"]), SceneSet(scene_folders["test"])
    assert config.root is not None
    train, test = (
        ImageFolder(
            config.root,
            split,
            seed=config.seed,
            test_share=config.test_share,
            resize=config.resize,
            on_error=config.on_error,
        )
        for split in ("train", "test")
    )
    return train, test
