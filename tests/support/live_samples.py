"""Images that are encoded each time they are read, and what encodes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from infoscope.vision.backbone import Backbone, Tokens

N, GRID, D = 40, 3, 6


class PixelBackbone(Backbone):
    """One block; each token is a fixed mixture of its patch's pixels and of its picture's mean."""

    def __init__(self) -> None:
        super().__init__(
            d_in=D,
            n_layers=2,
            n_prefix_tokens=1,
            grid=GRID,
            patch_px=2,
            mean=[0.5] * 3,
            std=[0.5] * 3,
            fingerprint={},
        )
        self.mix = torch.randn(12, D, generator=torch.Generator().manual_seed(0))

    def _tokens(self, pixels, layers):
        patches = torch.nn.functional.unfold(pixels, 2, stride=2).transpose(1, 2) @ self.mix
        return [Tokens(patches.mean(1, keepdim=True), patches + patches.mean(1, keepdim=True)) for _ in layers]

    def _resume(self, tokens, layer):
        raise NotImplementedError


def read_images(positions: np.ndarray, batch_images: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the numbers and the pixels of some of `N` images of noise."""
    images = torch.randint(
        256, (N, 3, 2 * GRID, 2 * GRID), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    for start in range(0, len(positions), batch_images):
        index = torch.from_numpy(positions[start : start + batch_images])
        yield index, images[index]
