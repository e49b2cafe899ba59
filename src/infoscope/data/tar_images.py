"""WebDataset shards: images and their labels in tar files, read in place and in any order.

A sample is what shares a key, the member's path up to the first dot of its basename: `n0/17.jpg` and `n0/17.cls` are
an image and its label. Where a name has more dots, it is a picture of its own (`IMG_2020.01.3.jpg`), unless it says
that it belongs to another: `17.seg.png` and `17.depth.png` are maps, and where `17.jpg` is, so is `17.any.png`. Nothing
is extracted and no member but images and `.cls` labels is read; what is left out is counted.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import tarfile
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from infoscope.data.config import RAISE, OnError
from infoscope.data.images import ImageError
from infoscope.data.left_out import HIDDEN, NO_SUFFIX, LeftOut, is_hidden
from infoscope.data.photographs import (
    N_READERS,
    PhotographFiles,
    check_photograph,
    describe_error,
    hash_images,
    is_image_name,
    load_rgb,
)
from infoscope.data.recognition import explaining, name_map
from infoscope.runtime.errors import InputError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_MAP = re.compile(
    "alpha|annotations?|depth|disp|disparity|edges?|flow|gt|instances?|labels?|masks?|matte|normals?|panoptic|parsing|seg"
    "|segmentation|semantic|semseg|sketch|thumb|thumbnail|trimap"
)
"""Last words of the names of what is known of a picture, and is none."""
_MAX_LABEL_BYTES = 32
_MAX_OPEN = 64  # shards held open by a process


class TarImages(PhotographFiles):
    """The images in WebDataset shards: members with the suffix of an image. Ids are names without it, ascending.

    The headers of the shards are read once, here; an image is then one read at its place. How images are spread over
    shards is not in the fingerprint.

    Args:
        source: one tar file, a folder of them, or files with a range as `shards-{000000..000010}.tar`.
        split, options: as of `PhotographFiles`.
        on_error: with "skip", what is whole of a damaged shard is taken.

    Raises:
        InputError: if a shard is missing, compressed, damaged or no tar file, a key occurs twice, no shard holds an
            image, or none is left to train on.
    """

    kind = "tar_images"

    def __init__(self, source: str | Path, split: str = "train", *, on_error: OnError = RAISE, **options: Any) -> None:
        self._opened: dict[int, int] = {}  # number of a shard -> file descriptor, the latest used last
        self.shards = list_shards(source)
        with ThreadPoolExecutor(N_READERS) as pool:
            indices = list(pool.map(lambda shard: _index_shard(shard, on_error), self.shards))
        pairs = zip(self.shards, indices, strict=True)
        self.damaged = {str(shard): index.damage for shard, index in pairs if index.damage}
        keys = [key for index in indices for key in index.keys]
        left_out = LeftOut("members")
        for index in indices:
            left_out.add_all(index.left_out)
        if not keys:
            holds = f" but {left_out.describe()}" if left_out else ""
            with explaining(self.shards[0], "image_folder"):
                raise InputError(
                    f"Expected images, but the {len(self.shards)} tar files of {source} hold no member that ends in"
                    f" .jpg, .png or another suffix of an image{holds}: check data.root."
                )
        shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])
        order = sorted(range(len(keys)), key=keys.__getitem__)
        for first, second in itertools.pairwise(order):
            if keys[first] == keys[second]:
                raise _duplicate(keys[first], self.shards[shard[first]], self.shards[shard[second]])
        left_out.add_all(_list_other_files(Path(source).expanduser()))
        ids = [keys[i] for i in order]
        super().__init__(Path(source), ids, split, on_error=on_error, left_out=left_out, **options)
        place = dict(zip(keys, range(len(keys)), strict=True))
        rows = np.array([place[name] for name in self.image_ids], dtype=np.int64)
        self._shard, self._places = shard[rows], np.concatenate([index.places for index in indices])[rows]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_opened", {}).values():
            os.close(descriptor)

    def decode(self, index: int) -> Image.Image | UInt8[np.ndarray, "height width 3"]:
        try:
            return load_rgb(io.BytesIO(self._read(index)), self.decoder)
        except (OSError, ImageError) as error:
            raise self._image_error(index, error) from error

    def read_file(self, index: int) -> bytes:
        try:
            return self._read(index)
        except OSError as error:
            raise self._image_error(index, error) from error

    def check_image(self, index: int) -> dict[str, str]:
        try:
            return check_photograph(io.BytesIO(self._read(index)))
        except (OSError, ImageError) as error:
            raise self._image_error(index, error) from error

    def _read(self, index: int) -> bytes:
        number = int(self._shard[index])
        descriptor = self._opened.pop(number, None)
        if descriptor is None:
            descriptor = os.open(self.shards[number], os.O_RDONLY)
            if len(self._opened) >= _MAX_OPEN:
                os.close(self._opened.pop(next(iter(self._opened))))
        self._opened[number] = descriptor
        offset, size = self._places[index, :2].tolist()
        return os.pread(descriptor, size, offset)  # keeps no position, so forked workers may share it

    def _image_error(self, index: int, error: OSError | ImageError) -> ImageError:
        reason = error.reason if isinstance(error, ImageError) else describe_error(error)
        return ImageError(f"{self.image_ids[index]} in {self.shards[self._shard[index]]}", reason)

    def read_labels(self) -> Int64[np.ndarray, " n_images"]:
        """Return the integers in the `.cls` members.

        Raises:
            InputError: if an image has none, or it holds something else.
        """
        labels = np.empty(len(self), np.int64)
        for number in np.unique(self._shard):
            with self.shards[number].open("rb", buffering=0) as stream:
                for i in np.flatnonzero(self._shard == number).tolist():
                    offset, size = self._places[i, 2:].tolist()
                    text = os.pread(stream.fileno(), min(size, _MAX_LABEL_BYTES), offset) if size else b""
                    if not re.fullmatch(rb"\s*\d{1,18}\s*", text) or size > _MAX_LABEL_BYTES:
                        found = repr(text.decode(errors="replace")) if size else "none"
                        raise InputError(
                            f"Expected a class number in {self.image_ids[i]}.cls in {self.shards[number]}, got {found}:"
                            " choose shards that hold labels."
                        )
                    labels[i] = int(text)
        return labels

    def describe(self) -> dict[str, str]:
        found = {"layout": "WebDataset tars", "shards": str(len(self.shards)), "images": str(len(self))}
        if self.damaged:
            shard, damage = next(iter(self.damaged.items()))
            found["damaged shards"] = f"{len(self.damaged)}, first {shard} ({damage})"
        return found

    def hash_contents(self, hashed: str | None = None) -> dict[str, str]:
        def digest(i: int, n_bytes: int | None) -> str:
            offset, size = self._places[i, :2].tolist()
            try:
                with self.shards[self._shard[i]].open("rb", buffering=0) as stream:
                    data = os.pread(stream.fileno(), size if n_bytes is None else min(size, n_bytes), offset)
            except OSError as error:
                raise self._image_error(i, error) from error
            return hashlib.sha256(data).hexdigest()

        found, self._contents = hash_images(self.image_ids, self._places[:, 1].tolist(), digest, hashed)
        return found


def is_tar_source(source: str | Path) -> bool:
    """Say whether a source is one for `TarImages`: a tar file, a range of them, or a folder of them without images."""
    if _is_tar_name(Path(source).name):
        return not Path(source).is_dir()
    try:
        with os.scandir(source) as entries:
            visible = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError:
        return False
    return any(_is_tar_name(entry.name) for entry in visible) and not any(
        entry.is_dir() or is_image_name(entry.name) for entry in visible
    )


def _is_tar_name(name: str) -> bool:
    return name.lower().endswith((".tar", *_COMPRESSED))


def _list_other_files(source: Path) -> LeftOut:
    """Return what else lies in a folder of shards."""
    left_out = LeftOut("members")
    for name in sorted(os.listdir(source)) if source.is_dir() else []:
        if is_hidden(name):
            left_out.add(HIDDEN, name)
        elif not _is_tar_name(name):
            left_out.add_file(name)
    return left_out


def list_shards(source: str | Path) -> list[Path]:
    """Return the tar files of a source: one, a folder of them, or a range in braces in the last part of the path.

    Raises:
        InputError: if one is missing or compressed, or there is none.
    """
    path = Path(source).expanduser()
    shards = [path]
    if path.is_dir():
        tars = sorted(name for name in os.listdir(path) if _is_tar_name(name) and not is_hidden(name))
        if not tars:
            raise InputError(f"Expected tar files in {path}, got none: check data.root.")
        shards = [path / name for name in tars]
    elif "{" in path.name and not path.exists():
        shards = [path.with_name(name) for name in _expand_braces(path.name)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise InputError(
            f"Expected the {len(shards)} tar files of {source}, got {len(missing)} that are missing, first"
            f" {missing[0]}: fetch them or set another data.root."
        )
    for shard in shards:
        if shard.name.lower().endswith(_COMPRESSED):
            raise InputError(
                f"Expected plain tar files, but {shard} is compressed, which allows no random access: decompress it."
            )
    return shards


def _expand_braces(pattern: str) -> list[str]:
    """Return the names that `{000..010}`, once or more often in a name, stands for; padded as its bounds are."""
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    if len(parts) == 1 or re.search(r"[{}]", "".join(parts[::3])):
        raise InputError(f"Expected a range of shards as in shards-{{000000..000010}}.tar, got {pattern!r}.")
    choices: list[list[str]] = [[parts[0]]]
    for first, last, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if int(first) > int(last) or int(last) - int(first) >= 1_000_000:
            raise InputError(f"Expected a range that rises by less than a million in {pattern!r}, got {first}..{last}.")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        choices += [[str(i).zfill(width) for i in range(int(first), int(last) + 1)], [text]]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


class _ShardIndex(NamedTuple):
    """Keys of the images of a shard and, [n, 4], offset and size of each and of its label (0, 0 = none), in bytes."""

    keys: list[str]
    places: Int64[np.ndarray, "n 4"]
    damage: str
    left_out: LeftOut


class _DamageError(Exception):
    """A tar file that cannot be read on."""


class _Name(NamedTuple):
    """A member's name: `a/b.01.3.JPG` has the key a/b, the stem a/b.01.3 and the suffix .jpg."""

    path: str
    key: str
    stem: str
    suffix: str

    @classmethod
    def parse(cls, path: str) -> _Name:
        folder, slash, base = path.removeprefix("./").rpartition("/")
        stem, suffix = os.path.splitext(base)
        return cls(path, f"{folder}{slash}{base.partition('.')[0]}", f"{folder}{slash}{stem}", suffix.lower())

    def is_hidden(self) -> bool:
        return any(is_hidden(part) for part in self.path.split("/") if part not in (".", ".."))

    def is_map(self, keys: Set[str]) -> bool:
        """Whether it belongs to a picture, which has one of these keys, rather than being one."""
        words = self.stem[len(self.key) :].lower().split(".")[1:]
        return bool(words) and (
            _MAP.fullmatch(words[-1]) is not None or (self.key in keys and not words[0][:1].isdigit())
        )


