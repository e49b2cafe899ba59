"""NYU Depth v2: indoor photographs with the depth a Kinect measured, as published (.mat) or as BTS lays them out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from infoscope.data.ade20k import read_facts, read_png, refuse_crop, refuse_other_size, refuse_unpaired
from infoscope.data.config import DataConfig, Decoder, OnError
from infoscope.data.depth_units import DepthCounts, describe_wrong_map, refuse_unit
from infoscope.data.images import CHECK_PX, ImageError, ImageSet, Truth, check_split
from infoscope.data.left_out import HIDDEN, NO_SUFFIX, LeftOut, is_hidden
from infoscope.data.photographs import describe_error, hash_files, is_image_name, load_rgb, read_bytes
from infoscope.data.recognition import explaining
from infoscope.runtime.errors import InputError

EIGEN_CROP = np.s_[45:471, 41:601]
"""Rows and columns that are evaluated (Eigen et al. 2014, arXiv 1406.2283), of maps of 480 x 640 pixels."""
BTS_CROP = np.s_[45:472, 43:608]
"""Rows and columns that training crops are cut from, "to avoid blank boundaries due to pixel registration" (the data
loader of BTS, arXiv 1907.10326: box 43, 45, 608, 472), of photographs of 480 x 640 pixels."""
MAX_DEPTH_M = 20.0
"""A Kinect measures up to 10 m: more than this is depth in another unit."""

_MAT = "nyu_depth_v2_labeled.mat"
_SPLITS_MAT = "splits.mat"
_INDICES = {"train": "trainNdxs", "test": "testNdxs"}
_N_PUBLISHED = {"train": 795, "test": 654}
_BTS_FOLDERS = {"train": ("sync", "official_splits/train"), "test": ("official_splits/test",)}
_BLOCKS, _BLOCK_BYTES = 256, 64 * 1024


class NYUd(ImageSet):
    """One split of NYU Depth v2, in one of two layouts, recognised by looking; `describe` names it.

    - The published file: nyu_depth_v2_labeled.mat with splits.mat. Ids are the numbers of the images, 0001 to 1449.
    - BTS (arXiv 1907.10326): pairs <scene>/rgb_%05d.jpg and <scene>/sync_depth_%05d.png (16 bits, millimetres) below
      sync (else official_splits/train) and official_splits/test; ids are the images' paths there. If the folder holds
      nyudepthv2_{train,test}_files_with_gt.txt, the split is what that lists, less the lines whose depth is `None`.
      Its depth is raw; BTS made its test split from rawDepths.

    A folder that holds both is read as BTS; name the .mat file to have the other.

    Args:
        config: root is the folder, or the .mat file. With `eigen_crop`, depth outside of `EIGEN_CROP` is 0 in the test
            split; the training split is left as it is. `raw_depth` reads of the .mat file what was measured
            (rawDepths), not what was filled in (depths).
        split: "train" or "test".

    Raises:
        InputError: if neither layout is found, it lacks something, or a crop is asked for, which would not fit the
            depth.
    """

    truths = frozenset({Truth.depth})
    training_region = BTS_CROP

    def __init__(self, config: DataConfig, split: str) -> None:
        check_split(split)
        refuse_crop(config.resize)
        self.root, self.decoder, self.on_error = Path(str(config.root)), config.decoder, config.on_error
        self.eigen_crop = config.eigen_crop and split == "test"
        with explaining(self.root, "nyud"):
            self._source = _open_source(self.root, split, config.raw_depth)
        super().__init__(split, self._source.ids)
        self.n_published, self.left_out = self._source.n_published, self._source.left_out

    def describe(self) -> dict[str, str]:
        return {"layout": self._source.layout, "images": str(len(self)), "classes": "none, but depth"}

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        return self._source.load_image(index, self.decoder)

    def read_file(self, index: int) -> bytes | None:
        return self._source.read_file(index)

    def depth_m(self, index: int) -> Float32[np.ndarray, "height width"]:
        depth = self._source.load_depth(index)
        where = f"{self.image_ids[index]} of {self.root}"
        if not np.isfinite(depth).all() or depth.min() < 0:
            raise InputError(
                f"Expected depth in metres, 0 where nothing was measured, but that of {where} has negative values or"
                " NaN: replace it by the data set's own."
            )
        if depth.max() > MAX_DEPTH_M:
            raise InputError(
                f"Expected depth of at most {MAX_DEPTH_M:g} m, but that of {where} reaches {depth.max():.1f} m;"
                f" {describe_wrong_map(depth, self._source.is_png)}."
            )
        if not self.eigen_crop:
            return depth
        if depth.shape != (480, 640):
            raise InputError(
                f"Expected depth of 640x480 pixels for the Eigen crop, but that of {where} has"
                f" {depth.shape[1]}x{depth.shape[0]}: take it unscaled, or set data.eigen_crop=false."
            )
        cropped = np.zeros_like(depth)
        cropped[EIGEN_CROP] = depth[EIGEN_CROP]
        return cropped

    def check_image(self, index: int) -> dict[str, str]:
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[dict[str, str], DepthCounts]:
        self.load(index, CHECK_PX)
        return self._source.read_facts(index), DepthCounts().add(self.depth_m(index))

    def refuse_unit(self, depth: DepthCounts, n_maps: int) -> None:
        refuse_unit(depth, n_maps, f"the {self.split} split of {self.root}", self._source.is_png)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Names, sizes and contents of images and depth, as "hashed" says: of a .mat file, evenly spread blocks.

        Raises:
            ImageError: if a file cannot be read at all and `on_error` is "raise".
        """
        facts = {"depth": self._source.depth_kind, "eigen_crop": self.eigen_crop, **self._source.hash(self.on_error)}
        return self._make_fingerprint("nyud", **facts)


