"""Image towers as files name them: where one begins, how wide and deep it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


class Names(NamedTuple):
    """What belongs to a patch embedding: the beginning of the names of blocks, and the name of the positions."""

    blocks: str
    positions: str


TOWERS = {
    "visual.trunk.patch_embed.proj.weight": Names("visual.trunk.blocks.", "visual.trunk.pos_embed"),
    "visual.conv1.weight": Names("visual.transformer.resblocks.", "visual.positional_embedding"),
    "vision_model.embeddings.patch_embedding.weight": Names(
        "vision_model.encoder.layers.", "vision_model.embeddings.position_embedding.weight"
    ),
    "embeddings.patch_embeddings.projection.weight": Names("encoder.layer.", "embeddings.position_embeddings"),
    "embeddings.patch_embedding.weight": Names("encoder.layers.", "embeddings.position_embedding.weight"),
    "patch_embed.proj.weight": Names("blocks.", "pos_embed"),
    "conv1.weight": Names("transformer.resblocks.", "positional_embedding"),
}
"""Patch embeddings and what belongs to them, longer names first: of open_clip, with timm's tower or its own; of
transformers (CLIP, SigLIP; DINOv2, ViT; a bare CLIP tower); of timm, DINOv2 and MAE; of a bare tower of open_clip's."""


class Size(NamedTuple):
    """How large a tower is: width of a token, number of blocks, side of a patch in pixels, side of the grid or None."""

    width: int
    depth: int
    patch_px: int
    grid: int | None

    def __str__(self) -> str:
        return f"{self.width} wide, {self.depth} blocks deep, with patches of {self.patch_px} px"


def get_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors, by name."""
    return {name: tuple(value.shape) for name, value in state.items()}


def find_tower(names: Iterable[str]) -> str | None:
    """Return the name of the patch embedding among names from the root of a model, None if there is none."""
    known = set(names)
    return next((tower for tower in TOWERS if tower in known), None)


def measure(shapes: Shapes) -> Size | None:
    """Return how large the image tower among some tensors is, None if none with blocks is found."""
    tower = find_tower(shapes)
    if tower is None or len(shapes[tower]) != 4:
        return None
    blocks, positions = TOWERS[tower]
    matches = (re.match(rf"{re.escape(blocks)}(?:\d+\.)*?(\d+)\.\D", name) for name in shapes)
    depth = len({match[1] for match in matches if match})
    if depth == 0:
        return None
    return Size(shapes[tower][0], depth, shapes[tower][-1], _find_side(shapes.get(positions, ())))


def _find_side(shape: tuple[int, ...]) -> int | None:
    """Return the side of the square of patches that have positions, CLS before them or not."""
    n_tokens = shape[-2] if len(shape) > 1 else 0
    sides = (math.isqrt(n) for n in (n_tokens, n_tokens - 1) if n > 0 and math.isqrt(n) ** 2 == n)
    return next(sides, None)
