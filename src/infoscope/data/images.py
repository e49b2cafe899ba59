"""What every later stage asks of a data set: images by index, at the size it wants, in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from infoscope.data.config import RAISE, Decoder, OnError, Resize
from infoscope.data.decoding import can_resize, resize_pixels
from infoscope.data.depth_units import DepthCounts
from infoscope.data.left_out import LeftOut
from infoscope.runtime.errors import InputError

CHECK_PX = 32
"""Side to which images are resized when they are only checked."""
CHOOSE_TARGET = "choose another by probe.target, predict.target or steer.spurious"
"""What to do about a target that data do not have."""


class ImageError(InputError):
    """An image cannot be read: which file, as the user can find it, and why, in a few words.

    Args:
        on_error: of the set; where such images are skipped, this one could be read when the others were left out.
    """

    def __init__(self, file: str, reason: str, on_error: OnError = RAISE) -> None:
        super().__init__(
            f"Cannot read the image {file} ({reason}): mend or remove the file, or set data.on_error=skip."
            if on_error is RAISE
            else f"Cannot read the image {file} ({reason}), which data.on_error=skip has not left out: it could be read"
            " before. Put it back, or run again without it, which makes all anew."
        )
        self.file, self.reason, self.on_error = file, reason, on_error

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, OnError]]:
        return type(self), (self.file, self.reason, self.on_error)


class ImageBatch(NamedTuple):
    """Images and their places in the image set: index [batch], images [batch, 3, size_px, size_px]."""

    index: Int64[Tensor, " batch"]
    images: UInt8[Tensor, "batch 3 size size"]


class Truth(Enum):
    """What may be known of an image: its labels, a label per pixel, a depth per pixel, a sentence."""

    labels = "labels"
    label_maps = "label maps"
    depth = "depth"
    captions = "captions"


class ImageSet(ABC):
    """Images in a fixed order, and the truth that is known of them; what a set does not know is refused.

    Args:
        split: "train" or "test".
        image_ids: one unique name per image, ascending; ties in rankings are broken by it.
    """

    skipped: dict[str, str]
    """Images that could not be read so far: id -> reason. `iterate_images` fills it."""
    left_out: LeftOut
    """What else lies there and is not read, of all splits together."""
    n_published: int | None = None
    """Images of the split as the data set was published; None: unknown."""
    resize: Resize = Resize.squash
    """How `load` makes a square."""
    decoder: Decoder = Decoder.pillow
    """What decodes files and resizes pictures; others than Pillow give other pictures, and are part of the
    fingerprint."""
    on_error: OnError = RAISE
    """What an unreadable image does; skipping leaves other images, so that it is part of the fingerprint."""
    is_text: bool = False
    """Whether it holds captions in the place of images: readers give their numbers, and a text tower embeds them."""
    truths: frozenset[Truth] = frozenset()
    """What is known of its images."""
    class_names: tuple[str, ...] = ()
    """What the target "class" tells apart."""
    class_ids: tuple[str, ...] = ()
    """What these classes are called on the disk, such as wnids; empty: the same."""
    label_names: tuple[str, ...] = ()
    """What the label maps tell apart; 255 in a map means ignore."""
    targets: tuple[str, ...] = ()
    """What `labels` accepts; "class" first."""
    global_factors: tuple[str, ...] = ()
    """Targets that are facts of the whole picture and of no place in it, such as the weather."""
    broad_facts: tuple[str, ...] = ()
    """Targets that no small window of the picture tells anything of, such as whether two marks far apart are alike."""
    spurious_target: str | None = None
    """The target that goes with the class in most images without being part of it, such as the place of a bird."""
    class_attribute: str | None = None
    """The attribute that the class is, where it is one."""
    attributes: tuple[str, ...] = ()
    """Targets of two values: 1 where an image has what they are called, 0 where not."""
    training_region: tuple[slice, slice] | None = None
    """Rows and columns of its photographs that training crops are cut from; None: all."""

    def __init__(self, split: str, image_ids: list[str]) -> None:
        self.split, self.image_ids = split, image_ids
        self.skipped = {}
        self.left_out = LeftOut()

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What determines the images, as plain JSON types: never a path or a time."""

    def _make_fingerprint(self, kind: str, **facts: Any) -> dict[str, Any]:
        """Return the fingerprint of a set of files: what all such sets have in theirs, and `facts`."""
        if self.decoder is not Decoder.pillow:
            facts["decoder"] = self.decoder.name
        return {"kind": kind, "split": self.split, "on_error": self.on_error.name, "n_images": len(self), **facts}

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        """Return an image as RGB, resized as the set says; by the CPU, whatever decodes.

        Raises:
            ImageError: if it cannot be read.
        """
        return resize_image(self._decode(index), size_px, self.resize, self.decoder)

    def photograph(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return an image as RGB at the size it is stored, upright.

        Raises:
            ImageError: if it cannot be read.
            InputError: if the set knows its images at a size that is asked for alone.
        """
        return np.array(self._decode(index))

    def _decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        try:
            return self.decode(index)
        except ImageError as error:
            raise self.advise(error) from error

    def advise(self, error: ImageError) -> ImageError:
        """Return an error with advice that helps where this set's images are skipped, or not."""
        return ImageError(error.file, error.reason, self.on_error)

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        """Return an image as it is stored: what `load` and `photograph` make theirs of."""
        raise InputError(
            f"Expected images at the size they are stored, which {type(self).__name__} does not give: probe whole"
            " images (probe.segmentation_crops.crop_px=null, probe.depth_crops.crop_px=null)."
        )

    def read_file(self, index: int) -> bytes | None:
        """Return the file of an image as it is stored; None: there is none.

        Raises:
            ImageError: if it cannot be read.
        """
        return None

    def list_contents(self, hashed: str | None = None) -> list[str]:
        """Return what stands for each image in the fingerprint: its size and a part of its hash; empty: not known.

        Args:
            hashed: read them anew, and so much of them as an earlier fingerprint has ("hashed").

        Raises:
            ImageError: as of the fingerprint.
        """
        return []

    def describe(self) -> dict[str, str]:
        """Return what lies on the disk, for display: {"layout": ..., "classes": ...}; cheap, nothing is decoded."""
        return {}

    def check_image(self, index: int) -> dict[str, str]:
        """Read an image and all that is known of it in full, and return facts worth counting, such as its mode.

        Raises:
            InputError: if something cannot be read, or is not what the data set should hold.
        """
        self.load(index, CHECK_PX)
        return {}

    def examine(self, index: int) -> tuple[dict[str, str], DepthCounts]:
        """Return what `check_image` does, and how often each depth occurs, where its unit may be in doubt.

        Raises:
            InputError: as `check_image`.
        """
        return self.check_image(index), DepthCounts()

    @property
    def n_classes(self) -> int:
        """Number of values of the target "class"."""
        return len(self.class_names)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        """Return the label of every image, 0..n_target_classes - 1.

        Raises:
            InputError: if the set has no such target.
        """
        raise self._unknown(Truth.labels)

    def n_target_classes(self, target: str) -> int:
        """Return how many values a target has.

        Raises:
            InputError: if the set has no such target.
        """
        raise self._unknown(Truth.labels)

    def label_map(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Return the label of every pixel, an index into `label_names`, or 255 = ignore; at the size it is stored.

        Raises:
            InputError: if the set has no label maps, or this one is not what the data set should hold.
        """
        raise self._unknown(Truth.label_maps)

    def depth_m(self, index: int) -> Float32[np.ndarray, "height width"]:
        """Return the depth of every pixel in metres, 0 = no measurement; at the size it is stored.

        Raises:
            InputError: if the set has no depth, or this map is not what the data set should hold.
        """
        raise self._unknown(Truth.depth)

    def refuse_unit(self, depth: DepthCounts, n_maps: int) -> None:  # noqa: B027 # of most sets it is known
        """Refuse depths, of that many maps, that must be in another unit than metres.

        Raises:
            InputError: such depths, with the unit that would fit.
        """

    def caption(self, index: int) -> str:
        """Return what is in the image, in words."""
        raise self._unknown(Truth.captions)

    def _unknown(self, truth: Truth) -> InputError:
        known = ", ".join(sorted(known.value for known in self.truths)) or "nothing"
        return InputError(
            f"Expected {truth.value} of the images, but {type(self).__name__} knows {known}: choose another data set."
        )


def check_split(split: str) -> None:
    """Refuse a split of another name.

    Raises:
        InputError: if it is neither train nor test.
    """
    if split not in ("train", "test"):
        raise InputError(f"Expected split to be train or test, got {split!r}.")


def resize_image(
    image: Image.Image | UInt8[np.ndarray, "height width 3"],
    size_px: int,
    resize: Resize = Resize.squash,
    decoder: Decoder = Decoder.pillow,
) -> UInt8[np.ndarray, "size size 3"]:
    """Return an RGB image as a square of side `size_px` (antialiased bicubic, as CLIP's own preprocessing).

    `Resize.crop` gives what torchvision's Resize and CenterCrop give, without resizing what is cut off.

    Args:
        decoder: Pillow resizes, or torchvision.
    """
    if decoder is not Decoder.pillow:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if can_resize(pixels.shape[2], pixels.shape[1], resize):
            return resize_pixels(pixels, size_px, resize).permute(1, 2, 0).numpy()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    width, height = image.size
    if (width, height) == (size_px, size_px):
        return np.array(image)
    box = (0.0, 0.0, float(width), float(height))
    if resize is Resize.crop:
        short = min(width, height)
        wide, high = int(size_px * width / short), int(size_px * height / short)
        left, top = round((wide - size_px) / 2), round((high - size_px) / 2)
        box = (
            left * width / wide,
            top * height / high,
            min((left + size_px) * width / wide, width),
            min((top + size_px) * height / high, height),
        )
    return np.array(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))
