"""Zero-shot predictions of every variant of the test tokens, and the images that a group's ablation changes most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
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
from infoscope.scope.ablations import Ablation, Progress, Role, describe_variant, no_progress
from infoscope.scope.editing import AblationShares

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
    rows = inputs.choose_rows(config.n_images, config.seed)
    run = _Run(inputs, head, config, rows, progress, progress_folder)
    distinct: dict[str, Ablation] = {}
    for variant in variants:
        distinct.setdefault(variant.key(), variant)
    places = [list(distinct).index(variant.key()) for variant in variants]
    arrays, shares = run.predict(list(distinct.values()))
    image_index = np.asarray(inputs.tokens.image_index[rows], dtype=np.int64)
    result = PredictionResult(
        tuple(describe_variant(variant, *shares[place]) for variant, place in zip(variants, places, strict=True)),
        head.class_names,
        head.logit_scale,
        image_index,
        np.zeros(0, np.int64) if labels is None else np.asarray(labels, dtype=np.int64)[image_index],
        **{name: values[places] for name, values in arrays.items()},
        changed=(),
    )
    return replace(result, changed=run.explain(variants, result))


@dataclass(frozen=True)
class _Run:
    """What both passes over the images share; rows: of the tokens, the images that take part."""

    inputs: PredictInputs
    head: ZeroShotHead
    config: PredictConfig
    rows: Int[np.ndarray, " n_images"]
    progress: Progress
    folder: Path | None

    def predict(self, variants: Sequence[Ablation]) -> tuple[dict[str, np.ndarray], list[tuple[float, float]]]:
        """Return what is kept of each image, {name: [n_variants, n_images]}, and the shares each variant removes."""
        inputs, rows, parts = self.inputs, self.rows, cut(len(self.rows), PART_IMAGES)
        removed = [torch.from_numpy(variant.ablated).to(inputs.device) for variant in variants]

        def predict_part(number: int) -> Part:
            found: dict[str, list[Tensor]] = {name: [] for name in _PER_IMAGE}
            shares, n_done = AblationShares(inputs.sae, variants), parts[number].start
            for batch, tokens in inputs.iterate(rows[parts[number]], self.config.batch_images):
                editor = TokenEditor(inputs, tokens)
                shares.update(editor.editor)
                log_p = [self._predict(editor, *one) for one in zip(variants, removed, strict=True)]
                measured = [_measure(one, log_p[0]) for one in log_p]
                for name, values in found.items():
                    values.append(torch.stack([one[name] for one in measured]).cpu())
                n_done += len(batch)
                self.progress("predictions", n_done, len(rows))
            return {name: torch.cat(values, dim=1) for name, values in found.items()} | shares.state()

        arrays = {name: np.zeros((len(variants), len(rows)), dtype) for name, dtype in _PER_IMAGE.items()}
        shares = AblationShares(inputs.sae, variants)
        found = compute_parts(len(parts), predict_part, self.folder, "predictions")
        for some, part in zip(parts, found, strict=True):
            shares.add(part)
            for name, values in arrays.items():
                values[:, some] = part[name].numpy()
        return arrays, shares.compute()

    def _predict(
        self, editor: TokenEditor, variant: Ablation, removed: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch n_classes"]:
        """Return the log-probabilities of a batch of images without some latents."""
        edited = editor.edit(removed, variant.mode)
        log_p = self.head.log_probabilities(self.inputs.backbone.embed_tokens(edited, self.inputs.layer))
        if not torch.isfinite(log_p).all():
            raise InputError(
                f"The predictions of {variant.name} hold NaN or Inf: check the SAE and the tokens it was trained on."
            )
        return log_p

    def explain(self, variants: Sequence[Ablation], result: PredictionResult) -> tuple[ChangedImage, ...]:
        """Return, for each group, the images whose original class loses most probability; none that loses nothing."""
        wanted = []
        for place, variant in enumerate(variants):
            if variant.role is Role.group and variant.mode is EditMode.error_preserving and not variant.empty:
                fall = result.original_prob[0] - result.original_prob[place]
                order = np.argsort(-fall, kind="stable")[: self.config.n_shown]
                wanted += [(place, int(i)) for i in order if fall[i] > 0]

        def explain_one(number: int) -> Part:
            place, i = wanted[number]
            row, removed, old_class = int(self.rows[i]), variants[place].ablated, int(result.predicted[0, i])
            why = explain_change(self.inputs, self.head, row, removed, old_class, self.config)
            self.progress("responsible features", number + 1, len(wanted))
            return why.to_part()

        changed = []
        found = compute_parts(len(wanted), explain_one, self.folder, "explained")
        for (place, i), part in zip(wanted, found, strict=True):
            why = Explanation.from_part(part)
            changed.append(
                ChangedImage(
                    group=str(variants[place].group),
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
