"""What a folder is that is not what was expected: recognised by names, and said with what to give instead."""

from __future__ import annotations

import os
import re
import shlex
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

from PIL import Image

from infoscope.data.config import DataConfig, DataKind
from infoscope.data.layouts import LAYOUTS, Layout
from infoscope.runtime.errors import InputError

_N_SEEN = 4000  # entries of a folder that are looked at for a sign with a wildcard
_N_FOLLOWED = 6  # folders that are looked into for such a sign
_N_CHILDREN = 60
_N_OF_FOLDER = 12  # images of a folder that are looked at for maps among photographs
_ITS_NAME = "its name"
_OR, _WNID = " | ", "n" + 8 * "[0-9]"
_GIVE = {
    "imagenet": "for classes give ImageNet-1k (ILSVRC2012: folders train and val, or timm's tars)",
    "ade20k": "for label maps download ADEChallengeData2016.zip, unpack it and set data.root to its folder",
    "nyud": "for depth download nyu_depth_v2_labeled.mat with splits.mat, or the layout of BTS (sync, official_splits)",
    "celeba": "for attributes give CelebA (img_align_celeba with list_attr_celeba and list_eval_partition)",
    "waterbirds": "for birds and their places give waterbird_complete95_forest2water2 (metadata.csv and its images)",
    "image_folder": "give a folder of photographs",
    "class_folders": "give a folder whose subfolders are the classes",
}


def identify(folder: Path) -> tuple[Layout, str] | None:
    """Return which data set a folder (or file) is, and by which sign; None: none that is known. Reads names alone."""
    for layout in LAYOUTS:
        for sign in filter(None, layout.signs.split(_OR)):
            found = [_find(folder, pattern) for pattern in sign.replace("<wnid>", _WNID).split(" + ")]
            if all(found):
                return layout, " and ".join(str(name) for name in found)
    return None


def _find(folder: Path, pattern: str) -> str | None:
    """Return the first path below a folder that a pattern of a sign stands for."""
    if pattern.startswith("~"):
        return _ITS_NAME if fnmatchcase(folder.name.lower(), pattern[1:]) else None
    pattern, _, least = pattern.partition(" x")
    found = list(islice(_match(folder, pattern.split("/")), int(least or 1)))
    return found[0] if len(found) >= int(least or 1) else None


def _match(folder: Path, parts: Sequence[str]) -> Iterator[str]:
    """Yield what matches a pattern's parts, relative to the folder; where there are very many names, not all."""
    first, *rest = parts
    names = [first] if not set(first) & set("*?[") else [name for name in _list(folder) if fnmatchcase(name, first)]
    if not rest:
        yield from (name for name in names if os.path.lexists(folder / name))
        return
    for name in islice((name for name in names if os.path.isdir(folder / name)), _N_FOLLOWED):
        yield from (f"{name}/{below}" for below in _match(folder / name, rest))


@lru_cache(512)
def _list(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, _N_SEEN))
    except OSError:
        return []


@contextmanager
def explaining(root: Path, kind: str) -> Iterator[None]:
    """Let a refusal say what lies at `root` instead of the data of a `data=kind`, where that is known.

    Raises:
        InputError: the one raised inside, longer by what the folder is and what to give, if it is something else.
    """
    try:
        yield
    except InputError as error:
        advice = _advise(root, kind)
        if advice is None:
            raise
        sentence = re.sub(r"([:;] check data\.root|; data\.subset=true takes a subset)\.$", "", str(error))
        sentence = sentence if sentence != str(error) else sentence.rsplit(": ", 1)[0].rstrip(".")
        raise InputError(f"{sentence}; {advice}.") from error


