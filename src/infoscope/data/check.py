"""Reading a whole data set before anything is computed from it: counts, and everything that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from infoscope.data.depth_units import DepthCounts
from infoscope.data.images import ImageSet, Truth
from infoscope.data.left_out import LeftOut
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Checkpoint, cut

ALL = "all images"
N_SAMPLED = 32
"""Maps of each split that are read before anything is built."""
_AHEAD = 256


@dataclass
class SplitCheck:
    """What was found in one split.

    Args:
        n_images: images listed.
        n_published: images that there should be; None: unknown.
        found: what `describe` says of the layout.
        facts: how often each fact was seen: {"mode": {"RGB": 395, "L": 5}}.
        errors: {image id: what is wrong}; of all images together, under `ALL`.
        left_out: what else lies there and is not read, of all splits together.
        depth: of data whose unit may be in doubt, range and median of what was measured, and its share.
    """

    n_images: int
    n_published: int | None
    found: dict[str, str]
    facts: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)
    depth: dict[str, float] = field(default_factory=dict)


def check_images(
    images: ImageSet,
    n_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    kept: Checkpoint | None = None,
) -> SplitCheck:
    """Read every image and all that is known of it, in threads; nothing stops at the first error.

    Args:
        progress: called with the number of images done so far.
        kept: where an interrupted check goes on from; what was wrong until then is read again, it may have been mended.
    """
    result, n_done = SplitCheck(len(images), images.n_published, images.describe(), left_out=images.left_out), 0
    depth = DepthCounts()
    state = kept.load() if kept is not None else None
    if state is not None and "depth" in state:
        result.facts, result.errors, n_done = state["facts"], state["errors"], state["n_done"]
        depth = DepthCounts(state["depth"].numpy())
    again = [index for index in range(n_done) if images.image_ids[index] in result.errors]

    def check(index: int) -> tuple[dict[str, str], DepthCounts] | str:
        try:
            return images.examine(index)
        except InputError as error:
            return str(error)

    left = [*again, *range(n_done, len(images))]
    with ThreadPoolExecutor(n_threads or processes.count_cores()) as pool:
        for part in (left[of] for of in cut(len(left), _AHEAD)):
            for index, found in zip(part, pool.map(check, part), strict=True):
                result.errors.pop(images.image_ids[index], None)
                if isinstance(found, str):
                    result.errors[images.image_ids[index]] = found
                else:
                    depth.add_counts(found[1])
                    for name, value in found[0].items():
                        counts = result.facts.setdefault(name, {})
                        counts[value] = counts.get(value, 0) + 1
            n_done = max(n_done, part[-1] + 1)
            if kept is not None and kept.is_due():
                counts = torch.from_numpy(depth.counts)
                kept.save({"n_done": n_done, "facts": result.facts, "errors": result.errors, "depth": counts})
            if progress is not None:
                progress(n_done)
    result.depth = depth.summary()
    if depth:
        try:
            images.refuse_unit(depth, len(images) - len(result.errors))
        except InputError as error:
            result.errors[ALL] = str(error)
    return result


def check_sample(images: ImageSet) -> None:
    """Read a few dozen label maps or depth maps, from all over the set: what is wrong with all is found at once.

    Raises:
        InputError: if one is not what the data set should hold, or all together are in a wrong unit.
    """
    depth = DepthCounts()
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), N_SAMPLED)).astype(int)).tolist()
    for i in rows:
        if Truth.label_maps in images.truths:
            images.label_map(i)
        if Truth.depth in images.truths:
            depth.add(images.depth_m(i))
    if depth:
        images.refuse_unit(depth, len(rows))
