"""From a configuration to the images of both splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infoscope.data.ade20k import ADE20K
from infoscope.data.captions import Captions
from infoscope.data.celeba import CelebA
from infoscope.data.class_folders import open_class_folders
from infoscope.data.config import DataConfig, DataKind
from infoscope.data.image_folder import ImageFolder
from infoscope.data.image_list import ImageList
from infoscope.data.imagenet import open_imagenet
from infoscope.data.images import ImageSet
from infoscope.data.nyud import NYUd
from infoscope.data.sample import draw_images
from infoscope.data.scenes.scene_set import choose_scene_set
from infoscope.data.tar_images import TarImages, is_tar_source
from infoscope.data.waterbirds import Waterbirds


def make_image_sets(config: DataConfig, scene_folders: Mapping[str, Path] | None = None) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images.

    Args:
        scene_folders: for `scenes`, the folders that `save_scenes` wrote: {"train": ..., "test": ...}.

    Raises:
        InputError: if the data are missing, unreadable, empty, or laid out in no way that is known.
    """
    if config.kind is DataKind.scenes:
        assert scene_folders is not None, "scenes are rendered into a folder before they are opened"
        scenes = choose_scene_set(config.planted)
        return scenes(scene_folders["train"]), scenes(scene_folders["test"])
    train, test = open_whole_sets(config)
    return draw_images(train, config.max_train, config.seed), draw_images(test, config.max_test, config.seed)


def open_whole_sets(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images on the disk, all of them, whatever `max_train` and `max_test` draw.

    Raises:
        InputError: as `make_image_sets`.
    """
    if config.kind is DataKind.imagenet:
        return open_imagenet(config)
    if config.kind is DataKind.class_folders:
        return open_class_folders(config)
    if config.kind is DataKind.captions:
        train, test = (
            Captions(str(config.root), split, seed=config.seed, test_share=config.test_share)
            for split in ("train", "test")
        )
        return train, test
    makers = {
        DataKind.image_folder: _open_photographs,
        DataKind.ade20k: ADE20K,
        DataKind.nyud: NYUd,
        DataKind.celeba: CelebA,
        DataKind.waterbirds: Waterbirds,
    }
    make = makers[config.kind]
    return make(config, "train"), make(config, "test")


def _open_photographs(config: DataConfig, split: str) -> ImageSet:
    """A folder tree, a list file, or tars: what the root looks like says which."""
    root = str(config.root)
    kind = ImageList if root.lower().endswith(".txt") else TarImages if is_tar_source(root) else ImageFolder
    return kind(root, split, seed=config.seed, test_share=config.test_share, **config.reading)
