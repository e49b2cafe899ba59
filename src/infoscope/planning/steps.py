"""The steps of a command: what exists, what is missing, and what that costs on this machine.

Counts (images, forward passes, distances, bytes) follow from the configuration; where they depend on results that do
not exist yet they are upper bounds, marked as such. Times come from the calibration; they are estimates, without
imports and without drawing figures.

A further analysis is one function from what is known to its steps, named in `ANALYSES`.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from infoscope.artifacts import Artifact, Spec, Store, Workspace
from infoscope.config import Stage
from infoscope.data.config import DataKind
from infoscope.data.images import LabelledImages
from infoscope.planning.calibration import Calibration
from infoscope.planning.probe_costs import count_probe_work, make_nominal_variants
from infoscope.predictions.inputs import check_predictions
from infoscope.predictions.prompts import make_prompts
from infoscope.probes.classification import count_variants_at_a_time
from infoscope.probes.config import Readout, Task
from infoscope.probes.selection import LOGITS, SCORES
from infoscope.probes.variants import Role, Variant
from infoscope.progress import Display
from infoscope.sae.edit import EditMode
from infoscope.scope.config import EMDMethod
from infoscope.scope.emd import count_workers
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.token_outliers import MAPS
from infoscope.stages import TOKEN_BATCH_IMAGES, Stages
from infoscope.vision.extract import compute_cache_bytes

ORDER = (Stage.train_sae, Stage.rank, Stage.score, Stage.probe, Stage.report)


@dataclass(frozen=True)
class Step:
    """One artifact, or several alike, that a command needs.

    Args:
        what: stage and name, for people.
        n_built, n_reused: artifacts to build, and that exist.
        forwards: pictures that go through the backbone.
        resumed: pictures' edited tokens that go through its remaining blocks.
        distances: earth mover's distances to compute.
        seconds: estimated time to build what is missing.
        disk_bytes, memory_bytes: what stays on the disk, and the largest arrays held while it is made.
        is_bound: whether the counts are upper bounds.
    """

    what: str
    n_built: int
    n_reused: int
    forwards: int = 0
    resumed: int = 0
    distances: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0
    is_bound: bool = False


@dataclass(frozen=True)
class Plan:
    """The steps in their order, and what the naive way would cost.

    Args:
        naive_forwards: pictures that would be encoded if every latent encoded both crops of its own top images.
        naive_s: how long that would take, in seconds.
    """

    steps: list[Step]
    naive_forwards: int
    naive_s: float

    @property
    def seconds(self) -> float:
        """Estimated time of everything that is missing."""
        return sum(step.seconds for step in self.steps)


class _MissingError(Exception):
    """An artifact that does not exist."""


class _ReadOnlyStore(Store):
    """A store that builds nothing and says nothing: what is missing raises."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.root)
        self._verified = store._verified

    def get(
        self, spec: Spec, build: Callable[[Workspace], None], *, config: Any = None, **upstream: Artifact
    ) -> Artifact:
        found = self.find(spec)
        if found is None:
            raise _MissingError(spec.folder_name)
        return found


def make_plan(stages: Stages) -> Plan:
    """Return what the configured stage would reuse and build; nothing is written into the store.

    Raises:
        InputError: whatever the stages would refuse before they begin.
    """
    reading = copy.copy(stages)
    reading.store, reading.display = _ReadOnlyStore(stages.store), Display(Console(quiet=True), bars=False)
    with tempfile.TemporaryDirectory() as scratch:
        return _make_plan(_Known(reading, Calibration(reading, Path(scratch))))


