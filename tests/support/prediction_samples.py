"""The shipped scenes_clip on a few scenes, and a world in which each class hangs on one latent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infoscope.data.reader import iterate_images
from infoscope.data.scenes.scene_set import SceneSet, save_scenes
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs
from infoscope.predictions.prompts import Prompts, make_prompts
from infoscope.predictions.zero_shot import ZeroShotHead, make_zero_shot_head
from infoscope.sae.activations import TopK
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation, make_ablations
from infoscope.vision.load import load_backbone
from infoscope.vision.tokens.extract import extract_tokens
from tests.support.probe_samples import N_CLASSES, D, MixingBackbone, SampleCache, make_identity_sae

N_SCENES, D_SAE, LAYER = 60, 256, -2


@dataclass(frozen=True)
class SceneInputs:
    """What a run on scenes needs."""

    images: SceneSet
    inputs: PredictInputs
    prompts: Prompts
    head: ZeroShotHead
    variants: list[Ablation]


def make_scene_inputs(folder: Path) -> SceneInputs:
    """Render 60 scenes and encode them; the SAE is untrained: its directions are random, but it reconstructs some."""
    for name in ("scenes", "tokens"):
        (folder / name).mkdir()
    save_scenes(folder / "scenes", 0, "test", N_SCENES, 104)
    images, backbone = SceneSet(folder / "scenes"), load_backbone("scenes_clip")
    cache = extract_tokens(
        backbone,
        lambda positions, n: iterate_images(images, 96, n, positions),
        N_SCENES,
        LAYER,
        folder / "tokens",
        batch_images=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = SparseAutoencoder(backbone.d_in, D_SAE, TopK(16), mean=torch.from_numpy(cache.mean), scale=cache.scale)
    prompts = make_prompts(PredictConfig(), images)
    groups = {"high": np.arange(D_SAE) % 2 == 0, "empty": np.zeros(D_SAE, dtype=bool)}
    variants = make_ablations(groups, np.ones(D_SAE, dtype=bool), np.ones(D_SAE), n_draws=1)
    inputs = PredictInputs(sae.eval().requires_grad_(False), cache, backbone, LAYER)
    return SceneInputs(images, inputs, prompts, make_zero_shot_head(backbone, prompts), variants)


class PatchMeanClip(MixingBackbone):
    """Its image embedding is the direction of the mean patch."""

    def embed_tokens(self, tokens, layer: int, with_gradient: bool = False) -> Tensor:
        return F.normalize(tokens.patches.mean(1), dim=-1)

    def embed_texts(self, texts) -> Tensor:
        """Every text is the last channel."""
        return torch.eye(D)[[-1]].expand(len(texts), -1)

    @property
    def logit_scale(self) -> float:
        return 10.0


class LinearClip(MixingBackbone):
    """Its image embedding is the mean patch, whose channel c is the logit of class c over its logit scale."""

    def embed_tokens(self, tokens, layer: int, with_gradient: bool = False) -> Tensor:
        return tokens.patches.mean(1)

    @property
    def logit_scale(self) -> float:
        return 10.0


@dataclass(frozen=True)
class PlantedInputs:
    """Images whose class c is written by latent c alone; `classes` by row of the cache."""

    inputs: PredictInputs
    head: ZeroShotHead
    classes: np.ndarray


def make_planted_inputs() -> PlantedInputs:
    """25 images of three classes; the head reads channel c for class c."""
    cache = SampleCache(25, 2)
    inputs = PredictInputs(make_identity_sae(), cache, PatchMeanClip())  # pyright: ignore[reportArgumentType]
    return PlantedInputs(inputs, ZeroShotHead(("a", "b", "c"), torch.eye(D)[:N_CLASSES], 10.0), cache.classes)
