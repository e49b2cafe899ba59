"""The steps of the chain: scenes, tokens, SAEs, rankings, scores, probes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from infoscope.config import Stage
from infoscope.data.images import LabelledImages
from infoscope.pipeline.encoding import TOKEN_BATCH_IMAGES
from infoscope.pipeline.planning.known import Known, Step
from infoscope.pipeline.planning.probe_costs import count_probe_work, make_nominal_variants
from infoscope.probes.classification import count_variants_at_a_time
from infoscope.probes.config import Readout, Task
from infoscope.probes.variants import Variant
from infoscope.vision.extract import compute_cache_bytes


def plan_scenes(known: Known) -> Step:
    stages = known.stages
    sizes = {split: stages.n_images(split) for split in ("train", "test")}
    missing = [n for split, n in sizes.items() if not known.exists(stages.scenes_spec(split, n))]
    n_bytes = sum(missing) * known.config.data.size_px**2 * 6  # three bytes of colour, one of label, two of depth
    seconds = sum(missing) / (known.rates.scenes * torch.get_num_threads()) if missing else 0.0
    return Step("scenes", len(missing), len(sizes) - len(missing), seconds=seconds, disk_bytes=n_bytes)


def plan_tokens(known: Known, split: str) -> Step:
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


def plan_seed(known: Known, seed: int) -> Iterator[Step]:
    for stage, plan in ((Stage.train_sae, _plan_sae), (Stage.rank, _plan_rank), (Stage.score, _plan_score)):
        if stage in known.reached:
            yield plan(known, seed)
    if known.probes:
        yield _plan_probes(known, seed)


def _plan_sae(known: Known, seed: int) -> Step:
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


def _plan_rank(known: Known, seed: int) -> Step:
    if known.exists(known.stages.rank_spec(seed)):
        return Step(f"rank, seed {seed}", 0, 1)
    n_bytes = known.d_sae * known.config.scope.n_ranks * 12
    held = 3 * n_bytes  # of a part, of what this process has ranked, of all
    held += 4 * TOKEN_BATCH_IMAGES * known.stages.backbone.grid**2 * known.d_sae
    n_images = known.stages.n_images("train")
    seconds = n_images / known.rates.ranked
    step = Step(f"rank, seed {seed}", 1, 0, seconds=seconds, disk_bytes=n_bytes, memory_bytes=held)
    return known.read_tokens(step, n_images)


def _plan_score(known: Known, seed: int) -> Step:
    name, scope, grid = f"score, seed {seed}", known.config.scope, known.stages.backbone.grid
    if known.exists(known.stages.score_spec(seed)):
        return Step(name, 0, 1)
    n_pairs = known.d_sae * scope.n_ranks
    n_images = min(known.stages.n_images("train"), n_pairs)
    ranking = known.find_ranking(seed)
    if ranking is not None:
        n_pairs, n_images = count_ranked([ranking.top_images])
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


def count_ranked(top_images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return (pairs of a latent and an image, different images) of some rankings; -1 is no image."""
    ranked = np.concatenate([images[images >= 0] for images in top_images])
    return len(ranked), len(np.unique(ranked))


def _plan_probes(known: Known, seed: int) -> Step:
    """The variants are known once the scores are; before, as many as two groups (or all bands) with members have."""
    stages = known.stages
    variants = known.find("variants", seed)
    if variants is None:
        n_built, n_reused, has_features = len(make_nominal_variants(known.config)), 0, False
    else:
        variants = [*variants, *stages.matched_variants(seed)]
        n_built, n_reused = count_probes(known, seed, variants)
        has_features = has_features_of(known, seed, variants)
    return plan_variants(known, f"probe, seed {seed}", n_built, n_reused, has_features)


def count_probes(known: Known, seed: int, variants: Sequence[Variant]) -> tuple[int, int]:
    """Return how many probe artifacts of some variants are missing, and how many exist."""
    groups = known.stages.probe_groups()
    specs = (known.stages.probe_spec(seed, variant, *group) for variant in variants for group in groups)
    specs = {spec.hash: spec for spec in specs}
    n_missing = sum(not known.exists(spec) for spec in specs.values())
    return n_missing, len(specs) - n_missing


def has_features_of(known: Known, seed: int, variants: Sequence[Variant]) -> bool:
    """Whether everything exists that classification reads of the variants whose probes are missing."""
    stages = known.stages
    for data, probe in stages.probe_groups():
        if Task.classification in probe.tasks:
            missing = [one for one in variants if not known.exists(stages.probe_spec(seed, one, data, probe))]
            if not all(map(known.exists, stages.feature_specs(seed, missing, data, probe).values())):
                return False
    return True


def plan_variants(known: Known, what: str, n_built: int, n_reused: int, has_features: bool = False) -> Step:
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
