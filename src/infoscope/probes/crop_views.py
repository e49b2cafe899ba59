"""Segmentation or depth on photographs: heads trained on random crops, evaluated by sliding windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from infoscope.data.images import ImageSet
from infoscope.probes.config import CropConfig, ProbeConfig, Task
from infoscope.probes.crops import (
    FILL,
    Photograph,
    Windows,
    choose_crop,
    cut_image,
    cut_truth,
    cut_windows,
    get_fill,
    merge_windows,
    read_photograph,
    round_to_patches,
)
from infoscope.probes.dense_views import DenseViews, Part, Prediction, choose_images
from infoscope.probes.heads import LinearMaps, compute_depth_m
from infoscope.probes.inputs import ProbeData, ProbeInputs, Rows, split_held_out
from infoscope.probes.pixels import AllPixels, PixelSample, compute_axis_weights
from infoscope.probes.slices import BYTES, SlicedBatch, divide, encode_in_parts, narrow
from infoscope.runtime.errors import InputError
from infoscope.scope.ablations import Progress, no_progress
from infoscope.scope.editing import AblationEditor

WINDOWS_AT_A_TIME = 16
"""That go through the backbone together."""


class CropViews(DenseViews):
    """One task on crops of the photographs, encoded as they come by the frozen backbone at the crops' size.

    Tokens and logits of as many variants as fit into `config.memory_gb` are held at a time (of one variant and, for
    segmentation, one crop at least); all variants share one encoding of a crop. On top come what does not grow with the
    variants (the backbone's own activations, the weights of chosen pixels), and the heads with AdamW's two moments.

    Args:
        rows: of the tokens, which say which images take part.

    Raises:
        InputError: if the backbone is not given, or cannot take images of this size.
    """

    def __init__(
        self,
        inputs: ProbeInputs,
        config: ProbeConfig,
        task: Task,
        rows: Rows,
        progress: Progress = no_progress,
    ) -> None:
        crops = config.crops(task)
        assert crops is not None
        assert crops.crop_px is not None
        if inputs.backbone is None or inputs.backbone_at is None:
            raise InputError(f"{task.name} on crops needs the backbone, to encode them: give it, or whole images.")
        super().__init__([task], crops.n_steps or config.dense_steps)
        self.task, self.inputs, self.config, self.crops, self.progress = task, inputs, config, crops, progress
        self.backbone = inputs.backbone_at(round_to_patches(crops.crop_px, inputs.backbone.patch_px))
        self.memory_bytes = config.memory_gb * 1e9
        share = config.held_out_share
        if crops.n_held_out is not None:
            share = min(share, crops.n_held_out / len(rows["train"]))
        fit, held_out = split_held_out(rows["train"], share, config.seed)
        fill, size = get_fill(self.backbone.mean), self.backbone.image_px

        def choose(data: ProbeData, rows: Int[np.ndarray, " n"]) -> Photographs:
            return Photographs(data.images, data.tokens.image_index[rows], task, crops, size, fill)

        self.steps = CropSteps(choose(inputs.train, fit), config)
        self.parts = {
            Part.held_out: choose(inputs.train, held_out),
            Part.test: choose(inputs.test, rows["test"]),
        }

    def iterate_tokens(self, editor: AblationEditor) -> Iterator[tuple[slice, Float[Tensor, "n_variants n d"]]]:
        n_steps = min(-(-self.crops.n_norm_crops // self.steps.batch_images), self.n_steps)
        for read in self.inputs.read_ahead(self.steps.__getitem__, range(n_steps)):
            batch = self._make_batch(read, editor)
            for variants, tokens in batch.iterate_tokens(batch.token_bytes):
                yield variants, tokens.flatten(1, 2)

    def iterate_batches(self, editor: AblationEditor, first_step: int = 0) -> Iterator[SlicedBatch]:
        steps = range(first_step, self.n_steps)
        for step, read in zip(steps, self.inputs.read_ahead(self.steps.__getitem__, steps), strict=True):
            yield self._make_batch(read, editor)
            self.progress(f"{self.task.name} on crops", step + 1, self.n_steps)

    def _make_batch(self, read: CropStep, editor: AblationEditor) -> SlicedBatch:
        patches, device = self.encode(read.images), self.inputs.device
        truth = read.truth.to(device)
        pixels: AllPixels | PixelSample = AllPixels(*read.images.shape[-2:])
        if read.pixels is not None:
            along = torch.from_numpy(compute_axis_weights(self.backbone.image_px, self.backbone.grid)).to(device)
            rows, columns = read.pixels.to(device).unbind(-1)
            pixels = PixelSample(torch.einsum("bpi,bpj->bpij", along[rows], along[columns]).flatten(2))
        is_labels = self.task is Task.segmentation
        return SlicedBatch(
            patches,
            encode_in_parts(self.inputs.sae, patches.flatten(0, 1), self.memory_bytes),
            editor,
            pixels,
            truth if is_labels else None,
            None if is_labels else truth,
            self.memory_bytes,
        )

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "batch 3 crop_px crop_px"]) -> Float[Tensor, "batch n_patches d"]:
        """Return the raw patch tokens of crops or windows."""
        parts = [self.backbone.tokens(part, self.inputs.layer).patches for part in images.split(WINDOWS_AT_A_TIME)]
        return torch.cat(parts).to(self.inputs.device)

    def count(self, part: Part) -> int:
        return len(self.parts[part])

    @torch.no_grad()
    def predict(
        self, part: Part, images: slice, editor: AblationEditor, heads: dict[Task, list[LinearMaps]]
    ) -> Iterator[Prediction]:
        photographs = self.parts[part]
        chosen = range(len(photographs))[images]
        read = self.inputs.read_ahead(photographs.read_windows, chosen)
        for image, (windows, truth) in zip(chosen, read, strict=True):
            seen = torch.from_numpy(truth).to(self.inputs.device)
            for number, values in enumerate(self._predict_image(windows, truth.shape, editor, heads[self.task])):
                yield Prediction(self.task, number, values, seen)
            self.progress(f"evaluation of {self.task.name} by windows", image + 1, len(photographs))

    def _predict_image(
        self, windows: Windows, size: tuple[int, ...], editor: AblationEditor, heads: list[LinearMaps]
    ) -> Shaped[Tensor, "n_heads n_variants height width"]:
        """Return what each list entry's heads make of one photograph, at the size of its truth."""
        patches = self.encode(torch.from_numpy(windows.images))
        acts = encode_in_parts(self.inputs.sae, patches.flatten(0, 1), self.memory_bytes)
        is_labels, window_px = self.task is Task.segmentation, self.backbone.image_px
        n_outputs = heads[0].bias.shape[1]
        n_pixels = max(windows.height_px, window_px) * max(windows.width_px, window_px) + size[0] * size[1]
        n_values = 2 * patches.numel() + 2 * n_outputs * patches.shape[0] * patches.shape[1]
        n_values += (n_outputs if is_labels else 1) * (n_pixels + 2 * window_px**2)
        dtype = torch.uint8 if is_labels else torch.float32
        found = torch.empty(len(heads), len(editor), *size, dtype=dtype, device=patches.device)
        for variants in divide(len(editor), BYTES * n_values, self.memory_bytes):
            tokens = narrow(editor, variants).edit(patches.flatten(0, 1), acts)
            for number, maps in enumerate(heads):
                grids = maps.take(variants)(tokens).unflatten(1, patches.shape[:2])
                if not is_labels:
                    grids = compute_depth_m(grids, self.config.max_depth_m)[..., None]
                merged = merge_windows(grids, windows, *size)
                # max, not argmax: the same indices, six times faster over a strided axis on a CPU.
                found[number, variants] = merged.max(1).indices.to(dtype) if is_labels else merged[:, 0]
        return found


class CropStep(NamedTuple):
    """The crops of a training step. pixels: (row, column) of those whose truth is given; None: all, row by row."""

    images: UInt8[Tensor, "batch 3 crop_px crop_px"]
    truth: Shaped[Tensor, "batch n_pixels"]
    pixels: Int[Tensor, "batch n_pixels 2"] | None


@dataclass(frozen=True)
class Photographs:
    """Photographs of an image set with the truth of a task, and how they are cut.

    Args:
        index: which of the set, by position.
        crop_px: side of a crop, and of a window.
        fill: RGB of padding.
    """

    images: ImageSet
    index: Int[np.ndarray, " n"]
    task: Task
    crops: CropConfig
    crop_px: int
    fill: UInt8[np.ndarray, " 3"]

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> Photograph:
        """Return one of them."""
        return read_photograph(self.images, int(self.index[i]), self.task)

    def read_windows(self, i: int) -> tuple[Windows, Shaped[np.ndarray, "height width"]]:
        """Return one of them in windows, with its truth as it is stored."""
        image, truth = self.read(i)
        return cut_windows(image, self.crops, self.crop_px, self.fill), truth


class CropSteps:
    """Training steps as items: what a step sees is a function of (seed, step)."""

    def __init__(self, photographs: Photographs, config: ProbeConfig) -> None:
        self.photographs, self.seed, self.n_pixels = photographs, config.seed, config.n_pixels_per_image
        self.batch_images = min(config.dense_batch_images, len(photographs))

    def __getitem__(self, step: int) -> CropStep:
        of, images, truths, pixels = self.photographs, [], [], []
        for place, i in enumerate(choose_images(self.seed, step, len(of), self.batch_images)):
            rng = np.random.default_rng([self.seed, 14, step, place])
            image, truth = of.read(i).cut(of.images.training_region)
            crop = choose_crop(rng, truth.shape[0], truth.shape[1], of.crops, of.crop_px)
            images.append(cut_image(image, crop, of.crop_px, of.fill))
            truth = cut_truth(truth, crop, of.crop_px, FILL[of.task]).ravel()
            if self.n_pixels is not None:
                chosen = rng.integers(of.crop_px**2, size=self.n_pixels)
                truth = truth[chosen]
                pixels.append(np.stack(np.divmod(chosen, of.crop_px), axis=1))
            truths.append(truth)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        chosen = torch.from_numpy(np.stack(pixels)) if pixels else None
        return CropStep(stacked, torch.from_numpy(np.stack(truths)), chosen)