class _Known:
    """What the steps are planned from: the stages over a store that builds nothing, rates, and sizes."""

    def __init__(self, stages: Stages, rates: Calibration) -> None:
        config = stages.config
        self.stages, self.rates, self.config = stages, rates, config
        self.is_analysis = config.stage not in ORDER and config.stage is not Stage.train_clip
        last = Stage.score if self.is_analysis else config.stage
        self.reached = ORDER[: ORDER.index(last) + 1] if last in ORDER else ()
        self.d_sae = stages.backbone.d_in * config.sae.expansion_factor
        own_truth = config.data.kind is DataKind.scenes and all(
            data == config.data for data, _ in stages.probe_groups()
        )
        self.probes = own_truth and Stage.probe in self.reached
        self.splits = ("train", "test") if self.probes or self.is_analysis else ("train",)

    def exists(self, spec: Spec) -> bool:
        """Whether there is such an artifact."""
        return self.stages.store.find(spec) is not None

    def find(self, name: str, *args: Any) -> Any:
        """Return what a method of the stages (or analyses) gives if nothing has to be built for it, else None.

        Only for methods that ask the store before they work, as those that return one artifact do.
        """
        try:
            return getattr(self.stages, name)(*args)
        except _MissingError:
            return None

    def find_ranking(self, seed: int) -> Ranking | None:
        """Return the ranking of a seed if there is one."""
        found = self.stages.store.find(self.stages.rank_spec(seed))
        return None if found is None else Ranking.load(found.folder)

    def find_scores(self, seed: int) -> Scores | None:
        """Return the scores of a seed if there are any."""
        found = self.stages.store.find(self.stages.score_spec(seed))
        return None if found is None else Scores.load(found.folder)

    def distance_s(self, n_pairs: int, method: EMDMethod) -> float:
        """Seconds for the distances of one list of pairs."""
        if method is EMDMethod.sinkhorn:
            return n_pairs / self.rates.sinkhorn
        return n_pairs / (self.rates.distances * count_workers(n_pairs, self.config.scope.n_workers))

    def read_tokens(self, step: Step, n_images: int) -> Step:
        """Return a step with what it costs to read the tokens of some images: a forward of each if none are stored."""
        if self.config.data.store_tokens or not step.n_built:
            return step
        seconds = step.seconds + n_images / self.rates.images
        return replace(step, forwards=step.forwards + n_images, seconds=seconds)

    def crop_s(self, n_images: int, n_saes: int = 1) -> float:
        """Seconds for encoding both crops of some images and keeping the maps of some SAEs."""
        return n_images * (self.rates.cropped_s + (n_saes - 1) * self.rates.cropped_sae_s)


def _make_plan(known: _Known) -> Plan:
    config = known.config
    steps = [_plan_scenes(known)] if config.data.kind is DataKind.scenes else []
    steps += [_plan_tokens(known, split) for split in known.splits]
    for seed in config.seeds:
        steps += _plan_seed(known, seed)
    if Stage.probe in known.reached and not known.probes and known.find("knows_truths") is not False:
        steps.append(Step("probes (not estimated)", 1, 0))
    if config.stage is Stage.report:
        steps += _plan_report(known)
    if known.is_analysis:
        plan_analysis = ANALYSES.get(config.stage)
        steps += plan_analysis(known) if plan_analysis else [Step(f"{config.stage.name} (not estimated)", 1, 0)]
    n_naive = 2 * known.d_sae * config.scope.n_ranks * len(config.seeds)
    return Plan(steps, n_naive, n_naive / known.rates.images)


# -- the chain ---------------------------------------------------------------------------------------------------


def _plan_scenes(known: _Known) -> Step:
    stages = known.stages
    sizes = {split: stages.n_images(split) for split in ("train", "test")}
    missing = [n for split, n in sizes.items() if not known.exists(stages.scenes_spec(split, n))]
    n_bytes = sum(missing) * known.config.data.size_px**2 * 6  # three bytes of colour, one of label, two of depth
    seconds = sum(missing) / (known.rates.scenes * torch.get_num_threads()) if missing else 0.0
    return Step("scenes", len(missing), len(sizes) - len(missing), seconds=seconds, disk_bytes=n_bytes)


def _plan_tokens(known: _Known, split: str) -> Step:
    stages = known.stages
    n, name = stages.n_images(split), f"tokens, {split}"
    if known.exists(stages.tokens_spec(split)):
        return Step(name, 0, 1)
    data, backbone = known.config.data, stages.backbone
    n_bytes = compute_cache_bytes(backbone, n, data.cache_dtype)
    batch, seconds = n_bytes // n * TOKEN_BATCH_IMAGES, n / known.rates.images
    if not data.store_tokens:
        n_bytes = n * backbone.grid**2 * 4  # the norms
    return Step(name, 1, 0, forwards=n, seconds=seconds, disk_bytes=n_bytes, memory_bytes=batch)


def _plan_seed(known: _Known, seed: int) -> Iterator[Step]:
    for stage, plan in ((Stage.train_sae, _plan_sae), (Stage.rank, _plan_rank), (Stage.score, _plan_score)):
        if stage in known.reached:
            yield plan(known, seed)
    if known.probes:
        yield _plan_probes(known, seed)


