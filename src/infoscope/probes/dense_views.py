"""How images are shown to the heads of segmentation and depth: what every way has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from infoscope.probes.config import Task
from infoscope.probes.heads import BATCH_NORM_EPS, LinearMaps, MapBatch, Standardisation
from infoscope.probes.slices import SlicedBatch
from infoscope.scope.editing import AblationEditor


class Part(Enum):
    """Images that heads are measured on: those held out of training to choose the learning rate, or the test split."""

    held_out = "held_out"
    test = "test"


class Prediction(NamedTuple):
    """What the heads of a task make of one image, at pixels whose truth is known or ignored.

    number: which of the heads that were asked. values: labels, or depth in metres. truth: 255 = ignored, 0 = missing.
    """

    task: Task
    number: int
    values: Shaped[Tensor, "n_variants ..."]
    truth: Shaped[Tensor, "..."]


class DenseViews(ABC):
    """The images of both splits as dense heads see them in training and in evaluation.

    Args:
        tasks: whose truth is shown.
        n_steps: of training.
    """

    def __init__(self, tasks: list[Task], n_steps: int) -> None:
        self.tasks, self.n_steps = tasks, n_steps

    @abstractmethod
    def iterate_tokens(self, editor: AblationEditor) -> Iterator[tuple[slice, Float[Tensor, "n_variants n d"]]]:
        """Yield (which variants, some of their training tokens), in all the same for each: what BatchNorm measures."""

    @abstractmethod
    def iterate_batches(self, editor: AblationEditor, first_step: int = 0) -> Iterator[MapBatch | SlicedBatch]:
        """Yield the training batches from a step on, of `n_steps`; each is a function of (seed, step)."""

    @abstractmethod
    def count(self, part: Part) -> int:
        """Return how many images a part has."""

    @abstractmethod
    def predict(
        self, part: Part, images: slice, editor: AblationEditor, heads: dict[Task, list[LinearMaps]]
    ) -> Iterator[Prediction]:
        """Yield what each entry of each task's list (one head per variant) makes of some images of a part, in order."""


def compute_standardisation(views: DenseViews, editor: AblationEditor) -> Standardisation:
    """Return mean and standard deviation of every channel over the views' training tokens, for each variant.

    Batches are merged by Chan's formula: no sum of large squares.
    """
    n = np.zeros(len(editor), dtype=np.int64)
    shape = (len(editor), editor.sae.d_in)
    mean, spread = (torch.zeros(shape, dtype=torch.float64, device=editor.sae.W_dec.device) for _ in range(2))
    for variants, tokens in views.iterate_tokens(editor):
        variance, batch_mean = (part.double() for part in torch.var_mean(tokens, dim=1, correction=0))
        n_before, n_batch = int(n[variants][0]), tokens.shape[1]
        n_after = n_before + n_batch
        distance = batch_mean - mean[variants]
        mean[variants] += distance * (n_batch / n_after)
        spread[variants] += variance * n_batch + distance.square() * (n_before * n_batch / n_after)
        n[variants] = n_after
    n_tokens = torch.from_numpy(n).to(mean)[:, None]
    return Standardisation(mean.float(), (spread / n_tokens + BATCH_NORM_EPS).sqrt().float())


def choose_images(seed: int, step: int, n_images: int, batch_images: int) -> Int[np.ndarray, " batch"]:
    """Return the images of a training step: every epoch a fresh order; its incomplete last batch is filled from the
    next epoch."""
    places = np.arange(step * batch_images, (step + 1) * batch_images)
    chosen = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(places // n_images):
        mine = places // n_images == epoch
        permutation = np.random.default_rng([seed, 13, int(epoch)]).permutation(n_images)
        chosen[mine] = permutation[places[mine] % n_images]
    return chosen
