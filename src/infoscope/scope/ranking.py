"""Which images each latent fires on most: one streaming pass over the tokens of a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.data.config import RAISE, OnError
from infoscope.data.images import ImageSet, iterate_images
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut_images
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps
from infoscope.scope.config import RankBy
from infoscope.vision.backbone import Backbone

TokenBatches = Iterable[tuple[Int[Tensor, " batch"], Float[Tensor, "batch n_patches d_in"]]]
"""Positions in the image set and raw patch tokens."""

MAX_LATENT_VALUES = 2**26
"""Dense latents held at a time (256 MiB in float32); a batch that has more is encoded in parts."""

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

    def unique_images(self) -> Int[np.ndarray, " n_unique"]:
        """Return every image that any latent ranks, ascending."""
        images = np.unique(self.top_images)
        return images[images >= 0]

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


def iterate_patch_tokens(
    backbone: Backbone,
    image_set: ImageSet,
    layer: int,
    batch_images: int,
    on_error: OnError = RAISE,
    n_readers: int = 0,
    rows: slice = slice(None),
) -> Iterator[tuple[Int[Tensor, " batch"], Float[Tensor, "batch n_patches d_in"]]]:
    """Yield positions and patch tokens of whole images, resized to the backbone's input: what `rank_images` takes.

    Args:
        on_error, n_readers: as for `iterate_images`, whose `n_workers` are the readers.
        rows: of the image set; by default all.
    """
    positions = np.arange(len(image_set))[rows]
    for batch in iterate_images(image_set, backbone.image_px, batch_images, positions, on_error, n_readers):
        yield batch.index, backbone.tokens(batch.images, layer).patches


class TopImages:
    """The best `k_max` images per latent, merged batch by batch: memory does not grow with the number of images.

    Equals a stable sort of all images by descending value with ties by image, whatever the batches and their order, as
    long as no image comes twice.

    Args:
        floor: what an image has to reach to count at all, where so much is known already: latents whose batch stays
            below need no sorting, and what is kept below it means nothing.
    """

    def __init__(
        self,
        d_sae: int,
        k_max: int,
        device: torch.device | str = "cpu",
        floor: Float[Tensor, " d_sae"] | None = None,
    ) -> None:
        if k_max < 1:
            raise InputError(f"Expected scope.k_max to be at least 1, got {k_max}.")
        self.images = torch.full((d_sae, k_max), -1, dtype=torch.int64, device=device)
        self.values = torch.zeros(d_sae, k_max, device=device)
        self.floor = torch.zeros(d_sae, device=device) if floor is None else floor

    def update(self, index: Int[Tensor, " batch"], values: Float[Tensor, "batch d_sae"]) -> None:
        """Merge a batch: `index` are positions in the image set, `values` what to rank by; 0 is no candidate."""
        # a latent whose last place is out of reach needs no sorting: soon that is most of them
        reached = torch.maximum(self.values[:, -1], self.floor)
        rows = ((values > 0) & (values >= reached)).any(dim=0).nonzero().squeeze(1)
        self.merge(rows, values[:, rows].T.to(self.values), index.to(self.images).expand(len(rows), -1))

    def merge(self, rows: Int[Tensor, " rows"], values: Float[Tensor, "rows n"], images: Int[Tensor, "rows n"]) -> None:
        """Merge images of some latents, each with its own."""
        self.values[rows], self.images[rows] = best_first(
            torch.cat([self.values[rows], values], dim=1),
            torch.cat([self.images[rows], images], dim=1),
            k=self.values.shape[1],
        )

    def to_part(self) -> Part:
        """Return the images of the latents that reach their floor, for `add`."""
        best = self.values[:, 0]
        rows = ((best > 0) & (best >= self.floor)).nonzero().squeeze(1)
        return {"rows": rows, "values": self.values[rows], "images": self.images[rows]}

    def add(self, part: Part) -> None:
        """Merge the images of a part."""
        self.merge(part["rows"], part["values"], part["images"])


def best_first(
    values: Float[Tensor, "rows n"], images: Int[Tensor, "rows n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the first `k` of each row by descending value, ties by ascending image; value 0 has no image (-1)."""
    images, by_image = images.sort(dim=1, stable=True)
    values, by_value = values.gather(1, by_image).sort(dim=1, descending=True, stable=True)
    values, images = values[:, :k], images.gather(1, by_value)[:, :k]
    return values, torch.where(values > 0, images, -1)