def _plan_sae(known: _Known, seed: int) -> Step:
    sae, d_in = known.config.sae, known.stages.backbone.d_in
    if known.exists(known.stages.sae_spec(seed)):
        return Step(f"train_sae, seed {seed}", 0, 1)
    n_bytes = 4 * (2 * d_in * known.d_sae + known.d_sae + 2 * d_in)
    held = 4 * n_bytes + 4 * sae.batch_tokens * (known.d_sae + 4 * d_in)  # weights, gradients, two moments; one batch
    n_tokens, per_image = sae.n_steps * sae.batch_tokens, known.stages.backbone.grid**2
    per_image = min(sae.tokens_per_image or per_image, per_image)
    if not known.config.data.store_tokens:
        held += 2 * 4 * min(sae.pool_images, known.stages.n_images("train")) * per_image * d_in
    seconds = n_tokens / known.rates.tokens
    step = Step(f"train_sae, seed {seed}", 1, 0, seconds=seconds, disk_bytes=n_bytes, memory_bytes=held)
    return known.read_tokens(step, math.ceil(n_tokens / per_image))


def _plan_rank(known: _Known, seed: int) -> Step:
    if known.exists(known.stages.rank_spec(seed)):
        return Step(f"rank, seed {seed}", 0, 1)
    n_bytes = known.d_sae * known.config.scope.n_ranks * 12
    held = 2 * n_bytes + 4 * TOKEN_BATCH_IMAGES * known.stages.backbone.grid**2 * known.d_sae
    n_images = known.stages.n_images("train")
    seconds = n_images / known.rates.ranked
    step = Step(f"rank, seed {seed}", 1, 0, seconds=seconds, disk_bytes=n_bytes, memory_bytes=held)
    return known.read_tokens(step, n_images)


def _plan_score(known: _Known, seed: int) -> Step:
    name, scope, grid = f"score, seed {seed}", known.config.scope, known.stages.backbone.grid
    if known.exists(known.stages.score_spec(seed)):
        return Step(name, 0, 1)
    n_pairs = known.d_sae * scope.n_ranks
    n_images = min(known.stages.n_images("train"), n_pairs)
    ranking = known.find_ranking(seed)
    if ranking is not None:
        n_pairs, n_images = _count_ranked([ranking.top_images])
    maps_bytes = known.d_sae * scope.n_ranks * 2 * grid**2 * 4
    seconds = known.crop_s(n_images) + known.distance_s(2 * n_pairs, scope.emd)
    return Step(
        name,
        1,
        0,
        forwards=2 * n_images,
        distances=2 * n_pairs,
        seconds=seconds,
        disk_bytes=maps_bytes,
        memory_bytes=maps_bytes,
        is_bound=ranking is None,
    )


