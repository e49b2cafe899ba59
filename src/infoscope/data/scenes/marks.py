"""Marks near the corners of scenes, and facts about them that no small window can tell (ours).

Four discs, each red or blue by a fair coin of its own. Given any one mark a fact is exactly as probable as without
(`tests/data/scenes/test_marks.py` counts it out): whoever sees no more than one mark, and whatever else of the scene,
knows nothing of it. So the activation of a feature that looks at such windows alone has the same expectation with the
fact as without, on every patch; a feature whose mean over the patches goes with a fact sees two marks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from infoscope.data.scenes.factors import scene_rng
from infoscope.data.scenes.render import IGNORE_LABEL, Scene

Marks = tuple[bool, bool, bool, bool]
"""Which marks are red: upper left, upper right, lower left, lower right; the others are blue."""
RED, BLUE, RIM = (255, 0, 0), (0, 0, 255), (255, 255, 255)
"""Of the discs and their rim, as RGB. No light or weather lies on them; nothing else in a scene is as red or blue."""
CENTRE, RADIUS, DISC_RADIUS = 18 / 104, 6 / 104, 5 / 104
"""In picture sides: how far centres lie from both borders, and from the centre to the outside and inside of the rim.
That leaves a patch of any grid of 8 or more, so that both of two crops that are shifted by a patch show all of every
mark."""

FACTS: dict[str, Callable[[Marks], bool]] = {
    "alike": lambda red: red[0] == red[1],
    "even": lambda red: sum(red) % 2 == 0,
    "balanced": lambda red: sum(red) == 2,
    "symmetric": lambda red: red[0] == red[1] and red[2] == red[3],
}
"""The upper two have one colour; the number of red ones is even; two are red; left and right show the same colours."""
SAID: dict[str, tuple[str, str]] = {
    "alike": ("unlike", "alike"),
    "even": ("odd", "even"),
    "balanced": ("unbalanced", "balanced"),
    "symmetric": ("asymmetric", "symmetric"),
}
"""What captions say where a fact is not so, and where it is."""
WORDS = ("marks", *(word for pair in SAID.values() for word in pair))
"""What captions of such scenes use beside the vocabulary of all scenes."""
COUNTS = tuple(map(str, range(5)))
"""How many marks are red: what single marks say something of, and so no such fact."""


def choose_marks(seed: int, split: str, index: int) -> Marks:
    """Return the colours of the marks of scene `index`, which depend on nothing else in it."""
    upper_left, upper_right, lower_left, lower_right = scene_rng(seed, split, index).spawn(3)[2].random(4) < 0.5
    return bool(upper_left), bool(upper_right), bool(lower_left), bool(lower_right)


def draw_marks(scene: Scene, marks: Marks) -> Scene:
    """Return a scene with its marks; labels and depth under them are unknown."""
    image, label_map, depth_m = scene.image.copy(), scene.label_map.copy(), scene.depth_m.copy()
    side = len(image)
    axis = (np.arange(side) + 0.5) / side
    near, far = CENTRE, 1 - CENTRE
    for is_red, (x, y) in zip(marks, ((near, near), (far, near), (near, far), (far, far)), strict=True):
        distance = np.hypot(axis[None, :] - x, axis[:, None] - y)
        disc = distance < RADIUS
        image[disc] = RIM
        image[distance < DISC_RADIUS] = RED if is_red else BLUE
        label_map[disc], depth_m[disc] = IGNORE_LABEL, 0
    return replace(scene, image=image, label_map=label_map, depth_m=depth_m)


def say_marks(marks: Marks, rng: np.random.Generator | None = None) -> str:
    """Say what is so of the marks, as "alike odd marks": all facts, or with `rng` each in half of the captions.

    Empty where nothing is said.
    """
    said = [SAID[name][fact(marks)] for name, fact in FACTS.items() if rng is None or rng.random() < 0.5]
    return " ".join([*said, "marks"]) if said else ""
