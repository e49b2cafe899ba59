"""How deep in a hierarchy of the classes the images of a latent meet: in "animal", or in "terrier"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from infoscope.analyses.labels import select
from infoscope.analyses.top_sets import TopSets
from infoscope.runtime.errors import InputError

ROOT = "anything"
"""The root of a hierarchy that families make."""
_N_NAMED = 3
_SETS_AT_ONCE = 1024


class Hierarchy(NamedTuple):
    """How deep every two classes meet: the depth of their lowest common ancestor, 0 for the root.

    meeting: [n_classes, n_classes]; the diagonal is the depth of the class itself.
    """

    meeting: Int64[np.ndarray, "n_classes n_classes"]


def make_hierarchy(parents: Mapping[str, Sequence[str]], classes: Sequence[str], source: str) -> Hierarchy:
    """Return how deep classes meet.

    A node may have several parents, as in WordNet: its depth is then the longest way from the root, and the lowest
    common ancestor of two classes their deepest one. Only the classes and what lies above them is looked at.

    Args:
        parents: of each node.
        classes: names of nodes, which may have children.
        source: what errors call the hierarchy.

    Raises:
        InputError: a class that is not in it, a cycle, or several roots.
    """
    nodes = {name for of in parents.values() for name in of} | set(parents)
    if missing := [name for name in classes if name not in nodes]:
        raise InputError(
            f"Expected every class in {source}, but it lacks {_name(missing)}: add a line `parent child` for each, with"
            " the class as the data set writes it (ImageNet's by wnid)."
        )
    order = _sort(parents, classes, source)
    depths: dict[str, int] = {}
    above: dict[str, set[str]] = {}
    for name in order:  # parents first
        of = parents.get(name, ())
        depths[name] = 1 + max((depths[parent] for parent in of), default=-1)
        above[name] = {name}.union(*(above[parent] for parent in of))
    if len(roots := [name for name in order if depths[name] == 0]) > 1:
        raise InputError(
            f"Expected one root in {source}, found {len(roots)} above the classes ({_name(roots)}): add a line"
            " `parent child` that joins them."
        )
    members: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        for ancestor in above[name]:
            members.setdefault(ancestor, []).append(number)
    meeting = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for name in sorted(members, key=lambda name: depths[name]):  # deeper ones last
        meeting[np.ix_(members[name], members[name])] = depths[name]
    return Hierarchy(meeting)


def _sort(parents: Mapping[str, Sequence[str]], classes: Sequence[str], source: str) -> list[str]:
    """Return classes and all above them, parents first."""
    above: dict[str, Sequence[str]] = {}
    waiting = list(classes)
    while waiting:
        name = waiting.pop()
        if name not in above:
            above[name] = parents.get(name, ())
            waiting += above[name]
    try:
        return list(TopologicalSorter(above).static_order())
    except CycleError as error:
        raise InputError(
            f"Expected {source} to be a hierarchy, but {_name(error.args[1])} lie in a circle: remove one of its lines."
        ) from error


def read_hierarchy(path: Path, classes: Sequence[str]) -> Hierarchy:
    """Read a hierarchy from a text file with a line `parent child` for each edge; empty lines do not count.

    Raises:
        InputError: a file that cannot be read, a line of other than two names, or as `make_hierarchy`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Expected describe.tree to be a text file with a line `parent child` for each edge, but {path} cannot be"
            f" read ({error}): give another one."
        ) from error
    parents: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        match line.split():
            case []:
                pass
            case [parent, child]:
                parents.setdefault(child, []).append(parent)
            case _:
                raise InputError(f"Expected `parent child` in line {number} of {path}, got {line!r}: mend the line.")
    return make_hierarchy(parents, classes, str(path))


def make_family_hierarchy(families: Mapping[str, Sequence[str]], classes: Sequence[str]) -> Hierarchy:
    """Return the hierarchy of three levels: the root, families, and the classes in them.

    Raises:
        InputError: a class in no family.
    """
    parents = {name: [family] for family, members in families.items() for name in members}
    return make_hierarchy(parents | {family: [ROOT] for family in families}, classes, "the families")


def compute_meeting_depth(
    sets: TopSets, labels: Int64[np.ndarray, " n_images"], hierarchy: Hierarchy
) -> Float[np.ndarray, " d_sae"]:
    """Return how deep two images of each latent's set meet in the mean; 0: in the root. NaN for sets of fewer than two.

    sae-for-vlm's, which rounds it.

    Args:
        sets: of images 0..n_images - 1.
        labels: of the images, classes of the hierarchy.
    """
    n_classes, n_sets = len(hierarchy.meeting), len(sets.columns)
    members, of_classes = sets.indicate(len(labels)), select(labels, n_classes)
    sums, n = np.zeros(n_sets), (sets.columns >= 0).sum(axis=1)
    for start in range(0, n_sets, _SETS_AT_ONCE):
        block = slice(start, start + _SETS_AT_ONCE)
        images = (members[block] @ of_classes).toarray()  # of each class, in each set
        # over all pairs, less each image with itself
        sums[block] = ((images @ hierarchy.meeting) * images).sum(axis=1) - images @ np.diagonal(hierarchy.meeting)
    return np.divide(sums, n * (n - 1), out=np.full(n_sets, np.nan), where=n > 1)


def _name(names: Sequence[str]) -> str:
    more = f" and {len(names) - _N_NAMED} more" if len(names) > _N_NAMED else ""
    return ", ".join(names[:_N_NAMED]) + more
