"""Whole images for segmentation and depth: sparse latents in memory, edited tokens with truth at some pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.dense_views import DenseViews, Part, Prediction, choose_images
from infoscope.probes.heads import LinearMaps, MapBatch, compute_depth_m
from infoscope.probes.inputs import ProbeData, ProbeInputs, Rows, split_held_out
from infoscope.probes.pixels import PixelSample, choose_pixels, compute_pixel_weights, upsample
from infoscope.probes.slices import BYTES, divide
from infoscope.runtime.errors import InputError
from infoscope.sae.activation import SparseActs, join_acts
from infoscope.scope.ablations import Progress, no_progress
from infoscope.scope.editing import AblationEditor

_HELD_OUT_STEP = 2**31
"""Pixels of held-out images are drawn as of steps from here on, far from those of training."""
_MAX_ACTS_BYTES = 2**32
"""Of the latents of some images that are kept; those that take more are encoded each time they are read."""
_READ_IMAGES = 32
"""Whose tokens are read at a time to encode them, and at most for BatchNorm's statistics."""


class DenseImages:
    """Some images of a split whose patch tokens are encoded once, however many batches and variants read them.

    Memory: 8 bytes for each active latent of each token, as many as the fullest token has, up to 4 GiB: SAEs with
    thousands of active latents are encoded anew each time. Tokens stay in the cache on disk.

    Args:
        rows: of the split's tokens.
        tasks: whose ground truth is read.
    """

    @torch.no_grad()
    def __init__(self, inputs: ProbeInputs, data: ProbeData, rows: Int[np.ndarray, " n"], tasks: list[Task]) -> None:
        self.data, self.rows, self.tasks, self.device = data, rows, tasks, inputs.device
        self.grid = data.tokens.grid
        self.acts: SparseActs | None = None
        parts, widest = [], 0
        for start in range(0, len(rows), _READ_IMAGES):
            patches = data.tokens.tokens(rows[start : start + _READ_IMAGES]).patches.to(inputs.device)
            values, indices = inputs.sae.encode_sparse(patches.flatten(0, 1))
            widest = max(widest, values.shape[1])
            if 8 * widest * len(rows) * self.grid**2 > _MAX_ACTS_BYTES:
                return
            parts.append(SparseActs(*(part.unflatten(0, patches.shape[:2]).cpu() for part in (values, indices.int()))))
        self.acts = join_acts(parts)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def edit(
        self, images: Int[np.ndarray, " batch"], editor: AblationEditor
    ) -> Float[Tensor, "n_variants batch n_patches d"]:
        """Return the edited patch tokens of some images (positions in `rows`) in every variant."""
        patches = self.data.tokens.tokens(self.rows[images]).patches.to(self.device)
        acts = None
        if self.acts is not None:
            values, indices = (part[torch.from_numpy(images)].flatten(0, 1).to(self.device) for part in self.acts)
            acts = SparseActs(values, indices.long())
        edited = editor.edit(patches.flatten(0, 1), acts)
        return edited.unflatten(1, patches.shape[:2])

    def truth(self, image: int, task: Task) -> UInt8[np.ndarray, "height width"] | Float[np.ndarray, "height width"]:
        """Return the label map or the depth in metres of one image (position in `rows`), as it is stored."""
        index = int(self.data.tokens.image_index[self.rows[image]])
        return self.data.images.label_map(index) if task is Task.segmentation else self.data.images.depth_m(index)

    def make_batch(
        self, images: Int[np.ndarray, " batch"], editor: AblationEditor, n_pixels: int | None, seed: int, step: int
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


class WholeImages(DenseViews):
    """Tasks on whole images squashed to the model's resolution, whose tokens are cached: one loop for all tasks.

    Tokens of one batch in every variant of a chunk are held at a time; the logits of as many variants as fit into
    `config.memory_gb`.
    """

    def __init__(
        self,
        inputs: ProbeInputs,
        config: ProbeConfig,
        tasks: list[Task],
        rows: Rows,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__(tasks, config.dense_steps)
        self.config, self.progress, self.memory_bytes = config, progress, config.memory_gb * 1e9
        fit_rows, held_out_rows = split_held_out(rows["train"], config.held_out_share, config.seed)
        self.fit_images = DenseImages(inputs, inputs.train, fit_rows, tasks)
        self.held_out_images = DenseImages(inputs, inputs.train, held_out_rows, tasks)
        self.test_images = DenseImages(inputs, inputs.test, rows["test"], tasks)

    def iterate_tokens(self, editor: AblationEditor) -> Iterator[tuple[slice, Float[Tensor, "n_variants n d"]]]:
        images = self.fit_images
        bytes_each = 2 * BYTES * len(editor) * images.grid**2 * editor.sae.d_in
        n_images = max(1, min(_READ_IMAGES, int(self.memory_bytes // bytes_each)))
        for start in range(0, len(images), n_images):
            batch = np.arange(start, min(start + n_images, len(images)))
            yield slice(0, len(editor)), images.edit(batch, editor).flatten(1, 2)

    def iterate_batches(self, editor: AblationEditor, first_step: int = 0) -> Iterator[MapBatch]:
        config, images = self.config, self.fit_images
        size = min(config.dense_batch_images, len(images))
        for step in range(first_step, self.n_steps):
            chosen = choose_images(config.seed, step, len(images), size)
            yield images.make_batch(chosen, editor, config.n_pixels_per_image, config.seed, step)
            self.progress("segmentation and depth", step + 1, self.n_steps)

    def count(self, part: Part) -> int:
        return len(self.held_out_images if part is Part.held_out else self.test_images)

    @torch.no_grad()
    def predict(
        self, part: Part, images: slice, editor: AblationEditor, heads: dict[Task, list[LinearMaps]]
    ) -> Iterator[Prediction]:
        """Held-out images are read at some pixels, test images at every pixel, at the size in which truth is stored."""
        config, chosen = self.config, np.arange(self.count(part))[images]
        if part is Part.held_out:
            for image in chosen.tolist():
                batch = self.held_out_images.make_batch(
                    np.array([image]), editor, config.n_held_out_pixels_per_image, config.seed, _HELD_OUT_STEP + image
                )
                for task, listed in heads.items():
                    truth = batch.labels if task is Task.segmentation else batch.depth_m
                    assert truth is not None
                    for number, maps in enumerate(listed):
                        read = batch.pixels.read(self._read_grids(task, maps, batch.tokens))[:, 0]
                        values = read.max(-1).indices if task is Task.segmentation else read[..., 0]
                        yield Prediction(task, number, values, truth[0])
            return
        test = self.test_images
        for start in range(0, len(chosen), config.feature_batch_images):
            some = chosen[start : start + config.feature_batch_images]  # the last may be fewer
            tokens = test.edit(some, editor)
            for task, listed in heads.items():
                for number, maps in enumerate(listed):
                    grids = self._read_grids(task, maps, tokens)
                    for i, image in enumerate(some):
                        truth = torch.from_numpy(test.truth(int(image), task)).to(test.device)
                        yield Prediction(task, number, self._read_pixels(task, grids[:, i], *truth.shape), truth)
            self.progress("evaluation of segmentation and depth", int(some[-1]) + 1, len(test))

    def _read_grids(
        self, task: Task, maps: LinearMaps, tokens: Float[Tensor, "n_variants batch n_patches d"]
    ) -> Float[Tensor, "n_variants batch n_patches n"]:
        """Return the logits of every patch, or its depth in metres."""
        grids = maps(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3])
        return compute_depth_m(grids, self.config.max_depth_m)[..., None] if task is Task.depth else grids

    def _read_pixels(
        self, task: Task, grids: Float[Tensor, "n_variants n_patches n"], height_px: int, width_px: int
    ) -> Shaped[Tensor, "n_variants height_px width_px"]:
        """Return the label of every pixel, or its depth in metres."""
        read = []
        for variants in divide(len(grids), 2 * BYTES * grids.shape[-1] * height_px * width_px, self.memory_bytes):
            pixels = upsample(grids[variants], height_px, width_px)
            # max, not argmax: the same indices, six times faster over a strided axis on a CPU.
            read.append(pixels[:, 0] if task is Task.depth else pixels.max(1).indices)
        return torch.cat(read)
