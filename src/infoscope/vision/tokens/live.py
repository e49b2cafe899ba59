"""Tokens that are encoded whenever they are asked for: for image sets whose tokens do not fit on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.tokens.source import TokenSource

ReadImages = Callable[[Int[np.ndarray, " n"], int], Iterator[tuple[Tensor, Tensor]]]
"""(positions in the image set, images at a time) -> (positions, uint8 images [b, 3, image_px, image_px]), in order."""

BATCH_IMAGES = 64
"""Images encoded at a time where the caller does not say."""


@dataclass(frozen=True)
class LiveTokens(TokenSource):
    """The tokens of an image set, by a forward of the backbone for every image that is asked for.

    Args:
        folder: the facts of these tokens, as `extract_tokens` wrote them without storing the tokens.
        backbone: of the same model; its tokens stay on its device.
        read: the images.
    """

    backbone: Backbone
    read: ReadImages

    def tokens(self, rows: Sequence[int] | Int[np.ndarray, " n"] | slice) -> Tokens:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        parts = [tokens for _, tokens in self.iterate(np.asarray(rows, dtype=np.int64), BATCH_IMAGES)]
        return Tokens(torch.cat([part.prefix for part in parts]), torch.cat([part.patches for part in parts]))

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        n_done = 0
        for positions, images in self.read(self.image_index[rows], batch_images):
            batch = rows[n_done : n_done + len(positions)]
            assert np.array_equal(self.image_index[batch], positions.numpy()), "images came in another order"
            # a clone leaves inference mode behind, so that whoever trains on tokens may
            yield batch, Tokens(*(part.clone() for part in self.backbone.tokens(images, self.meta["layer"])))
            n_done += len(positions)
