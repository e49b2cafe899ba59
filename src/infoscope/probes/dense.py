"""Segmentation and depth of a chunk of variants: one training loop, then every pixel of the test images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.crop_views import CropViews
from infoscope.probes.dense_images import WholeImages
from infoscope.probes.dense_views import DenseViews, Part, compute_standardisation
from infoscope.probes.heads import DepthHeads, LinearMaps, SegmentationHeads, Standardisation
from infoscope.probes.inputs import ProbeInputs, Rows
from infoscope.probes.metrics import DepthMetrics, SegmentationMetrics, SumMetric
from infoscope.probes.module import ProbeModule, fit_heads
from infoscope.probes.rates import Heads, TaskOutcome, Trained, choose_rates
from infoscope.runtime.parts import Checkpoint, compute_parts, cut
from infoscope.scope.ablations import Progress, no_progress
from infoscope.scope.editing import AblationEditor

CHOSEN_BY = {Task.segmentation: ("miou", True), Task.depth: ("rmse_m", False)}
"""The metric that a learning rate is chosen by, and whether higher is better."""
MEASURED_IMAGES = 256
"""Images between which an interrupted evaluation can go on."""


def make_dense_views(
    inputs: ProbeInputs,
    config: ProbeConfig,
    rows: Rows,
    progress: Progress = no_progress,
) -> Sequence[DenseViews]:
    """Return how the dense tasks are shown images: whole images are shared, a task on crops has its own.

    Raises:
        InputError: as `CropViews`, or fewer than two training images.
    """
    tasks = [task for task in CHOSEN_BY if task in config.tasks]
    on_whole = [task for task in tasks if config.crops(task) is None]
    whole = [WholeImages(inputs, config, on_whole, rows, progress)] if on_whole else []
    return whole + [CropViews(inputs, config, task, rows, progress) for task in tasks if task not in on_whole]


class DenseProbes:
    """Segmentation, depth, or both, for chunk after chunk of variants; however the images are shown to the heads."""

    def __init__(self, inputs: ProbeInputs, config: ProbeConfig, views: DenseViews) -> None:
        self.inputs, self.config, self.views = inputs, config, views
        self.n_labels = len(inputs.train.images.label_names)

    @property
    def name(self) -> str:
        """The tasks, for the files of an interrupted run."""
        return "-".join(task.name for task in self.views.tasks)

    def train(self, editor: AblationEditor, folder: Path | None = None) -> Trained:
        """Return {"segmentation" | "depth": (the chosen head of each variant, how its rate was chosen)}.

        Args:
            folder: where an interrupted run of the same variants goes on from; None: nowhere.
        """
        heads = self.fit(editor, folder)
        every = {
            task: [head.select(torch.full((len(editor),), i, device=head.mean.device)) for i in range(len(head.lrs))]
            for task, head in heads.items()
        }
        measured = self.measure(Part.held_out, editor, every, folder)
        trained: Trained = {}
        for task, head in heads.items():
            name, higher_is_better = CHOSEN_BY[task]
            # torchmetrics gives a single head's value without its axis
            held_out = torch.stack([metrics[name].reshape(-1) for metrics in measured[task]], dim=1)
            held_out = held_out.masked_fill(~head.is_finite(), torch.nan)
            best, records = choose_rates(task.name, head.lrs, held_out, higher_is_better)
            trained[task.name] = (head.select(best), records)
        return trained

    def measure_test(
        self, editor: AblationEditor, trained: Trained, original_heads: Heads, folder: Path | None = None
    ) -> dict[str, TaskOutcome]:
        """Return {"segmentation" | "depth": outcome} on the test split: of each variant's head, and of the original's.

        Args:
            folder: as for `train`.
        """
        both, device = {}, self.inputs.device
        for task in self.views.tasks:
            original = original_heads[task.name].to(device)
            both[task] = [trained[task.name][0].to(device), original.repeat(len(editor))]
        measured = self.measure(Part.test, editor, both, folder)  # two tables from one pass
        return {task.name: TaskOutcome(*trained[task.name], *measured[task]) for task in self.views.tasks}

    def fit(self, editor: AblationEditor, folder: Path | None = None) -> dict[Task, SegmentationHeads | DepthHeads]:
        """Return the heads of all tasks, variants and rates, trained in one loop."""
        config, views, d = self.config, self.views, self.inputs.sae.d_in
        standardisation = self._standardise(editor, folder) if config.batch_norm else None
        heads: dict[Task, SegmentationHeads | DepthHeads] = {}
        if Task.segmentation in views.tasks:
            heads[Task.segmentation] = SegmentationHeads(
                len(editor), d, self.n_labels, config.segmentation_lrs, standardisation
            )
        if Task.depth in views.tasks:
            heads[Task.depth] = DepthHeads(
                config.max_depth_m, len(editor), d, config.n_depth_bins, config.depth_lrs, standardisation
            )
        module = ProbeModule(
            {task.name: head for task, head in heads.items()},
            views.n_steps,
            partial(torch.optim.AdamW, weight_decay=config.weight_decay, fused=True),
            n_warmup_steps=config.dense_warmup_steps,
            schedule=config.dense_schedule,
        )
        checkpoint = Checkpoint(folder and folder / f"{self.name}.pt")
        fit_heads(module.to(self.inputs.device), partial(views.iterate_batches, editor), self.inputs.device, checkpoint)
        return heads

    def _standardise(self, editor: AblationEditor, folder: Path | None) -> Standardisation:
        """Return mean and spread of the training tokens, measured once."""
        kept = Checkpoint(folder and folder / f"{self.name}-standardisation.pt")
        state = kept.load()
        if state is None:
            state = compute_standardisation(self.views, editor)._asdict()
            kept.save(state)
        return Standardisation(**{name: tensor.to(self.inputs.device) for name, tensor in state.items()})

    @torch.no_grad()
    def measure(
        self, part: Part, editor: AblationEditor, heads: dict[Task, list[LinearMaps]], folder: Path | None = None
    ) -> dict[Task, list[dict[str, Float[Tensor, " n_variants"]]]]:
        """Return the metrics of each list entry (one head per variant) on the images of a part.

        Some images after the other: the sums behind the metrics are added up in one order.

        Args:
            folder: as for `train`.
        """
        slices = cut(self.views.count(part), MEASURED_IMAGES)

        def make_metrics() -> dict[str, SumMetric]:
            return {
                f"{task.name}/{i}": self._make_metric(task, len(editor))
                for task, maps in heads.items()
                for i in range(len(maps))
            }

        def measure_some(number: int) -> dict[str, Tensor]:
            metrics = make_metrics()
            for task, listed, values, truth in self.views.predict(part, slices[number], editor, heads):
                metrics[f"{task.name}/{listed}"].update(values, truth)
            states = ((key, name, value) for key, of in metrics.items() for name, value in of.metric_state.items())
            return {f"{key}/{name}": value for key, name, value in states if isinstance(value, Tensor)}

        metrics = make_metrics()
        for state in compute_parts(len(slices), measure_some, folder, f"{self.name}-{part.name}"):
            for key, metric in metrics.items():
                metric.add({name: state[f"{key}/{name}"].to(metric.device) for name in metric.metric_state})
        return {task: [metrics[f"{task.name}/{i}"].compute() for i in range(len(maps))] for task, maps in heads.items()}

    def _make_metric(self, task: Task, n_heads: int) -> SumMetric:
        if task is Task.segmentation:
            return SegmentationMetrics(n_heads, self.n_labels).to(self.inputs.device)
        return DepthMetrics(n_heads, self.config.max_depth_m).to(self.inputs.device)
