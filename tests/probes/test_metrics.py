"""Metrics against torchmetrics and against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from infoscope.probes.metrics import (
    DepthMetrics,
    SegmentationMetrics,
    compute_confusion,
    compute_iou,
    compute_miou,
    compute_pixel_accuracy,
    compute_top1,
)


def test_confusion_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 2, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1], [1, 0, 2]])
    confusion = compute_confusion(prediction, truth, 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert compute_iou(confusion)[:3].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert math.isnan(compute_iou(confusion)[3])  # occurs in neither
    assert compute_miou(confusion) == pytest.approx(1 / 3)
    assert compute_miou(confusion, absent_as_zero=True) == pytest.approx(1 / 4)
    assert compute_pixel_accuracy(confusion) == pytest.approx(3 / 5)


def test_ignored_pixels_do_not_count():
    truth = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)
    right = compute_confusion(torch.tensor([0, 0, 0, 0]), truth, 3)
    elsewhere = compute_confusion(torch.tensor([0, 0, 1, 2]), truth, 3)  # wrong only where nobody looks
    assert torch.equal(right, elsewhere)
    assert compute_miou(elsewhere) == 1
    assert elsewhere.sum() == 2


@pytest.mark.parametrize("seed", range(3))
def test_miou_agrees_with_torchmetrics(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 150, (4, 30, 30), generator=generator)
    truth[truth > 120] = 255
    prediction = torch.where(
        torch.rand(truth.shape, generator=generator) < 0.5,
        truth.clamp(max=149),
        torch.randint(0, 140, truth.shape, generator=generator),
    )
    theirs = MulticlassJaccardIndex(num_classes=150, ignore_index=255)
    ours = SegmentationMetrics(1, 150)
    for image in range(4):
        ours.update(prediction[image][None], truth[image].to(torch.uint8))
    assert ours.compute()["miou"].item() == pytest.approx(theirs(prediction, truth).item(), abs=1e-6)


def test_a_perfect_prediction_of_few_classes_is_1_and_absent_as_zero_is_not():
    truth = torch.arange(15).repeat(4)
    metric = SegmentationMetrics(1, 150)
    metric.update(truth[None], truth)
    values = metric.compute()
    assert values["miou"].item() == 1
    assert values["miou_absent_zero"].item() == pytest.approx(0.1)


def test_no_labelled_pixel_is_nan():
    metric = SegmentationMetrics(1, 3)
    metric.update(torch.zeros(1, 4, dtype=torch.int64), torch.full((4,), 255, dtype=torch.uint8))
    assert metric.compute()["miou"].isnan().all()
    assert metric.compute()["pixel_accuracy"].isnan().all()


def test_depth_by_hand():
    metric = DepthMetrics(2, max_depth_m=10)
    metric.update(torch.tensor([[[2.0, 9.0]], [[1.0, 9.0]]]), torch.tensor([[1.0, 0.0]]))  # the second is missing
    metric.update(torch.tensor([[[2.0, 2.2]], [[2.0, 2.0]]]), torch.tensor([[2.0, 2.0]]))
    metric.update(torch.tensor([[[2.0, 2.0]], [[2.0, 2.0]]]), torch.tensor([[0.0, 12.0]]))  # missing, out of range
    values = metric.compute()
    assert metric.n_images == 2
    assert metric.n_without_depth == 1
    assert values["rmse_m"].tolist() == pytest.approx([(1 + math.sqrt(0.02)) / 2, 0], abs=1e-6)
    assert values["rmse_pooled_m"].tolist() == pytest.approx([math.sqrt(1.04 / 3), 0], abs=1e-6)
    assert values["abs_rel"].tolist() == pytest.approx([(1 + 0.05) / 2, 0], abs=1e-6)
    assert values["delta1"].tolist() == pytest.approx([0.5, 1])


def test_top1_is_micro():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(50, 4, generator=generator), torch.tensor([0] * 40 + [1] * 5 + [3] * 5)
    theirs = MulticlassAccuracy(num_classes=4, average="micro")
    assert compute_top1(scores, labels).item() / 50 == pytest.approx(theirs(scores, labels).item())


def test_states_add_up_over_processes():
    for metric in (SegmentationMetrics(2, 3), DepthMetrics(2, 10)):
        assert {reduce.__name__ for reduce in metric._reductions.values()} == {"dim_zero_sum"}
