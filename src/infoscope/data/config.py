"""Which images an experiment looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from infoscope.runtime.bounds import Batch, Bounds, Count, FewOrNone, FilePath, Float, Pixels, Seed, check
from infoscope.runtime.errors import InputError

# Written as a call because `raise` is a keyword, and the names are what one types: data.on_error=raise.
OnError = Enum("OnError", {"raise": "raise", "skip": "skip"}, module=__name__)
OnError.__doc__ = "What an image that cannot be read does: stop with its name, or be left out, listed and counted."
RAISE, SKIP = OnError["raise"], OnError["skip"]


class Resize(Enum):
    """How an image becomes a square: both sides on their own, or the short side followed by a centre crop."""

    squash = "squash"
    crop = "crop"


class Decoder(Enum):
    """What makes pictures of the files of images, and resizes them."""

    pillow = "pillow"
    """Pillow does both."""
    torchvision = "torchvision"
    """torchvision does both, of JPEGs; of other files it resizes alone."""
    nvjpeg = "nvjpeg"
    """The same on a GPU, of whole images that are read in batches; photographs and single images as torchvision."""


class Planted(Enum):
    """What is pasted into scenes (ours): cards that show another kind than the nearest object's, or marks."""

    nothing = "nothing"
    """There is nothing."""
    text = "text"
    """In a corner of a quarter of the scenes its name: a typographic attack. The scenes' own CLIP was never shown
    letters, and reads none."""
    picture = "picture"
    """There an object of it in its typical texture."""
    marks = "marks"
    """Near the four corners of every scene a red or a blue mark, and facts that no one of them tells."""


class DataKind(Enum):
    """Which data set; each offers its own ground truth."""

    scenes = "scenes"
    """The procedural scenes: every truth."""
    image_folder = "image_folder"
    """Photographs: a folder tree, a list file (.txt) or WebDataset tars; no truth."""
    class_folders = "class_folders"
    """Photographs whose folders are their classes: class labels."""
    imagenet = "imagenet"
    """Class labels."""
    celeba = "celeba"
    """Faces with 40 attributes, one of which is the class."""
    waterbirds = "waterbirds"
    """Class labels, and the place as what misleads: worst groups (stage=steer)."""
    captions = "captions"
    """Texts in the place of images, a caption on each line of a file: for text embeddings (model.site=pooled)."""
    ade20k = "ade20k"
    """Label maps (SceneParsing, 150 classes)."""
    nyud = "nyud"
    """Depth."""
    own = "own"
    """Of a probe: the experiment's own data."""


