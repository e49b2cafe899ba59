"""Which images each latent fires on most: one streaming pass over the tokens of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.data.config import RAISE, OnError
from infoscope.data.images import ImageSet
from infoscope.data.reader import iterate_images
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement
from infoscope.scope.config import RankBy
from infoscope.scope.top_images import TopMeter
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.tokens.source import TokenRows


def check_enough_images(n_images: int, k_cds: int) -> None:
    """Refuse fewer images than the score averages over.

    Raises:
        InputError: so few.
    """
    if n_images < k_cds:
        raise InputError(
            f"Expected at least scope.k_cds={k_cds} images to rank, got {n_images}: add images or lower scope.k_cds."
        )


@dataclass
class Ranking:
    """The images on which each latent fires most.

    top_images: [d_sae, k_max] positions in the image set, best first; -1 where the latent fires on no further image.
    top_values: [d_sae, k_max] what they were ranked by; 0 where the image is -1.
    firing_rate: [d_sae] share of patch tokens on which the latent fires.
    mean_act: [d_sae] mean activation per patch token, silent ones included.
    """

    top_images: Int[np.ndarray, "d_sae k_max"]
    top_values: Float[np.ndarray, "d_sae k_max"]
    firing_rate: Float[np.ndarray, " d_sae"]
    mean_act: Float[np.ndarray, " d_sae"]
    n_images: int
    n_tokens: int
    rank_by: RankBy = RankBy.max

    @property
    def d_sae(self) -> int:
        """Latents."""
        return len(self.top_images)

    @property
    def k_max(self) -> int:
        """Ranks kept per latent."""
        return self.top_images.shape[1]

    def check(self, d_sae: int, k_cds: int) -> None:
        """Refuse an SAE that this cannot be the ranking of, and a k that it cannot give.

        Raises:
            InputError: an SAE of another number of latents, or fewer than `k_cds` images or ranks.
        """
        if self.d_sae != d_sae:
            raise InputError(
                f"Expected the ranking of this SAE's {d_sae} latents, got one of {self.d_sae}: rank with the same SAE."
            )
        check_enough_images(self.n_images, k_cds)
        if self.k_max < k_cds:
            raise InputError(
                f"Expected a ranking of at least scope.k_cds={k_cds} ranks, got {self.k_max}: rank again with a larger"
                " scope.k_max."
            )

    def save(self, folder: Path) -> None:
        """Write one .npy file per array and ranking.json into `folder` (made if missing)."""
        save_result(folder, "ranking", vars(self), one_by_one=True)

    @classmethod
    def load(cls, folder: Path) -> Ranking:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "ranking", ("top_images", "top_values", "firing_rate", "mean_act"))
        return cls(**arrays, rank_by=RankBy[facts.pop("rank_by")], **facts)


class ImageTokens(TokenRows):
    """The tokens of whole images, resized to the backbone's input, of which nothing is known before they are read.

    Args:
        on_error, n_readers: as for `iterate_images`, whose `n_workers` are the readers; images that are skipped are
            rows that do not come.
    """

    def __init__(
        self, backbone: Backbone, image_set: ImageSet, layer: int, on_error: OnError = RAISE, n_readers: int = 0
    ) -> None:
        self.backbone, self.image_set, self.layer = backbone, image_set, layer
        self.on_error: OnError = on_error
        self.n_readers = n_readers

    @cached_property
    def image_index(self) -> Int[np.ndarray, " n_images"]:
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(self.image_set)

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        size_px, device = self.backbone.image_px, self.backbone.mean.device
        for batch in iterate_images(self.image_set, size_px, batch_images, rows, self.on_error, self.n_readers, device):
            with spent_on(Kind.forward):
                tokens = self.backbone.tokens(batch.images, self.layer)
            yield batch.index.numpy(), tokens


def draw_numbers(index: Int[Tensor, " batch"], d_sae: int) -> Float[Tensor, "batch d_sae"]:
    """Return a random number, 0 < number <= 1, for each image and latent: the same in any batch, on any machine."""
    generator = torch.Generator()
    return torch.stack([1 - torch.rand(d_sae, generator=generator.manual_seed(int(image))) for image in index])


class RankMeter(TopMeter):
    """Finds the images on which each latent fires most, and counts how often and how strongly it fires."""

    def __init__(
        self,
        d_sae: int,
        k_max: int,
        rank_by: RankBy = RankBy.max,
        device: torch.device | str = "cpu",
        known: RankMeter | None = None,
    ) -> None:
        super().__init__(d_sae, k_max, device, known, n_firing=(d_sae,), act_sum=(d_sae,), counts=(2,))
        self.rank_by = rank_by

    def update(self, batch: LatentBatch) -> None:
        if self.rank_by is RankBy.mean:
            values = (batch.sums / batch.n_patches).float()
        elif self.rank_by is RankBy.drawn:
            values = torch.where(batch.peaks > 0, draw_numbers(batch.index, batch.d_sae).to(batch.peaks), 0)
        else:
            values = batch.peaks
        self.top.update(batch.index, values)
        self.sums["n_firing"] += batch.counts.sum(dim=0)
        self.sums["act_sum"] += batch.sums.sum(dim=0)
        counts = self.sums["counts"]
        counts += counts.new_tensor([batch.n_images, batch.n_images * batch.n_patches])

    def compute(self) -> Ranking:
        """Return what all images say.

        Raises:
            InputError: if there were none.
        """
        n_images, n_tokens = self.sums["counts"].long().tolist()
        if n_images == 0:
            raise InputError("Expected images to rank, got none: check the data set and its split.")
        rates = [(self.sums[name] / n_tokens).float() for name in ("n_firing", "act_sum")]
        arrays = [array.cpu().numpy() for array in (self.top.images, self.top.values, *rates)]
        return Ranking(*arrays, n_images=n_images, n_tokens=n_tokens, rank_by=self.rank_by)


def measure_ranking(sae: SparseAutoencoder, k_max: int, rank_by: RankBy = RankBy.max) -> Measurement[RankMeter]:
    """Return what a pass measures to rank images per latent; `RankMeter.compute` gives the ranking.

    Args:
        k_max: ranks to keep.
        rank_by: the maximum or the mean of a latent's activation over the image's patches, or a number drawn for it.
    """
    return Measurement(sae, partial(RankMeter, sae.d_sae, k_max, rank_by))
