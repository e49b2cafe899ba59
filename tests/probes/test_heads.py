"""Batched heads: each one learns as if it were alone."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from infoscope.probes.heads import (
    ClassificationHeads,
    DepthHeads,
    MapBatch,
    SegmentationHeads,
    Standardisation,
    VectorBatch,
    compute_cross_entropy,
    compute_depth_m,
    compute_sig_loss,
)
from infoscope.probes.module import ProbeModule, fit_heads
from infoscope.probes.pixels import PixelSample

V, B, T, D, N_PIXELS = 3, 4, 9, 6, 10
CPU = torch.device("cpu")
SGD, ADAMW = partial(torch.optim.SGD, momentum=0.9), partial(torch.optim.AdamW, weight_decay=0.01)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_map_batches(n: int) -> list[MapBatch]:
    batches = []
    for i in range(n):
        labels = torch.randint(0, 4, (B, N_PIXELS), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
        labels[labels == 3] = 255
        depth_m = draw(B, N_PIXELS, seed=i).abs() * 3
        pixels = PixelSample(torch.softmax(draw(B, N_PIXELS, T, seed=i), -1))
        batches.append(MapBatch(draw(V, B, T, D, seed=i), pixels, labels, depth_m))
    return batches


def select_variant(batch: MapBatch, variant: int) -> MapBatch:
    return MapBatch(batch.tokens[variant : variant + 1], batch.pixels, batch.labels, batch.depth_m)


def make_standardisation(seed: int = 5) -> Standardisation:
    return Standardisation(draw(V, D, seed=seed), draw(V, D, seed=seed).abs() + 0.5)


def test_cross_entropy_is_torchs():
    logits = (draw(V, 20, 2, 5) * 4).double().requires_grad_()
    labels = torch.arange(20) % 5
    labels[3] = 255
    ours = compute_cross_entropy(logits, labels, 255)
    weights = draw(V, 2).double()
    (ours * weights).sum().backward()
    gradient, logits.grad = logits.grad, None
    for variant in range(V):
        for rate in range(2):
            theirs = F.cross_entropy(logits[variant, :, rate], labels, ignore_index=255)
            torch.testing.assert_close(ours[variant, rate], theirs)
            (theirs * weights[variant, rate]).backward()
    torch.testing.assert_close(gradient, logits.grad)


def test_ignored_labels_leave_no_gradient():
    logits = draw(V, 6, 2, 5).requires_grad_()
    losses = compute_cross_entropy(logits, torch.full((6,), 255), 255)
    losses.sum().backward()
    assert (losses == 0).all()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_depth_is_the_expectation_over_bins():
    scores = draw(7, 5) * 3
    weights = scores.relu() + 0.1
    weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(compute_depth_m(scores, 10), weights @ torch.linspace(0.001, 10, 5))


def test_sig_loss_by_formula():
    depth_m, truth_m = draw(1, 6, 1).abs() + 0.5, torch.tensor([1.0, 2.0, 0.0, 4.0, 11.0, 3.0])
    g = (depth_m[0, :, 0] + 1e-3).log() - (truth_m + 1e-3).log()
    g = g[[0, 1, 3, 5]]  # 0 is missing, 11 out of range
    expected = math.sqrt(g.var().item() + 0.15 * g.mean().item() ** 2)
    assert compute_sig_loss(depth_m, truth_m, 10).item() == pytest.approx(expected, rel=1e-5)


def test_sig_loss_without_depth_is_zero():
    depth_m = (draw(V, 4, 2).abs() + 1).requires_grad_()
    compute_sig_loss(depth_m, torch.zeros(4), 10).sum().backward()
    assert depth_m.grad is not None
    assert (depth_m.grad == 0).all()


def test_folded_heads_read_raw_features_as_standardised_ones():
    standardisation = make_standardisation()
    heads = ClassificationHeads("x", V, D, 4, [0.1, 1.0], standardisation)
    for i, parameter in enumerate(heads.parameters()):
        parameter.data = draw(*parameter.shape, seed=i)
    features = draw(V, 11, D, seed=9)
    standard = (features - standardisation.mean[:, None]) / standardisation.std[:, None]
    for rate in range(2):
        expected = standard @ heads.weights[rate] + heads.biases[rate][:, None]
        torch.testing.assert_close(heads.outputs(features)[:, :, rate], expected, rtol=1e-4, atol=1e-5)
    chosen = heads.select(torch.tensor([1, 0, 1]))
    for variant, rate in enumerate([1, 0, 1]):
        torch.testing.assert_close(chosen(features)[variant], heads.outputs(features)[variant, :, rate])


def make_dense_heads(n_variants: int, lrs: list[float], standardisation: Standardisation) -> dict:
    return {
        "segmentation": SegmentationHeads(n_variants, D, 3, lrs, standardisation),
        "depth": DepthHeads(10.0, n_variants, D, 8, lrs, standardisation),
    }


@pytest.mark.long
def test_dense_heads_trained_together_equal_heads_trained_alone():
    batches, lrs, standardisation = make_map_batches(6), [0.01, 0.1], make_standardisation()
    together = make_dense_heads(V, lrs, standardisation)
    fit_heads(ProbeModule(together, 6, ADAMW), lambda step: iter(batches[step:]), CPU)
    for variant in range(V):
        rows = slice(variant, variant + 1)
        for rate, lr in enumerate(lrs):
            for task in together:
                part = Standardisation(standardisation.mean[rows], standardisation.std[rows])
                alone = make_dense_heads(1, [lr], part)[task]
                mine = [select_variant(batch, variant) for batch in batches]
                fit_heads(ProbeModule({task: alone}, 6, ADAMW), lambda step, of=mine: iter(of[step:]), CPU)
                for ours, theirs in (
                    (together[task].weights[rate][rows], alone.weights[0]),
                    (together[task].biases[rate][rows], alone.biases[0]),
                ):
                    assert (theirs - (1 if task == "depth" and theirs.ndim == 2 else 0)).abs().max() > 1e-3
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_classification_heads_trained_together_equal_heads_trained_alone():
    labels = torch.arange(12) % 4
    features = {"a": draw(V, 12, D), "b": draw(V, 12, 3, seed=1)}

    def train(n_variants: int, readouts: list[str], lrs: list[float], vectors: dict) -> dict:
        heads = {name: ClassificationHeads(name, n_variants, vectors[name].shape[2], 4, lrs) for name in readouts}
        batches = [VectorBatch(vectors, labels)] * 5
        fit_heads(ProbeModule(heads, 5, SGD, lr_scale=0.5), lambda step: iter(batches[step:]), CPU)
        return heads

    together = train(V, ["a", "b"], [0.1, 1.0], features)
    for name in features:
        for variant in range(V):
            alone = train(1, [name], [1.0], {name: features[name][variant : variant + 1]})[name]
            ours = together[name].weights[1][variant : variant + 1]
            torch.testing.assert_close(ours, alone.weights[0], rtol=1e-4, atol=1e-6)


def test_a_head_that_diverges_does_so_alone():
    labels, features = torch.arange(12) % 4, {"a": draw(1, 12, D) * 1e15}
    heads = ClassificationHeads("a", 1, D, 4, [1e-30, 1e30])
    batches = [VectorBatch(features, labels)] * 5
    fit_heads(ProbeModule({"a": heads}, 5, SGD), lambda step: iter(batches[step:]), CPU)
    assert heads.is_finite().tolist() == [[True, False]]
