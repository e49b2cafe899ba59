"""What probes are run on, and which of the images take part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int

from infoscope.data.images import ImageSet
from infoscope.runtime.errors import InputError
from infoscope.runtime.forks import map_ahead
from infoscope.runtime.profile import Kind, counted
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_edits, check_tokens, choose_layer
from infoscope.scope.ablations import choose_rows
from infoscope.vision.backbone import Backbone
from infoscope.vision.tokens.source import TokenSource

Read = TypeVar("Read")

Rows = Mapping[str, Int[np.ndarray, " n"]]
"""{"train" | "test": rows of the split's tokens, ascending}."""


class ProbeData(NamedTuple):
    """One split: its tokens and its ground truth; `tokens.image_index` joins them."""

    tokens: TokenSource
    images: ImageSet


@dataclass(frozen=True)
class ProbeInputs:
    """What probes are run on.

    Args:
        sae: the SAE whose latents are ablated; computation runs on the device of its weights.
        train, test: the two splits, their tokens of the block `layer`.
        backbone: needed for the readout cls_final alone.
        layer: the hooked block, negative from the end.
        edits_patches, edits_prefix: which tokens the SAE was trained on, and so which are edited.
        backbone_at: gives the backbone for images of another side in pixels, its positions interpolated; needed for
            segmentation and depth on crops alone.
        n_workers: processes that read crops and ground truth ahead; 0 reads in this one. They are the same.
        check_origin: False insists on another layer or backbone than the SAE was trained on, see `choose_layer`.

    Raises:
        InputError: if the SAE was trained on other tokens.
    """

    sae: SparseAutoencoder
    train: ProbeData
    test: ProbeData
    backbone: Backbone | None = None
    layer: int = -2
    edits_patches: bool = True
    edits_prefix: bool = False
    backbone_at: Callable[[int], Backbone] | None = None
    n_workers: int = 0
    check_origin: bool = True

    def __post_init__(self) -> None:
        check_edits(self.sae, self.edits_patches, self.edits_prefix)
        if self.backbone is not None:
            choose_layer(self.sae, self.backbone, self.layer, self.check_origin)
        if self.check_origin:
            check_tokens(self.sae, self.train.tokens, self.test.tokens)

    @property
    def device(self) -> torch.device:
        """Where tokens are edited and heads trained."""
        return self.sae.W_dec.device

    def read_ahead(self, read: Callable[[int], Read], numbers: Sequence[int]) -> Iterator[Read]:
        """Yield `read(number)` of every number in order, read ahead by `n_workers` processes."""
        return counted(Kind.reading, map_ahead(read, numbers, self.n_workers))

    def choose_rows(self, n_train: int | None, n_test: int | None, seed: int) -> Rows:
        """Return which images of each split take part: so many, drawn at random; None: all."""
        tokens = {"train": (self.train.tokens, n_train), "test": (self.test.tokens, n_test)}
        return {split: choose_rows(len(source), n, seed) for split, (source, n) in tokens.items()}


def split_held_out(
    rows: Int[np.ndarray, " n"], share: float, seed: int
) -> tuple[Int[np.ndarray, " n_fit"], Int[np.ndarray, " n_held_out"]]:
    """Return the rows to train on and the rows to choose the learning rate (or L2 strength) on, at least one of each.

    Raises:
        InputError: fewer than two rows.
    """
    if len(rows) < 2:
        raise InputError(f"Expected at least two training images for the probes, got {len(rows)}.")
    order = np.random.default_rng([seed, 11]).permutation(len(rows))
    n_held_out = min(max(1, round(share * len(rows))), len(rows) - 1)
    return np.sort(rows[order[n_held_out:]]), np.sort(rows[order[:n_held_out]])
