"""ImageNet-1k as people have it: class folders, a flat val with its ground truth, Kaggle's nesting, WebDataset tars.

The class order is that of the 1,000 sorted WordNet ids (wnids), as everywhere; the devkit's ILSVRC2012_ID is another.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from infoscope.data.config import DataConfig
from infoscope.data.imagenet_truth import find_ground_truth, read_ground_truth
from infoscope.data.images import CHOOSE_TARGET, ImageSet, Truth, check_split
from infoscope.data.left_out import HIDDEN, LeftOut, is_hidden
from infoscope.data.photographs import PhotographFiles, is_image_name, scan_folder
from infoscope.data.recognition import explaining
from infoscope.data.tar_images import TarImages
from infoscope.runtime.errors import InputError

N_CLASSES = 1000
_N_PUBLISHED = {"train": 1_281_167, "test": 50_000}
_FOLDERS = {"train": ("train",), "test": ("val", "validation")}
_NESTED = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")  # Kaggle's archive, and parts of its path
_FIRST_OF_VAL = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332)
"""Classes, by sorted wnid, of ILSVRC2012_val_00000001 to 10: another order of the classes or the images shows here."""


class ImageNet(ImageSet):
    """One split of ImageNet-1k; target "class".

    Found out by looking, in `root` or Kaggle's ILSVRC/Data/CLS-LOC below it:

    - `train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG`; ids are paths relative to train or val;
    - `val/ILSVRC2012_val_00000001.JPEG` with a ground truth;
    - `*train*.tar`, `*val*.tar` or folders train, val of them, with `.cls` labels 0 to 999; ids are keys.

    Args:
        config: root is the folder that holds train and val. `ground_truth` of a flat val is Kaggle's
            LOC_val_solution.csv, or a text file with the class of image n in line n, as a wnid or an ILSVRC2012_ID, for
            which the devkit's meta.mat or map_clsloc.txt lies in the same folder; None looks for the two usual files in
            and below root. With `subset`, fewer than 1,000 classes are numbered without gaps, in the same order. With
            `on_error` skip, what is whole of a damaged shard is taken.
        split: "train", or "test", which is ImageNet's val.

    Raises:
        InputError: if the split is not there, its classes are not those of ImageNet or not all of them, or the ground
            truth is missing or does not fit the images.
    """

    truths = frozenset({Truth.labels})
    targets = ("class",)

    def __init__(self, config: DataConfig, split: str) -> None:
        from open_clip import zero_shot_metadata

        check_split(split)
        self.root, self.resize = Path(str(config.root)), config.resize
        self.decoder, self.on_error = config.decoder, config.on_error
        with explaining(self.root, "imagenet"):
            self.folder, shards = _find_split(self.root, split)
            self._photographs, positions = self._find_images(split, shards, config)
        present, labels = np.unique(positions, return_inverse=True)
        self._labels = labels.astype(np.int64)
        self.class_ids = tuple(get_wnids()[i] for i in present)
        self.class_names = tuple(zero_shot_metadata.IMAGENET_CLASSNAMES[i] for i in present)
        super().__init__(split, self._photographs.image_ids)
        self.n_published, self.left_out = _N_PUBLISHED[split], self._photographs.left_out

    def _find_images(
        self, split: str, shards: str | None, config: DataConfig
    ) -> tuple[PhotographFiles, Int64[np.ndarray, " n"]]:
        """Return the images, and the place of each one's class among the 1,000."""
        left_out, photographs = LeftOut(), None
        options: dict[str, Any] = {"decoder": self.decoder, "on_error": self.on_error}
        if shards is not None:
            photographs = TarImages(shards, test_share=0.0, **options)
            ids, positions = photographs.image_ids, _check_positions(photographs)
            self.layout, where, unit = "WebDataset tars", shards, "classes"
        elif folders := _list_class_folders(self.folder):
            positions = _find_positions(folders, self.folder)
            if not config.subset:
                _check_whole(positions, self.folder, "class folders")
            for name in _list_names(self.folder, left_out, has_classes=True):
                left_out.add("outside of the class folders", f"{self.folder.name}/{name}")
            ids, counts = _list_images(self.folder, folders, left_out)
            positions = np.repeat(positions, counts)
            self.layout, where, unit = "class folders", self.folder, "class folders"
        else:
            ids = _list_names(self.folder, left_out)
            if split == "train" or not ids:
                what = "class folders" if split == "train" else "class folders or images"
                raise InputError(f"Expected {what} in {self.folder}, got none: check data.root.")
            truth = find_ground_truth(self.root, self.folder, config.ground_truth)
            positions = _find_positions(read_ground_truth(truth, ids, config.subset), truth)
            self.layout, where, unit = f"flat, classes from {truth.name}", truth, "classes"
        if not config.subset:
            _check_whole(positions, where, unit)
        if split == "test" and len(ids) == _N_PUBLISHED[split]:
            _check_order(ids, positions, where)
        if photographs is None:
            photographs = PhotographFiles(self.folder, ids, test_share=0.0, left_out=left_out, **options)
        return photographs, positions

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        return self._photographs.decode(index)

    def read_file(self, index: int) -> bytes:
        return self._photographs.read_file(index)

    def list_contents(self, hashed: str | None = None) -> list[str]:
        return self._photographs.list_contents(hashed)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        self.n_target_classes(target)
        return self._labels

    def n_target_classes(self, target: str) -> int:
        if target not in self.targets:
            raise InputError(f"Expected a target of ImageNet (class), got {target!r}: {CHOOSE_TARGET}.")
        return self.n_classes

    def describe(self) -> dict[str, str]:
        found = {"layout": self.layout, "classes": str(self.n_classes), "images": str(len(self))}
        return {**self._photographs.describe(), **found}

    def check_image(self, index: int) -> dict[str, str]:
        return self._photographs.check_image(index)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Classes, names, sizes and contents of the images, see `hash_images`: of the whole train split no contents.

        Raises:
            ImageError: if a file cannot be read at all and `on_error` is "raise".
        """
        labels = hashlib.sha256(" ".join(self.class_ids).encode() + self._labels.tobytes()).hexdigest()
        facts = {"resize": self.resize.name, "n_classes": self.n_classes, "labels_sha256": labels}
        return self._make_fingerprint("imagenet", **facts, **self._photographs.hash_contents())


def open_imagenet(config: DataConfig) -> tuple[ImageNet, ImageNet]:
    """Return train and test of the same classes.

    Raises:
        InputError: as `ImageNet`, or if a class of one split is not in the other.
    """
    train, test = ImageNet(config, "train"), ImageNet(config, "test")
    differing = sorted(set(train.class_ids) ^ set(test.class_ids))
    if differing:
        has, lacks = ("train", "val") if differing[0] in train.class_ids else ("val", "train")
        raise InputError(
            f"Expected the same classes in train and val of {train.root}, got {len(differing)} that only one of them"
            f" has, first {differing[0]} ({has} has it, {lacks} does not): complete or remove them."
        )
    return train, test


@cache
def get_wnids() -> tuple[str, ...]:
    """Return the 1,000 wnids, ascending, as timm has them."""
    from timm.data import ImageNetInfo

    wnids = tuple(ImageNetInfo("imagenet-1k").label_names())
    assert len(wnids) == N_CLASSES
    assert list(wnids) == sorted(wnids)
    return wnids


def _find_split(root: Path, split: str) -> tuple[Path, str | None]:
    """Return the folder of a split and, if it consists of tars, what `TarImages` is to open."""
    names = _FOLDERS[split]
    if not root.is_dir():
        raise InputError(f"Expected the folder of ImageNet at {root}, got none: check data.root.")
    for base in (root / nested for nested in _NESTED):
        for name in names:
            if (base / name).is_dir():
                is_tars = bool(_list_tars(base / name)) and not _list_class_folders(base / name)
                return base / name, str(base / name) if is_tars else None
        tars = [name for name in _list_tars(base) if names[0] in name.lower()]
        if tars:
            return base, _join_shards(base, tars)
    present = [name for of in _FOLDERS.values() for name in of if (root / name).is_dir()]
    advice = "set data.root to the folder that holds train and val"
    if len(_list_class_folders(root)) > 1:
        advice += ", or data=class_folders if its subfolders are the classes"
    if present:
        kind = "class_folders" if _list_class_folders(root / present[0]) else "image_folder"
        advice = (
            f"there is {present[0]} alone, and both splits are needed; for one folder give data={kind}"
            f" data.root={root / present[0]}"
        )
    raise InputError(
        f"Expected the folder {names[0]} or tar files with {names[0]} in their names in {root}, got neither: {advice}."
    )


def _scan(folder: Path, left_out: LeftOut | None = None) -> list[os.DirEntry[str]]:
    """Return what is visible in a folder, ascending, and count the rest."""
    found = scan_folder(folder)
    for entry in found:
        if left_out is not None and is_hidden(entry.name):
            left_out.add(HIDDEN, f"{folder.name}/{entry.name}")
    return [entry for entry in found if not is_hidden(entry.name)]


def _list_tars(folder: Path) -> list[str]:
    return [entry.name for entry in _scan(folder) if entry.name.endswith(".tar")] if folder.is_dir() else []


def _join_shards(folder: Path, names: list[str]) -> str:
    """Return the range that numbered shards span, so that a gap is noticed."""
    matches = [re.fullmatch(r"(.*?)(\d+)\.tar", name) for name in names]
    prefixes = {match[1] if match else name for match, name in zip(matches, names, strict=True)}
    if len(prefixes) > 1:
        first, second, *_ = sorted(prefixes)
        raise InputError(f"Expected one set of shards in {folder}, got {first}* and {second}*: move one elsewhere.")
    numbers = sorted((match[2] for match in matches if match), key=int)
    if not numbers:
        return str(folder / names[0])
    return str(folder / f"{prefixes.pop()}{{{numbers[0]}..{numbers[-1]}}}.tar")


def _list_class_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _scan(folder) if entry.is_dir()]


def _list_names(folder: Path, left_out: LeftOut, has_classes: bool = False) -> list[str]:
    """Return the images that lie in a folder itself, ascending, and count the rest, but for class folders."""
    names: list[str] = []
    for entry in _scan(folder, left_out):
        if entry.is_dir():
            if not has_classes:
                left_out.add("subfolders", f"{folder.name}/{entry.name}")
        elif is_image_name(entry.name):
            names.append(entry.name)
        else:
            left_out.add_file(f"{folder.name}/{entry.name}")
    return names


def _list_images(folder: Path, wnids: list[str], left_out: LeftOut) -> tuple[list[str], list[int]]:
    """Return the images of all class folders, ascending, and how many each holds."""
    ids: list[str] = []
    counts: list[int] = []
    for wnid in wnids:
        names = _list_names(folder / wnid, left_out)
        if not names:
            raise InputError(f"Expected images in {folder / wnid}, got none: complete or remove the folder.")
        ids += [f"{wnid}/{name}" for name in names]
        counts.append(len(names))
    return ids, counts


def _find_positions(wnids: Sequence[str], where: Path) -> Int64[np.ndarray, " n"]:
    """Return the place of every wnid among the 1,000."""
    place = {wnid: i for i, wnid in enumerate(get_wnids())}
    unknown = sorted(set(wnids) - place.keys())
    if unknown:
        others = ", or set data=class_folders, which takes classes of any name" if where.is_dir() else ""
        raise InputError(
            f"Expected the wnids of ImageNet-1k in {where}, got {len(unknown)} that are none of them, first"
            f" {unknown[0]!r}: remove what is not ImageNet-1k{others}."
        )
    return np.array([place[wnid] for wnid in wnids], dtype=np.int64)


def _check_whole(positions: Int64[np.ndarray, " n"], where: Path | str, unit: str) -> None:
    missing = np.setdiff1d(np.arange(N_CLASSES), positions)
    if len(missing):
        raise InputError(
            f"Expected all of ImageNet-1k in {where}, got {N_CLASSES - len(missing)} of {N_CLASSES} {unit} found, first"
            f" missing: {get_wnids()[missing[0]]}; data.subset=true takes a subset."
        )


def _check_order(ids: Sequence[str], positions: Int64[np.ndarray, " n"], where: Path | str) -> None:
    """Refuse a whole val whose first images have classes that they do not have."""
    found = {match[1]: i for i, name in enumerate(ids) if (match := re.search(r"ILSVRC2012_val_000000(\d\d)\b", name))}
    for number, expected in enumerate(_FIRST_OF_VAL, 1):
        i = found.get(f"{number:02d}")
        if i is not None and positions[i] != expected:
            raise InputError(
                f"Expected ILSVRC2012_val_{number:08d} to be of class {get_wnids()[expected]}, but {where} makes it"
                f" {get_wnids()[positions[i]]}: its classes or images are in another order, take those of ILSVRC2012."
            )


def _check_positions(tars: TarImages) -> Int64[np.ndarray, " n_images"]:
    labels = tars.read_labels()
    wrong = np.flatnonzero(labels >= N_CLASSES)
    if len(wrong):
        raise InputError(
            f"Expected labels 0 to {N_CLASSES - 1} in the tar files, got {labels[wrong[0]]} for"
            f" {tars.image_ids[wrong[0]]}{' and no 0, as if they were counted from 1' if labels.min() else ''}: choose"
            " shards of ImageNet-1k, labelled by sorted wnid."
        )
    return labels
