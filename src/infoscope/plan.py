"""What a command would do, said beforehand: what exists, what is missing, and what that costs on this machine.

Counts (images, forward passes, distances, bytes) follow from the configuration; where they depend on results that do
not exist yet they are upper bounds, marked as such. Times come from a calibration of some seconds on this machine, with
this backbone and an untrained SAE of the configured size; they are estimates.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infoscope.artifacts import Spec
from infoscope.config import Config, Stage
from infoscope.data.config import DataKind
from infoscope.data.images import LabelledImages, iterate_images
from infoscope.data.scene_set import SceneSet, save_scenes
from infoscope.probes.config import ProbeConfig
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.run import run_probes
from infoscope.probes.variants import Variant, make_matched_variants, make_variants
from infoscope.sae.config import SAEConfig
from infoscope.sae.module import make_sae
from infoscope.sae.train import train_sae
from infoscope.scope.config import Rule
from infoscope.scope.emd import compute_emd, count_workers
from infoscope.scope.ranking import Ranking, rank_images
from infoscope.stages import TOKEN_BATCH_IMAGES, Stages
from infoscope.vision.extract import TokenCache, compute_cache_bytes, extract_tokens

N_CALIBRATION_IMAGES = 32
N_CALIBRATION_PAIRS = 400
SUPPORT_PATCHES = 12
"""Patches on which the calibration's maps are not zero: distances cost more on larger supports."""
ANALYSES = (Stage.predict, Stage.stability)
ORDER = (Stage.train_sae, Stage.rank, Stage.score, Stage.probe, Stage.report)


@dataclass(frozen=True)
class Step:
    """One artifact, or several alike, that a command needs.

    Args:
        what: stage and name, for people.
        n_built, n_reused: artifacts to build, and that exist.
        forwards: pictures that go through the backbone.
        distances: earth mover's distances to compute.
        seconds: estimated time to build what is missing.
        disk_bytes, memory_bytes: what stays on the disk, and the largest arrays held while it is made.
        is_bound: whether the counts are upper bounds.
    """

    what: str
    n_built: int
    n_reused: int
    forwards: int = 0
    distances: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0
    is_bound: bool = False


@dataclass(frozen=True)
class Rates:
    """What the calibration measured, per second: scenes rendered (one process), images encoded, tokens trained on,
    images ranked, distances; and seconds per probed variant."""

    scenes: float
    images: float
    tokens: float
    ranked: float
    distances: float
    variant_s: float


@dataclass(frozen=True)
class Plan:
    """The steps in their order, and what the naive way would cost.

    Args:
        naive_forwards: pictures that would be encoded if every latent encoded both crops of its own top images.
    """

    steps: list[Step]
    naive_forwards: int
    rates: Rates

    @property
    def seconds(self) -> float:
        """Estimated time of everything that is missing."""
        return sum(step.seconds for step in self.steps)


def make_plan(stages: Stages) -> Plan:
    """Return what the configured stage would reuse and build; nothing is written into the store.

    Raises:
        InputError: whatever the stages would refuse before they begin.
    """
    config = stages.config
    counts = _Counts(stages)
    rates = calibrate(stages)
    steps = [_plan_scenes(stages, rates)] if config.data.kind is DataKind.scenes else []
    steps += [_plan_tokens(stages, split, rates) for split in counts.splits]
    for seed in config.seeds:
        steps += _plan_seed(stages, seed, counts, rates)
    if config.stage in ANALYSES:
        steps.append(Step(f"{config.stage.name} (not estimated)", 1, 0))
    d_sae, k_max = counts.d_sae, config.scope.n_ranks
    return Plan(steps, 2 * d_sae * k_max * len(config.seeds), rates)


class _Counts:
    """Sizes that several steps need."""

    def __init__(self, stages: Stages) -> None:
        config = stages.config
        self.reached = ORDER[: ORDER.index(config.stage) + 1] if config.stage in ORDER else ()
        if config.stage in ANALYSES:
            self.reached = ORDER[: ORDER.index(Stage.score) + 1]
        self.d_sae = stages.backbone.d_in * config.sae.expansion_factor
        self.is_labelled = config.data.kind is DataKind.scenes
        self.probes = self.is_labelled and Stage.probe in self.reached
        self.splits = ("train", "test") if self.probes or config.stage in ANALYSES else ("train",)


