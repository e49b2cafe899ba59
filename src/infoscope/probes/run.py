"""Training and evaluating the probes of many variants: chunk by chunk, each finished chunk handed on at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.classification import run_classification
from infoscope.probes.config import ProbeConfig, Task, check_probes
from infoscope.probes.dense import DenseProbes
from infoscope.probes.editing import VariantEditor, compute_variant_shares
from infoscope.probes.heads import LinearMaps
from infoscope.probes.inputs import ProbeInputs, Progress, choose_rows
from infoscope.probes.rates import Heads, TaskOutcome
from infoscope.probes.results import VariantResult, describe_variant, finite
from infoscope.probes.variants import Role, Variant

OnResult = Callable[[str, VariantResult], None]
"""Called with (variant key, result) as soon as the chunk of the variant is finished."""


def run_probes(
    variants: Sequence[Variant],
    inputs: ProbeInputs,
    config: ProbeConfig,
    sae_key: str = "",
    original_heads: Heads | None = None,
    on_result: OnResult | None = None,
    progress: Progress | None = None,
) -> dict[str, VariantResult]:
    """Return {variant key: result}; variants with equal tokens are trained once, under the name of the first.

    The numbers depend on the configuration and the variant alone: not on which others run beside it, nor on the chunks
    (up to the rounding of differently shaped products).

    Args:
        sae_key: what tells SAEs apart in the keys, see `Variant.key`.
        original_heads: `heads` of the original variant's result, where it was made before; otherwise the original must
            be among the variants, and is trained first.
        on_result: gets each result as soon as it is there, so that an interruption loses one chunk at most.

    Raises:
        InputError: probes that an edit could not change, an unknown target, too few images, NaN or Inf in tokens, heads
            that diverge at every learning rate.
    """
    check_probes(config, inputs.backbone, inputs.layer, inputs.train.images, inputs.edits_patches, inputs.edits_prefix)
    unique: dict[str, Variant] = {}
    for variant in sorted(variants, key=lambda variant: variant.role is not Role.original):
        unique.setdefault(variant.key(sae_key), variant)
    keys, results = list(unique), {}
    if not keys:
        return results
    assert original_heads is not None or unique[keys[0]].role is Role.original, (
        "the original tokens' heads are neither given nor among the variants"
    )
    train_rows = choose_rows(len(inputs.train.tokens), config.n_train_images, config.seed)
    test_rows = choose_rows(len(inputs.test.tokens), config.n_test_images, config.seed)
    dense = None
    if Task.segmentation in config.tasks or Task.depth in config.tasks:
        dense = DenseProbes(
            inputs,
            config,
            choose_rows(len(inputs.train.tokens), config.n_dense_train_images, config.seed),
            choose_rows(len(inputs.test.tokens), config.n_dense_test_images, config.seed),
            progress,
        )
    for start in range(0, len(keys), config.variants_per_chunk):
        chunk = keys[start : start + config.variants_per_chunk]
        editor = VariantEditor(inputs.sae, [unique[key] for key in chunk])
        outcomes: dict[str, TaskOutcome] = {}
        if Task.classification in config.tasks:
            outcomes |= run_classification(inputs, config, editor, train_rows, test_rows, original_heads, progress)
        if dense is not None:
            outcomes |= dense.run(editor, original_heads)
        shares = compute_variant_shares(inputs.sae, _iterate_tokens(inputs, test_rows), editor.variants)
        for i, key in enumerate(chunk):
            results[key] = _assemble(unique[key], shares[i], outcomes, i)
            if on_result:
                on_result(key, results[key])
        original_heads = original_heads or results[keys[0]].heads
    return results


def _iterate_tokens(inputs: ProbeInputs, rows: Int[np.ndarray, " n"]) -> Iterator[Float[Tensor, "n d_in"]]:
    """Yield the raw test tokens that the SAE edits, a batch at a time."""
    for start in range(0, len(rows), 32):
        tokens = inputs.test.tokens.tokens(rows[start : start + 32])
        edited = [tokens.patches] * inputs.edits_patches + [tokens.prefix] * inputs.edits_prefix
        yield torch.cat([part.flatten(0, 1) for part in edited]).to(inputs.device)


def _assemble(
    variant: Variant, shares: tuple[float, float], outcomes: dict[str, TaskOutcome], place: int
) -> VariantResult:
    """Return the result of the variant at `place` of a chunk."""

    def read(values: dict[str, Tensor]) -> dict[str, float | None]:
        # torchmetrics gives a single head's value without its axis.
        return {name: finite(value.reshape(-1)[place].item()) for name, value in values.items()}

    return VariantResult(
        describe_variant(variant, *shares),
        {task: read(outcome.metrics) for task, outcome in outcomes.items()},
        {task: read(outcome.frozen_head) for task, outcome in outcomes.items()},
        {task: outcome.lr[place] for task, outcome in outcomes.items()},
        {
            task: LinearMaps(*(part[place : place + 1].detach().cpu().clone() for part in outcome.heads))
            for task, outcome in outcomes.items()
        },
    )