def _count_ranked(top_images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return (pairs of a latent and an image, different images) of some rankings; -1 is no image."""
    ranked = np.concatenate([images[images >= 0] for images in top_images])
    return len(ranked), len(np.unique(ranked))


def _plan_probes(known: _Known, seed: int) -> Step:
    """The variants are known once the scores are; before, as many as two groups (or all bands) with members have."""
    stages = known.stages
    variants = known.find("variants", seed)
    if variants is None:
        n_built, n_reused, has_features = len(make_nominal_variants(known.config)), 0, False
    else:
        variants = [*variants, *stages.matched_variants(seed)]
        n_built, n_reused = _count_probes(known, seed, variants)
        has_features = _has_features(known, seed, variants)
    return plan_variants(known, f"probe, seed {seed}", n_built, n_reused, has_features)


def _count_probes(known: _Known, seed: int, variants: Sequence[Variant]) -> tuple[int, int]:
    """Return how many probe artifacts of some variants are missing, and how many exist."""
    groups = known.stages.probe_groups()
    specs = (known.stages.probe_spec(seed, variant, *group) for variant in variants for group in groups)
    specs = {spec.hash: spec for spec in specs}
    n_missing = sum(not known.exists(spec) for spec in specs.values())
    return n_missing, len(specs) - n_missing


def _has_features(known: _Known, seed: int, variants: Sequence[Variant]) -> bool:
    """Whether everything exists that classification reads of the variants whose probes are missing."""
    stages = known.stages
    for data, probe in stages.probe_groups():
        if Task.classification in probe.tasks:
            missing = [one for one in variants if not known.exists(stages.probe_spec(seed, one, data, probe))]
            if not all(map(known.exists, stages.feature_specs(seed, missing, data, probe).values())):
                return False
    return True


def plan_variants(known: _Known, what: str, n_built: int, n_reused: int, has_features: bool = False) -> Step:
    """Return the step of probing some variants of the tokens of one SAE.

    Args:
        has_features: whether what classification reads of them exists.
    """
    config, stages, d_in = known.config.probe, known.stages, known.stages.backbone.d_in
    n_train, n_test = stages.n_images("train"), stages.n_images("test")
    work = count_probe_work(config, n_train, n_test, has_features)
    if not n_built:
        return Step(what, n_built, n_reused)
    if any(config.crops(task) for task in config.tasks):
        return Step(f"{what} (on crops: not estimated)", n_built, n_reused)
    n_read = min(n_train, config.n_train_images or n_train) + min(n_test, config.n_test_images or n_test)
    classifies, images = Task.classification in config.tasks, known.rates.images_set
    n_classes = images.n_target_classes(config.target) if classifies and isinstance(images, LabelledImages) else 0
    n_classified, vectors_bytes = count_variants_at_a_time(config, n_read, d_in, n_classes)
    disk_bytes = n_built * 4 * d_in * 1000
    if classifies and not has_features:
        disk_bytes += n_built * len(config.cls_readouts) * n_read * d_in * np.dtype(config.feature_dtype).itemsize
        if Readout.patch_mean in config.readouts:
            disk_bytes += int(n_read * (4 * d_in + 8 * known.rates.mean_entries))
    resumes = Readout.cls_final in config.cls_readouts
    step = Step(
        what,
        n_built,
        n_reused,
        resumed=int(n_built * (work["train_image"] + work["test_image"])) if resumes else 0,
        seconds=known.rates.probes.seconds(n_built, config.variants_per_chunk, n_classified, work),
        disk_bytes=disk_bytes,
        memory_bytes=classifies * min(n_built, n_classified) * vectors_bytes,
    )
    return known.read_tokens(step, int(work["train_image"] + work["test_image"]))


# -- the analyses ------------------------------------------------------------------------------------------------


def _plan_report(known: _Known) -> list[Step]:
    """The analyses that the report joins."""
    config, stages = known.config, known.stages
    n, backbone, step = stages.n_images("train"), stages.backbone, Step("outliers", 0, 1)
    if known.find("token_outliers") is None:
        n_cropped, n_by_layer = min(n, config.outliers.n_images), min(n, config.outliers.n_layer_images)
        forwards, pairs = 2 * n_cropped + (backbone.n_layers - 1) * n_by_layer, 2 * len(MAPS) * n_cropped
        seconds = forwards / known.rates.images + known.distance_s(pairs, config.scope.emd)
        step = Step("outliers", 1, 0, forwards=forwards, distances=pairs, seconds=seconds, is_bound=True)
    steps = [step]
    for name, what in (("group_activation", "group activation"), ("confounds", "confounds")):
        n_found = sum(known.find(name, seed) is not None for seed in config.seeds)
        n_built = len(config.seeds) - n_found
        seconds = n_built * n * getattr(known.rates, f"{name}_s") if n_built else 0.0
        steps.append(known.read_tokens(Step(what, n_built, n_found, seconds=seconds), n_built * n))
    return steps


def _plan_predict(known: _Known) -> list[Step]:
    """Every variant of every test image, then trials of single features; how many features act is not known before."""
    config, stages = known.config.predict, known.stages
    check_predictions(stages.backbone, known.config.model.layer)
    prompts = make_prompts(config, known.rates.images_set)
    head = Step("zero_shot_head", 0, 1)
    if known.find("zero_shot_head") is None:
        n_texts = len(prompts.class_names) * len(prompts.templates)
        head = Step("zero_shot_head", 1, 0, seconds=n_texts / known.rates.texts)
    return [head, *(_plan_predictions(known, seed) for seed in known.config.seeds)]


def _plan_predictions(known: _Known, seed: int) -> Step:
    config, stages, name = known.config.predict, known.stages, f"predict, seed {seed}"
    if known.find("predict", seed) is not None:
        return Step(name, 0, 1)
    variants = known.find("variants", seed)
    if variants is None:
        variants, is_known = make_nominal_variants(known.config), False
        sizes = [known.d_sae for variant in variants if _is_explained(variant)]
    else:
        is_known, sizes = True, [variant.n_latents for variant in variants if _is_explained(variant)]
    n_images = min(stages.n_images("test"), config.n_images or stages.n_images("test"))
    n_shown = min(n_images, config.n_shown)
    n_edited = len({variant.key() for variant in variants}) * n_images
    n_trials = n_shown * sum(2 + min(size, config.n_candidates) for size in sizes)  # 2: original, whole group
    resumed = n_edited + n_trials
    n_bytes = n_images * len(variants) * 18
    bound = not is_known or n_trials > 0
    seconds = resumed * known.rates.resumed_s
    step = Step(name, 1, 0, resumed=resumed, seconds=seconds, disk_bytes=n_bytes, is_bound=bound)
    return known.read_tokens(step, n_images)


def _is_explained(variant: Variant) -> bool:
    return variant.role is Role.group and variant.mode is EditMode.error_preserving and not variant.empty


def _plan_stability(known: _Known) -> list[Step]:
    """Every other shift, diagonal and image set, each encoded once for all SAEs, and some pairs by the other solver."""
    config, stages, seeds = known.config.stability, known.stages, known.config.seeds
    scope, grid, n_saes = known.config.scope, stages.backbone.grid, len(seeds)
    if known.find("stability") is not None:
        return [Step("stability", 0, 1)]
    ranked = [_RankedLatents(known, seed, config.n_latents) for seed in seeds]
    shifts = [shift for shift in dict.fromkeys(config.shifts) if shift != scope.shift_patches and grid - shift >= 2]
    n_again = len(shifts) + 1  # the other diagonal
    n_pairs = [one.n_pairs for one in ranked]
    n_images = min(stages.n_images("train"), sum(n_pairs))
    if all(one.top_images is not None for one in ranked):
        n_images = min(n_images, _count_ranked([one.top_images for one in ranked if one.top_images is not None])[1])
    cropped, pairs = n_again * n_images, [n_again * n for n in n_pairs]
    seconds = known.crop_s(cropped, n_saes) + n_again * sum(known.distance_s(n, scope.emd) for n in n_pairs)
    n_test = stages.n_images("test")
    if n_test >= scope.k_cds:
        n_pairs = [one.n_latents * scope.k_cds for one in ranked]
        n_held_out = min(n_test, sum(n_pairs))
        cropped, pairs = cropped + n_held_out, pairs + n_pairs
        seconds += n_saes * n_test / known.rates.ranked + known.crop_s(n_held_out, n_saes)
        seconds += sum(known.distance_s(n, scope.emd) for n in n_pairs)
    other = EMDMethod.sinkhorn if scope.emd is EMDMethod.exact else EMDMethod.exact
    n_solver = [min(one.n_latents, config.n_solver_latents) * scope.k_cds for one in ranked]
    seconds += sum(known.distance_s(n, other) for n in n_solver)
    return [
        Step(
            "stability",
            1,
            0,
            forwards=2 * cropped,
            distances=sum(pairs) + sum(n_solver),
            seconds=seconds,
            disk_bytes=n_saes * known.d_sae * 8 * (2 * n_again + 16),
            memory_bytes=sum(one.n_latents for one in ranked) * scope.k_cds * 2 * grid**2 * 4,
            is_bound=True,
        )
    ]


class _RankedLatents:
    """The latents of a seed that are scored again: how many, with how many ranked images; all of them before scores.

    top_images: [n_scored, k_cds], of the latents among which they are drawn; None without scores.
    """

    def __init__(self, known: _Known, seed: int, n_wanted: int | None) -> None:
        k, scores, ranking = known.config.scope.k_cds, known.find_scores(seed), known.find_ranking(seed)
        self.n_latents, self.top_images = known.d_sae, None
        if scores is not None and ranking is not None:
            scored = np.isfinite(scores.cds(k).values)
            self.n_latents, self.top_images = int(scored.sum()), ranking.top_images[scored, :k]
        if n_wanted is not None:
            self.n_latents = min(self.n_latents, n_wanted)
        self.n_pairs = self.n_latents * k
        if self.top_images is not None:
            self.n_pairs = min(self.n_pairs, _count_ranked([self.top_images])[0])


def _plan_select(known: _Known) -> list[Step]:
    """The variants are known once the original's probes are; before, as many as every rule has features enough for."""
    config, steps = known.config, []
    for seed in config.seeds:
        whole, kept, has_features = known.find("whole_variants", seed), known.find("selection_variants", seed), False
        if whole is None or kept is None:
            n_rules = config.select.n_bands + 1 + config.select.n_draws + len({*LOGITS, *SCORES} & config.probe.heads)
            n_built, n_reused = 3 + len(config.select.n_kept) * n_rules, 0
        else:
            n_built, n_reused = _count_probes(known, seed, [*whole, *kept])
            has_features = _has_features(known, seed, [*whole, *kept])
        steps.append(plan_variants(known, f"select, seed {seed}", n_built, n_reused, has_features))
    return steps


ANALYSES: dict[Stage, Callable[[_Known], list[Step]]] = {
    Stage.predict: _plan_predict,
    Stage.stability: _plan_stability,
    Stage.select: _plan_select,
}
"""What the stages beside the chain need once scores and tokens exist."""