def _index_shard(shard: Path, on_error: OnError) -> _ShardIndex:
    members, left_out, damage = _list_members(shard)
    labels = {name.stem: place for name, place in members if name.suffix == ".cls"}
    pictures = [(name, place) for name, place in members if name.suffix != ".cls"]
    keys = {name.key for name, _ in pictures if name.stem == name.key}
    images: dict[str, tuple[int, int, int, int]] = {}
    for name, place in pictures:
        label = labels.get(name.stem, labels.get(name.key, (0, 0)))
        if name.is_map(keys):
            left_out.add("of another picture's key", name.path)
        elif name.stem in images:
            raise _duplicate(name.stem, shard, shard)
        else:
            images[name.stem] = (*place, *label)
    if damage:
        last = next(reversed(images), None)
        damage += f"; the last whole key is {last}" if last is not None else "; no image of it is whole"
        if on_error is RAISE:
            raise InputError(
                f"Expected a whole tar file, but {shard} {damage}: fetch it again, or set data.on_error=skip to keep"
                " what is whole."
            )
        if labels:  # what was cut off may be the label of the last image
            images = {key: place for key, place in images.items() if any(place[2:])}
    places = np.array(list(images.values()), dtype=np.int64)
    return _ShardIndex(list(images), places.reshape(-1, 4), damage, left_out)


