"""Classification of a chunk of variants: vectors, heads for every readout and rate, top-1."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from infoscope.probes.config import ProbeConfig
from infoscope.probes.editing import VariantEditor
from infoscope.probes.heads import ClassificationHeads
from infoscope.probes.inputs import ProbeData, ProbeInputs, Progress, split_held_out
from infoscope.probes.metrics import Top1Metric, compute_top1
from infoscope.probes.module import Optimiser, ProbeModule, fit_heads
from infoscope.probes.rates import Heads, TaskOutcome, choose_rates, first_row
from infoscope.probes.vectors import VectorBatches, extract_vectors, standardise_vectors


def run_classification(
    inputs: ProbeInputs,
    config: ProbeConfig,
    editor: VariantEditor,
    train_rows: Int[np.ndarray, " n_train"],
    test_rows: Int[np.ndarray, " n_test"],
    original_heads: Heads | None,
    progress: Progress | None = None,
) -> dict[str, TaskOutcome]:
    """Return {"classification/<readout>": outcome}; without `original_heads` the first variant is the original."""
    device, readouts, batch_images = inputs.device, config.readouts, config.feature_batch_images
    train = extract_vectors(inputs, inputs.train, train_rows, editor, readouts, batch_images, progress)
    test = extract_vectors(inputs, inputs.test, test_rows, editor, readouts, batch_images, progress)
    train_labels = _read_labels(inputs.train, train_rows, config.target).to(device)
    test_labels = _read_labels(inputs.test, test_rows, config.target).to(device)
    split = split_held_out(np.arange(len(train_rows)), config.held_out_share, config.seed)
    fit, held_out = (torch.from_numpy(part).to(device) for part in split)

    n_classes = inputs.train.images.n_target_classes(config.target)
    heads = {
        name: ClassificationHeads(
            name,
            len(editor),
            vectors.shape[2],
            n_classes,
            config.classification_lrs,
            standardise_vectors(vectors[:, fit]) if config.batch_norm else None,
        ).to(device)
        for name, vectors in train.items()
    }
    batches = VectorBatches(
        train, fit, train_labels[fit], config.classification_batch_images, config.classification_epochs, config.seed
    )
    fit_heads(ProbeModule(heads, len(batches), Optimiser.sgd, lr_scale=batches.batch_images / 256), batches, device)

    outcomes = {}
    for name, head in heads.items():
        task = f"classification/{name}"
        accuracy = _held_out_top1(head, train[name][:, held_out], train_labels[held_out])
        best, lr = choose_rates(task, config.classification_lrs, accuracy, higher_is_better=True)
        chosen = head.select(best)
        original = (original_heads[task] if original_heads else first_row(chosen)).to(device)
        measured = []
        for maps in (chosen, original.repeat(len(editor))):
            metric = Top1Metric(len(editor)).to(device)
            metric.update(maps(test[name]), test_labels)
            measured.append(metric.compute())
        outcomes[task] = TaskOutcome(chosen, measured[0], measured[1], lr)
    return outcomes


def _read_labels(data: ProbeData, rows: Int[np.ndarray, " n"], target: str) -> Int[Tensor, " n"]:
    return torch.from_numpy(data.images.labels(target)[data.tokens.image_index[rows]])


@torch.no_grad()
def _held_out_top1(head: ClassificationHeads, vectors: Tensor, labels: Int[Tensor, " n"]) -> Tensor:
    """Return top-1 of every head [n_variants, n_rates]; NaN where a head diverged."""
    right = compute_top1(head.outputs(vectors).transpose(1, 2), labels).double() / len(labels)
    return right.masked_fill(~head.is_finite(), torch.nan)
