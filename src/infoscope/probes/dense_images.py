"""Images for segmentation and depth: sparse latents in memory, batches of edited tokens with truth at some pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from infoscope.errors import InputError
from infoscope.probes.config import Task
from infoscope.probes.editing import VariantEditor
from infoscope.probes.heads import BATCH_NORM_EPS, MapBatch, Standardisation
from infoscope.probes.inputs import ProbeData, ProbeInputs, Progress
from infoscope.probes.pixels import PixelSample, choose_pixels, compute_pixel_weights
from infoscope.sae.activations import SparseActs


class DenseImages:
    """Some images of a split whose patch tokens are encoded once, however many batches and variants read them.

    Memory: 8 bytes for each active latent of each token; tokens stay in the cache on disk.

    Args:
        rows: rows of the token cache.
        tasks: whose ground truth is read.
    """

    def __init__(
        self,
        inputs: ProbeInputs,
        data: ProbeData,
        rows: Int[np.ndarray, " n"],
        tasks: list[Task],
        batch_images: int = 32,
    ) -> None:
        self.data, self.rows, self.tasks, self.device = data, rows, tasks, inputs.device
        self.grid = data.tokens.grid
        self.values, self.indices = _encode(inputs, data, rows, batch_images)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def edit(
        self, images: Int[np.ndarray, " batch"], editor: VariantEditor
    ) -> Float[Tensor, "n_variants batch n_patches d"]:
        """Return the edited patch tokens of some images (positions in `rows`) in every variant."""
        patches = self.data.tokens.tokens(self.rows[images]).patches.to(self.device)
        chosen = torch.from_numpy(images)
        acts = SparseActs(
            self.values[chosen].flatten(0, 1).to(self.device), self.indices[chosen].flatten(0, 1).to(self.device).long()
        )
        return editor.edit(patches.flatten(0, 1), acts).unflatten(1, patches.shape[:2])

    def truth(self, image: int, task: Task) -> UInt8[np.ndarray, "height width"] | Float[np.ndarray, "height width"]:
        """Return the label map or the depth in metres of one image (position in `rows`), as it is stored."""
        index = int(self.data.tokens.image_index[self.rows[image]])
        return self.data.images.label_map(index) if task is Task.segmentation else self.data.images.depth_m(index)

    def make_batch(
        self, images: Int[np.ndarray, " batch"], editor: VariantEditor, n_pixels: int | None, seed: int, step: int
    ) -> MapBatch:
        """Return some images with the ground truth at `n_pixels` pixels of each.

        Args:
            n_pixels: None: all; the images must then have one size.

        Raises:
            InputError: if label map and depth of an image differ in size.
        """
        weights, truths = [], {task: [] for task in self.tasks}
        for image in images.tolist():
            maps = {task: self.truth(image, task) for task in self.tasks}
            (height, width), *others = {truth.shape for truth in maps.values()}
            if others:
                name = self.data.images.image_ids[int(self.data.tokens.image_index[self.rows[image]])]
                raise InputError(
                    f"Expected label map and depth of {name} in one size, got {(height, width)} and {others[0]}: probe"
                    " one task at a time."
                )
            rows, columns = choose_pixels(seed, step, int(self.rows[image]), height, width, n_pixels)
            weights.append(torch.from_numpy(compute_pixel_weights(rows, columns, height, width, self.grid)))
            for task, truth in maps.items():
                truths[task].append(torch.from_numpy(truth[rows, columns]))
        chosen = {task: torch.stack(values).to(self.device) for task, values in truths.items()}
        return MapBatch(
            self.edit(images, editor),
            PixelSample(torch.stack(weights).to(self.device)),
            chosen.get(Task.segmentation),
            chosen.get(Task.depth),
        )


@torch.no_grad()
def _encode(
    inputs: ProbeInputs, data: ProbeData, rows: Int[np.ndarray, " n"], batch_images: int
) -> tuple[Float[Tensor, "n n_patches k"], Int[Tensor, "n n_patches k"]]:
    """Return the sparse latents of all patch tokens, padded with zeros to the widest batch (kinds other than TopK)."""
    parts = []
    for start in range(0, len(rows), batch_images):
        patches = data.tokens.tokens(rows[start : start + batch_images]).patches.to(inputs.device)
        acts = inputs.sae.encode_sparse(patches.flatten(0, 1))
        parts.append([part.unflatten(0, patches.shape[:2]).cpu() for part in (acts.values, acts.indices.int())])
    widest = max(values.shape[-1] for values, _ in parts)
    padded = [[torch.nn.functional.pad(part, (0, widest - part.shape[-1])) for part in pair] for pair in parts]
    return torch.cat([values for values, _ in padded]), torch.cat([indices for _, indices in padded])


def standardise_maps(images: DenseImages, editor: VariantEditor, batch_images: int) -> Standardisation:
    """Return mean and standard deviation of every channel over all patch tokens of the images, for each variant.

    Batches are merged by Chan's formula: no sum of large squares.
    """
    n, mean, spread = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(images), batch_images):
        tokens = images.edit(np.arange(start, min(start + batch_images, len(images))), editor).flatten(1, 2)
        variance, batch_mean = (part.double() for part in torch.var_mean(tokens, dim=1, correction=0))
        n_batch = tokens.shape[1]
        if n == 0:
            mean, spread = batch_mean, variance * n_batch
        else:
            distance = batch_mean - mean
            mean = mean + distance * (n_batch / (n + n_batch))
            spread = spread + variance * n_batch + distance.square() * (n * n_batch / (n + n_batch))
        n += n_batch
    return Standardisation(mean.float(), (spread / n + BATCH_NORM_EPS).sqrt().float())


class MapBatches:
    """Training batches of segmentation and depth: step t is a function of (seed, t), every epoch a fresh order."""

    def __init__(
        self,
        images: DenseImages,
        editor: VariantEditor,
        n_steps: int,
        batch_images: int,
        n_pixels: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self.images, self.editor, self.n_steps = images, editor, n_steps
        self.batch_images, self.n_pixels, self.seed = min(batch_images, len(images)), n_pixels, seed
        self.progress = progress

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[MapBatch]:
        for step in range(self.n_steps):
            yield self.images.make_batch(self.order(step), self.editor, self.n_pixels, self.seed, step)
            if self.progress:
                self.progress("segmentation and depth", step + 1, self.n_steps)

    def order(self, step: int) -> Int[np.ndarray, " batch"]:
        """Return the images of a step; an epoch's incomplete last batch is filled from the next epoch."""
        n = len(self.images)
        places = np.arange(step * self.batch_images, (step + 1) * self.batch_images)
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // n):
            mine = places // n == epoch
            permutation = np.random.default_rng([self.seed, 13, int(epoch)]).permutation(n)
            chosen[mine] = permutation[places[mine] % n]
        return chosen
