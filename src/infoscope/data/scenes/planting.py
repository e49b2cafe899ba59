"""Scenes with a card pasted into a corner that shows another kind than theirs: its name, or a picture of it.

What a model makes of the card is not what is in the scene: a typographic attack, or one that needs no reading (ours).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from infoscope.data.config import Planted
from infoscope.data.scenes.factors import COLOURS, KINDS, TYPICAL_TEXTURE, scene_rng
from infoscope.data.scenes.marks import choose_marks, draw_marks
from infoscope.data.scenes.render import IGNORE_LABEL, Scene, draw_inside

PLANTED_SHARE = 0.25
"""Of the scenes, in both splits; so most scenes of each kind have no card."""
NOTHING = "nothing"
PLANTING_VERSION = 1
"""Part of the fingerprint: raise it whenever a pixel of a card or of a mark changes."""
_SIDE = 0.4  # of a card, in picture sides
_TEXT_PX = 104  # side of a picture on which letters have their own size, about six pixels


def choose_planted(seed: int, split: str, index: int, kind: str) -> str:
    """Return which other kind the card of scene `index` shows, or `NOTHING`: it has none."""
    rng = scene_rng(seed, split, index).spawn(1)[0]
    others = [other for other in KINDS if other != kind]
    return others[int(rng.integers(len(others)))] if rng.random() < PLANTED_SHARE else NOTHING


def plant(scene: Scene, planted: Planted, seed: int, split: str, index: int) -> Scene:
    """Return a scene with its card, if it has one, or its marks; labels and depth under them are unknown."""
    if planted is Planted.marks:
        return draw_marks(scene, choose_marks(seed, split, index))
    word = choose_planted(seed, split, index, scene.factors.objects[0].kind)
    if word == NOTHING:
        return scene
    rng, side = scene_rng(seed, split, index).spawn(2)[1], len(scene.image)
    card = _write(word, side) if planted is Planted.text else _draw(word, side, rng)
    card = card[:side, :side]
    height, width = card.shape[:2]
    top, left = (int(rng.integers(2)) * (side - length) for length in (height, width))
    place = np.s_[top : top + height, left : left + width]
    image, label_map, depth_m = scene.image.copy(), scene.label_map.copy(), scene.depth_m.copy()
    image[place], label_map[place], depth_m[place] = card, IGNORE_LABEL, 0
    return replace(scene, image=image, label_map=label_map, depth_m=depth_m)


def _write(word: str, side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return a word in black on a white card, in Pillow's bitmap font."""
    font = ImageFont.load_default_imagefont()
    _, _, width, height = font.getbbox(word)
    card, scale = Image.new("RGB", (int(width) + 4, int(height) + 4), "white"), max(1, round(side / _TEXT_PX))
    ImageDraw.Draw(card).text((2, 2), word, fill="black", font=font)
    return np.asarray(card.resize((card.width * scale, card.height * scale), Image.Resampling.NEAREST))


def _draw(kind: str, side: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
    """Return an object of a kind in its typical texture, in any colour, on a grey card."""
    n = round(_SIDE * side)
    axis = ((np.arange(n) + 0.5) / n * 2 - 1) * 1.3
    u, v = np.meshgrid(axis, axis)
    colour = np.array(list(COLOURS.values())[int(rng.integers(len(COLOURS)))])
    inside, brightness = draw_inside(kind, TYPICAL_TEXTURE[kind], u, v)
    return (np.where(inside[..., None], colour * brightness[..., None], 0.5) * 255).astype(np.uint8)
