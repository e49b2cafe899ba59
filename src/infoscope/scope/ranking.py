"""Which images each latent fires on most: one streaming pass over the tokens of a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.data.config import RAISE, OnError
from infoscope.data.images import ImageSet, iterate_images
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps
from infoscope.sae.passes import LatentBatch, Measurement, Meter, feed, run_pass
from infoscope.scope.config import RankBy
from infoscope.scope.top_images import TopImages
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.tokens.source import TokenRows

TokenBatches = Iterable[tuple[Int[Tensor, " batch"], Float[Tensor, "batch n_patches d_in"]]]
"""Positions in the image set and raw patch tokens."""

_ARRAYS = ("top_images", "top_values", "firing_rate", "mean_act")


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
    top_values: [d_sae, k_max] what they were ranked by; 0 beside -1.
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

    def check_latents(self, d_sae: int) -> None:
        """Refuse an SAE that this cannot be the ranking of.

        Raises:
            InputError: if it has another number of latents.
        """
        if self.d_sae != d_sae:
            raise InputError(
                f"Expected the ranking of this SAE's {d_sae} latents, got one of {self.d_sae}: rank with the same SAE."
            )

    def check_enough_images(self, k_cds: int) -> None:
        """Refuse a k that this ranking cannot give.

        Raises:
            InputError: if fewer than `k_cds` images, or ranks, were ranked.
        """
        check_enough_images(self.n_images, k_cds)
        if self.k_max < k_cds:
            raise InputError(
                f"Expected a ranking of at least scope.k_cds={k_cds} ranks, got {self.k_max}: rank again with a larger"
                " scope.k_max."
            )

    def save(self, folder: Path) -> None:
        """Write one .npy file per array and ranking.json into `folder` (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        facts = {"n_images": self.n_images, "n_tokens": self.n_tokens, "rank_by": self.rank_by.name}
        (folder / "ranking.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Ranking:
        """Read what `save` wrote."""
        facts = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
        rank_by = RankBy[facts.pop("rank_by")]
        return cls(**{name: np.load(folder / f"{name}.npy") for name in _ARRAYS}, **facts, rank_by=rank_by)


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
        size_px = self.backbone.image_px
        for batch in iterate_images(self.image_set, size_px, batch_images, rows, self.on_error, self.n_readers):
            yield batch.index.numpy(), self.backbone.tokens(batch.images, self.layer)


class RankMeter(Meter):
    """Finds the images on which each latent fires most, and counts how often and how strongly it fires.

    Args:
        k_max: ranks to keep.
        known: what other images hold already: those that cannot be among the best beside them may be left out.
    """

    def __init__(
        self,
        d_sae: int,
        k_max: int,
        rank_by: RankBy = RankBy.max,
        device: torch.device | str = "cpu",
        known: RankMeter | None = None,
    ) -> None:
        self.rank_by = rank_by
        self.top = TopImages(d_sae, k_max, device, None if known is None else known.top.values[:, -1].clone())
        self.n_firing, self.act_sum = (torch.zeros(d_sae, dtype=torch.float64, device=device) for _ in range(2))
        self.n_images = self.n_tokens = 0

    def update(self, batch: LatentBatch) -> None:
        image_sum = batch.dense.sum(dim=1, dtype=torch.float32)
        self.top.update(batch.index, batch.peaks if self.rank_by is RankBy.max else image_sum / batch.n_patches)
        self.n_firing += batch.counts.sum(dim=0)
        self.act_sum += image_sum.sum(dim=0, dtype=torch.float64)
        self.n_images += batch.n_images
        self.n_tokens += batch.n_images * batch.n_patches

    def to_part(self) -> Part:
        """Return everything; of the latents that no image of here can be among the best of, no images."""
        return {
            **self.top.to_part(),
            "n_firing": self.n_firing,
            "act_sum": self.act_sum,
            "counts": torch.tensor([self.n_images, self.n_tokens]),
        }

    def add(self, part: Part) -> None:
        self.top.add(part)
        self.n_firing += part["n_firing"]
        self.act_sum += part["act_sum"]
        n_images, n_tokens = part["counts"].tolist()
        self.n_images, self.n_tokens = self.n_images + n_images, self.n_tokens + n_tokens

    def compute(self) -> Ranking:
        """Return what all images say.

        Raises:
            InputError: if there were none.
        """
        if self.n_images == 0:
            raise InputError("Expected images to rank, got none: check the data set and its split.")
        return Ranking(
            top_images=self.top.images.cpu().numpy(),
            top_values=self.top.values.cpu().numpy(),
            firing_rate=(self.n_firing / self.n_tokens).float().cpu().numpy(),
            mean_act=(self.act_sum / self.n_tokens).float().cpu().numpy(),
            n_images=self.n_images,
            n_tokens=self.n_tokens,
            rank_by=self.rank_by,
        )


@torch.inference_mode()
def rank_images(
    sae: SparseAutoencoder,
    token_batches: TokenBatches,
    k_max: int,
    rank_by: RankBy = RankBy.max,
    progress: Callable[[int], None] | None = None,
) -> Ranking:
    """Rank images per latent in one pass that cannot be interrupted.

    Args:
        token_batches: every image once, in any order.
        k_max: ranks to keep.
        rank_by: the maximum or the mean of a latent's activation over the image's patches.
        progress: called with the number of images ranked so far.

    Raises:
        InputError: if there are no images, `k_max` is below 1, or the SAE was trained on CLS alone.
    """
    check_has_maps(sae.origin.tokens)
    meter = RankMeter(sae.d_sae, k_max, rank_by, sae.W_enc.device)
    for index, patches in token_batches:
        positions = torch.as_tensor(index).cpu()
        feed([meter], sae, torch.as_tensor(patches), positions, positions.numpy())
        if progress is not None:
            progress(meter.n_images)
    return meter.compute()


def measure_ranking(
    sae: SparseAutoencoder, k_max: int, rank_by: RankBy = RankBy.max, place: Path | None = None
) -> Measurement[RankMeter]:
    """Return what a pass measures to rank images per latent; `RankMeter.compute` gives the ranking."""
    return Measurement(sae, partial(RankMeter, sae.d_sae, k_max, rank_by), place)


def rank_in_parts(
    sae: SparseAutoencoder,
    tokens: TokenRows,
    k_max: int,
    rank_by: RankBy = RankBy.max,
    progress: Callable[[int], None] | None = None,
    place: Path | None = None,
) -> Ranking:
    """Rank images per latent as `rank_images`, in parts that an interruption leaves and processes share.

    Args:
        progress: see `run_pass`.
        place: see `Measurement`.

    Raises:
        InputError: as `rank_images`; the SAE was trained on other tokens.
    """
    [meter] = run_pass(tokens, {"rank": measure_ranking(sae, k_max, rank_by, place)}, progress).values()
    return meter.compute()
