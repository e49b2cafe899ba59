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
from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.heads import ClassificationHeads
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.module import Optimiser, ProbeModule, fit_heads
from infoscope.probes.run import run_probes
from infoscope.probes.variants import Variant, make_matched_variants, make_variants
from infoscope.probes.vectors import VectorBatches
from infoscope.scope.config import Rule

REPORTED = {
    "features for classification": "image",
    "segmentation and depth": "dense_step",
    "evaluation of segmentation and depth": "dense_test_image",
}
"""What a probe run says that it does, and the kind of work (see `count_probe_work`) it is."""


@dataclass(frozen=True)
class ChunkCosts:
    """Seconds that probing one chunk of some variants takes: fixed, and per unit of each kind of work."""

    n_variants: int
    fixed: float
    per_unit: dict[str, float]

    def seconds(self, work: dict[str, float]) -> float:
        """Return the seconds for a chunk of this size."""
        return self.fixed + sum(cost * work[name] for name, cost in self.per_unit.items())


@dataclass(frozen=True)
class ProbeCosts:
    """Costs of a small and of a large chunk; between and beyond them they grow along a line."""

    small: ChunkCosts
    large: ChunkCosts

    def seconds(self, n_variants: int, config: ProbeConfig, work: dict[str, float]) -> float:
        """Return the seconds for some variants, chunk by chunk."""
        n_full, rest = divmod(n_variants, config.variants_per_chunk)
        sizes = [config.variants_per_chunk] * n_full + [rest] * (rest > 0)
        return sum(self._chunk_seconds(size, work) for size in sizes)

    def _chunk_seconds(self, n_variants: int, work: dict[str, float]) -> float:
        small, large = self.small.seconds(work), self.large.seconds(work)
        if self.large.n_variants == self.small.n_variants:
            return large * n_variants / self.large.n_variants
        slope = max(0.0, large - small) / (self.large.n_variants - self.small.n_variants)
        return max(0.0, small + slope * (n_variants - self.small.n_variants))


def count_probe_work(config: ProbeConfig, n_train: int, n_test: int) -> dict[str, float]:
    """Return how much of each kind of work a chunk of variants takes, whatever its size.

    image: images whose features classification reads. class_step: steps of its training. dense_image: training images
    of segmentation and depth. dense_step: steps of their training. dense_test_image: images they are evaluated on.
    share_image: images on which the removed shares are measured.
    """
    n_class = min(n_train, config.n_train_images or n_train)
    n_class_test = min(n_test, config.n_test_images or n_test)
    n_fit = max(1, n_class - max(1, round(config.held_out_share * n_class)))
    classifies = Task.classification in config.tasks
    is_dense = Task.segmentation in config.tasks or Task.depth in config.tasks
    return {
        "image": classifies * (n_class + n_class_test),
        "class_step": classifies * config.classification_epochs * math.ceil(n_fit / config.classification_batch_images),
        "dense_image": is_dense * min(n_train, config.n_dense_train_images or n_train),
        "dense_step": is_dense * config.dense_steps,
        "dense_test_image": is_dense * min(n_test, config.n_dense_test_images or n_test),
        "share_image": n_class_test,
    }


def make_nominal_variants(config: Config) -> list[Variant]:
    n_groups = config.partition.n_bands if config.partition.rule is Rule.bands else 2
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
    )


class _ProbeClock:
    """Times a probe run: each unit that it reports, what comes after the last of them, and the rest."""

    def __init__(self, work: Callable[[Callable[[str, int, int], None]], Any]) -> None:
        self._events: list[tuple[str, int, float]] = []
        start = time.perf_counter()
        work(lambda what, done, of: self._events.append((what, done, time.perf_counter())))
        end = time.perf_counter()
        self.total_s, self.tail_s = end - start, end - max([start, *(then for *_, then in self._events)])

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
    it takes for more images. Steps of classification take more images than there are: they are timed on noise.
    """
    variants, n = make_halves(inputs.sae.d_sae, n_variants), len(inputs.train.tokens)

    def run(n_images: int) -> tuple[_ProbeClock, dict[str, float], float]:
        short = shorten(config, n_images)
        clock = _ProbeClock(lambda progress: run_probes(variants, inputs, short, progress=progress))
        work = count_probe_work(short, n, n)
        per_unit = {kind: clock.unit_s(what) for what, kind in REPORTED.items()}
        untimed_s = clock.total_s - clock.tail_s - sum(cost * work[kind] for kind, cost in per_unit.items())
        return clock, per_unit, untimed_s

    few = max(2, n // 4)
    (short, _, short_s), (long, per_unit, long_s) = run(few), run(n)
    per_unit["dense_image"] = max(0.0, long_s - short_s) / max(1, n - few)
    per_unit["share_image"] = max(0.0, long.tail_s - short.tail_s) / max(1, n - few)
    work = count_probe_work(shorten(config, n), n, n)
    fixed = long.total_s - sum(cost * work[kind] for kind, cost in per_unit.items())
    per_unit["class_step"] = _time_class_step(inputs, config, n_variants)
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


def time_work(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
