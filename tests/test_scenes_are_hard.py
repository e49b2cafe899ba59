"""The embedded task is worth a network: pixels alone name the nearest object seldom, the shipped CLIP mostly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infoscope.data.baseline import compute_linear_top1, compute_pixel_baseline
from infoscope.data.scene_factors import KINDS
from infoscope.data.scenes import render_split_part
from infoscope.vision.config import ModelConfig
from infoscope.vision.open_clip_backbone import load_backbone

SIZE_PX, N_TRAIN, N_TEST = 104, 1000, 400


def draw(split: str, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    scenes = render_split_part(0, split, 0, n_images, SIZE_PX)
    labels = [KINDS.index(scene.factors.objects[0].kind) for scene in scenes]
    return np.stack([scene.image for scene in scenes])[:, 4:100, 4:100], np.array(labels)


@torch.inference_mode()
def embed(images: np.ndarray) -> np.ndarray:
    backbone = load_backbone(ModelConfig())
    batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(100)
    return torch.cat([backbone.embed_images(batch) for batch in batches]).double().numpy()


@pytest.fixture(scope="module")
def accuracies() -> tuple[float, float]:
    """Top-1 of the pixels and of the shipped CLIP's embeddings, by the same linear model on the same images."""
    train, test = draw("train", N_TRAIN), draw("test", N_TEST)
    of_pixels = compute_pixel_baseline(*train, *test)
    return of_pixels, compute_linear_top1(embed(train[0]), train[1], embed(test[0]), test[1])


def test_pixels_reach_at_most_half_of_the_clip(accuracies: tuple[float, float]) -> None:
    of_pixels, of_clip = accuracies
    assert of_pixels <= of_clip / 2


def test_the_shipped_clip_knows_the_kind(accuracies: tuple[float, float]) -> None:
    assert accuracies[1] > 0.85
