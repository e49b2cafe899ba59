"""Classification of a chunk of variants: vectors, heads for every readout and rate (or L2 strength), top-1."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from infoscope.probes.config import ProbeConfig, Solver
from infoscope.probes.features import Features
from infoscope.probes.heads import ClassificationHeads, join_maps
from infoscope.probes.inputs import ProbeData, ProbeInputs, split_held_out
from infoscope.probes.lbfgs import count_regressions, search_strength
from infoscope.probes.module import ProbeModule, fit_heads
from infoscope.probes.rates import Heads, TaskOutcome, Trained, choose_rates
from infoscope.probes.vectors import TrainingImages, VectorBatches, measure_top1, standardise_vectors
from infoscope.runtime.parts import Checkpoint
from infoscope.runtime.profile import Kind, spent_on
from infoscope.scope.ablations import Ablation, Progress, no_progress

REGRESSIONS = "logistic regressions"
"""What L-BFGS is called when it reports its progress."""


def count_variants_at_a_time(config: ProbeConfig, n_images: int, d_in: int, n_classes: int) -> tuple[int, int]:
    """Return how many variants classification trains together within `probe.memory_gb`, and the bytes that one takes.

    A variant takes 4 bytes x images x d_in for each readout: a ViT-B/16 (d_in 768) on ImageNet (1,331,167 images of
    both splits) 4.1 GB, 8.2 GB for two. With SGD come its heads, gradients and momenta, 3 x 4 bytes x d_in x classes
    for each readout and rate (0.24 GB for two and 13), and what a step forms of them, or of the logits of a batch,
    whichever is larger: as much for each readout, and twice as much again (0.21 GB for batches of 1024). So one variant
    at a time with the default of 4 GB, eight with 70. Blocks of some hundred MB come on top.

    Args:
        n_images: of both splits.
    """
    n_readouts = len(config.readouts)
    n_values = n_readouts * n_images * d_in
    if config.classification_solver is Solver.sgd:
        n_formed = (n_readouts + 2) * max(d_in, config.classification_batch_images)
        n_values += len(config.classification_lrs) * n_classes * (3 * n_readouts * d_in + n_formed)
    n_bytes = 4 * n_values
    fitting = int(config.memory_gb * 1e9 // max(1, n_bytes))
    return max(1, min(config.variants_per_chunk, fitting)), n_bytes


def train_classification(
    inputs: ProbeInputs,
    config: ProbeConfig,
    features: Features,
    variants: Mapping[str, Ablation],
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> Trained:
    """Return {"classification/<readout>": (the chosen head of each variant, how it was chosen)}.

    Args:
        features: of all variants; those of `variants` (by key) are loaded.
        folder: where an interrupted run of the same variants goes on from; None: nowhere.
    """
    device = inputs.device
    train = features.load("train", variants)
    train_labels = _read_labels(inputs.train, features.rows["train"], config.target).to(device)
    split = split_held_out(np.arange(len(train_labels)), config.held_out_share, config.seed)
    fit, held_out = (torch.from_numpy(part).to(device) for part in split)
    images = TrainingImages(fit, held_out, train_labels, inputs.train.images.n_target_classes(config.target))
    if config.classification_solver is Solver.sgd:
        return _train_sgd(config, train, images, folder)
    return _train_lbfgs(config, train, images, folder, progress)


def measure_classification(
    inputs: ProbeInputs,
    config: ProbeConfig,
    features: Features,
    variants: Mapping[str, Ablation],
    trained: Trained,
    original_heads: Heads,
) -> dict[str, TaskOutcome]:
    """Return {"classification/<readout>": outcome} on the test split: of each variant's head, and of the original's."""
    device = inputs.device
    labels = _read_labels(inputs.test, features.rows["test"], config.target).to(device)
    test, outcomes = features.load("test", variants), {}
    everything = torch.arange(len(labels), device=device)
    for readout in config.readouts:
        task = f"classification/{readout.name}"
        chosen, original = trained[task][0].to(device), original_heads[task].to(device)
        top1 = [
            {"top1": measure_top1(maps, test[readout.name], everything, labels, chosen.bias.shape[1])[:, 0]}
            for maps in (chosen, original.repeat(len(variants)))
        ]
        outcomes[task] = TaskOutcome(chosen, trained[task][1], *top1)
    return outcomes


def _train_sgd(config: ProbeConfig, train: dict[str, Tensor], images: TrainingImages, folder: Path | None) -> Trained:
    """Train every variant, readout and rate in one loop."""
    fit, held_out, labels, n_classes = images
    heads = {
        name: ClassificationHeads(
            name,
            len(vectors),
            vectors.shape[2],
            n_classes,
            config.classification_lrs,
            standardise_vectors(vectors, fit) if config.classification_batch_norm else None,
        ).to(vectors.device)
        for name, vectors in train.items()
    }
    batches = VectorBatches(train, images, config, config.seed)
    optimizer = partial(torch.optim.SGD, momentum=0.9, fused=True)
    module = ProbeModule(heads, len(batches), optimizer, lr_scale=batches.batch_images / 256)
    fit_heads(module, batches.iterate, fit.device, Checkpoint(folder and folder / "classification.pt"))
    trained: Trained = {}
    for name, head in heads.items():
        accuracy = measure_top1(head.fold(), train[name], held_out, labels[held_out], n_classes)
        accuracy = accuracy.masked_fill(~head.is_finite(), torch.nan)
        best, records = choose_rates(f"classification/{name}", config.classification_lrs, accuracy, True)
        trained[f"classification/{name}"] = (head.select(best), records)
    return trained


def _train_lbfgs(
    config: ProbeConfig, train: dict[str, Tensor], images: TrainingImages, folder: Path | None, progress: Progress
) -> Trained:
    """Search the strength of every variant and readout, one after the other."""
    n_all, n_done = count_regressions(config) * sum(len(vectors) for vectors in train.values()), count(1)
    trained: Trained = {}
    for name, vectors in train.items():
        with spent_on(Kind.training):
            found = [
                search_strength(
                    f"classification/{name}",
                    one,
                    images,
                    config,
                    lambda: progress(REGRESSIONS, next(n_done), n_all),
                    Checkpoint(folder and folder / f"regressions-{name}-{place}.pt"),
                )
                for place, one in enumerate(vectors)
            ]
        maps, records = zip(*found, strict=True)
        trained[f"classification/{name}"] = (join_maps(maps), list(records))
    return trained


def _read_labels(data: ProbeData, rows: Int[np.ndarray, " n"], target: str) -> Int[Tensor, " n"]:
    return torch.from_numpy(data.images.labels(target)[data.tokens.image_index[rows]])