def _plan_scenes(stages: Stages, rates: Rates) -> Step:
    sizes = {split: stages.n_images(split) for split in ("train", "test")}
    missing = [n for split, n in sizes.items() if stages.store.find(stages.scenes_spec(split, n)) is None]
    n_bytes = sum(missing) * stages.config.data.size_px**2 * 6  # three bytes of colour, one of label, two of depth
    seconds = sum(missing) / (rates.scenes * (torch.get_num_threads()))
    return Step("scenes", len(missing), len(sizes) - len(missing), seconds=seconds, disk_bytes=n_bytes)


def _plan_tokens(stages: Stages, split: str, rates: Rates) -> Step:
    n, name = stages.n_images(split), f"tokens, {split}"
    if _exists(stages, stages.tokens_spec(split)):
        return Step(name, 0, 1)
    n_bytes = compute_cache_bytes(stages.backbone, n, stages.config.data.cache_dtype)
    batch = n_bytes // n * TOKEN_BATCH_IMAGES
    return Step(name, 1, 0, forwards=n, seconds=n / rates.images, disk_bytes=n_bytes, memory_bytes=batch)


def _plan_seed(stages: Stages, seed: int, counts: _Counts, rates: Rates) -> Iterator[Step]:
    for stage, plan in ((Stage.train_sae, _plan_sae), (Stage.rank, _plan_rank), (Stage.score, _plan_score)):
        if stage in counts.reached:
            yield plan(stages, seed, counts, rates)
    if counts.probes:
        yield _plan_probes(stages, seed, rates)


def _plan_sae(stages: Stages, seed: int, counts: _Counts, rates: Rates) -> Step:
    sae, d_in = stages.config.sae, stages.backbone.d_in
    if _exists(stages, stages.sae_spec(seed)):
        return Step(f"train_sae, seed {seed}", 0, 1)
    n_bytes = 4 * (2 * d_in * counts.d_sae + counts.d_sae + 2 * d_in)
    held = 4 * n_bytes + 4 * sae.batch_tokens * (counts.d_sae + 4 * d_in)  # weights, gradients, two moments; one batch
    seconds = sae.n_steps * sae.batch_tokens / rates.tokens
    return Step(f"train_sae, seed {seed}", 1, 0, seconds=seconds, disk_bytes=n_bytes, memory_bytes=held)


def _plan_rank(stages: Stages, seed: int, counts: _Counts, rates: Rates) -> Step:
    if _exists(stages, stages.rank_spec(seed)):
        return Step(f"rank, seed {seed}", 0, 1)
    n_bytes = counts.d_sae * stages.config.scope.n_ranks * 12
    held = 2 * n_bytes + 4 * TOKEN_BATCH_IMAGES * stages.backbone.grid**2 * counts.d_sae
    seconds = stages.n_images("train") / rates.ranked
    return Step(f"rank, seed {seed}", 1, 0, seconds=seconds, disk_bytes=n_bytes, memory_bytes=held)


def _plan_score(stages: Stages, seed: int, counts: _Counts, rates: Rates) -> Step:
    name, scope, grid = f"score, seed {seed}", stages.config.scope, stages.backbone.grid
    if _exists(stages, stages.score_spec(seed)):
        return Step(name, 0, 1)
    n_pairs = counts.d_sae * scope.n_ranks
    n_images = min(stages.n_images("train"), n_pairs)
    ranked = stages.store.find(stages.rank_spec(seed))
    if ranked is not None:
        top_images = Ranking.load(ranked.folder).top_images
        n_pairs, n_images = int((top_images >= 0).sum()), len(np.unique(top_images[top_images >= 0]))
    maps_bytes = counts.d_sae * scope.n_ranks * 2 * grid**2 * 4
    speed = rates.distances * count_workers(2 * n_pairs, scope.n_workers)
    seconds = 2 * n_images * (1 / rates.images + 1 / rates.ranked) + 2 * n_pairs / speed
    return Step(name, 1, 0, 2 * n_images, 2 * n_pairs, seconds, maps_bytes, maps_bytes, is_bound=ranked is None)


