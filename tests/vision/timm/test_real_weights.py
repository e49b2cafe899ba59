"""Real weights: DINOv2 S/14 from a file. Skipped unless INFOSCOPE_DINOV2_S14 names it; `.ci/run` makes one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor

from infoscope.config.tree import compose
from infoscope.data.scenes.factors import KINDS, LABELS
from infoscope.data.scenes.render import Scene, render_split_part
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import compute_model_fingerprint, load_backbone

pytestmark = pytest.mark.long

N_SCENES, GRID, PATCH_PX = 16, 16, 14


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    file = os.environ.get("INFOSCOPE_DINOV2_S14")
    if not file:
        pytest.skip("INFOSCOPE_DINOV2_S14 is not set")
    return compose(["model=dinov2_s14", f"model.pretrained={file}"]).model


@pytest.fixture(scope="module")
def backbone(config: ModelConfig) -> Backbone:
    return load_backbone(config)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return render_split_part(0, "test", 0, N_SCENES, size_px=GRID * PATCH_PX)


def stack(scenes: list[Scene]) -> Tensor:
    """Return the pictures as a backbone takes them."""
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)


def find_kinds(scenes: list[Scene]) -> Int64[Tensor, "n n_patches"]:
    """Return the object in whose label map the middle of each patch lies, as a position in KINDS; -1: none."""
    middles = slice(PATCH_PX // 2, None, PATCH_PX)
    labels = np.stack([scene.label_map[middles, middles] for scene in scenes]).reshape(len(scenes), -1)
    kinds = np.full(labels.shape, -1)
    for number, kind in enumerate(KINDS):
        kinds[labels == LABELS.index(kind)] = number
    return torch.from_numpy(kinds)


def share_of_like_neighbours(backbone: Backbone, scenes: list[Scene]) -> float:
    """Return how often the most similar patch of another scene's objects belongs to the same kind of object."""
    patches = F.normalize(backbone.tokens(stack(scenes), -2).patches, dim=-1)
    kinds = find_kinds(scenes)
    scene, _ = (kinds >= 0).nonzero(as_tuple=True)
    of_objects, kinds = patches[kinds >= 0], kinds[kinds >= 0]
    similar = of_objects @ of_objects.T
    similar[scene[:, None] == scene[None]] = -2
    return (kinds[similar.argmax(1)] == kinds).float().mean().item()


def test_sizes_are_those_of_s14_and_every_weight_is_read(backbone: Backbone) -> None:
    assert (backbone.d_in, backbone.n_layers, backbone.n_prefix_tokens) == (384, 12, 1)
    assert (backbone.grid, backbone.patch_px) == (GRID, PATCH_PX)
    assert backbone.notes == ""


def test_the_fingerprint_knows_the_weights_and_not_where_they_lie(
    backbone: Backbone, config: ModelConfig, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere.safetensors"
    link.symlink_to(Path(str(config.pretrained)).absolute())
    found = compute_model_fingerprint(replace(config, pretrained=str(link)))
    assert found == compute_model_fingerprint(config) == backbone.fingerprint
    assert found["weights"].startswith("sha256:")
    assert "elsewhere" not in json.dumps(found)


def test_tokens_are_finite_and_differ_between_pictures(backbone: Backbone, scenes: list[Scene]) -> None:
    images = stack(scenes[:2])
    for layer in (0, 4, 8, 11):
        tokens = backbone.tokens(images, layer)
        assert torch.isfinite(tokens.patches).all()
        assert tokens.patches.shape == (2, GRID**2, 384)
        assert not torch.allclose(tokens.patches[0], tokens.patches[1])


def test_the_patch_most_like_one_shows_the_same_kind_of_object(backbone: Backbone, scenes: list[Scene]) -> None:
    """What only trained weights know: scenes colour their objects at random, and random weights see little else."""
    random = load_backbone("timm:vit_small_patch14_dinov2.lvd142m:random", image_px=backbone.image_px)
    trained, untrained = (share_of_like_neighbours(one, scenes) for one in (backbone, random))
    assert trained > 2 * untrained
    assert trained > 2 / len(KINDS) > untrained
