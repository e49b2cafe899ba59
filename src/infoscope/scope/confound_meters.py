"""Sums over the activations of a split, batch by batch and part by part, from which confounds follow."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from infoscope.data.images import ImageSet
from infoscope.sae.passes import LatentBatch, SumMeter
from infoscope.scope.top_images import TopMeter

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


def compute_patch_labels(label_map: UInt8[np.ndarray, "height width"], grid: int) -> Int[np.ndarray, " n_patches"]:
    """Return the label of each patch of a picture squashed to the grid: that of most of its pixels.

    Ignored pixels (255) have no vote; a patch without any other is 255 itself. Of equally frequent labels the smallest
    wins. A pixel belongs to the patch that its centre lies in, for any sizes of map and picture.
    """
    height, width = label_map.shape
    row, column = (((np.arange(side) + 0.5) * grid / side).astype(np.int64) for side in (height, width))
    patch = row[:, None] * grid + column
    votes = np.bincount((patch * 256 + label_map).ravel(), minlength=grid**2 * 256).reshape(-1, 256)
    labels = votes[:, :IGNORE_LABEL].argmax(axis=1)
    return np.where(votes[:, :IGNORE_LABEL].any(axis=1), labels, IGNORE_LABEL)


class PropertyMeter(TopMeter):
    """What `LatentProperties` follow from; the peaks are those of the best images."""

    def __init__(
        self, d_sae: int, k_max: int, device: torch.device | str = "cpu", known: PropertyMeter | None = None
    ) -> None:
        columns = dict.fromkeys(("tokens_on", "images_on", "participation"), (d_sae,))
        super().__init__(d_sae, k_max, device, known, n_images=(), n_patches=(), **columns)

    def update(self, batch: LatentBatch) -> None:
        self.sums["n_images"] += batch.n_images
        self.sums["n_patches"] += batch.n_images * batch.n_patches
        self.sums["tokens_on"] += batch.counts.sum(0)
        self.sums["images_on"] += (batch.counts > 0).sum(0)
        self.sums["participation"] += torch.where(batch.counts > 0, batch.sums**2 / batch.squares, 0.0).sum(0)
        self.top.update(batch.index, batch.peaks)

    def compute(self) -> dict[str, Float[np.ndarray, " d_sae"]]:
        """Return the fields of `LatentProperties`."""
        n_images, n_patches, tokens_on, images_on, participation = self.sums.values()
        on = images_on * (n_patches / n_images)
        columns = {
            "firing_rate": tokens_on / n_patches,
            "image_rate": images_on / n_images,
            "peaks": self.top.values,
            "support": tokens_on / on,  # 0 / 0 is NaN: it never fires
            "participation": participation / on,
        }
        return {name: column.cpu().numpy() for name, column in columns.items()}


class FactorMeter(SumMeter):
    """The image means by the values of one global factor; `values` has one entry per image of the set."""

    def __init__(self, values: Int[Tensor, " n_images"], n_values: int, d_sae: int) -> None:
        super().__init__(values.device, n=(n_values,), sums=(n_values, d_sae), squares=(d_sae,))
        self.values = values

    def update(self, batch: LatentBatch) -> None:
        values, means = self.values[batch.index], batch.sums / batch.n_patches
        self.sums["n"].index_add_(0, values, torch.ones_like(values, dtype=torch.float64))
        self.sums["sums"].index_add_(0, values, means)
        self.sums["squares"] += (means**2).sum(0)

    def compute(self) -> Float[np.ndarray, " d_sae"]:
        """Return the effect of the factor on each latent."""
        n, sums, squares = self.sums.values()
        ss_total = squares - sums.sum(0) ** 2 / n.sum()
        ss_total[ss_total <= 1e-12 * squares] = 0  # what rounding leaves of a constant
        return compute_epsilon_squared(n, sums, ss_total, float(n.sum()) - 1)


class LabelMeter(SumMeter):
    """The deviation of a patch from the mean over the image's labelled patches, by the label of the patch."""

    def __init__(self, images: ImageSet, d_sae: int, device: torch.device | str = "cpu") -> None:
        n_labels = len(images.label_names)
        shapes = {"n": (n_labels,), "sums": (n_labels * d_sae,), "squares": (d_sae,), "ss_total": (d_sae,)}
        super().__init__(device, n_images=(), **shapes)
        self.images, self.d_sae = images, d_sae

    def update(self, batch: LatentBatch) -> None:
        grid = math.isqrt(batch.n_patches)
        maps = [compute_patch_labels(self.images.label_map(i), grid) for i in batch.index.tolist()]
        labels = torch.from_numpy(np.stack(maps)).to(self.sums["n"].device)
        known = labels != IGNORE_LABEL
        n_labels = len(self.sums["n"])
        n_of_label = torch.stack([(labels == label).sum(1) for label in range(n_labels)], dim=1).double()
        n_known = n_of_label.sum(1, keepdim=True)
        self.sums["n"] += n_of_label.sum(0)
        self.sums["n_images"] += (n_known > 0).sum()

        tokens, latents, values = batch.entries
        values = values.double() * known.flatten()[tokens]  # an ignored patch adds 0, anywhere
        squares = batch.sum_in_images(values**2)
        means = batch.sum_in_images(values) / n_known.clamp(min=1)
        self.sums["squares"] += squares.sum(0)
        self.sums["ss_total"] += (squares - n_known * means**2).sum(0)
        self.sums["sums"].index_add_(0, (labels * known).flatten()[tokens] * self.d_sae + latents, values)
        self.sums["sums"] -= (n_of_label.T @ means).flatten()

    def compute(self) -> Float[np.ndarray, " d_sae"]:
        """Return the effect of the label on each latent."""
        n_images, n, sums, squares, ss_total = self.sums.values()
        ss_total = torch.where(ss_total <= 1e-12 * squares, 0.0, ss_total)
        df_total = float(n.sum()) - float(n_images)  # each image's mean takes one
        return compute_epsilon_squared(n, sums.view(-1, self.d_sae), ss_total, df_total)
