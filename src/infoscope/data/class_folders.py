"""Photographs whose folders are their classes: `root/<class>/**`, or the same in train and in test or val."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infoscope.data.config import DataConfig
from infoscope.data.image_folder import list_images
from infoscope.data.imagenet import get_wnids
from infoscope.data.images import CHOOSE_TARGET, Truth
from infoscope.data.left_out import LeftOut, is_hidden
from infoscope.data.photographs import PhotographFiles, scan_folder
from infoscope.data.recognition import explaining, refuse_maps
from infoscope.runtime.errors import InputError

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
"""Names of folders of test images: of several that hold class folders the first in this order is taken."""
_SPLIT = re.compile(rf"(?:^|[^a-z])(?:{'|'.join((*_TRAIN, *_TEST, 'dev', 'pred'))})(?:$|[^a-z])")
"""In a folder's name: it looks like a split of a data set, not like a class."""
_N_NAMED = 3


class ClassFolders(PhotographFiles):
    """One split of photographs in class folders; target "class". Made by `open_class_folders`.

    Args:
        folder: holds the class folders.
        names: ids of the images, `<class>/**`, ascending.
        class_ids: names of the class folders, in the order of the labels; some may have no image here.
        split: "train" or "test".
        layout: where the splits come from, for display.
        test_share, options: as of `PhotographFiles`.

    Raises:
        InputError: as `PhotographFiles`.
    """

    kind = "class_folders"
    truths = frozenset({Truth.labels})
    targets = ("class",)

    def __init__(
        self,
        folder: Path,
        names: list[str],
        class_ids: Sequence[str],
        split: str,
        layout: str,
        test_share: float | None,
        **options: Any,
    ) -> None:
        super().__init__(folder, names, split, test_share=test_share, **options)
        self.layout, self.is_divided = layout, test_share is not None
        self.class_ids, self.class_names = tuple(class_ids), name_classes(class_ids)
        place = {name: i for i, name in enumerate(class_ids)}
        self._labels = np.array([place[_get_class(name)] for name in self.image_ids], dtype=np.int64)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        self.n_target_classes(target)
        return self._labels

    def n_target_classes(self, target: str) -> int:
        if target not in self.targets:
            raise InputError(f"Expected a target of class folders (class), got {target!r}: {CHOOSE_TARGET}.")
        return self.n_classes

    def describe(self) -> dict[str, str]:
        counts = np.bincount(self._labels, minlength=self.n_classes)
        without = [name for name, n in zip(self.class_names, counts, strict=True) if n == 0]
        found = {
            "layout": self.layout,
            "classes": _name(self.class_names),
            "images": str(len(self)),
            "images of a class": f"{counts.min():,} to {counts.max():,}",
        }
        return {**found, **({"classes without images": _name(without)} if without else {})}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Classes, names, sizes and contents of the images, see `hash_images`.

        Raises:
            ImageError: if an image cannot be read at all and `on_error` is "raise".
        """
        names = "\0".join(self.class_ids).encode(errors="surrogateescape")
        labels = hashlib.sha256(names + self._labels.tobytes()).hexdigest()
        seed = {"seed": self.seed} if self.is_divided else {}
        facts = {"resize": self.resize.name, "n_classes": self.n_classes, "labels_sha256": labels, **seed}
        return self._make_fingerprint(self.kind, **facts, **self.hash_contents())


def open_class_folders(config: DataConfig) -> tuple[ClassFolders, ClassFolders]:
    """Return train and test of the same classes.

    A root with a folder `train` (or `training`) and one of `test`, `testing`, `val`, `valid` and `validation`, in small
    or capital letters, is divided by them; of several of these the first that holds class folders has the test images,
    and the others are left out. Every other root holds the class folders itself, or in one folder of such a name, and
    their images are divided by a hash of their names, as of `PhotographFiles`.

    Classes are folders with an image in or below them. Their labels are their places in ascending order; folders whose
    names are all numbers are in the order of these.

    Raises:
        InputError: as `ImageFolder`; if there are fewer than two classes, the folders are splits and no classes, a
            class of one split is not in the other, or a setting of a division is given that nothing reads.
    """
    root = Path(str(config.root))
    listed, left_out = list_images(root, "class_folders")
    with explaining(root, "class_folders"):
        folders = _find_split_folders(root, listed)
        names = {split: _choose_names(listed, folder) for split, folder in folders.items()}
        class_ids = _find_classes(root, folders, names)
    is_divided = folders["train"] == folders["test"]
    where = " and ".join(dict.fromkeys(folder for folder in folders.values() if folder))
    layout = f"class folders in {where}" if where else "class folders"
    if is_divided:
        layout += f", data.test_share={config.test_share:g} of their images held out"
    else:
        _refuse_unread(config, root, folders)
    below = {folders[split]: of for split, of in names.items()}
    refuse_maps(root, sorted(f"{folder}/{name}" if folder else name for folder, of in below.items() for name in of))
    _count_rest(left_out, root, listed, set(class_ids), list(below))

    test_share = config.test_share if is_divided else None
    options = {"seed": config.seed, "left_out": left_out, **config.reading}
    train, test = (
        ClassFolders(root / folders[split], names[split], class_ids, split, layout, test_share, **options)
        for split in ("train", "test")
    )
    left_out.n_read = sum(len(of) for of in below.values())
    return train, test


def name_classes(class_ids: Sequence[str]) -> tuple[str, ...]:
    """Return what class folders are called in sentences.

    That is their names with blanks for underscores, or ImageNet's names where all are wnids of ImageNet-1k. Folders
    that would be called the same keep their own names.
    """
    if all(re.fullmatch(r"n\d{8}", name) for name in class_ids) and set(class_ids) <= set(get_wnids()):
        from open_clip import zero_shot_metadata

        names = dict(zip(get_wnids(), zero_shot_metadata.IMAGENET_CLASSNAMES, strict=True))
        return tuple(names[name] for name in class_ids)
    own = [name.encode(errors="surrogateescape").decode(errors="replace") for name in class_ids]
    spaced = [" ".join(name.replace("_", " ").split()) or name for name in own]
    times = Counter(spaced)
    return tuple(name if times[name] == 1 else raw for name, raw in zip(spaced, own, strict=True))


def _find_split_folders(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the folder below the root that holds the class folders of each split; "" is the root itself.

    Args:
        names: of all images below the root.
    """
    tops = {_get_class(name) for name in names if "/" in name}
    nested = {_get_class(name) for name in names if name.count("/") > 1}
    train = [top for of in _TRAIN for top in sorted(tops) if top.lower() == of]
    held_out = [top for of in _TEST for top in sorted(tops) if top.lower() == of]
    if train and held_out:
        test = [top for top in held_out if top in nested]
        if not test:
            raise InputError(
                f"Expected class folders in {root / held_out[0]}, got images outside of any: set"
                f" data.root={root / train[0]}, of whose images data.test_share is then held out."
            )
        return {"train": train[0], "test": test[0]}
    if len(tops) == 1 and (alone := tops.pop()).lower() in (*_TRAIN, *_TEST):
        return {"train": alone, "test": alone}
    if tops and all(_SPLIT.search(top.lower()) for top in tops):
        raise InputError(
            f"Expected class folders in {root}, or the folders train and test of them, got {_name(sorted(tops))}: set"
            " data.root to a folder whose subfolders are the classes, or call two of these train and test."
        )
    return {"train": "", "test": ""}


