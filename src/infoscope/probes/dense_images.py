"""Whole images for segmentation and depth: sparse latents in memory, edited tokens with truth at some pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from infoscope.data.images import ImageSet
from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.dense_views import DenseViews, Part, Prediction, choose_images
from infoscope.probes.heads import LinearMaps, MapBatch, compute_depth_m
from infoscope.probes.inputs import ProbeData, ProbeInputs, Rows, split_held_out
from infoscope.probes.pixels import AllPixels, PixelSample, choose_pixels, compute_pixel_weights, upsample
from infoscope.probes.slices import BYTES, SlicedBatch, divide, encode_in_parts
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


def count_training_bytes(config: ProbeConfig, n_variants: int, n_patches: int, d_in: int, n_labels: int) -> int:
    """Return what training the dense tasks of `config` on whole images holds of so many variants.

    That is the tokens of this batch and of the next, heads of all rates with their gradients and AdamW's two moments,
    what a step forms of the larger task's (as much thrice), logits of patches twice, those of chosen pixels four times.
    """
    n_rates = {Task.segmentation: len(config.segmentation_lrs), Task.depth: len(config.depth_lrs)}
    each = {Task.segmentation: n_labels, Task.depth: config.n_depth_bins}
    n_outputs = [n_rates[task] * each[task] for task in n_rates if task in config.tasks]
    n_tokens, n_pixels = (
        config.dense_batch_images * n_patches,
        config.dense_batch_images * (config.n_pixels_per_image or 0),
    )
    n_values = 2 * n_tokens * d_in + d_in * (4 * sum(n_outputs) + 3 * max(n_outputs)) + 2 * n_tokens * sum(n_outputs)
    if Task.segmentation in config.tasks:
        n_values += 4 * n_pixels * n_outputs[0]
    return BYTES * n_variants * n_values


class SampledTruth(NamedTuple):
    """The ground truth of an image of some size at some pixels, [n_pixels] per task."""

    height_px: int
    width_px: int
    rows: Int[np.ndarray, " n_pixels"]
    columns: Int[np.ndarray, " n_pixels"]
    values: dict[Task, Shaped[np.ndarray, " n_pixels"]]


@dataclass(frozen=True)
class Truths:
    """The ground truth of some images, which helpers can read ahead.

    Args:
        index: which of the set, by position.
        rows: of their tokens, by which pixels are drawn.
        tasks: whose truth is read.
    """

    images: ImageSet
    index: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    tasks: list[Task]

    def read(self, image: int) -> dict[Task, Shaped[np.ndarray, "height width"]]:
        """Return the label map and the depth in metres of one image (position in `index`), as they are stored.

        Raises:
            InputError: if they differ in size.
        """
        images, index = self.images, int(self.index[image])
        maps = {t: images.label_map(index) if t is Task.segmentation else images.depth_m(index) for t in self.tasks}
        size, *others = {truth.shape for truth in maps.values()}
        if others:
            raise InputError(
                f"Expected label map and depth of {images.image_ids[index]} in one size, got {size} and {others[0]}:"
                " probe one task at a time."
            )
        return maps

    def sample(self, image: int, n_pixels: int | None, seed: int, step: int) -> SampledTruth:
        """Return the truth of one image at `n_pixels` pixels, drawn by seed and step.

        Args:
            n_pixels: None: all; the images of a batch must then have one size.

        Raises:
            InputError: as `read`.
        """
        maps = self.read(image)
        height, width = next(iter(maps.values())).shape
        rows, columns = choose_pixels(seed, step, int(self.rows[image]), height, width, n_pixels)
        return SampledTruth(height, width, rows, columns, {task: truth[rows, columns] for task, truth in maps.items()})

    def sample_step(self, n_images: int, n_pixels: int | None, seed: int, step: int) -> list[SampledTruth]:
        """Return the truth of the images of a training step, see `choose_images` and `sample`."""
        chosen = choose_images(seed, step, len(self.index), n_images)
        return [self.sample(image, n_pixels, seed, step) for image in chosen.tolist()]

    def sample_held_out(self, n_pixels: int | None, seed: int, image: int) -> SampledTruth:
        """Return the truth of a held-out image."""
        return self.sample(image, n_pixels, seed, _HELD_OUT_STEP + image)


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
        self.data, self.rows, self.device = data, rows, inputs.device
        self.truths = Truths(data.images, data.tokens.image_index[rows], rows, tasks)
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
        patches, acts = self.load(images)
        edited = editor.edit(patches.flatten(0, 1), acts)
        return edited.unflatten(1, patches.shape[:2])

    def load(self, images: Int[np.ndarray, " batch"]) -> tuple[Float[Tensor, "batch n_patches d"], SparseActs | None]:
        """Return the raw patch tokens of some images on the device, and their latents where they are kept."""
        patches = self.data.tokens.tokens(self.rows[images]).patches.to(self.device)
        if self.acts is None:
            return patches, None
        values, indices = (part[torch.from_numpy(images)].flatten(0, 1).to(self.device) for part in self.acts)
        return patches, SparseActs(values, indices.long())

    def make_batch(
        self, images: Int[np.ndarray, " batch"], sampled: Sequence[SampledTruth], editor: AblationEditor
    ) -> MapBatch:
        """Return some images with what `Truths.sample` says of each."""
        weights = [
            torch.from_numpy(compute_pixel_weights(of.rows, of.columns, of.height_px, of.width_px, self.grid))
            for of in sampled
        ]
        pixels = PixelSample(torch.stack(weights).to(self.device))
        return MapBatch(self.edit(images, editor), pixels, *self._stack(sampled))

    def make_sliced_batch(
        self,
        images: Int[np.ndarray, " batch"],
        sampled: Sequence[SampledTruth],
        editor: AblationEditor,
        memory_bytes: float,
    ) -> SlicedBatch:
        """Return some images with the truth of all their pixels, whose logits may be too many to be held at a time.

        Raises:
            InputError: images of several sizes.
        """
        size, *others = dict.fromkeys((of.height_px, of.width_px) for of in sampled)
        if others:
            raise InputError(
                "Expected images of one size to train probes at all of their pixels, got"
                f" {size[0]} x {size[1]} and {others[0][0]} x {others[0][1]}: set probe.n_pixels_per_image."
            )
        patches, acts = self.load(images)
        if acts is None:
            acts = encode_in_parts(editor.sae, patches.flatten(0, 1), memory_bytes)
        return SlicedBatch(patches, acts, editor, AllPixels(*size), *self._stack(sampled), memory_bytes)

    def _stack(self, sampled: Sequence[SampledTruth]) -> tuple[Tensor | None, Tensor | None]:
        """Return labels and depth of images, [batch, n_pixels], where they are asked for."""
        chosen = {
            task: torch.stack([torch.from_numpy(of.values[task]) for of in sampled]).to(self.device)
            for task in self.truths.tasks
        }
        return chosen.get(Task.segmentation), chosen.get(Task.depth)


class WholeImages(DenseViews):
    """Tasks on whole images squashed to the model's resolution, whose tokens are cached: one loop for all tasks.

    Tokens of one batch in every variant of a chunk are held at a time, with the logits of chosen pixels. Where all
    pixels are read, tokens or logits of as many variants are held as fit into `config.memory_gb`.
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
        self.inputs, self.config, self.progress, self.memory_bytes = inputs, config, progress, config.memory_gb * 1e9
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

    def iterate_batches(self, editor: AblationEditor, first_step: int = 0) -> Iterator[MapBatch | SlicedBatch]:
        config, images = self.config, self.fit_images
        size, steps = min(config.dense_batch_images, len(images)), range(first_step, self.n_steps)
        sample = partial(images.truths.sample_step, size, config.n_pixels_per_image, config.seed)
        for step, sampled in zip(steps, self.inputs.read_ahead(sample, steps), strict=True):
            chosen = choose_images(config.seed, step, len(images), size)
            if config.n_pixels_per_image is None:
                yield images.make_sliced_batch(chosen, sampled, editor, self.memory_bytes)
            else:
                yield images.make_batch(chosen, sampled, editor)
            self.progress("segmentation and depth", step + 1, self.n_steps)

    def count(self, part: Part) -> int:
        return len(self.held_out_images if part is Part.held_out else self.test_images)

    @torch.no_grad()
    def predict(
        self, part: Part, images: slice, editor: AblationEditor, heads: dict[Task, list[LinearMaps]]
    ) -> Iterator[Prediction]:
        """Held-out images are read at some pixels or all, test images at all, at the size in which truth is stored."""
        config, chosen = self.config, np.arange(self.count(part))[images]
        if part is Part.held_out:
            held_out = self.held_out_images
            sample = partial(held_out.truths.sample_held_out, config.n_held_out_pixels_per_image, config.seed)
            if config.n_held_out_pixels_per_image is None:
                yield from self._predict_maps(held_out, chosen, editor, heads)
                return
            for image, sampled in zip(chosen, self.inputs.read_ahead(sample, chosen.tolist()), strict=True):
                batch = held_out.make_batch(np.array([image]), [sampled], editor)
                for task, listed in heads.items():
                    truth = batch.labels if task is Task.segmentation else batch.depth_m
                    assert truth is not None
                    for number, maps in enumerate(listed):
                        read = batch.pixels.read(self._read_grids(task, maps, batch.tokens))[:, 0]
                        values = read.max(-1).indices if task is Task.segmentation else read[..., 0]
                        yield Prediction(task, number, values, truth[0])
            return
        yield from self._predict_maps(self.test_images, chosen, editor, heads)

    def _predict_maps(
        self,
        of: DenseImages,
        chosen: Int[np.ndarray, " n_chosen"],
        editor: AblationEditor,
        heads: dict[Task, list[LinearMaps]],
    ) -> Iterator[Prediction]:
        """Yield what heads make of every pixel of some images."""
        n_at_once = self.config.feature_batch_images
        truths = self.inputs.read_ahead(of.truths.read, chosen.tolist())
        for start in range(0, len(chosen), n_at_once):
            some = chosen[start : start + n_at_once]  # the last may be fewer
            tokens, of_some = of.edit(some, editor), list(islice(truths, len(some)))
            for task, listed in heads.items():
                for number, maps in enumerate(listed):
                    grids = self._read_grids(task, maps, tokens)
                    for i, maps_of in enumerate(of_some):
                        truth = torch.from_numpy(maps_of[task]).to(of.device)
                        yield Prediction(task, number, self._read_pixels(task, grids[:, i], *truth.shape), truth)
            self.progress("evaluation of segmentation and depth", int(some[-1]) + 1, len(of))

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