def _advise(root: Path, kind: str) -> str | None:
    """Return what a folder is and what to give instead; None: it is what was expected, or nothing that is known."""
    if not root.exists():
        return None
    _list.cache_clear()  # what lies there may have changed since it was last looked at
    here = identify(root)
    if here is not None and (
        here[0].reader == kind or (kind == "class_folders" and _find_classes(here[0], root) == root)
    ):
        return None
    inside = _list_folders([root])
    inside += _list_folders(inside)
    near = [place for place in (*inside, *root.absolute().parents[:3]) if _reader(place) == kind]
    if near:
        return f"what looks like it lies at {near[0]}: set {_set_root(near[0])}"
    for place in (root, *inside):
        if found := identify(place):
            return f"{place} is {found[0].name} (by {found[1]}): {_say_instead(found[0], place, kind)}"
    for place in root.absolute().parents[:3]:
        found = identify(place)
        if found and _is_part(found[1], root.absolute().relative_to(place).parts[0]):
            return f"{root} is a part of {found[0].name}: {_say_instead(found[0], place, kind)}"
    return None


def _list_folders(places: Sequence[Path]) -> list[Path]:
    """Return some of the folders in folders."""
    found = (place / name for place in places for name in _list(place))
    return list(islice((folder for folder in found if folder.is_dir()), _N_CHILDREN))


def _reader(place: Path) -> str:
    found = identify(place)
    return found[0].reader if found else ""


def _is_part(sign: str, name: str) -> bool:
    return sign == _ITS_NAME or any(path.split("/")[0] == name for path in sign.split(" and "))


def _say_instead(layout: Layout, place: Path, kind: str) -> str:
    if layout.advice and layout.advised in ("", kind):
        return layout.advice
    if layout.reader:
        return f"set data={layout.reader} {_set_root(place)}, or {_GIVE[kind]}"
    classes = _find_classes(layout, place)
    if classes is not None and kind == "class_folders":
        return f"set {_set_root(classes)}"
    if classes is not None and kind == "imagenet":
        return f"set data=class_folders {_set_root(classes)}, or {_GIVE[kind]}"
    scope = _say_photographs(layout, place, place) if not layout.advised else ""
    return _GIVE[kind] + (f"; for the scope alone, {scope} with data=image_folder" if scope else "")


def _find_classes(layout: Layout, place: Path) -> Path | None:
    """Return the folder of a data set's class folders, if it has some."""
    return _find_folder(layout.classes, place)


def _find_folder(names: str, place: Path) -> Path | None:
    """Return the first of some folders of a layout that exists below its own."""
    found = (place / name for name in names.split(_OR) if name and "*" not in name)
    return next((folder for folder in found if folder.is_dir()), None)


_MAP_SUFFIXES = (".png", ".pgm", ".tif", ".tiff", ".gif", ".bmp", ".jpg", ".jpeg")
_N_COLOURS = 256  # that a map may have, by its labels or its palette; a photograph has more
_MAPS = re.compile(
    "(?:^|/)(?:" + "|".join(f"(?P<m{i}>{layout.maps})" for i, layout in enumerate(LAYOUTS) if layout.maps) + ")$"
)
_MAP_OF = re.compile(r"(.+)[_-](?:masks?|seg(?:mentation)?|labels?|annotation|depth|trimap|gt)\.\w+$", re.IGNORECASE)
"""A map that lies in the folder of its picture: `cat_mask.png` with `cat.jpg`."""


