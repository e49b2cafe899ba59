"""Procedural scenes on disk: rendered once, read through memory maps.

A folder holds `images.npy` uint8 [n, S, S, 3], `label_maps.npy` uint8 [n, S, S], `depth_mm.npy` uint16 [n, S, S]
(millimetres, 0 = no measurement) and `factors.json`: how the set was made, and the factors of every scene.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16

from infoscope.data.config import Planted
from infoscope.data.images import CHOOSE_TARGET, ImageSet, Truth
from infoscope.data.scenes import factors as scene_factors
from infoscope.data.scenes import marks, planting, render
from infoscope.data.scenes.factors import Factors, SceneObject
from infoscope.data.scenes.render import Scene
from infoscope.runtime.errors import InputError
from infoscope.runtime.forks import map_ahead

_SCENES_PER_TASK = 64
_COLOURS, _SIZES = tuple(scene_factors.COLOURS), tuple(scene_factors.SIZES)
_NEAREST = {"colour": _COLOURS, "texture": scene_factors.TEXTURES, "size": _SIZES}
_MAPS = {"images": (np.uint8, (3,)), "label_maps": (np.uint8, ()), "depth_mm": (np.uint16, ())}


def make_scenes_fingerprint(
    seed: int, split: str, n_images: int, size_px: int, planted: Planted = Planted.nothing
) -> dict[str, Any]:
    """Return what determines a set of scenes, before or after it is rendered."""
    pasted = {} if planted is Planted.nothing else {"planted": planted.name, "planting": planting.PLANTING_VERSION}
    return pasted | {
        "kind": "scenes",
        "renderer": render.RENDERER_VERSION,
        "seed": seed,
        "split": split,
        "n_images": n_images,
        "size_px": size_px,
    }


def save_scenes(
    folder: Path,
    seed: int,
    split: str,
    n_images: int,
    size_px: int,
    n_workers: int = 0,
    progress: Callable[[int], None] | None = None,
    planted: Planted = Planted.nothing,
) -> None:
    """Render scenes 0 to n_images - 1 of a split into a folder that exists.

    Args:
        size_px: side of the pictures in pixels, at least 32.
        n_workers: processes that render; 0 or 1 renders in this one. The files are the same.
        progress: callback(number of scenes done), in rising order.
        planted: what is pasted into them.

    Raises:
        OSError: if the disk is full or the folder cannot be written.
    """
    assert n_images >= 1, n_images
    render_part = partial(_render_part, seed, split, n_images, size_px, planted)
    starts = range(0, n_images, _SCENES_PER_TASK)
    parts = map_ahead(render_part, starts, n_workers if n_workers > 1 else 0, "set data.n_workers=1")
    with ExitStack() as stack:
        # Written in order, not through a memory map: a full disk is then an error and not a dead process.
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in _MAPS}
        for name, (dtype, tail) in _MAPS.items():
            header = {"descr": np.dtype(dtype).str, "shape": (n_images, size_px, size_px, *tail)}
            np.lib.format.write_array_header_1_0(files[name], {**header, "fortran_order": False})
        factors: list[dict[str, Any]] = []
        for part in stack.enter_context(closing(parts)):
            files["images"].write(np.stack([scene.image for scene in part]).tobytes())
            files["label_maps"].write(np.stack([scene.label_map for scene in part]).tobytes())
            depth_mm = np.rint(np.stack([scene.depth_m for scene in part]) * 1000).astype(np.uint16)
            files["depth_mm"].write(depth_mm.tobytes())
            factors += [asdict(scene.factors) for scene in part]
            if progress is not None:
                progress(len(factors))
    made_from = make_scenes_fingerprint(seed, split, n_images, size_px, planted)
    (folder / "factors.json").write_text(json.dumps({"made_from": made_from, "factors": factors}), encoding="utf-8")


def _render_part(seed: int, split: str, n_images: int, size_px: int, planted: Planted, start: int) -> list[Scene]:
    scenes = render.render_split_part(seed, split, start, min(start + _SCENES_PER_TASK, n_images), size_px=size_px)
    if planted is Planted.nothing:
        return scenes
    return [planting.plant(scene, planted, seed, split, start + i) for i, scene in enumerate(scenes)]


class SceneSet(ImageSet):
    """Scenes as `save_scenes` wrote them.

    Targets: "class" (the kind of the nearest object), its "colour", "texture" and "size", and the global factors.

    Args:
        folder: what was given to `save_scenes`.

    Raises:
        InputError: if the folder does not hold a whole set.
    """

    truths = frozenset(Truth)
    class_names = scene_factors.KINDS
    label_names = scene_factors.LABELS
    global_factors = tuple(scene_factors.GLOBAL_FACTORS)
    targets = ("class", *_NEAREST, *global_factors)
    spurious_target = "texture"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            stored = json.loads((self.folder / "factors.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"Expected a folder of rendered scenes, but {self.folder} holds no readable factors.json: give a folder"
                " that save_scenes wrote."
            ) from error
        self._made_from, self._factors = stored["made_from"], stored["factors"]
        self.size_px: int = self._made_from["size_px"]
        split = self._made_from["split"]
        super().__init__(split, [f"{split}-{i:06d}" for i in range(len(self._factors))])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MAPS}  # never pickle the pixels

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self._made_from

    @cached_property
    def images(self) -> UInt8[np.ndarray, "n size size 3"]:
        """All pictures, memory-mapped."""
        return self._map("images")

    @cached_property
    def label_maps(self) -> UInt8[np.ndarray, "n size size"]:
        """All label maps, memory-mapped."""
        return self._map("label_maps")

    @cached_property
    def depth_mm(self) -> UInt16[np.ndarray, "n size size"]:
        """All depth maps in millimetres, 0 = no measurement, memory-mapped."""
        return self._map("depth_mm")

    def _map(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def decode(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        return self.images[index]

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        values = self._target_values(target)
        name = "kind" if target == "class" else target
        words = ({**factors, **factors["objects"][0]}[name] for factors in self._factors)
        return np.array([values.index(word) for word in words], dtype=np.int64)

    @classmethod
    def n_target_classes(cls, target: str) -> int:
        return len(cls._target_values(target))

    @classmethod
    def _target_values(cls, target: str) -> tuple[str, ...]:
        if target not in cls.targets:
            raise InputError(
                f"Expected a target of the scenes ({', '.join(cls.targets)}), got {target!r}: {CHOOSE_TARGET}."
            )
        pasted = {"planted": (planting.NOTHING, *scene_factors.KINDS), **marks.SAID, "n_red": marks.COUNTS}
        return {"class": scene_factors.KINDS, **pasted, **_NEAREST, **scene_factors.GLOBAL_FACTORS}[target]

    def label_map(self, index: int) -> UInt8[np.ndarray, "size size"]:
        return np.array(self.label_maps[index])

    def depth_m(self, index: int) -> Float32[np.ndarray, "size size"]:
        return self.depth_mm[index].astype(np.float32) / np.float32(1000)

    def factors(self, index: int) -> Factors:
        """Return what a scene was drawn from."""
        stored = self._factors[index]
        return Factors(**{**stored, "objects": tuple(SceneObject(**thing) for thing in stored["objects"])})

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        """Say everything about a scene, or with `rng` a random part of it."""
        return scene_factors.caption(self.factors(index), rng)


class PlantedScenes(SceneSet):
    """Scenes with cards that mislead, and which kind each shows ("planted", the first value: there is no card)."""

    targets = (*SceneSet.targets, "planted")
    spurious_target = "planted"

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        if target != "planted":
            return super().labels(target)
        values, seed = self._target_values(target), self._made_from["seed"]
        kinds = (factors["objects"][0]["kind"] for factors in self._factors)
        words = (planting.choose_planted(seed, self.split, i, kind) for i, kind in enumerate(kinds))
        return np.array([values.index(word) for word in words], dtype=np.int64)


class MarkedScenes(SceneSet):
    """Scenes with marks, and what is so of these: each of `FACTS` (0: no, 1: yes), and how many are red ("n_red")."""

    broad_facts = tuple(marks.FACTS)
    targets = (*SceneSet.targets, *broad_facts, "n_red")

    def marks(self, index: int) -> marks.Marks:
        """Return which marks of a scene are red."""
        return marks.choose_marks(self._made_from["seed"], self.split, index)

    def labels(self, target: str) -> Int64[np.ndarray, " n_images"]:
        if target != "n_red" and target not in self.broad_facts:
            return super().labels(target)
        of = marks.FACTS.get(target, sum)
        return np.array([of(self.marks(i)) for i in range(len(self))], dtype=np.int64)

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        """Say what is so of the marks first, which a short context does not cut, and then what `SceneSet` says."""
        text, said = super().caption(index, rng), marks.say_marks(self.marks(index), rng)
        return f"{said} and {text}" if said else text


def choose_scene_set(planted: Planted) -> type[SceneSet]:
    """Return what reads scenes with such things pasted in."""
    return {Planted.nothing: SceneSet, Planted.marks: MarkedScenes}.get(planted, PlantedScenes)
