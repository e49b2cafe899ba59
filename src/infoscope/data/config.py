"""Which images an experiment looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from infoscope.errors import InputError

# Written as a call because `raise` is a keyword, and the names are what one types: data.on_error=raise.
OnError = Enum("OnError", {"raise": "raise", "skip": "skip"}, module=__name__)
OnError.__doc__ = "What an image that cannot be read does: stop with its name, or be left out, listed and counted."
RAISE, SKIP = OnError["raise"], OnError["skip"]


class Resize(Enum):
    """How an image becomes a square: both sides on their own, or the short side followed by a centre crop."""

    squash = "squash"
    crop = "crop"


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
    cache_dtype: str = "float32"
    """Of the tokens on disk: float32, or float16 at half the size."""
    n_workers: int = 0
    """Processes that read images ahead; 0 reads in the main process. Scenes are rendered on all cores."""

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
        if self.cache_dtype not in ("float32", "float16"):
            raise InputError(f"Expected data.cache_dtype to be float32 or float16, got {self.cache_dtype!r}.")
        if not 0 <= self.test_share < 1:
            raise InputError(f"Expected data.test_share to be at least 0 and below 1, got {self.test_share}.")