def refuse_maps(root: Path, names: Sequence[str]) -> None:
    """Refuse a folder of photographs some of whose images are known to be label maps or depth maps.

    Args:
        names: of the images below it, ascending; absolute ones may be among them.

    Raises:
        InputError: such images, with the folder to give instead.
    """
    start = root.resolve().as_posix()
    maps = [name for name in names if name.lower().endswith(_MAP_SUFFIXES)]
    for _, together in groupby(maps, os.path.dirname):
        for name in islice(together, _N_OF_FOLDER):
            found = _find_map(start, name)
            if found and not (found[0].beside_photographs and _is_photograph(root / name)):
                layout, place = found
                _list.cache_clear()
                n_maps = sum(_find_map(start, other) is not None for other in maps)
                instead = _say_photographs(layout, place, root) or "set data.root to a folder of photographs alone"
                if layout.reader and _reader(place) == layout.reader:
                    instead += f", or data={layout.reader} {_set_root(place)}"
                raise InputError(
                    f"Expected photographs, but {n_maps:,} images below {root} are maps of labels or depth, as of"
                    f" {layout.name} (the first: {name}): {instead}."
                )
            if _is_beside_its_picture(name, names) and not _is_photograph(root / name):
                n_maps = sum(_is_beside_its_picture(other, names) for other in maps)
                raise InputError(
                    f"Expected photographs, but {n_maps:,} images below {root} are maps of others by their names (the"
                    f" first: {name}): set data.root to a folder, or a list, of photographs alone."
                )


def _is_beside_its_picture(name: str, names: Sequence[str]) -> bool:
    """Whether an image is called after another one in its folder, as its map is; `names` ascending."""
    found = _MAP_OF.match(name)
    picture = f"{found[1]}." if found else ""
    return bool(found) and "".join(names[(i := bisect_left(names, picture)) : i + 1]).startswith(picture)


def _is_photograph(file: Path) -> bool:
    """Whether an image has more colours than a map; one that cannot be read is what its name says."""
    try:
        with Image.open(file) as image:
            return image.mode in ("RGB", "RGBA", "CMYK", "YCbCr") and image.getcolors(_N_COLOURS) is None
    except Exception:  # a damaged file leads decoders to errors of every kind
        return False


def name_map(path: str) -> str | None:
    """Return of which data set an image is a map, by its path alone; None: it is no map that is known so."""
    found = _MAPS.search(path) if path.lower().endswith(_MAP_SUFFIXES) else None
    layout = LAYOUTS[int(str(found.lastgroup)[1:])] if found else None
    return layout.name if layout and not layout.beside_photographs else None


def _find_map(start: str, name: str) -> tuple[Layout, Path] | None:
    """Return of which data set an image below a folder is a map, and where that lies; None: it is no known map."""
    found = _MAPS.search(os.path.join(start, name))
    if found is None:
        return None
    layout, place = LAYOUTS[int(str(found.lastgroup)[1:])], Path(found.string[: found.start()])
    return (layout, place) if not layout.beside_photographs or _find_folder(layout.photographs, place) else None


def _say_photographs(layout: Layout, place: Path, root: Path) -> str:
    """Say how to give the photographs of a data set alone; nothing where that is not known."""
    if photographs := _find_folder(layout.photographs, place):
        return f"set {_set_root(photographs)}"
    pattern = next((name for name in layout.photographs.split(_OR) if "*" in name), "")
    if not pattern:
        return ""
    search = f"find {shlex.quote(str(root.absolute()))} -name {shlex.quote(pattern)} > pictures.txt"
    return f"list the pictures alone ({search}) and set data.root=pictures.txt"


def name_settings(sentence: str, section: str) -> str:
    """Return a sentence about `data` as one about another section of the same settings, such as probe_data.depth.

    What is said of the scope, which is measured on `data` alone, is left out.
    """
    settings = "|".join(sorted(one.name for one in fields(DataConfig)))
    sentence = re.sub(r"; for the scope alone, .*(?=\.$)", "", sentence)
    sentence = re.sub(rf"(?<![\w./-])data\.(?=(?:{settings})\b)", f"{section}.", sentence)
    return re.sub(rf"(?<![\w./-])data=(?=(?:{'|'.join(DataKind.__members__)})\b)", f"{section}.kind=", sentence)


def _set_root(place: Path) -> str:
    """Return a setting as it is typed in a shell: Hydra wants unusual characters in quotes."""
    is_plain = re.fullmatch(r"[\w./+@%-]+", str(place), re.ASCII)
    return f"data.root={place}" if is_plain else shlex.quote(f'data.root="{place}"')