def _open_source(root: Path, split: str, raw_depth: bool) -> _MatFile | _Pairs:
    if root.suffix == ".mat" and root.is_file():
        return _MatFile(root, split, raw_depth)
    try:
        names = os.listdir(root)
    except OSError as error:
        raise InputError(f"Expected NYU Depth v2 at {root}, got: {describe_error(error)}; check data.root.") from error
    if "sync" in names or "official_splits" in names:
        if raw_depth:
            raise InputError(
                f"Expected data.raw_depth=true for {_MAT} alone, but {root} has the layout of BTS, whose depth is raw:"
                " drop data.raw_depth."
            )
        return _Pairs(root, split)
    if _MAT in names:
        return _MatFile(root / _MAT, split, raw_depth)
    raise InputError(
        f"Expected NYU Depth v2, either {_MAT} or the folders sync and official_splits, but {root} holds neither:"
        " check data.root."
    )


class _MatFile:
    """The published file, MATLAB v7.3, that is HDF5 with the axes reversed: images [n, 3, width, height]."""

    is_png = False

    def __init__(self, file: Path, split: str, raw_depth: bool) -> None:
        self.file, self.depth_kind = file, "rawDepths" if raw_depth else "depths"
        self.left_out = LeftOut()
        self._opened: tuple[int, h5py.File] | None = None
        n_images = self._check()
        self.numbers = _read_split(file.with_name(_SPLITS_MAT), split, n_images)
        self.ids = [f"{number:04d}" for number in self.numbers]
        filled = "as measured" if raw_depth else "with gaps filled in"
        self.layout = f"{file.name}, depth {filled} ({self.depth_kind})"
        self.n_published: int | None = _N_PUBLISHED[split]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read_file(self, index: int) -> None:
        """There is none: the images are numbers in a table."""

    def load_image(self, index: int, decoder: Decoder) -> UInt8[np.ndarray, "height width 3"]:
        try:
            return np.ascontiguousarray(self._dataset("images")[self.numbers[index] - 1].T)
        except (OSError, RuntimeError) as error:
            raise ImageError(f"{self.ids[index]} of {self.file}", describe_error(error)) from error

    def load_depth(self, index: int) -> Float32[np.ndarray, "height width"]:
        try:
            stored = self._dataset(self.depth_kind)[self.numbers[index] - 1]
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Cannot read the depth of {self.ids[index]} of {self.file} ({describe_error(error)}): download it"
                " again."
            ) from error
        return np.ascontiguousarray(stored.T, dtype=np.float32)

    def read_facts(self, index: int) -> dict[str, str]:
        width, height = self._dataset("images").shape[2:]
        return {"size": f"{width}x{height}", "mode": "RGB"}

    def hash(self, on_error: OnError) -> dict[str, str]:
        size = self.file.stat().st_size
        total = hashlib.sha256(f"{size} {' '.join(self.ids)}\n".encode())
        with self.file.open("rb") as stream:
            for i in range(_BLOCKS):
                stream.seek(max(size - _BLOCK_BYTES, 0) * i // (_BLOCKS - 1))
                total.update(stream.read(_BLOCK_BYTES))
        return {
            "hashed": f"size and {_BLOCKS} blocks of {_BLOCK_BYTES} bytes, evenly spread from beginning to end",
            "sha256": total.hexdigest(),
        }

    def _dataset(self, name: str) -> h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():  # never share a handle with a forked worker
            self._opened = None
            self._opened = os.getpid(), h5py.File(self.file, "r")
        dataset = self._opened[1][name]
        assert isinstance(dataset, h5py.Dataset)
        return dataset

    def _check(self) -> int:
        """Return the number of images, if the file is what it should be."""
        with self.file.open("rb") as stream:
            head = stream.read(19).decode("ascii", errors="replace")
        if not h5py.is_hdf5(self.file):
            raise InputError(
                f"Expected a MATLAB v7.3 file (HDF5), but {self.file} begins with {head!r}: download {_MAT} again, and"
                " do not save it anew in an older format."
            )
        try:
            with h5py.File(self.file, "r") as file:
                shapes = {
                    name: (data.shape, str(data.dtype)) for name, data in file.items() if isinstance(data, h5py.Dataset)
                }
        except (OSError, RuntimeError) as error:
            raise InputError(f"Cannot read {self.file} ({describe_error(error)}): download it again.") from error
        for name in ("images", self.depth_kind):
            if name not in shapes:
                raise InputError(
                    f"Expected images and {self.depth_kind} in {self.file}, found {', '.join(shapes) or 'nothing'}:"
                    f" take {_MAT}."
                )
        images, depth = shapes["images"], shapes[self.depth_kind]
        n_images, *size = images[0][:1] + images[0][2:]
        is_turned = size != sorted(size, reverse=True)  # its pictures are wide: here are the axes of numpy
        if images != ((n_images, 3, *size), "uint8") or depth[0] != (n_images, *size) or len(size) != 2 or is_turned:
            raise InputError(
                f"Expected images uint8 [n, 3, width, height] and {self.depth_kind} [n, width, height] in {self.file},"
                f" got {images[1]} {list(images[0])} and {list(depth[0])}: take {_MAT}."
            )
        return n_images


def _read_split(file: Path, split: str, n_images: int) -> list[int]:
    """Return the numbers, from 1, of the images of a split, ascending."""
    from scipy.io import loadmat  # a quarter of a second

    name = _INDICES[split]
    if not file.is_file():
        raise InputError(f"Expected {_SPLITS_MAT} next to {_MAT}, but there is no {file}: download it too.")
    try:
        stored = loadmat(file, variable_names=[name])
    except Exception as error:
        raise InputError(f"Cannot read {file} ({describe_error(error)}): download it again.") from error
    numbers = np.unique(stored.get(name, np.empty(0)))
    if not numbers.size or numbers[0] < 1 or numbers[-1] > n_images or (numbers != numbers.astype(int)).any():
        raise InputError(
            f"Expected {name} in {file} to be numbers of images, 1 to {n_images}, got"
            f" {f'{numbers[0]:g} to {numbers[-1]:g}' if numbers.size else 'none'}: take the {_SPLITS_MAT} that belongs"
            f" to {_MAT}."
        )
    return [int(number) for number in numbers]


class _Pairs:
    """The layout of BTS: pairs of files below one folder."""

    depth_kind = "png"
    is_png = True

    def __init__(self, root: Path, split: str) -> None:
        folders = [root / name for name in _BTS_FOLDERS[split] if (root / name).is_dir()]
        if not folders:
            raise InputError(
                f"Expected the {split} images of NYU Depth v2 in {' or '.join(_BTS_FOLDERS[split])}, but {root} has no"
                " such folder: complete the data set or set another data.root."
            )
        self.folder = folders[0]
        self.layout, self.left_out = f"BTS, {self.folder.relative_to(root)}", LeftOut()
        # BTS samples the raw videos for training: how many frames depends on the download
        self.n_published = _N_PUBLISHED[split] if split == "test" else None
        list_file = root / f"nyudepthv2_{split}_files_with_gt.txt"
        if list_file.is_file():
            pairs = _read_list(list_file, self.folder, self.left_out)
            self.layout += f", listed in {list_file.name}"
        else:
            pairs = _find_pairs(self.folder)
        _count_others(self.folder, pairs, self.left_out, "in no pair" if not list_file.is_file() else "not in the list")
        self.ids = sorted(pairs)
        self.left_out.n_read = 2 * len(pairs)
        self._depth = [pairs[name] for name in self.ids]

    def read_file(self, index: int) -> bytes:
        return read_bytes(self.folder / self.ids[index])

    def load_image(self, index: int, decoder: Decoder) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        return load_rgb(self.folder / self.ids[index], decoder)

    def load_depth(self, index: int) -> Float32[np.ndarray, "height width"]:
        file = self.folder / self._depth[index]
        mode, values = read_png(file)
        if not mode.startswith("I"):
            bits = "8 bits" if mode in ("L", "P") else f"Pillow's mode {mode}"
            raise InputError(
                f"Expected depth in PNG files of 16 bits (millimetres), but {file} has {bits}: take the depth of BTS,"
                " not pictures of it."
            )
        height, width = values.shape
        refuse_other_size(file, (width, height), self.folder / self.ids[index])
        return values.astype(np.float32) / np.float32(1000)

    def read_facts(self, index: int) -> dict[str, str]:
        return read_facts(self.folder / self.ids[index])

    def hash(self, on_error: OnError) -> dict[str, str]:
        return hash_files(self.folder, self.ids + self._depth, on_error)[0]


def _find_pairs(folder: Path) -> dict[str, str]:
    """Return all images below a folder of scenes with their depth, as paths below it."""
    images = {path.relative_to(folder).as_posix() for path in folder.glob("*/rgb_*") if is_image_name(path.name)}
    depths = {file.relative_to(folder).as_posix() for file in folder.glob("*/sync_depth_*.png")}
    pairs = {name: os.path.splitext(name.replace("/rgb_", "/sync_depth_"))[0] + ".png" for name in images}
    if len(set(pairs.values())) < len(pairs):
        raise InputError(f"Expected one image for each depth map in {folder}, got several: leave one rgb_* for each.")
    refuse_unpaired(folder, [name for name, depth in pairs.items() if depth not in depths], "a depth map")
    refuse_unpaired(folder, depths - set(pairs.values()), "an image")
    if not pairs:
        raise InputError(
            f"Expected scenes with rgb_*.jpg and sync_depth_*.png in {folder}, but there are none: complete the data"
            " set."
        )
    return pairs


def _count_others(folder: Path, pairs: Mapping[str, str], left_out: LeftOut, kind: str) -> None:
    """Count what lies below a folder of scenes and is no half of a pair."""
    known = {*pairs, *pairs.values()}
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            path = (Path(place) / name).relative_to(folder).as_posix()
            if is_hidden(name):
                left_out.add(HIDDEN, path)
            elif path not in known:
                left_out.add(kind if is_image_name(name) else os.path.splitext(name)[1].lower() or NO_SUFFIX, path)


def _read_list(file: Path, folder: Path, left_out: LeftOut) -> dict[str, str]:
    """Return the images of a list with their depth, as paths below the folder, and count lines without depth.

    A line is "image depth focal length"; a leading slash means nothing.
    """
    pairs: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise InputError(f"Expected lines of image, depth and focal length in {file}, got {line!r}: mend the list.")
        image, depth = (word.lstrip("/") for word in words[:2])
        if ".." in (*PurePosixPath(image).parts, *PurePosixPath(depth).parts):
            raise InputError(f"Expected paths below {folder} in {file}, got {line!r}: leave out the '..'.")
        if depth == "None":
            left_out.add(f"without depth in {file.name}", image)
        else:
            pairs[image] = depth
    missing = [name for pair in sorted(pairs.items()) for name in pair if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"Expected all that {file} lists below {folder}, but {len(missing)} of {2 * len(pairs)} files are missing"
            f" (the first: {missing[0]}): complete the data set or remove their lines."
        )
    if not pairs:
        raise InputError(f"Expected images with depth in {file}, but it lists none: mend or remove the list.")
    return pairs
