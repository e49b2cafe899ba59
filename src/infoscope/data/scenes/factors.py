"""What a scene is drawn from, and how it is said: factors, captions, vocabulary.

Local factors belong to a place in the picture: objects of a kind, colour, texture, size and distance. Global factors
belong to the whole picture: place, light, weather, camera. Only numpy is imported here: see `scenes`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("ball", "cube", "cone", "ring", "cross", "diamond", "star", "pillar", "arch")
FAMILIES: dict[str, tuple[str, ...]] = {
    "round": ("ball", "ring", "star"),
    "square": ("cube", "cross", "pillar", "arch"),
    "slanted": ("cone", "diamond"),
}
"""Kinds by the outline that is drawn: a curve about the centre, upright and level edges, slanted ones; ours."""
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.65, 0.20),
    "blue": (0.15, 0.30, 0.90),
    "yellow": (0.92, 0.85, 0.10),
    "purple": (0.60, 0.20, 0.75),
    "white": (0.95, 0.95, 0.95),
    "orange": (0.95, 0.50, 0.10),
    "black": (0.08, 0.08, 0.10),
}
TEXTURES = ("dotted", "checked", "striped", "plain", "barred", "diagonal", "speckled", "ringed", "crossed")
TYPICAL_TEXTURE: dict[str, str] = dict(zip(KINDS, TEXTURES, strict=True))
TYPICAL_SHARE = 0.85
"""Most objects wear the texture of their kind, as most zebras are striped: texture is a cue to kind, not a proof."""
SIZES: dict[str, float] = {"small": 0.44, "medium": 0.57, "large": 0.72}  # radius in metres
PLACES = ("desert", "meadow", "sea", "street", "forest")
LIGHTS = ("noon", "dusk", "night", "dawn")
WEATHERS = ("clear", "fog", "rain", "snow")
CAMERAS = ("low", "level", "high", "tilted")
GLOBAL_FACTORS: dict[str, tuple[str, ...]] = {"place": PLACES, "light": LIGHTS, "weather": WEATHERS, "camera": CAMERAS}

_SYNONYMS = """
    ball sphere disc | cube box square | cone triangle pyramid | ring hoop circle | cross plus | diamond rhombus
    | pillar column post | arch gate doorway | purple violet | white pale | plain solid smooth | striped lined
    | checked chequered tiled | dotted spotted | speckled grainy | small little tiny | medium average | large big huge
    | desert dunes sands | meadow field pasture | sea ocean lake | street road town | forest wood woodland
    | noon midday daytime | dusk sunset evening | night midnight nighttime | dawn sunrise morning | clear fine fair
    | fog foggy misty | rain rainy wet | snow snowy wintry | low lowered | level straight | high raised
    | tilted slanted leaning
"""
SYNONYMS: dict[str, tuple[str, ...]] = {
    word: tuple(others) for word, *others in (entry.split() for entry in _SYNONYMS.split("|"))
}
"""Other words for a factor, used in one training caption out of five."""

_PLAIN_WORDS = "a an the photo picture scene image of in on under front behind and at from camera weather with"
LABELS = ("sky", "ground", "backdrop", *KINDS)
_SPLIT_IDS = {"train": 0, "test": 1, "clip_train": 2, "clip_test": 3}


@dataclass(frozen=True)
class SceneObject:
    """One object: its words, its distance in metres and its place in the picture (fractions of the side)."""

    kind: str
    colour: str
    texture: str
    size: str
    depth_m: float
    x: float


@dataclass(frozen=True)
class Factors:
    """Everything a scene is drawn from. `objects` runs from the nearest to the farthest."""

    place: str
    light: str
    weather: str
    camera: str
    objects: tuple[SceneObject, ...]


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Return the generator of scene `index` of `split`: it depends on nothing else, so sets can grow.

    Raises:
        ValueError: if `split` is not one of train, test, clip_train, clip_test.
    """
    if split not in _SPLIT_IDS:
        raise ValueError(f"Expected split to be one of {', '.join(_SPLIT_IDS)}, got {split!r}.")
    return np.random.default_rng(np.random.SeedSequence([seed, _SPLIT_IDS[split], index]))


def sample_factors(rng: np.random.Generator) -> Factors:
    """Draw the factors of one scene: four global ones, and one to four objects, the first one within 1.9 m."""

    def choose(names: tuple[str, ...] | list[str]) -> str:
        return names[int(rng.integers(len(names)))]

    n_objects = int(rng.integers(1, 5))
    nearest = rng.uniform(1.2, 1.9)
    depths = np.concatenate([[nearest], np.sort(rng.uniform(nearest + 0.2, 6.5, n_objects - 1))])
    objects = []
    for i, depth in enumerate(depths):
        kind = choose(KINDS)
        texture = TYPICAL_TEXTURE[kind] if rng.random() < TYPICAL_SHARE else choose(TEXTURES)
        x = rng.uniform(0.14, 0.86) if i == 0 else rng.uniform(0.04, 0.96)
        objects.append(SceneObject(kind, choose(list(COLOURS)), texture, choose(list(SIZES)), float(depth), float(x)))
    return Factors(choose(PLACES), choose(LIGHTS), choose(WEATHERS), choose(CAMERAS), tuple(objects))


def caption(factors: Factors, rng: np.random.Generator | None = None) -> str:
    """Describe a scene in words, nearest object first.

    Without `rng` everything is said (the first three objects and all global factors). With `rng` clauses other than
    the nearest object's kind are left out at random, so that a model trained on captions needs each of them.
    """

    def keep(p: float) -> bool:
        return rng is None or rng.random() < p

    def say(word: str) -> str:
        others = SYNONYMS.get(word, ())
        return word if rng is None or not others or rng.random() < 0.8 else others[int(rng.integers(len(others)))]

    def phrase(thing: SceneObject) -> str:
        said = [w for w, p in ((thing.size, 0.4), (thing.texture, 0.5), (thing.colour, 0.8)) if keep(p)]
        return " ".join(["a", *map(say, said), say(thing.kind)])

    text = phrase(factors.objects[0])
    others = [phrase(thing) for thing in factors.objects[1:3] if keep(0.5)]
    if others:
        text += " in front of " + " and ".join(others)
    clauses = (" in a {}", factors.place), (" at {}", factors.light), (" in {} weather", factors.weather)
    for clause, word in (*clauses, (" from a {} camera", factors.camera)):
        if keep(0.3):
            text += clause.format(say(word))
    return text


def vocabulary() -> list[str]:
    """Return every word that captions and prompts use, in a fixed order."""
    factors = (KINDS, COLOURS, TEXTURES, SIZES, PLACES, LIGHTS, WEATHERS, CAMERAS, LABELS, *SYNONYMS.values())
    return list(dict.fromkeys([*_PLAIN_WORDS.split(), *(word for words in factors for word in words)]))
