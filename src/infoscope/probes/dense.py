"""Segmentation and depth of a chunk of variants: one loop for both, then every pixel of the test images."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.dense_images import DenseImages, MapBatches, standardise_maps
from infoscope.probes.editing import VariantEditor
from infoscope.probes.heads import DepthHeads, LinearMaps, SegmentationHeads, compute_depth_m
from infoscope.probes.inputs import ProbeInputs, Progress, split_held_out
from infoscope.probes.metrics import DepthMetrics, SegmentationMetrics
from infoscope.probes.module import Optimiser, ProbeModule, fit_heads
from infoscope.probes.pixels import upsample
from infoscope.probes.rates import Heads, TaskOutcome, choose_rates, first_row

CHOSEN_BY = {Task.segmentation: ("miou", True), Task.depth: ("rmse_m", False)}
"""The metric that a learning rate is chosen by, and whether higher is better."""

_HELD_OUT_STEP = 2**31
"""Pixels of held-out images are drawn as of steps from here on, far from those of training."""


class DenseProbes:
    """Segmentation and depth for chunk after chunk of variants; the images' latents are shared by all chunks.

    Args:
        train_rows, test_rows: rows of the token caches.
    """

    def __init__(
        self,
        inputs: ProbeInputs,
        config: ProbeConfig,
        train_rows: Int[np.ndarray, " n_train"],
        test_rows: Int[np.ndarray, " n_test"],
        progress: Progress | None = None,
    ) -> None:
        self.inputs, self.config, self.progress = inputs, config, progress
        self.tasks = [task for task in CHOSEN_BY if task in config.tasks]
        self.n_labels = len(inputs.train.images.label_names)
        fit_rows, held_out_rows = split_held_out(train_rows, config.held_out_share, config.seed)
        self.fit_images = DenseImages(inputs, inputs.train, fit_rows, self.tasks)
        self.held_out_images = DenseImages(inputs, inputs.train, held_out_rows, self.tasks)
        self.test_images = DenseImages(inputs, inputs.test, test_rows, self.tasks)

    def run(self, editor: VariantEditor, original_heads: Heads | None) -> dict[str, TaskOutcome]:
        """Return {"segmentation" | "depth": outcome}; without `original_heads` the first variant is the original."""
        heads = self.train(editor)
        held_out = self._measure_held_out(editor, heads)
        chosen, records = {}, {}
        for task, head in heads.items():
            best, records[task] = choose_rates(task.name, head.lrs, held_out[task], CHOSEN_BY[task][1])
            chosen[task] = head.select(best)
        original = {
            task: (original_heads[task.name] if original_heads else first_row(maps)).to(self.inputs.device)
            for task, maps in chosen.items()
        }
        # Two tables from one pass: heads of each variant, then the original's head for all of them.
        both = {task: [chosen[task], original[task].repeat(len(editor))] for task in heads}
        measured = self.evaluate(editor, both)
        return {
            task.name: TaskOutcome(chosen[task], measured[task][0], measured[task][1], records[task]) for task in heads
        }

    def train(self, editor: VariantEditor) -> dict[Task, SegmentationHeads | DepthHeads]:
        """Return the heads of all tasks, variants and rates, trained in one loop."""
        config, d = self.config, self.inputs.sae.d_in
        standardisation = standardise_maps(self.fit_images, editor, 32) if config.batch_norm else None
        heads: dict[Task, SegmentationHeads | DepthHeads] = {}
        if Task.segmentation in self.tasks:
            heads[Task.segmentation] = SegmentationHeads(
                len(editor), d, self.n_labels, config.segmentation_lrs, standardisation
            )
        if Task.depth in self.tasks:
            heads[Task.depth] = DepthHeads(
                len(editor), d, config.n_depth_bins, config.max_depth_m, config.depth_lrs, standardisation
            )
        batches = MapBatches(
            self.fit_images,
            editor,
            config.dense_steps,
            config.dense_batch_images,
            config.n_pixels_per_image,
            config.seed,
            self.progress,
        )
        module = ProbeModule(
            {task.name: head for task, head in heads.items()},
            config.dense_steps,
            Optimiser.adamw,
            weight_decay=config.weight_decay,
        )
        fit_heads(module.to(self.inputs.device), batches, self.inputs.device)
        return heads

    @torch.no_grad()
    def _measure_held_out(
        self, editor: VariantEditor, heads: dict[Task, SegmentationHeads | DepthHeads]
    ) -> dict[Task, Float[Tensor, "n_variants n_rates"]]:
        """Return the metric that each rate is chosen by, on some pixels of each held-out image."""
        config = self.config
        metrics = {task: self._make_metric(task, len(editor) * len(head.lrs)) for task, head in heads.items()}
        for image in range(len(self.held_out_images)):
            batch = self.held_out_images.make_batch(
                np.array([image]), editor, config.n_held_out_pixels_per_image, config.seed, _HELD_OUT_STEP + image
            )
            for task, head in heads.items():
                seen = head.read_pixels(batch)
                prediction = seen.argmax(-1) if task is Task.segmentation else seen
                truth = batch.labels if task is Task.segmentation else batch.depth_m
                assert truth is not None
                metrics[task].update(prediction.transpose(1, 2).flatten(0, 1), truth.flatten())
        return {
            task: metrics[task]
            .compute()[CHOSEN_BY[task][0]]
            .view(len(editor), -1)
            .masked_fill(~head.is_finite(), torch.nan)
            for task, head in heads.items()
        }

    @torch.no_grad()
    def evaluate(
        self, editor: VariantEditor, heads: dict[Task, list[LinearMaps]]
    ) -> dict[Task, list[dict[str, Float[Tensor, " n_variants"]]]]:
        """Return the metrics of each list entry (one head per variant) on every pixel of every test image.

        The last batch may be smaller and counts like the others. Maps keep the size they are stored in.
        """
        images, size = self.test_images, self.config.feature_batch_images
        metrics = {task: [self._make_metric(task, len(editor)) for _ in maps] for task, maps in heads.items()}
        for start in range(0, len(images), size):
            batch = np.arange(start, min(start + size, len(images)))
            tokens = images.edit(batch, editor)
            for task, maps in heads.items():
                for linear, metric in zip(maps, metrics[task], strict=True):
                    grids = linear(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3])
                    if task is Task.depth:
                        grids = compute_depth_m(grids, self.config.max_depth_m)[..., None]
                    for i, image in enumerate(batch):
                        truth = torch.from_numpy(images.truth(int(image), task)).to(images.device)
                        pixels = upsample(grids[:, i], *truth.shape)
                        # max, not argmax: the same indices, six times faster over a strided axis on a CPU.
                        metric.update(pixels[:, 0] if task is Task.depth else pixels.max(1).indices, truth)
            if self.progress:
                self.progress("evaluation of segmentation and depth", start + len(batch), len(images))
        return {task: [metric.compute() for metric in each] for task, each in metrics.items()}

    def _make_metric(self, task: Task, n_heads: int) -> Metric:
        if task is Task.segmentation:
            return SegmentationMetrics(n_heads, self.n_labels).to(self.inputs.device)
        return DepthMetrics(n_heads, self.config.max_depth_m).to(self.inputs.device)
