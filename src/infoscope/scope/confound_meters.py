"""Sums over the activations of a split, batch by batch and part by part, from which confounds follow."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.runtime.parts import Part
from infoscope.sae.activations import SparseActs
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import MAX_LATENT_VALUES
from infoscope.scope.top_images import TopImages
from infoscope.vision.token_source import TokenSource

IGNORE_LABEL = 255


def compute_epsilon_squared(
    n: Float[Tensor, " n_groups"],
    sums: Float[Tensor, "n_groups d_sae"],
    ss_total: Float[Tensor, " d_sae"],
    df_total: float,
) -> Float[np.ndarray, " d_sae"]:
    """Return the share of variance between groups, corrected for chance: (SSB - df_between MSW) / SST.

    It equals 1 - (1 - eta^2) df_total / df_within. NaN where nothing varies, with fewer than two groups that have
    members, or with no degree of freedom left within groups.

    Args:
        n: observations in each group; groups without members do not count.
        sums: of the observations in each group.
        ss_total: sum of squared deviations from the mean.
        df_total: its degrees of freedom.
    """
    n, sums = n[n > 0], sums[n > 0]
    df_within = df_total - (len(n) - 1)
    if len(n) < 2 or df_within <= 0:
        return np.full(len(ss_total), np.nan)
    ss_between = (sums**2 / n[:, None]).sum(0) - sums.sum(0) ** 2 / n.sum()
    eta_squared = torch.where(ss_total > 0, ss_between / ss_total, torch.nan)
    return (1 - (1 - eta_squared.clamp(0, 1)) * df_total / df_within).cpu().numpy()


class ImageActs:
    """The activations of some whole images as entries, gathered per image and latent, in float64."""

    def __init__(self, acts: SparseActs, n_images: int, d_sae: int) -> None:
        self.n_images, self.d_sae = n_images, d_sae
        self.latents = acts.indices.reshape(n_images, -1, acts.indices.shape[-1])
        self.values = acts.values.double().reshape(self.latents.shape)
        images = torch.arange(n_images, device=self.latents.device)[:, None, None]
        self._cells = (images * d_sae + self.latents).flatten()
        self.sums, self.squares = self.gather(self.values), self.gather(self.values**2)
        self.counts = self.gather((self.values > 0).double())

    def gather(self, entries: Float[Tensor, "n_images n_patches k"]) -> Float[Tensor, "n_images d_sae"]:
        """Sum entries over the patches of each image."""
        return self._empty().index_add_(0, self._cells, entries.flatten()).view(-1, self.d_sae)

    def peaks(self) -> Float[Tensor, "n_images d_sae"]:
        """The largest activation in each image."""
        return self._empty().scatter_reduce_(0, self._cells, self.values.flatten(), "amax").view(-1, self.d_sae)

    def _empty(self) -> Tensor:
        return self.values.new_zeros(self.n_images * self.d_sae)


def iterate_acts(
    sae: SparseAutoencoder, tokens: TokenSource, rows: slice, batch_images: int
) -> Iterator[tuple[slice, ImageActs]]:
    """Put some images through the SAE a few at a time, so that pre-activations stay within bounds."""
    n_at_once = min(batch_images, max(1, MAX_LATENT_VALUES // (tokens.grid**2 * sae.d_sae)))
    for batch, read in tokens.iterate(np.arange(len(tokens))[rows], n_at_once):
        patches, done = read.patches.to(sae.W_enc.device), slice(int(batch[0]), int(batch[-1]) + 1)
        yield done, ImageActs(sae.encode_sparse(patches.flatten(0, 1)), len(patches), sae.d_sae)


class Meter:
    """Sums in float64 by name; those of parts add up to those of all images.

    Args:
        shapes: of the sums.
    """

    def __init__(self, device: torch.device | str, **shapes: tuple[int, ...]) -> None:
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def to_part(self) -> Part:
        """Return everything, for `add`."""
        return self.sums

    def add(self, part: Part) -> None:
        """Add what was found on other images."""
        for name, values in self.sums.items():
            values += part[name]


class PropertyMeter(Meter):
    """What `LatentProperties` follow from.

    Args:
        floor: of the peaks, see `TopImages`.
    """

    def __init__(
        self,
        d_sae: int,
        n_patches: int,
        k_top: int,
        device: torch.device | str,
        floor: Float[Tensor, " d_sae"] | None = None,
    ) -> None:
        super().__init__(device, n_images=(), tokens_on=(d_sae,), images_on=(d_sae,), participation=(d_sae,))
        self.n_patches, self.top = n_patches, TopImages(d_sae, k_top, device, floor)

    def update(self, rows: slice, acts: ImageActs) -> None:
        """Add some images."""
        self.sums["n_images"] += acts.n_images
        self.sums["tokens_on"] += acts.counts.sum(0)
        self.sums["images_on"] += (acts.counts > 0).sum(0)
        self.sums["participation"] += torch.where(acts.counts > 0, acts.sums**2 / acts.squares, 0.0).sum(0)
        self.top.update(torch.arange(rows.start, rows.stop), acts.peaks().float())

    def to_part(self) -> Part:
        return {**self.sums, **self.top.to_part()}

    def add(self, part: Part) -> None:
        super().add(part)
        self.top.add(part)

    def compute(self) -> dict[str, Float[np.ndarray, " d_sae"]]:
        """Return the fields of `LatentProperties`."""
        n_images, tokens_on, images_on, participation = self.sums.values()
        best, on = self.top.values, images_on * self.n_patches
        columns = {
            "firing_rate": tokens_on / (n_images * self.n_patches),
            "image_rate": images_on / n_images,
            "peak": best[:, 0],
            "peak_top": best.sum(1) / (best > 0).sum(1).clamp(min=1),
            "support": tokens_on / on,  # 0 / 0 is NaN: it never fires
            "participation": participation / on,
        }
        return {name: column.double().cpu().numpy() for name, column in columns.items()}


class FactorMeter(Meter):
    """The image means by the values of one global factor; `values` has one entry per row of the tokens."""

    def __init__(self, values: Int[Tensor, " n_images"], n_values: int, d_sae: int) -> None:
        super().__init__(values.device, n=(n_values,), sums=(n_values, d_sae), squares=(d_sae,))
        self.values = values

    def update(self, rows: slice, means: Float[Tensor, "batch d_sae"]) -> None:
        """Add some images."""
        values = self.values[rows]
        self.sums["n"].index_add_(0, values, torch.ones_like(values, dtype=torch.float64))
        self.sums["sums"].index_add_(0, values, means)
        self.sums["squares"] += (means**2).sum(0)

    def compute(self) -> Float[np.ndarray, " d_sae"]:
        """Return the effect of the factor on each latent."""
        n, sums, squares = self.sums.values()
        ss_total = squares - sums.sum(0) ** 2 / n.sum()
        ss_total[ss_total <= 1e-12 * squares] = 0  # what rounding leaves of a constant
        return compute_epsilon_squared(n, sums, ss_total, float(n.sum()) - 1)


class LabelMeter(Meter):
    """The deviation of a patch from the mean over the image's labelled patches, by the label of the patch."""

    def __init__(self, n_labels: int, d_sae: int, device: torch.device | str) -> None:
        shapes = {"n": (n_labels,), "sums": (n_labels * d_sae,), "squares": (d_sae,), "ss_total": (d_sae,)}
        super().__init__(device, n_images=(), **shapes)
        self.d_sae = d_sae

    def update(self, labels: Int[Tensor, "batch n_patches"], acts: ImageActs) -> None:
        """Add some images."""
        known = labels != IGNORE_LABEL
        n_labels = len(self.sums["n"])
        n_of_label = torch.stack([(labels == label).sum(1) for label in range(n_labels)], dim=1).double()
        n_known = n_of_label.sum(1, keepdim=True)
        self.sums["n"] += n_of_label.sum(0)
        self.sums["n_images"] += (n_known > 0).sum()

        values = acts.values * known[:, :, None]
        squares = acts.gather(values**2)
        means = acts.gather(values) / n_known.clamp(min=1)
        self.sums["squares"] += squares.sum(0)
        self.sums["ss_total"] += (squares - n_known * means**2).sum(0)
        cells = (labels * known)[:, :, None] * self.d_sae + acts.latents  # an ignored patch adds 0, anywhere
        self.sums["sums"].index_add_(0, cells.flatten(), values.flatten())
        self.sums["sums"] -= (n_of_label.T @ means).flatten()

    def compute(self) -> Float[np.ndarray, " d_sae"]:
        """Return the effect of the label on each latent."""
        n_images, n, sums, squares, ss_total = self.sums.values()
        ss_total = torch.where(ss_total <= 1e-12 * squares, 0.0, ss_total)
        df_total = float(n.sum()) - float(n_images)  # each image's mean takes one
        return compute_epsilon_squared(n, sums.view(-1, self.d_sae), ss_total, df_total)