def _plan_probes(stages: Stages, seed: int, rates: Rates) -> Step:
    """The variants are known once the scores are; before, as many as two groups (or all bands) with members have."""
    config = stages.config
    if _exists(stages, stages.score_spec(seed)):
        specs = {
            stages.probe_spec(seed, variant).hash: variant
            for variant in (*stages.variants(seed), *stages.matched_variants(seed))
        }
        missing = [v for v in specs.values() if not _exists(stages, stages.probe_spec(seed, v))]
        n_built, n_reused = len(missing), len(specs) - len(missing)
    else:
        n_built, n_reused = len(_nominal_variants(config)), 0
    head_bytes = 4 * stages.backbone.d_in * 1000
    return Step(
        f"probe, seed {seed}", n_built, n_reused, seconds=n_built * rates.variant_s, disk_bytes=n_built * head_bytes
    )


def _nominal_variants(config: Config) -> list[Variant]:
    n_groups = config.partition.n_bands if config.partition.rule is Rule.bands else 2
    groups = {str(i): np.arange(2 * n_groups) // 2 == i for i in range(n_groups)}
    everyone, alike = np.ones(2 * n_groups, bool), np.ones(2 * n_groups)
    variants = make_variants(groups, everyone, alike, config.probe.n_draws)
    matched = {"high": groups["0"], "low": groups["1"]} if n_groups == 2 else {}
    return variants + make_matched_variants(matched, alike, alike)


def _exists(stages: Stages, spec: Spec) -> bool:
    return stages.store.find(spec) is not None


def calibrate(stages: Stages) -> Rates:
    """Measure this machine for some seconds with the configured backbone, pictures and SAE size; nothing is kept.

    Raises:
        InputError: if the backbone or the pictures cannot be read.
    """
    config, backbone = stages.config, stages.backbone
    layer = backbone.check_layer(config.model.layer)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rendering = _time(lambda: _render(stages, folder)) if config.data.kind is DataKind.scenes else 1.0
        images = SceneSet(folder / "scenes") if config.data.kind is DataKind.scenes else stages.folder_sets[0]
        index = np.arange(min(N_CALIBRATION_IMAGES, len(images)))

        def encode() -> TokenCache:
            batches = iterate_images(images, backbone.image_px, 16, index, on_error=config.data.on_error)
            return extract_tokens(backbone, batches, len(index), layer, folder)

        backbone.tokens(torch.zeros(1, 3, backbone.image_px, backbone.image_px, dtype=torch.uint8), layer)  # warm up
        encoding = _time(encode)
        cache = TokenCache(folder)
        sae = make_sae(config.sae, torch.as_tensor(cache.mean), cache.scale, 0).to(stages.device)
        sae.requires_grad_(False)
        ranking = _time(lambda: rank_images(sae, cache.batches(16), config.scope.n_ranks, config.scope.rank_by))
        step_s = _time_sae_step(cache, config.sae, folder / "sae", stages.device.type)
        variant_s = 0.0
        if isinstance(images, LabelledImages):
            data = ProbeData(cache, images)
            variant_s = _time_variant(ProbeInputs(sae, data, data, backbone, layer), config.probe)
    return Rates(
        scenes=N_CALIBRATION_IMAGES / rendering,
        images=len(cache) / encoding,
        tokens=config.sae.batch_tokens / step_s,
        ranked=len(cache) / ranking,
        distances=_measure_distances(backbone.grid - config.scope.shift_patches),
        variant_s=variant_s,
    )


def _time(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _render(stages: Stages, folder: Path) -> None:
    (folder / "scenes").mkdir()
    data = stages.config.data
    save_scenes(folder / "scenes", data.seed, "train", N_CALIBRATION_IMAGES, data.size_px)


class _StepTimes(L.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def _time_sae_step(cache: TokenCache, config: SAEConfig, folder: Path, accelerator: str) -> float:
    """Return the median seconds of some training steps, the first one left out."""
    timer = _StepTimes()
    short = replace(config, n_tokens=5 * config.batch_tokens, eval_tokens=16)
    train_sae(cache, short, 0, folder, accelerator=accelerator, callbacks=[timer])
    return float(np.median(np.diff(timer.times)))


def _measure_distances(side: int) -> float:
    """Return exact distances per second of one process, between sparse random maps of `side` patches."""
    rng = np.random.default_rng(0)
    maps = np.zeros((2, N_CALIBRATION_PAIRS, side * side))
    for one in maps.reshape(-1, side * side):
        one[rng.permutation(side * side)[:SUPPORT_PATCHES]] = rng.random(min(SUPPORT_PATCHES, side * side))
    first, second = maps.reshape(2, -1, side, side)
    return N_CALIBRATION_PAIRS / _time(lambda: compute_emd(first, second))


def _time_variant(inputs: ProbeInputs, config: ProbeConfig) -> float:
    """Return the estimated seconds per variant.

    Short runs of one chunk, each with one thing more of which there is much in a real run: steps, images, epochs. What
    a thing costs is what its run takes longer.
    """
    d_sae, n = inputs.sae.d_sae, len(inputs.train.tokens)
    even = np.arange(d_sae) % 2 == 0
    variants = make_variants({"even": even, "odd": ~even}, np.ones(d_sae, bool), np.ones(d_sae), n_draws=0)
    variants = variants[: config.variants_per_chunk]

    def run(n_images: int, n_steps: int, n_epochs: int) -> float:
        short = replace(
            config,
            n_train_images=n_images,
            n_test_images=n_images,
            n_dense_train_images=n_images,
            n_dense_test_images=n_images,
            dense_steps=n_steps,
            classification_epochs=n_epochs,
        )
        return _time(lambda: run_probes(variants, inputs, short))

    few, more_steps, more_epochs = max(4, n // 4), 12, 10
    run(few, 2, 1)  # warms up
    least = run(few, 2, 1)
    step_s = max(0.0, run(few, 2 + more_steps, 1) - least) / more_steps
    image_s = max(0.0, run(n, 2, 1) - least) / (2 * max(1, n - few))
    epoch_s = max(0.0, run(few, 2, 1 + more_epochs) - least) / more_epochs / few
    n_train, n_test = config.n_train_images or n, config.n_test_images or n
    of_images = image_s * (n_train + n_test)
    return (step_s * config.dense_steps + of_images + epoch_s * n_train * config.classification_epochs) / len(variants)


def print_plan(plan: Plan, console: Console) -> None:
    """Print the steps, their sums, and the naive cost beside ours."""
    table = Table(title="What this command would do", title_justify="left", box=None, pad_edge=False)
    for heading, justify in (
        ("step", "left"),
        ("reuse", "right"),
        ("build", "right"),
        ("forwards", "right"),
        ("distances", "right"),
        ("disk", "right"),
        ("memory", "right"),
        ("time", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for step in plan.steps:
        bound = "≤ " if step.is_bound else ""
        counts = [f"{bound}{n:,}" if n else "" for n in (step.forwards, step.distances)]
        sizes = [format_bytes(n) if n else "" for n in (step.disk_bytes, step.memory_bytes)]
        builds = str(step.n_built) if step.n_built else ""
        seconds = format_seconds(step.seconds) if step.n_built else ""
        table.add_row(step.what, str(step.n_reused or ""), builds, *counts, *sizes, seconds)
    console.print(table)
    forwards = sum(step.forwards for step in plan.steps)
    disk = sum(step.disk_bytes for step in plan.steps)
    memory = max((step.memory_bytes for step in plan.steps), default=0)
    console.print(
        Text(
            f"Together about {format_seconds(plan.seconds)}, {format_bytes(disk)} of disk, at most"
            f" {format_bytes(memory)} of memory beside the libraries; estimated on this machine."
        )
    )
    console.print(
        Text(
            f"Backbone: {forwards:,} forward passes are missing. The naive way, every latent encoding both"
            f" crops of its own top images, takes {plan.naive_forwards:,}"
            f" ({format_seconds(plan.naive_forwards / plan.rates.images)})."
        )
    )


def format_seconds(seconds: float) -> str:
    """Return a duration for people: 8 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_bytes(n_bytes: float) -> str:
    """Return a size for people: 12 kB, 3.4 MB, 1.2 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.0f} kB"