def _list_members(shard: Path) -> tuple[list[tuple[_Name, tuple[int, int]]], LeftOut, str]:
    """Return the images and labels of a shard with offset and size, what else it holds, and how it is damaged."""
    found: list[tuple[_Name, tuple[int, int]]] = []
    left_out = LeftOut("members")
    try:
        with shard.open("rb") as stream:
            for member in _read_members(stream):
                name = _Name.parse(member.name)
                if name.is_hidden():
                    left_out.add(HIDDEN, name.path)
                elif not member.isreg():
                    left_out.add("links or devices", name.path)
                elif map_of := name_map(name.path):
                    left_out.add(f"maps of {map_of}", name.path)
                elif name.suffix == ".cls" or is_image_name(name.path):
                    found.append((name, (member.offset_data, member.size)))
                else:
                    left_out.add(name.suffix or NO_SUFFIX, name.path)
    except OSError as error:
        raise InputError(f"Cannot read the tar file {shard} ({describe_error(error)}): make it readable.") from error
    except _DamageError as error:
        return found, left_out, str(error)
    return found, left_out, ""


def _duplicate(key: str, first: Path, second: Path) -> InputError:
    where = f"twice in {first}" if first == second else f"in {first} and in {second}"
    return InputError(f"Expected every key once, but {key} has an image {where}: rename or remove one of them.")


def _read_members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file that are no folders, reading headers alone.

    `tarfile` takes a file cut off between two members, or one with rubbish there, for whole: the end
    mark is looked for.

    Raises:
        _DamageError: where the file ends before its end mark, or holds no header where one should be.
    """
    n_bytes = os.fstat(stream.fileno()).st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.issparse():
                    raise _DamageError("holds a sparse file")
                if member.isreg() and member.size < 0:
                    raise _DamageError("holds a damaged header")
                if member.isreg() and member.offset_data + member.size > n_bytes:
                    raise _DamageError("ends in the middle")
                if not member.isdir():
                    yield member
            end = os.pread(stream.fileno(), tarfile.BLOCKSIZE, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _DamageError(f"is no tar file, or a damaged one ({error})") from error
    if len(end) < tarfile.BLOCKSIZE:
        raise _DamageError("ends in the middle")
    if any(end):
        raise _DamageError("holds no tar header where one should be")