@torch.inference_mode()
def iterate_latents(
    sae: SparseAutoencoder, patches: Float[Tensor, "batch n_patches d_in"]
) -> Iterator[tuple[slice, Float[Tensor, "part n_patches d_sae"]]]:
    """Encode a batch of images' patch tokens in parts of whole images, so that dense latents stay within bounds."""
    n_at_once = max(1, MAX_LATENT_VALUES // (patches.shape[1] * sae.d_sae))
    for start in range(0, len(patches), n_at_once):
        part = slice(start, start + n_at_once)
        yield part, sae.encode(patches[part])


class _Running:
    """What is known of the latents after some images."""

    def __init__(self, d_sae: int, k_max: int, device: torch.device | str, floor: Tensor | None = None) -> None:
        self.top = TopImages(d_sae, k_max, device, floor)
        self.n_firing, self.act_sum = (torch.zeros(d_sae, dtype=torch.float64, device=device) for _ in range(2))
        self.n_images = self.n_tokens = 0

    def rank(self, sae: SparseAutoencoder, batches: TokenBatches, by: RankBy) -> Iterator[int]:
        """Add the images of some batches; after each, yield how many images there are."""
        for index, batch in batches:
            patches = torch.as_tensor(batch).to(sae.W_enc.device)
            for part, latent_acts in iterate_latents(sae, patches):
                self._update(torch.as_tensor(index)[part], latent_acts, by)
            yield self.n_images

    def _update(
        self, index: Int[Tensor, " part"], latent_acts: Float[Tensor, "part n_patches d_sae"], by: RankBy
    ) -> None:
        image_sum = latent_acts.sum(dim=1, dtype=torch.float32)
        self.top.update(index, latent_acts.amax(dim=1) if by is RankBy.max else image_sum / latent_acts.shape[1])
        self.n_firing += (latent_acts > 0).sum(dim=(0, 1))
        self.act_sum += image_sum.sum(dim=0, dtype=torch.float64)
        self.n_images += len(latent_acts)
        self.n_tokens += latent_acts.shape[0] * latent_acts.shape[1]

    def to_part(self) -> Part:
        """Return everything; of the latents that no image of here can be among the best of, no images."""
        return {
            **self.top.to_part(),
            "n_firing": self.n_firing,
            "act_sum": self.act_sum,
            "counts": torch.tensor([self.n_images, self.n_tokens]),
        }

    def add(self, part: Part) -> None:
        """Add the images of a part."""
        self.top.add(part)
        self.n_firing += part["n_firing"]
        self.act_sum += part["act_sum"]
        n_images, n_tokens = part["counts"].tolist()
        self.n_images, self.n_tokens = self.n_images + n_images, self.n_tokens + n_tokens

    def to_ranking(self, rank_by: RankBy) -> Ranking:
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
            rank_by=rank_by,
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
    running = _Running(sae.d_sae, k_max, sae.W_enc.device)
    for n_images in running.rank(sae, token_batches, rank_by):
        if progress is not None:
            progress(n_images)
    return running.to_ranking(rank_by)


@torch.inference_mode()
def rank_in_parts(
    sae: SparseAutoencoder,
    read: Callable[[slice], TokenBatches],
    n_rows: int,
    k_max: int,
    rank_by: RankBy = RankBy.max,
    progress: Callable[[int], None] | None = None,
    progress_folder: Path | None = None,
    name: str = "ranked",
) -> Ranking:
    """Rank images per latent as `rank_images`, in parts that an interruption leaves and processes share.

    Args:
        read: gives the batches of a slice of the `n_rows` images.
        progress: called with the row up to which images are ranked; other processes' parts are among them.
        progress_folder, name: see `compute_parts`.

    Raises:
        InputError: as `rank_images`.
    """
    check_has_maps(sae.origin.tokens)
    parts, device = cut_images(n_rows), sae.W_enc.device
    known = TopImages(sae.d_sae, k_max, device)  # of the parts that this process ranked: a floor for the next ones

    def rank_part(number: int) -> Part:
        running = _Running(sae.d_sae, k_max, device, floor=known.values[:, -1].clone())
        for n_images in running.rank(sae, read(parts[number]), rank_by):
            if progress is not None:
                progress(parts[number].start + n_images)
        part = running.to_part()
        known.add(part)
        return part

    joined = _Running(sae.d_sae, k_max, "cpu")
    for part in compute_parts(len(parts), rank_part, progress_folder, name):
        joined.add(part)
    return joined.to_ranking(rank_by)
