"""Tokens of many variants in bounded memory: edited, and read by their heads, some variants at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.heads import DepthHeads, LinearMaps, MapBatch, SegmentationHeads
from infoscope.probes.metrics import IGNORE_LABEL
from infoscope.probes.pixels import AllPixels, PixelSample
from infoscope.sae.activation import SparseActs, join_acts
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.editing import AblationEditor

BYTES = 4
"""Of a float32."""
_COPIES = 4
"""Of the logits of a slice that a loss holds at a time: themselves, their log-softmax, and the gradients of both."""


def divide(n: int, bytes_each: float, memory_bytes: float) -> list[slice]:
    """Return slices that cover n things in order, each as long as fits into the memory, and at least one thing long."""
    n_each = max(1, int(memory_bytes // max(bytes_each, 1)))
    return [slice(start, min(start + n_each, n)) for start in range(0, n, n_each)]


def narrow(editor: AblationEditor, variants: slice) -> AblationEditor:
    """Return the editor of some of the variants."""
    part = AblationEditor(editor.sae, [])
    part.variants, part.removed = editor.variants[variants], editor.removed[variants]
    return part


@torch.no_grad()
def encode_in_parts(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"], memory_bytes: float) -> SparseActs:
    """Return the sparse latents of raw tokens, of which all pre-activations [n, d_sae] never lie in memory at once."""
    return join_acts([sae.encode_sparse(x[part]) for part in divide(len(x), 2 * BYTES * sae.d_sae, memory_bytes)])


@dataclass
class SlicedBatch:
    """A training batch of `MapBatch`, whose tokens are formed when a head asks: some variants, some images at a time.

    Args:
        patches: raw tokens of the images.
        acts: their latents.
        editor: of all variants.
        labels: 255 = ignored; depth_m: 0 = missing; a truth that no task asks for is None.
        memory_bytes: what tokens and logits may take at a time; one variant of one image is the least.
    """

    patches: Float[Tensor, "batch n_patches d"]
    acts: SparseActs
    editor: AblationEditor
    pixels: PixelSample | AllPixels
    labels: Int[Tensor, "batch n_pixels"] | None
    depth_m: Float[Tensor, "batch n_pixels"] | None
    memory_bytes: float

    @property
    def token_bytes(self) -> int:
        """Bytes of one variant's tokens, and of what is taken from them."""
        return 2 * BYTES * self.patches.numel()

    def iterate_tokens(
        self, bytes_each: float
    ) -> Iterator[tuple[slice, Float[Tensor, "n_variants batch n_patches d"]]]:
        """Yield (which variants, their edited tokens), as many at a time as fit, at `bytes_each` a variant."""
        for variants in divide(len(self.editor), bytes_each, self.memory_bytes):
            tokens = narrow(self.editor, variants).edit(self.patches.flatten(0, 1), self.acts)
            yield variants, tokens.unflatten(1, self.patches.shape[:2])

    def losses(self, head: SegmentationHeads | DepthHeads) -> Float[Tensor, "n_variants n_rates"]:
        """Return what `head.losses` gives of the whole batch; the gradient is formed slice by slice, at once."""
        return _LossesInSlices.apply(*head.fold(), lambda: self._iterate_slices(head), head)

    def _iterate_slices(self, head: SegmentationHeads | DepthHeads) -> Iterator[tuple[slice, Tensor | float, MapBatch]]:
        """Yield (which variants, share of the slice in the loss, the slice); depth's loss wants all images at once."""
        n_images, n_patches, _ = self.patches.shape
        truth = self.labels if isinstance(head, SegmentationHeads) else self.depth_m
        assert truth is not None
        n_rates, n_pixels = len(head.lrs), truth.shape[1]
        if isinstance(head, SegmentationHeads):
            per_image = BYTES * n_rates * head.n_outputs * (2 * n_patches + _COPIES * n_pixels)
        else:
            per_image = BYTES * n_rates * (3 * head.n_outputs * n_patches + _COPIES * n_pixels)
        per_variant = self.token_bytes + n_images * per_image
        for variants, tokens in self.iterate_tokens(per_variant):
            if isinstance(head, DepthHeads) or per_variant <= self.memory_bytes:
                yield variants, 1.0, MapBatch(tokens, self.pixels, self.labels, self.depth_m)
                continue
            n_labelled = (truth != IGNORE_LABEL).sum().clamp_min(1)
            for images in divide(n_images, per_image, self.memory_bytes - self.token_bytes):
                share = (truth[images] != IGNORE_LABEL).sum() / n_labelled
                pixels = self.pixels if isinstance(self.pixels, AllPixels) else PixelSample(self.pixels.weights[images])
                yield variants, share, MapBatch(tokens[:, images], pixels, truth[images], None)


class _LossesInSlices(torch.autograd.Function):
    """The losses of folded heads over slices, with their gradient: after each slice its tokens and logits are freed.

    A loss depends on its own variant and rate alone, so an incoming gradient scales that of its own columns.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx, weight: Tensor, bias: Tensor, slices: Callable, head: SegmentationHeads | DepthHeads
    ) -> Tensor:
        losses = weight.new_zeros(len(weight), len(head.lrs))
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for variants, share, batch in slices():
            maps = LinearMaps(*(part[variants].detach().requires_grad_() for part in (weight, bias)))
            with torch.enable_grad():
                part = head.losses(batch, maps) * share
                gradients = torch.autograd.grad(part.sum(), list(maps))
            losses[variants] += part.detach()
            of_weight[variants] += gradients[0]
            of_bias[variants] += gradients[1]
        ctx.save_for_backward(of_weight, of_bias)
        return losses

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_weight, of_bias = ctx.saved_tensors
        n_rates = grad.shape[1]
        scaled = of_weight.unflatten(2, (n_rates, -1)) * grad[:, None, :, None]
        return scaled.flatten(2), (of_bias.unflatten(1, (n_rates, -1)) * grad[:, :, None]).flatten(1), None, None