@dataclass
class DataConfig:
    """Which images, and how they are split and read."""

    kind: DataKind = DataKind.scenes
    """`scenes` are rendered on first use; the others need `root`."""
    root: FilePath | None = None
    """Where the data lie; which layout they have is found out by looking. Not part of any hash: a moved folder is the
    same data."""
    n_train: Batch = 3000
    """Scenes: pictures of the training split."""
    n_test: Batch = 1000
    """Scenes: pictures of the test split."""
    size_px: Annotated[Pixels, Bounds(32)] = 104
    """Scenes: side of the rendered pictures, at least 32; 104 is what one shift of scenes_clip needs, (12 + 1) * 8."""
    planted: Planted = Planted.nothing
    """Scenes: cards that mislead, a target of their own ("planted") for worst groups (stage=steer); or marks, whose
    targets (alike, even, balanced, symmetric) no small window can tell, so that the breadth of evidence is known."""
    seed: Seed = 0
    """Of the rendered scenes, of the split of image and class folders, of what max_train and max_test draw."""
    max_train: Count | None = None
    """Sets on disk: training images drawn at random with `seed`; null: all."""
    max_test: Count | None = None
    """Sets on disk: test images, likewise."""
    test_share: Annotated[float, Bounds(0, below=1, words="at least 0 and below 1")] = 0.1
    """Image and class folders: expected share of held-out images, by a hash of their names (from Python too); of
    captions, by a hash of themselves. The others, and class folders in train and test, have splits of their own."""
    resize: Resize = Resize.squash
    """`squash` both sides, or `crop` the centre after resizing the short side (not for label maps and depth)."""
    decoder: Decoder = Decoder.pillow
    """Sets on disk: `torchvision` reads JPEGs twice as fast as `pillow`, `nvjpeg` on the GPU. Their pictures are not
    quite Pillow's (torchvision's differ by .03 of 255 levels on average, tall ones by .2): what they lead to is kept
    apart. Of a damaged JPEG that still gives a picture, Pillow says nothing, the others' libjpeg a line on stderr
    ("Corrupt JPEG data: ...") that names no file."""
    ground_truth: FilePath | None = None
    """ImageNet with a flat val/: the devkit's ground-truth file or Kaggle's LOC_val_solution.csv."""
    subset: bool = False
    """Fewer images than were published are meant, of ImageNet fewer than the 1,000 classes too."""
    attribute: str = "Blond_Hair"
    """CelebA: the attribute whose absence and presence are the classes; each is a target by its name too."""
    raw_depth: bool = False
    """NYU Depth v2, .mat: measured depth alone instead of the in-filled one."""
    eigen_crop: bool = True
    """NYU Depth v2: evaluate on rows 45 to 470 and columns 41 to 600 alone (Eigen et al., 2014)."""
    on_error: OnError = field(default=RAISE)
    """What an unreadable image does: `raise` stops, `skip` leaves it out, listed and counted."""
    store_tokens: bool = True
    """Keep all tokens on disk; false: encode images whenever their tokens are asked for, as sets that do not fit on the
    disk need. An image is then encoded once by each stage that reads all, and for the SAE as often as it is trained on.
    """
    cache_dtype: Float = "float32"
    """Of the tokens on disk: float32, or float16 at half the size."""
    n_workers: FewOrNone = 0
    """Processes that read images ahead; 0 reads in the main process. Scenes are rendered on all cores."""

    def __post_init__(self) -> None:
        check(self, "data")
        if self.kind not in (DataKind.scenes, DataKind.own) and not self.root:
            raise InputError(f"Expected a root for data.kind={self.kind.name}, got none: set data.root=FOLDER.")
        if self.kind in (DataKind.scenes, DataKind.own) and self.root is not None:
            raise InputError(
                f"Expected no data.root for data.kind={self.kind.name}, got {self.root!r}: drop it or choose another"
                " data.kind."
            )

    @property
    def unread(self) -> dict[str, str]:
        """The settings that this choice of data does not read, and in words what would."""
        unread = {} if self.store_tokens else {"cache_dtype": "by data.store_tokens=true alone: drop it, or give that"}
        for kinds, names in _READERS.items():
            if self.kind not in kinds:
                reads = f"by data.kind={', '.join(kind.name for kind in kinds)} alone"
                unread |= dict.fromkeys(names, f"{reads}: drop it, or choose another data.kind")
        if self.kind in _DIVIDED and not (self.max_train or self.max_test):
            unread["seed"] = "where images are drawn: drop it, or give data.max_train or data.max_test"
        return unread

    @property
    def reading(self) -> dict[str, Any]:
        """How photographs are read, as arguments of `PhotographFiles`."""
        return {"resize": self.resize, "decoder": self.decoder, "on_error": self.on_error}


_FOLDERS = (DataKind.image_folder, DataKind.class_folders)
_DIVIDED = (DataKind.imagenet, DataKind.ade20k, DataKind.nyud, DataKind.celeba, DataKind.waterbirds)
_ON_DISK = (*_FOLDERS, *_DIVIDED)
_READERS: dict[tuple[DataKind, ...], tuple[str, ...]] = {
    (DataKind.scenes,): ("n_train", "n_test", "size_px", "planted"),
    (*_FOLDERS, DataKind.captions): ("test_share",),
    (*_FOLDERS, DataKind.imagenet, DataKind.celeba, DataKind.waterbirds): ("resize",),
    (DataKind.celeba,): ("attribute",),
    (DataKind.imagenet,): ("ground_truth",),
    (DataKind.imagenet, DataKind.ade20k, DataKind.nyud): ("subset",),
    (DataKind.nyud,): ("raw_depth", "eigen_crop"),
    (*_ON_DISK, DataKind.captions): ("max_train", "max_test"),
    _ON_DISK: ("on_error", "decoder"),
    (DataKind.scenes, *_ON_DISK, DataKind.captions): ("seed", "store_tokens", "cache_dtype"),
    (DataKind.scenes, *_ON_DISK): ("n_workers",),
}
"""What some kinds of data alone read."""


@dataclass
class ProbeDataConfig:
    """What each task is probed on."""

    classification: DataConfig = field(default_factory=lambda: DataConfig(DataKind.own))
    segmentation: DataConfig = field(default_factory=lambda: DataConfig(DataKind.own))
    depth: DataConfig = field(default_factory=lambda: DataConfig(DataKind.own))
