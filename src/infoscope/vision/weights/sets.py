"""Which of the sets of weights in a file is read: training writes raw and averaged ones, students and teachers.

A set is found by its image tower: what stands before the name of the tower's patch embedding, wrappers and modules
alike, is the set's root (`state_dict_ema`, `teacher.backbone`, `state_dict.model`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from infoscope.runtime.errors import InputError, list_some
from infoscope.runtime.untrusted.tensors import read_shapes, read_tensors
from infoscope.vision.weights.origins import describe_content
from infoscope.vision.weights.towers import TOWERS, Shapes, get_shapes, measure

Value = TypeVar("Value")

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""What torch and Lightning put around a module: parts of a name that say nothing of its place in the model."""
RAW = "raw"
"""The name of a set that has no name of its own."""
_AVERAGED = re.compile(r"(^|_)(ema|teacher|average|averaged|swa)(_|\d|$)")
_FIRST = ("state_dict_ema", "model_ema")
"""timm's own order (timm.models._helpers.load_state_dict)."""
_TRAINING = re.compile(r"optim|sched|scaler|^amp|callback|loop|loss|^rng|fp16|averaging_state|n_averaged")
"""What else training keeps, as the first part of a name: nobody misses it."""


@dataclass(frozen=True)
class Weights:
    """One set of weights, under names from the root of its model.

    chosen: what it is called where the file holds several, else empty.
    others: what the others are called.
    left_out: what else of the file is not read, by its first names; states of optimizers and their like are not named.
    """

    state: dict[str, Tensor]
    chosen: str
    others: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What a user should know of the choice, each in a few words."""
        notes = []
        if self.chosen:
            notes.append(
                f"of {1 + len(self.others)} sets of weights {self.chosen} is read, not {', '.join(self.others)}"
                " (model.weights_key chooses)"
            )
        if self.left_out:
            notes.append(f"{', '.join(self.left_out)} in it is not read")
        return notes


def choose_set(path: Path, arch: str, key: str | None) -> str:
    """Return what the set that is read of a file is called, empty where there is but one; numbers are not looked at.

    Raises:
        InputError: as `read_weights`.
    """
    stat = path.stat()
    return _choose_once(path, stat.st_size, stat.st_mtime_ns, arch, key)


@cache
def _choose_once(path: Path, _size: int, _mtime_ns: int, arch: str, key: str | None) -> str:
    root, roots = _choose(path, arch, clean(read_shapes(path)), key)
    return _show(root) if len(roots) > 1 else ""


def read_weights(path: Path, arch: str, key: str | None = None) -> Weights:
    """Return a set of weights of a file: the only one, the averaged one, or the one that is asked for.

    Args:
        arch: the architecture that is asked for, as sentences name it.
        key: `model.weights_key`: what the set is called, or a part of it.

    Raises:
        InputError: if the file cannot be read, holds no weights of an image tower, or several sets of which no toolkit
            says which one is meant.
    """
    tensors = clean(read_tensors(path))
    shapes = get_shapes(tensors)
    root, roots = _choose(path, arch, shapes, key)
    state = {name: tensors[root + name] for name in roots[root]}
    others = tuple(_show(other) for other in roots if other != root)
    return Weights(state, _show(root) if others else "", others, _name_unread(_find_unread(shapes, roots), root))


def clean(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return tensors by names without wrappers; names as they are where two would become one."""
    named = {".".join(part for part in name.split(".") if part not in WRAPPERS): v for name, v in tensors.items()}
    return named if len(named) == len(tensors) else dict(tensors)


def find_roots(shapes: Shapes) -> dict[str, Shapes]:
    """Return the sets of weights that hold an image tower: by root (empty, or with its dot), their shapes."""
    found = {_find_root(name, shape, shapes) for name, shape in shapes.items()}
    roots = sorted((root for root in found if root is not None), key=len)
    of: dict[str, str] = {}
    for root in roots:  # the longest one that a name begins with is its own
        inside = (name for name in shapes if name.startswith(root))
        of.update({name: root for name in inside if not _has_average(name.removeprefix(root))})
    return {root: {n.removeprefix(root): shapes[n] for n in shapes if of.get(n) == root} for root in sorted(roots)}


def _find_root(name: str, shape: tuple[int, ...], shapes: Shapes) -> str | None:
    tower = next((tower for tower in TOWERS if name == tower or name.endswith(f".{tower}")), None)
    if tower is None or len(shape) != 4 or name.startswith("optim"):
        return None
    root = name.removesuffix(tower)
    is_resnet = tower == "conv1.weight" and f"{root}class_embedding" not in shapes
    return None if is_resnet else root


def _choose(path: Path, arch: str, shapes: Shapes, key: str | None) -> tuple[str, dict[str, Shapes]]:
    """Return the root of the set that is read, and all sets."""
    roots = find_roots(shapes)
    if not roots:
        raise InputError(describe_content(path, arch, shapes))
    if key is not None:
        return _find_asked(path, roots, key), roots
    averaged = _find_averaged(roots)
    if len(roots) == 1:
        root = next(iter(roots))
        unread = [] if averaged else [name for name in _find_unread(shapes, roots) if len(shapes[name]) > 1]
        hidden = [name for name in unread if _has_average(name) and not name.startswith("optim")]
        if not hidden:
            return root, roots
        why = f"averaged ones under names that are not known ({list_some(hidden, 1)})"
    else:
        first = [root for name in _FIRST for root in averaged if name in root.split(".")][:1] or averaged
        if len(first) == 1 and len({measure(of) for of in roots.values()}) == 1:
            return first[0], roots
        why = "of which no rule says which one is meant"
    names = " or ".join(f"model.weights_key={_show(root)}" for root in roots)
    sets = f"{len(roots)} sets of weights" if len(roots) > 1 else "weights and"
    raise InputError(f"{path} holds {sets} {why}: choose by {names}.")


def _find_asked(path: Path, roots: Iterable[str], key: str) -> str:
    """Return the root that is called so, or else the only one that has this part in its name."""
    key = ".".join(part for part in key.split(".") if part not in WRAPPERS)
    found = [root for root in roots if _show(root) == key] or [root for root in roots if f".{key}." in f".{root}"]
    if len(found) != 1:
        names = ", ".join(_show(root) for root in roots)
        raise InputError(
            f"Expected model.weights_key to be one of the sets of weights in {path} ({names}), got {key!r}."
        )
    return found[0]


def _find_averaged(roots: Iterable[str]) -> list[str]:
    """Return the roots of averaged weights; Lightning has them in `state_dict` where it keeps the raw ones apart."""
    roots = list(roots)
    if any(root.startswith("current_model_state") for root in roots):
        return [root for root in roots if root.startswith("state_dict")]
    return [root for root in roots if _has_average(root)]


def _has_average(name: str) -> bool:
    return any(_AVERAGED.search(part) for part in name.split("."))


def _find_unread(shapes: Shapes, roots: Mapping[str, Shapes]) -> list[str]:
    """Return the names that belong to no set."""
    read = {root + name for root, of in roots.items() for name in of}
    return [name for name in shapes if name not in read]


def _name_unread(unread: Iterable[str], root: str) -> tuple[str, ...]:
    """Return the first parts of names, as far as they differ from the root's, but for what training keeps."""
    found: dict[str, None] = {}
    for name in unread:
        parts = name.split(".")
        if _TRAINING.search(parts[0]):
            continue
        n = next(i for i in range(1, len(parts) + 1) if not root.startswith(".".join(parts[:i]) + "."))
        found[".".join(parts[:n])] = None
    return tuple(found)


def _show(root: str) -> str:
    return root.removesuffix(".") or RAW
