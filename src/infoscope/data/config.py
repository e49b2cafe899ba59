"""Which images an experiment looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import RAISE, ImageSet, OnError, Resize
from infoscope.data.scene_set import SceneSet
from infoscope.errors import InputError


class DataKind(Enum):
    """The procedural scenes, or any folder of photographs (no labels, so no probes)."""

    scenes = "scenes"
    image_folder = "image_folder"


@dataclass
class DataConfig:
    """Which images, and how they are split and read."""

    kind: DataKind = DataKind.scenes
    """`scenes` are rendered on first use; `image_folder` needs `root`."""
    root: str | None = None
    """Image folder: its path. Not part of any hash: a moved folder is the same data."""
    n_train: int = 3000
    """Scenes: pictures of the training split."""
    n_test: int = 1000
    """Scenes: pictures of the test split."""
    size_px: int = 104
    """Scenes: side of the rendered pictures, at least 32; 104 is what one shift of scenes_clip needs, (12 + 1) * 8."""
    seed: int = 0
    """Of the rendered scenes, or of the split of an image folder."""
    test_share: float = 0.1
    """Image folder: expected share of held-out images."""
    resize: Resize = Resize.squash
    """Image folder: `squash` both sides, or `crop` the centre after resizing the short side."""
    on_error: OnError = field(default=RAISE)
    """What an unreadable image does: `raise` stops, `skip` leaves it out, listed and counted."""
    n_workers: int = 0
    """Processes that render or read images; 0 works in the main process."""

    def __post_init__(self) -> None:
        if self.kind is DataKind.image_folder and not self.root:
            raise InputError("Expected data.root for data.kind=image_folder, got none: set data.root=FOLDER.")
        if self.kind is DataKind.scenes and self.root is not None:
            raise InputError(
                f"Expected no data.root for data.kind=scenes, got {self.root!r}: drop it or set data.kind=image_folder."
            )
        for name, least in (("n_train", 1), ("n_test", 1), ("size_px", 32), ("seed", 0), ("n_workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"Expected data.{name} to be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.test_share < 1:
            raise InputError(f"Expected data.test_share to be at least 0 and below 1, got {self.test_share}.")


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
