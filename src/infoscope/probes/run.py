"""Training and evaluating the probes of many variants: chunk by chunk, each finished variant handed on at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import Int
from torch import Tensor

from infoscope.probes.classification import count_variants_at_a_time, run_classification
from infoscope.probes.config import ProbeConfig, Readout, Task, check_probes
from infoscope.probes.dense import DenseProbes, make_dense_views
from infoscope.probes.editing import VariantEditor
from infoscope.probes.extraction import measure_shares, write_features
from infoscope.probes.features import MEANS, FeatureFolders, Features
from infoscope.probes.heads import LinearMaps
from infoscope.probes.inputs import ProbeInputs, Progress, choose_rows
from infoscope.probes.rates import Heads, TaskOutcome
from infoscope.probes.results import VariantResult, describe_variant, finite
from infoscope.probes.variants import Role, Variant

OnResult = Callable[[str, VariantResult], None]
"""Called with (variant key, result) as soon as all tasks of the variant are finished."""


def run_probes(
    variants: Sequence[Variant],
    inputs: ProbeInputs,
    config: ProbeConfig,
    sae_key: str = "",
    original_heads: Heads | None = None,
    on_result: OnResult | None = None,
    progress: Progress | None = None,
    folders: FeatureFolders | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, VariantResult]:
    """Return {variant key: result}; variants with equal tokens are trained once, under the name of the first.

    The numbers depend on the configuration and the variant alone: not on which others run beside it, nor on the chunks
    (up to the rounding of differently shaped products).

    Classification reads features that one pass over each split makes for all variants; heads are then trained for
    `variants_per_chunk` variants at a time, those of classification for as many as `memory_gb` allows.

    Args:
        sae_key: what tells SAEs apart in the keys, see `Variant.key`.
        original_heads: `heads` of the original variant's result, where it was made before; otherwise the original must
            be among the variants, and is trained first.
        on_result: gets each result as soon as it is there, so that an interruption loses one chunk at most.
        folders: where the features of classification lie, or will lie; None: in a temporary folder, for this run.
        say: told once how many variants are classified at a time, if that is not all of them.

    Raises:
        InputError: probes that an edit could not change, an unknown target, too few images, NaN or Inf in tokens, heads
            that diverge at every learning rate.
    """
    check_probes(config, inputs.backbone, inputs.layer, inputs.train.images, inputs.edits_patches, inputs.edits_prefix)
    unique = _unite(variants, sae_key)
    keys, results = list(unique), {}
    if not keys:
        return results
    assert original_heads is not None or unique[keys[0]].role is Role.original, (
        "the original tokens' heads are neither given nor among the variants"
    )
    rows = {
        "train": choose_rows(len(inputs.train.tokens), config.n_train_images, config.seed),
        "test": choose_rows(len(inputs.test.tokens), config.n_test_images, config.seed),
    }
    views = make_dense_views(
        inputs,
        config,
        choose_rows(len(inputs.train.tokens), config.n_dense_train_images, config.seed),
        choose_rows(len(inputs.test.tokens), config.n_dense_test_images, config.seed),
        progress,
    )
    dense = [DenseProbes(inputs, config, view) for view in views]
    with ExitStack() as stack:
        features, size = None, config.variants_per_chunk
        if Task.classification in config.tasks:
            size = _count_at_a_time(inputs, config, len(keys), rows, say)
            if folders is None:
                folders = FeatureFolders(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            features = _make_features(inputs, config, unique, rows, folders, progress)
            shares = {key: features.shares(key) for key in keys}
        else:
            measured = measure_shares(inputs, config, rows["test"], list(unique.values()), progress)
            shares = dict(zip(keys, measured, strict=True))
        for start in range(0, len(keys), config.variants_per_chunk):
            chunk = keys[start : start + config.variants_per_chunk]
            editor, seen = VariantEditor(inputs.sae, [unique[key] for key in chunk]), {}
            for probes in dense:
                seen |= probes.run(editor, original_heads)
            for first in range(0, len(chunk), size):
                part = {key: unique[key] for key in chunk[first : first + size]}
                read: dict[str, TaskOutcome] = {}
                if features is not None:
                    read = run_classification(inputs, config, features, part, original_heads, progress)
                for i, (key, variant) in enumerate(part.items()):
                    places = {task: (outcome, i) for task, outcome in read.items()}
                    places |= {task: (outcome, first + i) for task, outcome in seen.items()}
                    results[key] = _assemble(variant, shares[key], places)
                    if on_result:
                        on_result(key, results[key])
                original_heads = original_heads or results[keys[0]].heads
    return results


def _count_at_a_time(
    inputs: ProbeInputs,
    config: ProbeConfig,
    n_variants: int,
    rows: Mapping[str, Int[np.ndarray, " n"]],
    say: Callable[[str], None] | None,
) -> int:
    """Return how many variants are classified together, and say so if that is not all of them."""
    n_classes, n_images = inputs.train.images.n_target_classes(config.target), sum(map(len, rows.values()))
    size, n_bytes = count_variants_at_a_time(config, n_images, inputs.sae.d_in, n_classes)
    if say and size < n_variants:
        say(f"classification: {size} of {n_variants} variants at a time, {size * n_bytes / 1e9:.2g} GB")
    return size


def _unite(variants: Sequence[Variant], sae_key: str) -> dict[str, Variant]:
    """Return variants by key, the original first; of those with equal tokens the first one."""
    unique: dict[str, Variant] = {}
    for variant in sorted(variants, key=lambda variant: variant.role is not Role.original):
        unique.setdefault(variant.key(sae_key), variant)
    return unique


def _make_features(
    inputs: ProbeInputs,
    config: ProbeConfig,
    variants: Mapping[str, Variant],
    rows: Mapping[str, Int[np.ndarray, " n"]],
    folders: FeatureFolders,
    progress: Progress | None,
) -> Features:
    """Return what classification reads; what is missing of it is made by one pass over each split."""

    def fill(missing: dict[str, Path]) -> None:
        write_features(inputs, config, variants, rows, missing, folders.check_disk, progress)

    names = [*variants, MEANS] if Readout.patch_mean in config.readouts else list(variants)
    return Features(inputs, config, folders.make(names, fill), rows)


def _assemble(
    variant: Variant, shares: tuple[float, float], places: dict[str, tuple[TaskOutcome, int]]
) -> VariantResult:
    """Return the result of a variant: of each task, what lies at its place of an outcome."""

    def read(values: dict[str, Tensor], place: int) -> dict[str, float | None]:
        # torchmetrics gives a single head's value without its axis.
        return {name: finite(value.reshape(-1)[place].item()) for name, value in values.items()}

    return VariantResult(
        describe_variant(variant, *shares),
        {task: read(outcome.metrics, place) for task, (outcome, place) in places.items()},
        {task: read(outcome.frozen_head, place) for task, (outcome, place) in places.items()},
        {task: outcome.lr[place] for task, (outcome, place) in places.items()},
        {
            task: LinearMaps(*(part[place : place + 1].detach().cpu().clone() for part in outcome.heads))
            for task, (outcome, place) in places.items()
        },
    )
