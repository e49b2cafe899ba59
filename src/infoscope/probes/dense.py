"""Segmentation and depth of a chunk of variants: one training loop, then every pixel of the test images."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.crop_views import CropViews
from infoscope.probes.dense_images import WholeImages
from infoscope.probes.dense_views import DenseViews, Part, compute_standardisation
from infoscope.probes.editing import VariantEditor
from infoscope.probes.heads import DepthHeads, LinearMaps, SegmentationHeads
from infoscope.probes.inputs import ProbeInputs, Progress
from infoscope.probes.metrics import DepthMetrics, SegmentationMetrics
from infoscope.probes.module import Optimiser, ProbeModule, fit_heads
from infoscope.probes.rates import Heads, TaskOutcome, choose_rates, first_row

CHOSEN_BY = {Task.segmentation: ("miou", True), Task.depth: ("rmse_m", False)}
"""The metric that a learning rate is chosen by, and whether higher is better."""


def make_dense_views(
    inputs: ProbeInputs,
    config: ProbeConfig,
    train_rows: Int[np.ndarray, " n_train"],
    test_rows: Int[np.ndarray, " n_test"],
    progress: Progress | None = None,
) -> list[DenseViews]:
    """Return how the dense tasks are shown images: whole images are shared, a task on crops has its own.

    Args:
        train_rows, test_rows: rows of the token caches.

    Raises:
        InputError: as `CropViews`, or fewer than two training images.
    """
    tasks = [task for task in CHOSEN_BY if task in config.tasks]
    on_whole = [task for task in tasks if config.crops(task) is None]
    views: list[DenseViews] = []
    if on_whole:
        views.append(WholeImages(inputs, config, on_whole, train_rows, test_rows, progress))
    return views + [
        CropViews(inputs, config, task, train_rows, test_rows, progress) for task in tasks if task not in on_whole
    ]


class DenseProbes:
    """Segmentation, depth, or both, for chunk after chunk of variants; however the images are shown to the heads."""

    def __init__(self, inputs: ProbeInputs, config: ProbeConfig, views: DenseViews) -> None:
        self.inputs, self.config, self.views = inputs, config, views
        self.n_labels = len(inputs.train.images.label_names)

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
        measured = self.measure(Part.test, editor, both)
        return {
            task.name: TaskOutcome(chosen[task], measured[task][0], measured[task][1], records[task]) for task in heads
        }

    def train(self, editor: VariantEditor) -> dict[Task, SegmentationHeads | DepthHeads]:
        """Return the heads of all tasks, variants and rates, trained in one loop."""
        config, views, d = self.config, self.views, self.inputs.sae.d_in
        standardisation = compute_standardisation(views, editor) if config.batch_norm else None
        heads: dict[Task, SegmentationHeads | DepthHeads] = {}
        if Task.segmentation in views.tasks:
            heads[Task.segmentation] = SegmentationHeads(
                len(editor), d, self.n_labels, config.segmentation_lrs, standardisation
            )
        if Task.depth in views.tasks:
            heads[Task.depth] = DepthHeads(
                len(editor), d, config.n_depth_bins, config.max_depth_m, config.depth_lrs, standardisation
            )
        module = ProbeModule(
            {task.name: head for task, head in heads.items()},
            views.n_steps,
            Optimiser.adamw,
            weight_decay=config.weight_decay,
            n_warmup_steps=config.dense_warmup_steps,
            schedule=config.dense_schedule,
        )
        fit_heads(module.to(self.inputs.device), views.make_batches(editor), self.inputs.device)
        return heads

    def _measure_held_out(
        self, editor: VariantEditor, heads: dict[Task, SegmentationHeads | DepthHeads]
    ) -> dict[Task, Float[Tensor, "n_variants n_rates"]]:
        """Return the metric that each rate is chosen by, on the held-out images."""
        every = {
            task: [head.select(torch.full((len(editor),), i, device=head.mean.device)) for i in range(len(head.lrs))]
            for task, head in heads.items()
        }
        measured = self.measure(Part.held_out, editor, every)
        held_out = {}
        for task, head in heads.items():
            # torchmetrics gives a single head's value without its axis
            of_rates = [metrics[CHOSEN_BY[task][0]].reshape(-1) for metrics in measured[task]]
            held_out[task] = torch.stack(of_rates, dim=1).masked_fill(~head.is_finite(), torch.nan)
        return held_out

    @torch.no_grad()
    def measure(
        self, part: Part, editor: VariantEditor, heads: dict[Task, list[LinearMaps]]
    ) -> dict[Task, list[dict[str, Float[Tensor, " n_variants"]]]]:
        """Return the metrics of each list entry (one head per variant) on the images of a part."""
        metrics = {task: [self._make_metric(task, len(editor)) for _ in maps] for task, maps in heads.items()}
        for task, number, values, truth in self.views.predict(part, editor, heads):
            metrics[task][number].update(values, truth)
        return {task: [metric.compute() for metric in each] for task, each in metrics.items()}

    def _make_metric(self, task: Task, n_heads: int) -> Metric:
        if task is Task.segmentation:
            return SegmentationMetrics(n_heads, self.n_labels).to(self.inputs.device)
        return DepthMetrics(n_heads, self.config.max_depth_m).to(self.inputs.device)
