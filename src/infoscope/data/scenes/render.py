"""Procedural scenes: small pictures whose causes are known, local ones and global ones.

A scene is drawn from its factors (see `factors`), nearer objects occluding farther ones. Every scene comes with
its caption, its class (the kind of the nearest object), a label map (12 classes, 255 = ignore) and a metric depth map
(0 = no measurement), so every claim about what a feature carries can be checked against the truth.

Only numpy is imported here: worker processes that render must start fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infoscope.data.scenes.factors import COLOURS, LABELS, SIZES, Factors, SceneObject, sample_factors, scene_rng

RENDERER_VERSION = 1
"""Part of the fingerprint: raise it whenever a pixel, a label or a word of any scene changes."""

IGNORE_LABEL = 255
MAX_DEPTH_M = 10.0

_GROUND = {
    "desert": (0.85, 0.70, 0.45),
    "meadow": (0.30, 0.60, 0.25),
    "sea": (0.10, 0.35, 0.60),
    "street": (0.45, 0.45, 0.47),
    "forest": (0.32, 0.26, 0.16),
}
_BACKDROP = {
    "desert": (0.70, 0.50, 0.35),
    "meadow": (0.35, 0.50, 0.45),
    "sea": (0.55, 0.60, 0.65),
    "street": (0.40, 0.35, 0.35),
    "forest": (0.10, 0.28, 0.12),
}
_SKY = {
    "noon": ((0.45, 0.68, 0.95), (0.80, 0.90, 1.00)),
    "dusk": ((0.35, 0.25, 0.50), (1.00, 0.60, 0.35)),
    "night": ((0.03, 0.04, 0.12), (0.12, 0.14, 0.28)),
    "dawn": ((0.55, 0.65, 0.85), (1.00, 0.82, 0.78)),
}
_TINT = {"noon": (1.0, 1.0, 1.0), "dusk": (0.95, 0.65, 0.50), "night": (0.42, 0.48, 0.68), "dawn": (0.95, 0.82, 0.85)}
_SUN_X = {"noon": 0.0, "dusk": -1.0, "night": 0.3, "dawn": 1.0}  # where the light comes from, left to right
_HORIZON = {"low": (0.50, 0.60), "level": (0.36, 0.46), "high": (0.18, 0.28), "tilted": (0.34, 0.46)}
_CAMERA_M = {"low": 0.55, "level": 0.95, "high": 1.45, "tilted": 0.95}  # height of the camera in metres
_FOCAL = 0.6  # focal length in picture heights
_BACKDROP_M = 9.5


@dataclass(frozen=True)
class Scene:
    """A rendered scene of side S.

    image: uint8 [S, S, 3]; label_map: uint8 [S, S], 0..11 index `LABELS`, 255 = ignore; depth_m: float32 [S, S] in
    metres, 0 = no measurement (sky, ground beyond 10 m).
    """

    image: np.ndarray
    label_map: np.ndarray
    depth_m: np.ndarray
    factors: Factors


def _inside(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Mask of an object of `kind` on coordinates u (right), v (down) in units of its radius."""
    au, av, r2 = np.abs(u), np.abs(v), u * u + v * v
    return {
        "ball": lambda: r2 < 1,
        "cube": lambda: (au < 0.86) & (av < 0.86),
        "cone": lambda: (av < 1) & (au < (v + 1) * 0.5),
        "ring": lambda: (r2 < 1) & (r2 > 0.3),
        "cross": lambda: ((au < 0.33) & (av < 1)) | ((av < 0.33) & (au < 1)),
        "diamond": lambda: au + av < 1.05,
        "star": lambda: np.hypot(u, v) < 0.68 + 0.42 * np.cos(5 * np.arctan2(u, -v)),
        "pillar": lambda: (au < 0.4) & (av < 1.25),
        "arch": lambda: (au < 0.95) & (av < 1) & ~((au < 0.5) & (v > -0.45)),
    }[kind]()


