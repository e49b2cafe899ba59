"""The classes of the images of ImageNet's flat val: the devkit's list of ids, or Kaggle's table."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from infoscope.runtime.errors import InputError
from infoscope.runtime.files import read_text

_FOLDERS = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")
_FILES = ("LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt")


def find_ground_truth(root: Path, folder: Path, given: str | None) -> Path:
    """Return the file that is given, or one of the two usual ones in and below the folders.

    Raises:
        InputError: if there is none.
    """
    if given is not None:
        file = Path(given)
        if not file.is_file():
            raise InputError(f"Expected a file as ground_truth, got {file}, which is none: check data.ground_truth.")
        return file
    for place in (root, folder.parent, folder):
        for nested in _FOLDERS:
            for name in _FILES:
                if (place / nested / name).is_file():
                    return place / nested / name
    raise InputError(
        f"Expected class folders or a ground truth, but {folder.name} is flat: give ground_truth="
        f"{' or '.join(reversed(_FILES))} (data.ground_truth)."
    )


def read_ground_truth(file: Path, ids: list[str], subset: bool) -> list[str]:
    """Return the wnid of every image; the file may know more images only if a subset is meant.

    Raises:
        InputError: if the file cannot be read, or does not fit the images.
    """
    text = read_text(file, "a ground truth", "check data.ground_truth")
    if file.suffix.lower() == ".csv":
        known = _parse_solution(text, file)
        keys = [Path(name).stem for name in ids]
    else:
        known = {f"{i + 1:08d}": wnid for i, wnid in enumerate(_parse_classes(text, file))}
        keys = [_number_of(name, file) for name in ids]
    if len(known) != len(ids) and not subset:
        raise InputError(
            f"Expected a class in {file} for each of the {len(ids)} images, got {len(known)}: complete the images or"
            " set another data.ground_truth."
        )
    unknown = [name for name, key in zip(ids, keys, strict=True) if key not in known]
    if unknown:
        raise InputError(
            f"Expected a class in {file} for every image, got none for {len(unknown)} of {len(ids)}, first"
            f" {unknown[0]}: remove them or set another data.ground_truth."
        )
    return [known[key] for key in keys]


def _number_of(name: str, file: Path) -> str:
    match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", Path(name).stem)
    if match is None:
        raise InputError(
            f"Expected names as ILSVRC2012_val_00000001.JPEG, by which {file} is ordered, got {name}: rename or"
            " remove it."
        )
    return match[1]


def _parse_solution(text: str, file: Path) -> dict[str, str]:
    """Return {image: wnid} of Kaggle's table, whose rows are "ILSVRC2012_val_00048981,n03995372 85 1 499 272 "."""
    try:
        rows = list(csv.DictReader(text.splitlines()))
        return {row["ImageId"].strip(): row["PredictionString"].split()[0] for row in rows}
    except (KeyError, IndexError, AttributeError, csv.Error) as error:
        raise InputError(
            f"Expected the columns ImageId and PredictionString, filled in every row, in {file}: give Kaggle's"
            " LOC_val_solution.csv."
        ) from error


def _parse_classes(text: str, file: Path) -> list[str]:
    """Return the wnids that the lines of a text file stand for."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if all(re.fullmatch(r"n\d{8}", line) for line in lines):
        return lines
    wnid_of = _read_id_map(file)
    wnids: list[str] = []
    for number, line in enumerate(lines, 1):
        if line not in wnid_of:
            raise InputError(
                f"Expected an ILSVRC2012_ID from 1 to {len(wnid_of)} or a wnid in line {number} of {file}, got"
                f" {line[:40]!r}: give the devkit's ILSVRC2012_validation_ground_truth.txt."
            )
        wnids.append(wnid_of[line])
    return wnids


def _read_id_map(truth: Path) -> dict[str, str]:
    """Return {ILSVRC2012_ID: wnid} of the classes without subclasses; the ids as text."""
    matlab, text = truth.with_name("meta.mat"), truth.with_name("map_clsloc.txt")
    file = matlab if matlab.is_file() or not text.is_file() else text
    if not file.is_file():
        raise InputError(
            f"Expected meta.mat next to {truth}, got none: its ids say nothing without the devkit's data/meta.mat."
        )
    try:
        if file is text:  # "n02119789 1 kit_fox"
            rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            return {str(int(row[1])): row[0] for row in rows}
        from scipy.io import loadmat

        synsets = np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"])
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    except Exception as error:  # a damaged file leads SciPy to errors of every kind
        raise InputError(f"Expected the devkit's table of classes in {file}, got none: fetch it again.") from error
