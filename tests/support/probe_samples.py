"""A world whose causes are known: class, labels and depth each sit in latents of their own, which the SAE finds."""

from __future__ import annotations

import numpy as np
import torch

from infoscope.probes.config import ProbeConfig
from infoscope.probes.dense import DenseProbes
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.rates import TaskOutcome
from infoscope.sae.activations import TopK
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.editing import AblationEditor
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.tokens.source import TokenSource

GRID, PIXELS, D = 4, 12, 16
CLASS_LATENTS, LABEL_LATENTS, DEPTH_LATENT = [0, 1, 2], [3, 4, 5], 6
N_CLASSES, N_LABELS = 3, 3


class SampleCache:
    """Token cache in memory: each token holds its image's class, its patch's label and its depth, and some noise."""

    iterate, iterate_patches = TokenSource.iterate, TokenSource.iterate_patches

    def __init__(self, n_images: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.grid = GRID
        self.image_index = np.arange(n_images)[::-1].copy()  # rows are not image positions
        self.classes = rng.integers(N_CLASSES, size=n_images)
        self.labels = rng.integers(N_LABELS, size=(n_images, GRID, GRID))
        self.depth_m = rng.uniform(1, 9, size=(n_images, GRID, GRID)).astype(np.float32)
        flat = (n_images, GRID * GRID)
        tokens = np.zeros((*flat, D), np.float32)
        tokens[..., CLASS_LATENTS] = np.eye(N_CLASSES)[self.classes][:, None] * rng.uniform(0.5, 1.5, (*flat, 1))
        tokens[..., LABEL_LATENTS] = np.eye(N_LABELS)[self.labels].reshape(*flat, -1)
        tokens[..., DEPTH_LATENT] = self.depth_m.reshape(flat) / 4
        noise = np.eye(D)[rng.integers(7, D, size=flat)] * rng.uniform(0.2, 0.6, (*flat, 1))
        self.patches = tokens + noise.astype(np.float32)
        self.prefix = rng.standard_normal((n_images, 1, D)).astype(np.float32) * 0.1

    def __len__(self) -> int:
        return len(self.image_index)

    def tokens(self, rows: np.ndarray) -> Tokens:
        return Tokens(torch.from_numpy(self.prefix[rows]), torch.from_numpy(self.patches[rows]))


class SampleImages:
    """Ground truth of a cache, at three pixels a patch; the first row of every label map is ignored."""

    label_names = ("a", "b", "c")
    targets = ("class",)

    def __init__(self, cache: SampleCache) -> None:
        self.cache = cache
        self.image_ids = [f"{i}" for i in range(len(cache))]
        self.n_read = 0

    def _row(self, index: int) -> int:
        return len(self.cache) - 1 - index

    def labels(self, target: str) -> np.ndarray:
        return self.cache.classes[::-1].astype(np.int64)

    def n_target_classes(self, target: str) -> int:
        return N_CLASSES

    def label_map(self, index: int) -> np.ndarray:
        self.n_read += 1
        labels = np.kron(self.cache.labels[self._row(index)], np.ones((3, 3))).astype(np.uint8)
        labels[0] = 255
        return labels

    def depth_m(self, index: int) -> np.ndarray:
        depth_m = np.kron(self.cache.depth_m[self._row(index)], np.ones((3, 3))).astype(np.float32)
        depth_m[:, 0] = 0
        return depth_m


class MixingBackbone(Backbone):
    """Two blocks, of which the second adds the mean of a fixed mixture of the patches to CLS."""

    def __init__(self) -> None:
        super().__init__(
            d_in=D,
            n_layers=2,
            n_prefix_tokens=1,
            grid=GRID,
            patch_px=3,
            mean=[0] * 3,
            std=[1] * 3,
            fingerprint={},
        )
        self.mix = torch.randn(D, D, generator=torch.Generator().manual_seed(0)) / D**0.5

    def _tokens(self, pixels, layers):
        raise NotImplementedError

    def _resume(self, tokens, layer):
        return tokens.prefix[:, 0] + torch.relu(tokens.patches @ self.mix).mean(1)


def make_identity_sae(k: int = 4) -> SparseAutoencoder:
    """An SAE whose latent j reads and writes channel j, in normalised units (mean 0, scale 2)."""
    sae = SparseAutoencoder(D, D, TopK(k), scale=2.0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D))
        sae.W_enc.copy_(torch.eye(D))
    return sae.eval().requires_grad_(False)


def make_inputs(n_train: int = 60, n_test: int = 25) -> ProbeInputs:
    """60 training and 25 test images."""
    train, test = SampleCache(n_train, 1), SampleCache(n_test, 2)
    return ProbeInputs(
        make_identity_sae(),
        ProbeData(train, SampleImages(train)),  # pyright: ignore[reportArgumentType]
        ProbeData(test, SampleImages(test)),  # pyright: ignore[reportArgumentType]
        MixingBackbone(),
        layer=-2,
    )


def make_config(**changes) -> ProbeConfig:
    """Small probes that still learn."""
    settings = {
        "classification_lrs": [0.1, 1.0, 10.0],
        "classification_epochs": 20,
        "classification_batch_images": 16,
        "segmentation_lrs": [0.003, 0.03, 0.1],
        "depth_lrs": [0.003, 0.03, 0.1],
        "dense_steps": 40,
        "n_pixels_per_image": 32,
        "n_held_out_pixels_per_image": 64,
        "n_depth_bins": 16,
        "held_out_share": 0.2,
    }
    return ProbeConfig(**{**settings, **changes})


def mask(latents: list[int]) -> np.ndarray:
    """Booleans over the latents."""
    removed = np.zeros(D, dtype=bool)
    removed[latents] = True
    return removed


def run_dense(probes: DenseProbes, editor: AblationEditor) -> dict[str, TaskOutcome]:
    """Train and measure variants of which the first is the original."""
    trained = probes.train(editor)
    return probes.measure_test(editor, trained, {task: maps.take(slice(1)) for task, (maps, _) in trained.items()})
