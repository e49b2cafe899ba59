"""What the probes are judged by: pure functions of sufficient statistics, and torchmetrics classes around them.

Segmentation: one confusion matrix over the whole split, ignored pixels left out of truth and prediction alike. Depth:
0 = no measurement; errors per image first, then their mean (BTS, DINOv3), and the pooled RMSE.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

IGNORE_LABEL = 255
MIN_DEPTH_M = 1e-3


def compute_confusion(
    prediction: Int[Tensor, "*shape"], truth: Int[Tensor, "*shape"], n_classes: int
) -> Int[Tensor, "n_classes n_classes"]:
    """Return how many pixels of truth i were called j, at [i, j]; pixels whose truth is 255 count nowhere."""
    code = (truth.int() * n_classes + prediction.int()).masked_fill_(truth == IGNORE_LABEL, n_classes**2)
    counts = torch.bincount(code.flatten(), minlength=n_classes**2 + 1)
    assert len(counts) == n_classes**2 + 1, "a label or a prediction lies outside the classes"
    return counts[:-1].view(n_classes, n_classes)


def compute_iou(confusion: Int[Tensor, "*batch n_classes n_classes"]) -> Float[Tensor, "*batch n_classes"]:
    """Return intersection over union of each class; NaN where it occurs neither in truth nor in prediction."""
    hits = confusion.diagonal(dim1=-2, dim2=-1).double()
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    return hits / union  # 0 / 0 is NaN


def compute_miou(
    confusion: Int[Tensor, "*batch n_classes n_classes"], absent_as_zero: bool = False
) -> Float[Tensor, "*batch"]:
    """Return the mean IoU in 0..1 over the classes that occur in truth or prediction; NaN if none does.

    Args:
        absent_as_zero: take the mean over all classes, one that occurs nowhere counting 0.
    """
    iou = compute_iou(confusion)
    return iou.nan_to_num(0).mean(-1) if absent_as_zero else iou.nanmean(-1)


def compute_pixel_accuracy(confusion: Int[Tensor, "*batch n_classes n_classes"]) -> Float[Tensor, "*batch"]:
    """Return the share in 0..1 of labelled pixels that are right; NaN without any."""
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1).double() / confusion.sum((-2, -1))


def compute_top1(scores: Float[Tensor, "*batch n n_classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, "*batch"]:
    """Return how many of n images have their own class on top (micro: every image counts the same)."""
    return (scores.argmax(-1) == labels).sum(-1)


def valid_depth(depth_m: Float[Tensor, ...], max_depth_m: float) -> Bool[Tensor, "*shape"]:
    """Return where depth is measured and in range: 1 mm < depth < max_depth_m (0 = missing)."""
    return (depth_m > MIN_DEPTH_M) & (depth_m < max_depth_m)


class SumMetric(Metric):
    """A metric of sums alone, so that those of several sets of images can be added.

    Processes share out variants, not images: what one process has seen is all there is, and nothing is synchronised.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Add the `metric_state` of other images."""
        for name, value in state.items():
            setattr(self, name, getattr(self, name) + value)
        self._update_count += 1


class SegmentationMetrics(SumMetric):
    """Confusion matrices of several heads over a split."""

    confusion: Tensor

    def __init__(self, n_heads: int, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        zeros = torch.zeros(n_heads, n_classes, n_classes, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, predictions: Int[Tensor, "n_heads ..."], truth: Int[Tensor, "*shape"]) -> None:
        for head, prediction in enumerate(predictions):
            self.confusion[head] += compute_confusion(prediction, truth, self.n_classes)

    def compute(self) -> dict[str, Float[Tensor, " n_heads"]]:
        return {
            "miou": compute_miou(self.confusion),
            "miou_absent_zero": compute_miou(self.confusion, absent_as_zero=True),
            "pixel_accuracy": compute_pixel_accuracy(self.confusion),
        }


class DepthMetrics(SumMetric):
    """Depth errors of several heads over a split; images without a valid pixel are left out and counted."""

    n_images: Tensor
    n_without_depth: Tensor
    n_pixels: Tensor
    squared: Tensor
    rmse: Tensor
    abs_rel: Tensor
    delta1: Tensor

    def __init__(self, n_heads: int, max_depth_m: float) -> None:
        super().__init__()
        self.max_depth_m = max_depth_m
        for name in ("n_images", "n_without_depth", "n_pixels"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("squared", "rmse", "abs_rel", "delta1"):
            self.add_state(name, default=torch.zeros(n_heads, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions_m: Float[Tensor, "n_heads ..."], depth_m: Float[Tensor, "*shape"]) -> None:
        valid = valid_depth(depth_m, self.max_depth_m)
        n_valid, truth, predicted = valid.sum(), depth_m[valid], predictions_m[:, valid]
        if n_valid == 0:
            self.n_without_depth += 1
            return
        error = (predicted - truth).abs_()
        squared = error.square().sum(-1).double()
        is_close = (predicted < 1.25 * truth) & (truth < 1.25 * predicted)
        self.n_images += 1
        self.n_pixels += n_valid
        self.squared += squared
        self.rmse += (squared / n_valid).sqrt()
        self.abs_rel += (error / truth).sum(-1).double() / n_valid
        self.delta1 += is_close.sum(-1).double() / n_valid

    def compute(self) -> dict[str, Float[Tensor, " n_heads"]]:
        """rmse_m in metres, abs_rel (|p - t| / t), delta1 (share of pixels with max(p / t, t / p) < 1.25): means over
        images; rmse_pooled_m in metres: over all pixels. NaN without any valid pixel."""
        return {
            "rmse_m": self.rmse / self.n_images,
            "rmse_pooled_m": (self.squared / self.n_pixels).sqrt(),
            "abs_rel": self.abs_rel / self.n_images,
            "delta1": self.delta1 / self.n_images,
        }