def _texture(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness factor of a texture on object coordinates."""
    wave = {
        "plain": lambda: -np.ones_like(u),
        "dotted": lambda: np.cos(12 * u) * np.cos(12 * v) - 0.3,
        "checked": lambda: np.sin(10 * u) * np.sin(10 * v),
        "striped": lambda: np.sin(13 * v),
        "barred": lambda: np.sin(13 * u),
        "diagonal": lambda: np.sin(9 * (u + v)),
        "speckled": lambda: np.sin(37 * u + 11 * np.sin(23 * v)) * np.sin(31 * v + 13 * np.sin(19 * u)),
        "ringed": lambda: np.sin(15 * np.hypot(u, v)),
        "crossed": lambda: np.maximum(np.cos(9 * (u + v)), np.cos(9 * (u - v))) - 0.8,
    }[name]()
    return np.where(wave > 0, 0.5, 1.0)


def draw_inside(kind: str, texture: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of an object, and its brightness factor, on coordinates [n, n] in units of its radius."""
    return _inside(kind, u, v), _texture(texture, u, v)


def _ground_pattern(place: str, x: np.ndarray, distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness offset of the ground; `distance` (metres) gives the pattern its perspective."""
    phase = rng.uniform(0, 6.28)
    across = (x - 0.5) * distance

    def draw_noise() -> np.ndarray:
        return rng.random(x.shape, dtype=np.float32) - 0.5

    return {
        "desert": lambda: 0.07 * np.sin(3.5 * distance + 2.0 * np.sin(1.7 * across + phase)),
        "meadow": lambda: 0.16 * draw_noise(),
        "sea": lambda: 0.09 * np.sin(9.0 * distance + np.sin(4.0 * across + phase)),
        "street": lambda: np.where(np.abs(across) < 0.07, 0.35, 0.05 * np.sign(np.sin(5.0 * distance + phase))),
        "forest": lambda: 0.12 * draw_noise() + 0.05 * np.sin(7.0 * across + phase),
    }[place]()


def _skyline(place: str, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Height of the backdrop above the horizon at each column, in picture heights."""
    phase = rng.uniform(0, 6.28, 3)
    return {
        "desert": lambda: 0.05 * np.clip(np.sin(5 * x + phase[0]) + 0.3, 0, None),
        "meadow": lambda: 0.06 + 0.03 * np.sin(4 * x + phase[0]) + 0.02 * np.sin(9 * x + phase[1]),
        "sea": lambda: 0.10 * np.clip(np.sin(3 * x + phase[0]) - 0.55, 0, None),
        "street": lambda: rng.uniform(0.04, 0.2, 8)[np.minimum((x * 8).astype(int), 7)],
        "forest": lambda: 0.10 + 0.05 * np.abs(np.sin(14 * x + phase[0])) + 0.03 * np.abs(np.sin(31 * x + phase[1])),
    }[place]()


def render_scene(factors: Factors, rng: np.random.Generator, size_px: int) -> Scene:
    """Draw a scene of side `size_px` (pixels, at least 32).

    Raises:
        ValueError: if `size_px` is below 32.
    """
    if size_px < 32:
        raise ValueError(f"Expected size_px to be at least 32, got {size_px}.")
    side = size_px
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side
    x, y = axis[None, :], axis[:, None]
    horizon = rng.uniform(*_HORIZON[factors.camera])
    slope = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.15, 0.28)) if factors.camera == "tilted" else 0.0
    level = y - slope * (x - 0.5) - horizon  # below the horizon > 0

    light = np.array(_TINT[factors.light], np.float32)
    top, bottom = (np.array(c, np.float32) for c in _SKY[factors.light])
    blend = np.clip(1 + level / max(horizon, 0.2), 0, 1)[..., None]
    image = top * (1 - blend) + bottom * blend
    label_map = np.zeros((side, side), np.uint8)
    depth_m = np.zeros((side, side), np.float32)

    height = _CAMERA_M[factors.camera]
    ground = level > 0
    distance = _FOCAL * height / np.maximum(level, 0.02)
    pattern = _ground_pattern(factors.place, np.broadcast_to(x, level.shape), distance, rng)
    ground_rgb = (np.array(_GROUND[factors.place], np.float32) + pattern[..., None]) * light
    image = np.where(ground[..., None], ground_rgb, image)
    label_map[ground] = 1
    depth_m[ground] = np.where(distance < MAX_DEPTH_M, distance, 0)[ground]

    backdrop = ~ground & (-level < _skyline(factors.place, axis, rng)[None, :])
    image[backdrop] = np.array(_BACKDROP[factors.place], np.float32) * light
    label_map[backdrop] = 2
    depth_m[backdrop] = _BACKDROP_M

    for thing in reversed(factors.objects):  # far to near, so that near ones occlude
        _draw_object(thing, factors, image, label_map, depth_m, horizon, slope, light)
    image = _apply_weather(factors.weather, image, depth_m, rng)
    image += rng.normal(0, 0.02, (side, side, 1)).astype(np.float32)
    return Scene((np.clip(image, 0, 1) * 255).astype(np.uint8), label_map, depth_m, factors)


