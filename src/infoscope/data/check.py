"""Reading a whole data set before anything is computed from it: counts, and everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from infoscope.data.images import ImageSet
from infoscope.errors import InputError

_AHEAD = 256


@dataclass
class SplitCheck:
    """What was found in one split.

    Args:
        n_images: images listed.
        n_published: images that there should be; None: unknown.
        found: what `describe` says of the layout.
        facts: how often each fact was seen: {"mode": {"RGB": 395, "L": 5}}.
        errors: {image id: what is wrong}, in the order of the images.
    """

    n_images: int
    n_published: int | None
    found: dict[str, str]
    facts: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def check_images(
    images: ImageSet, n_threads: int | None = None, progress: Callable[[int], None] | None = None
) -> SplitCheck:
    """Read every image and all that is known of it, in threads; nothing stops at the first error.

    Args:
        progress: called with the number of images done so far.
    """
    result = SplitCheck(len(images), images.n_published, images.describe())

    def check(index: int) -> dict[str, str] | str:
        try:
            return images.check_image(index)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(n_threads or os.cpu_count() or 1) as pool:
        for start in range(0, len(images), _AHEAD):
            part = range(start, min(start + _AHEAD, len(images)))
            for index, found in zip(part, pool.map(check, part), strict=True):
                if isinstance(found, str):
                    result.errors[images.image_ids[index]] = found
                else:
                    for name, value in found.items():
                        counts = result.facts.setdefault(name, {})
                        counts[value] = counts.get(value, 0) + 1
            if progress is not None:
                progress(part.stop)
    return result
