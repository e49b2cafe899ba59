"""What came out for one SAE: per image and variant, so that every table can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float32, Int16, Int64

from infoscope.predictions.metrics import compute_ece, compute_reliability
from infoscope.predictions.responsible import ResponsibleFeature
from infoscope.runtime.errors import InputError

_ARRAYS_FILE, _JSON_FILE = "predictions.npz", "predictions.json"
_ARRAYS = ("image_index", "labels", "predicted", "max_prob", "entropy", "original_prob", "total_variation")


@dataclass(frozen=True)
class ChangedImage:
    """A test image whose prediction changes much under a group's error-preserving ablation.

    Args:
        group: the ablated one.
        image_index: its position in the test images.
        label: its class, None without ground truth.
        old_class, new_class: predicted before and after; the same where only the confidence fell.
        old_prob, old_prob_after: probability of the old class, before and after.
        new_prob: probability of the new class, after.
        rival_class, drop, features: why, see `Explanation`; the rival is the new class where there is one.
    """

    group: str
    image_index: int
    label: int | None
    old_class: int
    new_class: int
    old_prob: float
    old_prob_after: float
    new_prob: float
    rival_class: int
    drop: float
    features: tuple[ResponsibleFeature, ...]


@dataclass(frozen=True)
class PredictionResult:
    """Zero-shot predictions of every variant of one SAE's tokens; the first variant is the original.

    Args:
        variants: name, mode, role, group, control, draw, n_latents, empty, overlap, mass_share_train, and
            mass_share and energy_share on the test tokens, as `describe_variant` gives them (None in early files)
        class_names: of the head.
        logit_scale: of the head.
        image_index: position in the test images of each image that took part.
        labels: of the same images; empty without ground truth.
        predicted: the most probable class.
        max_prob: its probability.
        entropy: of all probabilities, in nats.
        original_prob: probability of the class that is predicted on the original tokens.
        total_variation: distance to the original tokens' probabilities, 0..1.
        changed: images to show, group by group, the largest fall of `original_prob` first.
    """

    variants: tuple[Mapping[str, Any], ...]
    class_names: tuple[str, ...]
    logit_scale: float
    image_index: Int64[np.ndarray, " n_images"]
    labels: Int64[np.ndarray, " n_labelled"]
    predicted: Int16[np.ndarray, "n_variants n_images"]
    max_prob: Float32[np.ndarray, "n_variants n_images"]
    entropy: Float32[np.ndarray, "n_variants n_images"]
    original_prob: Float32[np.ndarray, "n_variants n_images"]
    total_variation: Float32[np.ndarray, "n_variants n_images"]
    changed: tuple[ChangedImage, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether predictions can be right or wrong."""
        return len(self.labels) > 0

    @property
    def right(self) -> Bool[np.ndarray, "n_variants n_images"]:
        """Where the prediction is the label; all False without labels."""
        return self.predicted == self.labels if self.has_labels else np.zeros(self.predicted.shape, dtype=bool)

    def metrics(self, place: int) -> dict[str, float | None]:
        """Return the numbers of one variant; top1 and ece are None without labels.

        top1, changed (share of predictions unlike the original's), max_prob, ece, total_variation: 0..1; entropy: nats.
        """
        right = self.right[place]
        bins = compute_reliability(self.max_prob[place], right)
        return {
            "top1": float(right.mean()) if self.has_labels else None,
            "changed": float((self.predicted[place] != self.predicted[0]).mean()),
            "max_prob": float(self.max_prob[place].mean(dtype=np.float64)),
            "entropy": float(self.entropy[place].mean(dtype=np.float64)),
            "ece": compute_ece(bins) if self.has_labels else None,
            "total_variation": float(self.total_variation[place].mean(dtype=np.float64)),
        }

    def save(self, folder: Path) -> None:
        """Write `predictions.npz` and `predictions.json` into an existing folder."""
        np.savez_compressed(folder / _ARRAYS_FILE, **{name: getattr(self, name) for name in _ARRAYS})
        content = {
            "variants": list(self.variants),
            "class_names": self.class_names,
            "logit_scale": self.logit_scale,
            "changed": [asdict(image) for image in self.changed],
            "metrics": {variant["name"]: self.metrics(place) for place, variant in enumerate(self.variants)},
        }
        (folder / _JSON_FILE).write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PredictionResult:
        """Return what `save` wrote.

        Raises:
            InputError: if a file is missing or damaged.
        """
        try:
            content = json.loads((folder / _JSON_FILE).read_text(encoding="utf-8"))
            with (folder / _ARRAYS_FILE).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in _ARRAYS}
            changed = tuple(_read_changed(image) for image in content["changed"])
            names, scale = tuple(content["class_names"]), content["logit_scale"]
            return cls(tuple(content["variants"]), names, scale, **values, changed=changed)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(f"Expected predictions in {folder}, found none that can be read: {error}.") from error


def _read_changed(content: dict[str, Any]) -> ChangedImage:
    features = tuple(ResponsibleFeature(latent, drop) for latent, drop in content.pop("features"))
    return ChangedImage(**content, features=features)