def _draw_object(
    thing: SceneObject,
    factors: Factors,
    image: np.ndarray,
    label_map: np.ndarray,
    depth_m: np.ndarray,
    horizon: float,
    slope: float,
    light: np.ndarray,
) -> None:
    """Draw one object with its shadow into the three maps, in place. Its outline is labelled `ignore`."""
    side = image.shape[0]
    radius = _FOCAL * SIZES[thing.size] / thing.depth_m
    base = horizon + slope * (thing.x - 0.5) + _FOCAL * _CAMERA_M[factors.camera] / thing.depth_m
    centre = min(base - radius, 0.97 - radius)
    lo_x, hi_x = max(0, int((thing.x - 2.2 * radius) * side)), min(side, int((thing.x + 2.2 * radius) * side) + 2)
    lo_y, hi_y = max(0, int((centre - 1.4 * radius) * side)), min(side, int((centre + 1.5 * radius) * side) + 2)
    window = np.s_[lo_y:hi_y, lo_x:hi_x]
    u = (((np.arange(lo_x, hi_x) + 0.5) / side - thing.x) / radius)[None, :]
    v = (((np.arange(lo_y, hi_y) + 0.5) / side - centre) / radius)[:, None]
    u, v = np.broadcast_arrays(u, v)

    sun = _SUN_X[factors.light]
    shadow = ((u + 0.7 * sun) / 1.2) ** 2 + ((v - 1.0) / 0.28) ** 2 < 1
    image[window] *= np.where(shadow & (label_map[window] == 1), 0.6, 1.0)[..., None].astype(np.float32)

    mask = _inside(thing.kind, u, v)
    shade = 0.82 - 0.22 * v * (abs(sun) < 0.5) + 0.25 * u * sun
    paint = np.array(COLOURS[thing.colour], np.float32) * (_texture(thing.texture, u, v) * shade)[..., None] * light
    image[window][mask] = paint[mask].astype(np.float32)
    core = mask.copy()
    core[1:] &= mask[:-1]
    core[:-1] &= mask[1:]
    core[:, 1:] &= mask[:, :-1]
    core[:, :-1] &= mask[:, 1:]
    label_map[window][mask] = IGNORE_LABEL
    label_map[window][core] = LABELS.index(thing.kind)
    depth_m[window][mask] = thing.depth_m


def _apply_weather(weather: str, image: np.ndarray, depth_m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lay fog, rain or snow over the picture; fog thickens with depth."""
    side = image.shape[0]
    if weather == "fog":
        clear = np.exp(-np.where(depth_m > 0, depth_m, 12.0) / 4.5)[..., None].astype(np.float32)
        return image * clear + 0.72 * (1 - clear) * image.mean().clip(0.35, 1.0)
    if weather == "rain":
        drops = (rng.random((side, side), dtype=np.float32) < 0.012).astype(np.float32)
        streak = drops.copy()
        for step in range(1, 6):
            streak[step:, step // 3 :] += drops[: side - step, : side - step // 3]
        return image * 0.88 + 0.28 * np.clip(streak, 0, 1)[..., None]
    if weather == "snow":
        flakes = rng.random((side, side), dtype=np.float32) < 0.02
        flakes[1:] |= flakes[:-1]
        flakes[:, 1:] |= flakes[:, :-1]
        return np.where(flakes[..., None], 0.35 * image + 0.62, image)
    return image


def render_split_part(seed: int, split: str, start: int, stop: int, size_px: int) -> list[Scene]:
    """Render scenes `start` to `stop` - 1 of a split: what one worker process does."""
    rngs = (scene_rng(seed, split, index) for index in range(start, stop))
    return [render_scene(sample_factors(rng), rng, size_px) for rng in rngs]