def _choose_names(names: Sequence[str], folder: str) -> list[str]:
    """Return the images in the class folders of a folder, relative to it."""
    start = f"{folder}/" if folder else ""
    below = (name.removeprefix(start) for name in names if name.startswith(start))
    return [name for name in below if "/" in name]


def _find_classes(root: Path, folders: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the classes of both splits in the order of their labels.

    Raises:
        InputError: if they differ, or are fewer than two.
    """
    train, test = ({_get_class(name) for name in names[split]} for split in ("train", "test"))
    if len(train) < 2:
        only = next(iter(train), None)
        below = {_get_class(name.partition("/")[2]) for name in names["train"] if name.count("/") > 1}
        hint = f", such as {root / folders['train'] / only}" if only is not None and len(below) > 1 else ""
        raise InputError(
            f"Expected at least two class folders with images in {root / folders['train']}, got"
            f" {'none' if only is None else f'one ({only})'}: set data.root to a folder whose subfolders are the"
            f" classes{hint}, or give data=image_folder, which needs none."
        )
    if differing := sorted(train ^ test):
        has, lacks = ("train", "test") if differing[0] in train else ("test", "train")
        raise InputError(
            f"Expected images of the same classes in {folders['train']} and {folders['test']} of {root}, got"
            f" {len(differing)} of which only one of them has any, first {differing[0]} ({folders[has]} has some,"
            f" {folders[lacks]} has none): complete or remove them, or set data.root={root / folders['train']}."
        )
    are_numbers = all(name.isascii() and name.isdecimal() for name in train)
    return sorted(train, key=(lambda name: (int(name), name)) if are_numbers else None)


def _refuse_unread(config: DataConfig, root: Path, folders: Mapping[str, str]) -> None:
    """Refuse settings of a division where folders divide the images."""
    draws = config.max_train is not None or config.max_test is not None
    for name in ("test_share",) if draws else ("test_share", "seed"):
        if (value := getattr(config, name)) != getattr(DataConfig, name):
            raise InputError(
                f"data.{name}={value} is not read where folders divide the images ({folders['train']} and"
                f" {folders['test']} of {root}): drop it, or set data.root to one of them."
            )


def _count_rest(
    left_out: LeftOut, root: Path, listed: Iterable[str], class_ids: set[str], folders: Sequence[str]
) -> None:
    """Count the images outside of the class folders, and the folders beside these."""
    starts = [f"{folder}/" if folder else "" for folder in folders]
    where = "" if folders == [""] else f" of {' and '.join(folders)}"
    for name in listed:
        if not any(name.startswith(start) and "/" in name[len(start) :] for start in starts):
            left_out.add(f"images outside of the class folders{where}", name)
    for start in starts:
        for entry in scan_folder(root / start):
            if entry.is_dir() and not is_hidden(entry.name) and entry.name not in class_ids:
                left_out.add("folders without images", f"{start}{entry.name}")


def _get_class(name: str) -> str:
    """Return the first folder of a path."""
    return name.partition("/")[0]


def _name(names: Sequence[str]) -> str:
    """Return how many names, and the first of them: "12 (bus, car, cat, ...)"."""
    return f"{len(names):,} ({', '.join([*names[:_N_NAMED], '...'] if len(names) > _N_NAMED else names)})"
