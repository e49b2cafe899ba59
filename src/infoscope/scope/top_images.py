"""The best images of each latent, merged batch by batch and part by part."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part
from infoscope.sae.passes import SumMeter


class TopImages:
    """The best `k_max` images per latent, merged batch by batch: memory does not grow with the number of images.

    Equals a stable sort of all images by descending value with ties by image, for any batches in any order, as
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


class TopMeter(SumMeter):
    """Sums, and the best images of each latent.

    Args:
        k_max: images to keep per latent.
        known: what other images hold already: those that cannot be among the best with them may be left out.
    """

    def __init__(
        self, d_sae: int, k_max: int, device: torch.device | str, known: TopMeter | None, **shapes: tuple[int, ...]
    ) -> None:
        super().__init__(device, **shapes)
        self.top = TopImages(d_sae, k_max, device, None if known is None else known.top.values[:, -1].clone())

    def to_part(self) -> Part:
        return {**self.sums, **self.top.to_part()}

    def add(self, part: Part) -> None:
        super().add(part)
        self.top.add(part)


def best_first(
    values: Float[Tensor, "rows n"], images: Int[Tensor, "rows n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the first `k` of each row by descending value, ties by ascending image; value 0 has no image (-1)."""
    images, by_image = images.sort(dim=1, stable=True)
    values, by_value = values.gather(1, by_image).sort(dim=1, descending=True, stable=True)
    values, images = values[:, :k], images.gather(1, by_value)[:, :k]
    return values, torch.where(values > 0, images, -1)
