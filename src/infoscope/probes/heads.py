"""Linear heads, many at once: one for every variant of the tokens and every learning rate.

The heads of one task are batched parameters [n_variants, d, n_outputs], one for each learning rate. Their losses are
added up, so each head's gradient is what it would be alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from infoscope.probes.metrics import IGNORE_LABEL, MIN_DEPTH_M, valid_depth
from infoscope.probes.pixels import AllPixels, PixelSample, upsample

BATCH_NORM_EPS = 1e-5


class Standardisation(NamedTuple):
    """Mean and standard deviation of every channel of the training tokens, for each variant."""

    mean: Float[Tensor, "n_variants d"]
    std: Float[Tensor, "n_variants d"]


class LinearMaps(NamedTuple):
    """Trained heads on raw features, standardisation folded in: `features @ weight + bias`."""

    weight: Float[Tensor, "n_variants d n_outputs"]
    bias: Float[Tensor, "n_variants n_outputs"]

    def __call__(self, features: Float[Tensor, "n_variants n d"]) -> Float[Tensor, "n_variants n n_outputs"]:
        return torch.baddbmm(self.bias[:, None], features, self.weight)

    def take(self, variants: slice) -> LinearMaps:
        """Return the heads of some of the variants."""
        return LinearMaps(self.weight[variants], self.bias[variants])

    def repeat(self, n_variants: int) -> LinearMaps:
        """Return one and the same head for several variants."""
        assert len(self.weight) == 1, "only a single head can be repeated"
        return LinearMaps(self.weight.expand(n_variants, -1, -1), self.bias.expand(n_variants, -1))

    def to(self, device: torch.device | str) -> LinearMaps:
        """Return the heads on a device."""
        return LinearMaps(self.weight.to(device), self.bias.to(device))


def join_maps(parts: Sequence[LinearMaps]) -> LinearMaps:
    """Return the heads of several variants, one after the other."""
    return LinearMaps(torch.cat([maps.weight for maps in parts]), torch.cat([maps.bias for maps in parts]))


@dataclass
class VectorBatch:
    """Some images, one vector of each per readout and variant: {readout: [n_variants, batch, d]}."""

    features: dict[str, Float[Tensor, "n_variants batch d"]]
    labels: Int[Tensor, " batch"]


@dataclass
class MapBatch:
    """Some images, their edited patch tokens in every variant, and the pixels to look at.

    tokens: [n_variants, batch, n_patches, d]; labels: 255 = ignored; depth_m: 0 = missing; a truth that no task asks
    for is None.
    """

    tokens: Float[Tensor, "n_variants batch n_patches d"]
    pixels: PixelSample | AllPixels
    labels: Int[Tensor, "batch n_pixels"] | None
    depth_m: Float[Tensor, "batch n_pixels"] | None

    def read_patches(self, maps: LinearMaps) -> Float[Tensor, "n_variants batch n_patches n_outputs"]:
        """Return what heads make of every patch."""
        return maps(self.tokens.flatten(1, 2)).unflatten(1, self.tokens.shape[1:3])


Batch = VectorBatch | MapBatch


class LinearHeads(nn.Module, ABC):
    """The heads of one task for n_variants variants and several learning rates.

    Args:
        lrs: the learning rates, ascending.
        standardisation: of the features, None: read them as they are.
        initial_bias: where biases start; weights start at 0, so a head depends on nothing but its own data.
    """

    def __init__(
        self,
        n_variants: int,
        d: int,
        n_outputs: int,
        lrs: Sequence[float],
        standardisation: Standardisation | None = None,
        initial_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_variants, self.n_outputs, self.lrs = n_variants, n_outputs, list(lrs)
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(n_variants, d, n_outputs)) for _ in lrs])
        self.biases = nn.ParameterList([nn.Parameter(torch.full((n_variants, n_outputs), initial_bias)) for _ in lrs])
        mean, std = standardisation or (torch.zeros(n_variants, d), torch.ones(n_variants, d))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def parameter_groups(self) -> list[dict]:
        """Return one optimiser group for each learning rate."""
        return [
            {"params": [weight, bias], "lr": lr}
            for weight, bias, lr in zip(self.weights, self.biases, self.lrs, strict=True)
        ]

    def fold(self) -> LinearMaps:
        """Return all heads as maps of raw features, rates side by side: weight [n_variants, d, n_rates * n_outputs].

        Standardising the weights instead of the features saves a pass over the features, which are far larger.
        """
        weight = torch.cat(list(self.weights), dim=2) / self.std[:, :, None]
        bias = torch.cat(list(self.biases), dim=1) - torch.bmm(self.mean[:, None], weight)[:, 0]
        return LinearMaps(weight, bias)

    @torch.no_grad()
    def select(self, best: Int[Tensor, " n_variants"]) -> LinearMaps:
        """Return one head for each variant: the one of the learning rate numbered `best`."""
        folded, rates = self.fold(), len(self.lrs)
        rows = torch.arange(self.n_variants, device=best.device)
        weight = folded.weight.unflatten(2, (rates, self.n_outputs))[rows, :, best]
        return LinearMaps(weight.clone(), folded.bias.unflatten(1, (rates, self.n_outputs))[rows, best].clone())

    def outputs(self, features: Float[Tensor, "n_variants n d"]) -> Float[Tensor, "n_variants n n_rates n_outputs"]:
        """Return what every head makes of its variant's features."""
        return self.fold()(features).unflatten(2, (len(self.lrs), self.n_outputs))

    @torch.no_grad()
    def is_finite(self) -> Bool[Tensor, "n_variants n_rates"]:
        """Return which heads did not diverge."""
        pairs = zip(self.weights, self.biases, strict=True)
        return torch.stack([(w.sum((1, 2)) + b.sum(1)).isfinite() for w, b in pairs], dim=1)

    @abstractmethod
    def losses(self, batch: Batch, maps: LinearMaps | None = None) -> Float[Tensor, "n_variants n_rates"]:
        """Return the loss of each head on a batch.

        Args:
            maps: the folded heads of the batch's variants, where they are all or some of these; None: folded here.
        """


