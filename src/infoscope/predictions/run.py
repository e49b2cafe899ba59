"""Zero-shot predictions of every variant of the test tokens, and the images that a group's ablation changes most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, TokenEditor
from infoscope.predictions.metrics import compute_entropy, compute_total_variation
from infoscope.predictions.responsible import Explanation, explain_change
from infoscope.predictions.results import ChangedImage, PredictionResult
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Progress, Role, choose_rows, describe_variant, no_progress
from infoscope.scope.editing import AblationShares
from infoscope.vision.backbone import Tokens

PART_IMAGES = 2**8
"""Images in a part: fewer than in other passes, for each goes through the remaining blocks once per variant."""
_PER_IMAGE = {
    "predicted": np.int16,
    "max_prob": np.float32,
    "entropy": np.float32,
    "original_prob": np.float32,
    "total_variation": np.float32,
}


@torch.no_grad()
def run_predictions(
    variants: Sequence[Ablation],
    inputs: PredictInputs,
    head: ZeroShotHead,
    config: PredictConfig,
    labels: Int64[np.ndarray, " n_all_images"] | None = None,
    progress: Progress = no_progress,
    progress_folder: Path | None = None,
) -> PredictionResult:
    """Return the predictions of every variant; variants with equal tokens are computed once.

    Args:
        variants: as `make_ablations` gives them, the original tokens first.
        labels: of every image of the test set; None without ground truth.
        progress_folder: see `compute_parts`.

    Raises:
        InputError: no test image, NaN or Inf in a prediction.
    """
    assert variants[0].role is Role.original, "predictions are held against the original tokens, which come first"
    rows = choose_rows(len(inputs.tokens), config.n_images, config.seed)
    if not len(rows):
        raise InputError("Expected test images to predict, got none: raise data.test_share, or add images.")
    keys = [variant.key() for variant in variants]
    unique = {key: keys.index(key) for key in keys}
    removed = {place: torch.from_numpy(variants[place].ablated).to(inputs.device) for place in unique.values()}
    parts = cut(len(rows), PART_IMAGES)
    distinct = [variants[place] for place in removed]

    def predict(number: int) -> Part:
        """Return what is kept of each image [n_unique, n_part], in the order of `removed`."""
        found: dict[str, list[Tensor]] = {name: [] for name in _PER_IMAGE}
        shares = AblationShares(inputs.sae, distinct)
        n_done = parts[number].start
        for batch, tokens in inputs.iterate(rows[parts[number]], config.batch_images):
            measured = _predict_batch(variants, removed, inputs, head, tokens, shares)
            for name, values in measured.items():
                found[name].append(values.cpu())
            n_done += len(batch)
            progress("predictions", n_done, len(rows))
        return {name: torch.cat(values, dim=1) for name, values in found.items()} | shares.state()

    arrays = {name: np.zeros((len(variants), len(rows)), dtype) for name, dtype in _PER_IMAGE.items()}
    places, shares = [list(removed).index(unique[key]) for key in keys], AblationShares(inputs.sae, distinct)
    for some, part in zip(parts, compute_parts(len(parts), predict, progress_folder, "predictions"), strict=True):
        shares.add(part)
        for name, values in arrays.items():
            values[:, some] = part[name].numpy()[places]
    image_index = np.asarray(inputs.tokens.image_index[rows], dtype=np.int64)
    shared = shares.compute()
    result = PredictionResult(
        tuple(describe_variant(variant, *shared[place]) for variant, place in zip(variants, places, strict=True)),
        head.class_names,
        head.logit_scale,
        image_index,
        np.zeros(0, np.int64) if labels is None else np.asarray(labels, dtype=np.int64)[image_index],
        predicted=arrays["predicted"],
        max_prob=arrays["max_prob"],
        entropy=arrays["entropy"],
        original_prob=arrays["original_prob"],
        total_variation=arrays["total_variation"],
    )
    changed = _explain_changes(variants, inputs, head, config, rows, result, progress, progress_folder)
    return replace(result, changed=changed)


def _predict_batch(
    variants: Sequence[Ablation],
    removed: Mapping[int, Tensor],
    inputs: PredictInputs,
    head: ZeroShotHead,
    tokens: Tokens,
    shares: AblationShares,
) -> dict[str, Tensor]:
    """Return what is kept of each image of a batch [n_removed, batch]; the first that is removed is nothing."""
    editor = TokenEditor(inputs, tokens)
    shares.update(editor.editor)
    found, original = [], None
    for place, members in removed.items():
        edited = editor.edit(members, variants[place].mode)
        log_p = head.log_probabilities(inputs.backbone.embed_tokens(edited, inputs.layer))
        if not torch.isfinite(log_p).all():
            raise InputError(
                f"The predictions of {variants[place].name} hold NaN or Inf: check the SAE and the tokens it was"
                " trained on."
            )
        original = log_p if original is None else original
        found.append(_measure(log_p, original))
    return {name: torch.stack([measured[name] for measured in found]) for name in _PER_IMAGE}


def _measure(log_p: Tensor, original: Tensor) -> dict[str, Tensor]:
    p = log_p.exp()
    max_prob, predicted = p.max(-1)
    return {
        "predicted": predicted,
        "max_prob": max_prob,
        "entropy": compute_entropy(log_p),
        "original_prob": p.gather(-1, original.argmax(-1, keepdim=True))[:, 0],
        "total_variation": compute_total_variation(p, original.exp()),
    }


def _explain_changes(
    variants: Sequence[Ablation],
    inputs: PredictInputs,
    head: ZeroShotHead,
    config: PredictConfig,
    rows: Int[np.ndarray, " n_images"],
    result: PredictionResult,
    progress: Progress,
    progress_folder: Path | None,
) -> tuple[ChangedImage, ...]:
    """Return, for each group, the images whose original class loses most probability; images that lose none are out."""
    wanted = []
    for place, variant in enumerate(variants):
        if variant.role is Role.group and variant.mode is EditMode.error_preserving and not variant.empty:
            fall = result.original_prob[0] - result.original_prob[place]
            order = np.argsort(-fall, kind="stable")[: config.n_shown]
            wanted += [(place, int(i)) for i in order if fall[i] > 0]

    def explain(number: int) -> Part:
        place, i = wanted[number]
        row, removed, old_class = int(rows[i]), variants[place].ablated, int(result.predicted[0, i])
        why = explain_change(inputs, head, row, removed, old_class, config.n_candidates, config.batch_images)
        progress("responsible features", number + 1, len(wanted))
        return why.to_part()

    changed = []
    found = compute_parts(len(wanted), explain, progress_folder, "explained")
    for (place, i), part in zip(wanted, found, strict=True):
        variant, why = variants[place], Explanation.from_part(part)
        changed.append(
            ChangedImage(
                group=str(variant.group),
                image_index=int(result.image_index[i]),
                label=int(result.labels[i]) if result.has_labels else None,
                old_class=int(result.predicted[0, i]),
                new_class=int(result.predicted[place, i]),
                old_prob=float(result.original_prob[0, i]),
                old_prob_after=float(result.original_prob[place, i]),
                new_prob=float(result.max_prob[place, i]),
                rival_class=why.rival,
                drop=why.drop,
                features=why.features,
            )
        )
    return tuple(changed)
