"""Vectors in memory, one per image and variant: batches for training, means, blocks that bound what is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.config import SGDRecipe
from infoscope.probes.heads import BATCH_NORM_EPS, LinearMaps, Standardisation, VectorBatch
from infoscope.probes.metrics import compute_top1

BLOCK_BYTES = 2**27
"""What is computed for many images at once is cut into blocks of images of about this size."""


class TrainingImages(NamedTuple):
    """The training images: rows to fit heads on and rows to choose among heads on, and the labels of all."""

    fit: Int[Tensor, " n_fit"]
    held_out: Int[Tensor, " n_held_out"]
    labels: Int[Tensor, " n"]
    n_classes: int


def iterate_blocks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices that cover `n_rows` rows, each of about `BLOCK_BYTES` if a row takes `row_bytes`."""
    size = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


@torch.no_grad()
def standardise_vectors(vectors: Float[Tensor, "n_variants n d"], rows: Int[Tensor, " n_fit"]) -> Standardisation:
    """Return the mean and the standard deviation of every channel over some of the images (sums in float64)."""
    n_variants, _, d = vectors.shape
    mean, variance = (torch.zeros(n_variants, d, dtype=torch.float64, device=vectors.device) for _ in range(2))
    for block in iterate_blocks(len(rows), 8 * n_variants * d):
        mean += vectors.index_select(1, rows[block]).sum(1, dtype=torch.float64)
    mean /= len(rows)
    for block in iterate_blocks(len(rows), 8 * n_variants * d):
        variance += (vectors.index_select(1, rows[block]) - mean[:, None]).square().sum(1)
    return Standardisation(mean.float(), (variance / len(rows) + BATCH_NORM_EPS).sqrt().float())


@torch.no_grad()
def measure_top1(
    maps: LinearMaps,
    vectors: Float[Tensor, "n_variants n d"],
    rows: Int[Tensor, " n_some"],
    labels: Int[Tensor, " n_some"],
    n_classes: int,
) -> Float[Tensor, "n_variants n_heads"]:
    """Return the share of some images, 0..1, that each head gets right.

    Args:
        maps: of each variant one or more heads, their classes side by side.
        rows: which images; `labels` are theirs.
    """
    n_heads = maps.weight.shape[2] // n_classes
    right = torch.zeros(len(vectors), n_heads, dtype=torch.float64, device=vectors.device)
    for block in iterate_blocks(len(rows), 4 * len(vectors) * (maps.weight.shape[2] + vectors.shape[2])):
        scores = maps(vectors.index_select(1, rows[block])).unflatten(2, (n_heads, n_classes))
        right += compute_top1(scores.transpose(1, 2), labels[block])
    return right / len(rows)


class VectorBatches:
    """Shuffled batches of cached vectors; an epoch's order is a function of (seed, epoch), its last batch is kept."""

    def __init__(
        self,
        vectors: dict[str, Float[Tensor, "n_variants n d"]],
        images: TrainingImages,
        config: SGDRecipe,
        seed: int,
    ) -> None:
        self.vectors, self.rows, self.labels, self.seed = vectors, images.fit, images.labels, seed
        self.batch_images = min(config.classification_batch_images, len(images.fit))
        self.n_epochs = config.classification_epochs

    def __len__(self) -> int:
        return self.n_epochs * -(-len(self.rows) // self.batch_images)

    def iterate(self, first_step: int = 0) -> Iterator[VectorBatch]:
        """Yield the batches from a step on."""
        first_epoch, first = divmod(first_step, len(self) // self.n_epochs)
        for epoch in range(first_epoch, self.n_epochs):
            order = np.random.default_rng([self.seed, 12, epoch]).permutation(len(self.rows))
            chunks = torch.from_numpy(order).to(self.rows.device).split(self.batch_images)
            for chosen in chunks[first if epoch == first_epoch else 0 :]:
                images = self.rows[chosen]
                batch = {name: values.index_select(1, images) for name, values in self.vectors.items()}
                yield VectorBatch(batch, self.labels[images])
