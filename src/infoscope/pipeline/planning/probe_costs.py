"""What probes cost: two short runs of the real thing at two numbers of variants, scaled to the work of the command."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from infoscope.config import Config
from infoscope.probes.config import ProbeConfig, Solver, Task
from infoscope.probes.extraction import PASSES
from infoscope.probes.heads import ClassificationHeads
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.lbfgs import LogisticRegression, count_regressions
from infoscope.probes.module import Optimiser, ProbeModule, fit_heads
from infoscope.probes.run import run_probes
from infoscope.probes.variants import Variant, make_matched_variants, make_variants
from infoscope.probes.vectors import VectorBatches
from infoscope.scope.config import Rule

REPORTED = {
    PASSES["train"]: "train_image",
    PASSES["test"]: "test_image",
    "segmentation and depth": "dense_step",
    "evaluation of segmentation and depth": "dense_test_image",
}
"""What a probe run says that it does, and the kind of work (see `count_probe_work`) it is."""
ONCE, CLASSIFYING = ("train_image", "test_image"), ("class_step", "class_image")
"""Kinds of work that are done for all variants at once, and chunk by chunk of those that are classified together."""
N_EVALUATIONS = 100
"""Gradients that a logistic regression is assumed to take."""


@dataclass(frozen=True)
class ChunkCosts:
    """Seconds that probing one chunk of some variants takes: fixed, and per unit of each kind of work."""

    n_variants: int
    fixed: float
    per_unit: dict[str, float]

    def seconds(self, work: dict[str, float]) -> float:
        """Return the seconds for a chunk of this size, of the kinds of work that are given."""
        return self.fixed + sum(self.per_unit[kind] * amount for kind, amount in work.items())


@dataclass(frozen=True)
class ProbeCosts:
    """Costs of a small and of a large chunk; between and beyond them they grow along a line."""

    small: ChunkCosts
    large: ChunkCosts

    def seconds(self, n_variants: int, n_per_chunk: int, n_classified: int, work: dict[str, float]) -> float:
        """Return the seconds for some variants.

        Args:
            n_per_chunk, n_classified: variants trained together: at all, and in classification.
        """
        once, classifying, others = {}, {}, {}
        for kind, amount in work.items():
            (once if kind in ONCE else classifying if kind in CLASSIFYING else others)[kind] = amount
        passes = [n_variants] * (n_variants > 0)
        return (
            sum(self._line(size, others) for size in _cut(n_variants, n_per_chunk))
            + sum(self._line(size, classifying, with_fixed=False) for size in _cut(n_variants, n_classified))
            + sum(self._line(size, once, with_fixed=False) for size in passes)
        )

    def _line(self, n_variants: int, work: dict[str, float], with_fixed: bool = True) -> float:
        small, large = (chunk.seconds(work) - chunk.fixed * (not with_fixed) for chunk in (self.small, self.large))
        if self.large.n_variants == self.small.n_variants:
            return large * n_variants / self.large.n_variants
        slope = max(0.0, large - small) / (self.large.n_variants - self.small.n_variants)
        return max(0.0, small + slope * (n_variants - self.small.n_variants))


def _cut(n_variants: int, size: int) -> list[int]:
    """Return the sizes of chunks."""
    n_full, rest = divmod(n_variants, size)
    return [size] * n_full + [rest] * (rest > 0)


def count_probe_work(config: ProbeConfig, n_train: int, n_test: int, has_features: bool = False) -> dict[str, float]:
    """Return how much of each kind of work a chunk of variants takes, whatever its size.

    train_image, test_image: images that are edited for classification, and on which the removed shares are measured;
    none if the features are there. class_step: steps of SGD. class_image: images in all gradients of L-BFGS.
    dense_image: training images of segmentation and depth. dense_step: steps of their training. dense_test_image:
    images they are evaluated on.
    """
    n_class = min(n_train, config.n_train_images or n_train)
    n_class_test = min(n_test, config.n_test_images or n_test)
    n_fit = max(1, n_class - max(1, round(config.held_out_share * n_class)))
    classifies = Task.classification in config.tasks
    is_dense = Task.segmentation in config.tasks or Task.depth in config.tasks
    n_steps = config.classification_epochs * math.ceil(n_fit / config.classification_batch_images)
    n_gradients = count_regressions(config) * min(N_EVALUATIONS, config.lbfgs_max_iterations)
    uses_sgd = config.classification_solver is Solver.sgd
    return {
        "train_image": 0 if has_features else classifies * n_class,
        "test_image": 0 if has_features and classifies else n_class_test,
        "class_step": classifies * uses_sgd * n_steps,
        "class_image": classifies * (not uses_sgd) * n_gradients * n_fit,
        "dense_image": is_dense * min(n_train, config.n_dense_train_images or n_train),
        "dense_step": is_dense * config.dense_steps,
        "dense_test_image": is_dense * min(n_test, config.n_dense_test_images or n_test),
    }


def make_nominal_variants(config: Config) -> list[Variant]:
    rule, number = config.partition.chosen
    n_groups = int(number or 0) if rule is Rule.bands else 2
    groups = {str(i): np.arange(2 * n_groups) // 2 == i for i in range(n_groups)}
    everyone, alike = np.ones(2 * n_groups, bool), np.ones(2 * n_groups)
    variants = make_variants(groups, everyone, alike, config.probe.n_draws)
    matched = {"high": groups["0"], "low": groups["1"]} if n_groups == 2 else {}
    return variants + make_matched_variants(matched, alike, alike)


def make_halves(d_sae: int, n_variants: int) -> list[Variant]:
    """Return some different variants, the original first, each of about half the latents."""
    even = np.arange(d_sae) % 2 == 0
    variants = make_variants(
        {"even": even, "odd": ~even}, np.ones(d_sae, bool), np.ones(d_sae), math.ceil(n_variants / 4)
    )
    return variants[:n_variants]


def shorten(config: ProbeConfig, n_images: int) -> ProbeConfig:
    """Return the probes on few images, one step of classification and few of the others."""
    return replace(
        config,
        n_train_images=n_images,
        n_test_images=n_images,
        n_dense_train_images=n_images,
        n_dense_test_images=n_images,
        dense_steps=min(8, n_images),
        classification_epochs=1,
        classification_l2=config.classification_l2[:1],
        classification_l2_halvings=0,
        lbfgs_max_iterations=1,
    )


class _ProbeClock:
    """Times a probe run: each unit that it reports, and the whole."""

    def __init__(self, work: Callable[[Callable[[str, int, int], None]], Any]) -> None:
        self._events: list[tuple[str, int, float]] = []
        start = time.perf_counter()
        work(lambda what, done, of: self._events.append((what, done, time.perf_counter())))
        self.total_s = time.perf_counter() - start

    def unit_s(self, what: str) -> float:
        """Return the median seconds of a unit: half the units may be disturbed by other work of the machine."""
        seconds = []
        for (name, n_before, before), (following, n_done, now) in pairwise(self._events):
            if name == following == what:
                n_units = n_done - n_before if n_done > n_before else n_done  # else another pass begins
                seconds.append((now - before) / n_units)
        return float(np.median(seconds)) if seconds else 0.0


def measure_chunk(inputs: ProbeInputs, config: ProbeConfig, n_variants: int) -> ChunkCosts:
    """Return what a chunk of some variants costs.

    Two short runs of the real thing. What reports its progress is timed unit by unit; what does not, by how much longer
    it takes for more images. Training for classification takes more images than there are: it is timed on noise.
    """
    variants, n = make_halves(inputs.sae.d_sae, n_variants), len(inputs.train.tokens)

    def run(n_images: int) -> tuple[float, dict[str, float], float]:
        short = shorten(config, n_images)
        clock = _ProbeClock(lambda progress: run_probes(variants, inputs, short, progress=progress))
        work = count_probe_work(short, n, n)
        per_unit = {kind: clock.unit_s(what) for what, kind in REPORTED.items()}
        return clock.total_s, per_unit, clock.total_s - sum(cost * work[kind] for kind, cost in per_unit.items())

    few = max(2, n // 4)
    (_, _, short_s), (total_s, per_unit, long_s) = run(few), run(n)
    per_unit["dense_image"] = max(0.0, long_s - short_s) / max(1, n - few)
    work = count_probe_work(shorten(config, n), n, n)
    fixed = total_s - sum(cost * work[kind] for kind, cost in per_unit.items())
    per_unit["class_step"] = per_unit["class_image"] = 0.0
    if config.classification_solver is Solver.sgd:
        per_unit["class_step"] = _time_class_step(inputs, config, n_variants)
    else:
        per_unit["class_image"] = n_variants * len(config.readouts) * _time_class_image(inputs, config)
    return ChunkCosts(n_variants, max(0.0, fixed), per_unit)


def _time_class_step(inputs: ProbeInputs, config: ProbeConfig, n_variants: int) -> float:
    """Return the seconds of a step of classification; fixed costs drop out."""
    n_images, device = config.classification_batch_images, inputs.device
    n_classes, d_in = inputs.train.images.n_target_classes(config.target), inputs.sae.d_in
    vectors = {readout.name: torch.randn(n_variants, n_images, d_in, device=device) for readout in config.readouts}
    rows = torch.arange(n_images, device=device)

    def run(n_steps: int) -> float:
        heads = {
            name: ClassificationHeads(name, n_variants, d_in, n_classes, config.classification_lrs).to(device)
            for name in vectors
        }
        batches = VectorBatches(vectors, rows, rows % n_classes, n_images, n_steps, seed=0)
        return time_work(lambda: fit_heads(ProbeModule(heads, n_steps, Optimiser.sgd), batches, device))

    few, many = 2, 10
    return max(0.0, -run(few) + run(many)) / (many - few)


def _time_class_image(inputs: ProbeInputs, config: ProbeConfig) -> float:
    """Return the seconds that an image takes in a gradient of one logistic regression."""
    n_images, device = 4096, inputs.device
    n_classes, rows = inputs.train.images.n_target_classes(config.target), torch.arange(n_images, device=device)
    vectors = torch.randn(n_images, inputs.sae.d_in, device=device)
    problem = LogisticRegression(vectors, rows, rows % n_classes, n_classes)
    weight, bias, _ = problem.start()
    problem.evaluate(weight, bias)  # warms up
    return time_work(lambda: problem.evaluate(weight, bias)) / n_images


def time_work(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