class ClassificationHeads(LinearHeads):
    """Cross-entropy on one vector per image.

    Args:
        readout: which of the batch's vectors it reads.
    """

    def __init__(self, readout: str, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.readout = readout

    def losses(self, batch: Batch, maps: LinearMaps | None = None) -> Float[Tensor, "n_variants n_rates"]:
        assert isinstance(batch, VectorBatch)
        return compute_cross_entropy(self.outputs(batch.features[self.readout]), batch.labels, ignore_label=-1)


class SegmentationHeads(LinearHeads):
    """Cross-entropy at the pixels of a 1x1 convolution of the patch tokens, upsampled bilinearly.

    Upsampling commutes with the convolution, so logits are computed on the grid and then interpolated.
    """

    def losses(self, batch: Batch, maps: LinearMaps | None = None) -> Float[Tensor, "n_variants n_rates"]:
        assert isinstance(batch, MapBatch)
        assert batch.labels is not None
        logits, shape = batch.read_patches(maps or self.fold()), (len(self.lrs), self.n_outputs)
        if isinstance(batch.pixels, AllPixels):
            upsampled = upsample(logits, *batch.pixels).unflatten(2, shape)
            return compute_map_cross_entropy(upsampled, batch.labels.unflatten(1, tuple(batch.pixels)), IGNORE_LABEL)
        read = batch.pixels.read(logits).flatten(1, 2).unflatten(2, shape)
        return compute_cross_entropy(read, batch.labels.flatten(), IGNORE_LABEL)


class DepthHeads(LinearHeads):
    """Depth in metres of each patch as the expectation over bins, upsampled bilinearly, under the SigLoss.

    Biases start at 1: at 0 the ReLU before the normalised weights would pass no gradient.
    """

    def __init__(self, max_depth_m: float, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs, initial_bias=1.0)
        self.max_depth_m = max_depth_m

    def losses(self, batch: Batch, maps: LinearMaps | None = None) -> Float[Tensor, "n_variants n_rates"]:
        assert isinstance(batch, MapBatch)
        assert batch.depth_m is not None
        scores = batch.read_patches(maps or self.fold()).unflatten(3, (len(self.lrs), self.n_outputs))
        read = batch.pixels.read(compute_depth_m(scores, self.max_depth_m)).flatten(1, 2)
        return compute_sig_loss(read, batch.depth_m.flatten(), self.max_depth_m)


def compute_depth_m(scores: Float[Tensor, "*batch n_bins"], max_depth_m: float) -> Float[Tensor, "*batch"]:
    """Return the expected depth in metres over bins uniform on [0.001, max_depth_m], weights (relu(score) + 0.1).

    Numerator and denominator are one product: sum of w_i b_i and sum of w_i, w_i = relu(score_i) + 0.1.
    """
    bins = torch.linspace(MIN_DEPTH_M, max_depth_m, scores.shape[-1], device=scores.device)
    sums = F.relu(scores) @ torch.stack([bins, torch.ones_like(bins)], dim=1)
    return (sums[..., 0] + 0.1 * bins.sum()) / (sums[..., 1] + 0.1 * len(bins))


def compute_sig_loss(
    depth_m: Float[Tensor, "n_variants n_pixels n_rates"], truth_m: Float[Tensor, " n_pixels"], max_depth_m: float
) -> Float[Tensor, "n_variants n_rates"]:
    """Return sqrt(var(g) + 0.15 mean(g)^2), g = log(depth + 1e-3) - log(truth + 1e-3), over the valid pixels.

    0 where fewer than two pixels are valid. Source: the scale-invariant loss of Eigen et al. (2014), as in DINOv2.
    """
    valid = valid_depth(truth_m, max_depth_m)
    if int(valid.sum()) < 2:
        return depth_m.sum(1) * 0
    g = (depth_m[:, valid] + 1e-3).log() - (truth_m[valid] + 1e-3).log()[None, :, None]
    return (g.var(1) + 0.15 * g.mean(1).square()).clamp_min(1e-12).sqrt()


def compute_cross_entropy(
    logits: Float[Tensor, "n_variants n n_rates n_classes"], labels: Int[Tensor, " n"], ignore_label: int
) -> Float[Tensor, "n_variants n_rates"]:
    """Return each head's mean cross-entropy over the labels that are not ignored; 0 if all are."""
    return _CrossEntropy.apply(logits, labels, ignore_label)


def compute_map_cross_entropy(
    logits: Float[Tensor, "n_variants batch n_rates n_classes height width"],
    labels: Int[Tensor, "batch height width"],
    ignore_label: int,
) -> Float[Tensor, "n_variants n_rates"]:
    """Return `compute_cross_entropy` at every pixel of maps: on millions of pixels it needs a third of the memory."""
    n_variants, _, n_rates = logits.shape[:3]
    targets = labels.long()[None, :, None].expand(n_variants, -1, n_rates, -1, -1)
    # Summed afterwards: torch's own sum over maps adds in no fixed order on a GPU.
    losses = F.cross_entropy(logits.flatten(0, 2), targets.flatten(0, 2), ignore_index=ignore_label, reduction="none")
    n_labelled = (labels != ignore_label).sum().clamp_min(1)
    return losses.view(n_variants, -1, n_rates, losses[0].numel()).sum((1, 3)) / n_labelled


class _CrossEntropy(torch.autograd.Function):
    """The loss with its gradient formed at once: on a CPU, for a dozen classes, six times faster than torch's own."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, ignore_label: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        counts = labels != ignore_label
        share = (counts / counts.sum().clamp_min(1)).to(logits.dtype)
        target = F.one_hot(labels.long().where(counts, 0), logits.shape[-1]).to(logits.dtype) * share[:, None]
        shifted = logits - logits.amax(-1, keepdim=True)
        on_target = torch.einsum("vnrc,nc->vr", shifted, target)
        exp = shifted.exp_()
        total = exp.sum(-1, keepdim=True)
        losses = torch.einsum("vnr,n->vr", total[..., 0].log(), share) - on_target
        ctx.save_for_backward(exp.mul_(share[:, None, None] / total).sub_(target[:, None]))
        return losses

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (of_logits,) = ctx.saved_tensors
        return of_logits * grad[:, None, :, None], None, None
