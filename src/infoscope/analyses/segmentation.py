"""How well a latent's map is the mask of a label: intersections and unions of {map > q} with the label maps.

After PatchSAE (2412.05276), whose maps are min-max normalised image by image. IoU is that of a data set: the sum of
intersections over the sum of unions, of all images; pixels and patches that the maps ignore (255) are in neither. It
is measured on the grid, where a patch has the label of most of its pixels, for every latent, label and threshold at
once; in pixels, the maps enlarged bilinearly, for chosen ones alone.

Two passes over the training tokens. The first finds the range of each latent, without which no threshold means
anything, and where there are more pairs of latent and label than `MAX_PAIRS`, which labels a latent goes with: the
cosines between a label's mask and the latent's map, as it is and as the mask {map > 0}. The second counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Float64, Int16, Int64, UInt8
from torch import Tensor

from infoscope.analyses.config import Normalise
from infoscope.data.images import ImageSet
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.parts import Part
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, SumMeter
from infoscope.scope.confound_meters import IGNORE_LABEL, compute_patch_labels

MAX_PAIRS = 2**20
"""Pairs of latent and label whose thresholds are counted; of more, those of each latent's best labels by cosine: 16 at
65,536 latents. (On the demo's three SAEs the best 4 labels of each latent, of 12, hold the best latent of 35 of 36.)"""
MAX_PIXELS = 2**26
"""Pixels of enlarged maps held at a time (256 MiB)."""


def count_candidates(d_sae: int, n_labels: int) -> int:
    """Return how many labels of each latent are counted at every threshold: all, where there are few."""
    return min(n_labels, max(1, MAX_PAIRS // d_sae))


class PatchLabels:
    """The label of each patch of an image set's pictures, read when it is asked for, once; a byte a patch."""

    def __init__(self, images: ImageSet, grid: int) -> None:
        self.images, self.grid, self.n_labels = images, grid, len(images.label_names)
        self._labels = np.empty((len(images), grid * grid), dtype=np.uint8)
        self._is_read = np.zeros(len(images), dtype=bool)

    def of(self, index: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n n_patches"]:
        """Return the labels of some images' patches, 255 = ignore.

        Raises:
            InputError: a label map is not what the data set should hold.
        """
        missing = index[~self._is_read[index]].tolist()
        with spent_on(Kind.reading):
            for i in missing:
                self._labels[i] = compute_patch_labels(self.images.label_map(i), self.grid)
                self._is_read[i] = True
        return self._labels[index]

    def of_batch(self, batch: LatentBatch) -> Int64[Tensor, " n_tokens"]:
        """Return the labels of all patches of a batch, where its entries are."""
        found = self.of(batch.index.cpu().numpy()).reshape(-1)
        return torch.from_numpy(found).to(batch.entries.values.device).long()


@dataclass(frozen=True)
class Ranges:
    """The smallest and the largest activation of each latent over all patches of a split; both 0 of one that is silent.

    Activations below 0 count as 0: such a latent does not fire.
    """

    lows: Float32[Tensor, " d_sae"]
    highs: Float32[Tensor, " d_sae"]

    def to(self, device: torch.device) -> Ranges:
        """Return the same on a device."""
        return Ranges(self.lows.to(device), self.highs.to(device))


def normalise_entries(batch: LatentBatch, ranges: Ranges | None) -> Float32[Tensor, " n_entries"]:
    """Return the entries of a batch as (z - low) / (high - low); 0 where a latent is even.

    Args:
        ranges: of a split, where entries of other images may lie above 1; None: over the patches of each image.
    """
    tokens, latents, values = batch.entries
    if ranges is not None:
        lows, highs = ranges.lows[latents], ranges.highs[latents]
    else:
        cells = (tokens // batch.n_patches) * batch.d_sae + latents
        least = values.new_full((batch.n_images * batch.d_sae,), torch.inf).scatter_reduce_(0, cells, values, "amin")
        is_everywhere = batch.counts.flatten()[cells] == batch.n_patches
        lows, highs = torch.where(is_everywhere, least[cells], 0.0), batch.peaks.flatten()[cells]
    span = highs - lows
    return torch.where(span > 0, (values - lows) / span, 0.0)


@dataclass(frozen=True)
class LabelScreen:
    """What the first pass finds of each latent.

    lows, highs: see `Ranges`.
    candidates: the labels that are counted at every threshold, ascending.
    """

    lows: Float32[np.ndarray, " d_sae"]
    highs: Float32[np.ndarray, " d_sae"]
    candidates: Int16[np.ndarray, "d_sae n_candidates"]

    @property
    def ranges(self) -> Ranges:
        """The ranges as tensors."""
        return Ranges(torch.from_numpy(self.lows), torch.from_numpy(self.highs))

    def save(self, folder: Path) -> None:
        """Write label_screen.npz and label_screen.json into `folder`."""
        save_result(folder, "label_screen", vars(self))

    @classmethod
    def load(cls, folder: Path) -> LabelScreen:
        """Read what `save` wrote."""
        return cls(**load_result(folder, "label_screen")[0])


class ScreenMeter(SumMeter):
    """What `LabelScreen` follows from.

    Args:
        labels: of the images' patches.
        normalise: how maps are normalised.
        device: of the activations.
        known: not read.
    """

    def __init__(
        self,
        d_sae: int,
        labels: PatchLabels,
        normalise: Normalise,
        device: torch.device | str = "cpu",
        known: ScreenMeter | None = None,
    ) -> None:
        table, columns = (labels.n_labels * d_sae,), dict.fromkeys(("n_on", "all_on", "squares"), (d_sae,))
        super().__init__(device, n=(labels.n_labels,), n_tokens=(), on=table, mass=table, **columns)
        self.labels, self.normalise, self.d_sae = labels, normalise, d_sae
        self.lows = torch.full((d_sae,), torch.inf, device=device)
        self.highs = torch.zeros(d_sae, device=device)

    def update(self, batch: LatentBatch) -> None:
        labels = self.labels.of_batch(batch)
        tokens, latents, values = batch.entries
        sums = self.sums
        self.lows.scatter_reduce_(0, latents, values, "amin")
        self.highs.scatter_reduce_(0, latents, values, "amax")
        sums["n_tokens"] += len(labels)
        sums["n_on"] += batch.counts.sum(0)
        sums["n"] += torch.bincount(labels[labels != IGNORE_LABEL], minlength=self.labels.n_labels)
        if self.normalise is Normalise.image:
            values = normalise_entries(batch, None)
        counts = (labels[tokens] != IGNORE_LABEL) & (values > 0)
        tokens, latents, values = tokens[counts], latents[counts], values[counts].double()
        cells, ones = labels[tokens] * self.d_sae + latents, torch.ones_like(values)
        sums["on"].index_add_(0, cells, ones)
        sums["mass"].index_add_(0, cells, values)
        sums["all_on"].index_add_(0, latents, ones)
        sums["squares"].index_add_(0, latents, values.square())

    def to_part(self) -> Part:
        return {**self.sums, "lows": self.lows, "highs": self.highs}

    def add(self, part: Part) -> None:
        super().add(part)
        self.lows, self.highs = torch.minimum(self.lows, part["lows"]), torch.maximum(self.highs, part["highs"])

    def compute(self) -> LabelScreen:
        """Return ranges and candidates."""
        of, shape = self.sums, (self.labels.n_labels, self.d_sae)
        lows = torch.where(of["n_on"] == of["n_tokens"], self.lows, 0.0)
        n_candidates = count_candidates(self.d_sae, self.labels.n_labels)
        if n_candidates == self.labels.n_labels:
            candidates = torch.arange(n_candidates).expand(self.d_sae, -1)
        else:
            of_label = of["n"].clamp(min=1).sqrt()[:, None]
            as_mask = of["on"].view(shape) / (of_label * of["all_on"].clamp(min=1).sqrt())
            tiny = torch.finfo(torch.float64).tiny
            as_it_is = of["mass"].view(shape) / (of_label * of["squares"].clamp(min=tiny).sqrt())
            best = torch.maximum(as_mask, as_it_is).T.sort(descending=True, stable=True).indices
            candidates = best[:, :n_candidates].sort().values
        return LabelScreen(lows.numpy(), self.highs.numpy(), candidates.short().numpy())


def measure_screen(sae: SparseAutoencoder, labels: PatchLabels, normalise: Normalise) -> Measurement[ScreenMeter]:
    """Return what the first pass measures."""
    return Measurement(sae, partial(ScreenMeter, sae.d_sae, labels, normalise))


class Overlap(NamedTuple):
    """Patches in counts, at each threshold q.

    hits: in {map > q} of a latent and of its candidate label; masks: in {map > q}, of any label; n: of each label.
    """

    hits: Int64[np.ndarray, "d_sae n_candidates n_thresholds"]
    masks: Int64[np.ndarray, "d_sae n_thresholds"]
    n: Int64[np.ndarray, " n_labels"]


class OverlapMeter(SumMeter):
    """Counts `Overlap` of some images; a patch counts once, at the largest threshold that it exceeds.

    Args:
        screen: of the training split.
        thresholds: ascending, from 0.
    """

    def __init__(
        self,
        screen: LabelScreen,
        labels: PatchLabels,
        normalise: Normalise,
        thresholds: Sequence[float],
        device: torch.device | str = "cpu",
        known: OverlapMeter | None = None,
    ) -> None:
        (d_sae, self.n_candidates), n_thresholds = screen.candidates.shape, len(thresholds)
        masks = d_sae * n_thresholds
        super().__init__(device, hits=(masks * self.n_candidates,), masks=(masks,), n=(labels.n_labels,))
        self.labels, self.shape = labels, (d_sae, self.n_candidates, n_thresholds)
        self.ranges = screen.ranges.to(torch.device(device)) if normalise is Normalise.split else None
        self.thresholds = torch.tensor(list(thresholds), dtype=torch.float32, device=device)
        candidates = torch.from_numpy(screen.candidates).long().to(device)
        slots = torch.full((d_sae, labels.n_labels), -1, dtype=torch.int16, device=device)
        places = torch.arange(self.n_candidates, dtype=torch.int16, device=device).expand(d_sae, -1)
        self.slots = slots.scatter_(1, candidates, places)

    def update(self, batch: LatentBatch) -> None:
        labels = self.labels.of_batch(batch)
        is_known = labels != IGNORE_LABEL
        self.sums["n"] += torch.bincount(labels[is_known], minlength=self.labels.n_labels)
        step = torch.bucketize(normalise_entries(batch, self.ranges), self.thresholds) - 1
        tokens, latents, _ = batch.entries
        counts = (step >= 0) & is_known[tokens]
        labels, latents, step = labels[tokens[counts]], latents[counts], step[counts]
        n_thresholds = len(self.thresholds)
        ones = torch.ones(len(step), dtype=torch.float64, device=step.device)
        self.sums["masks"].index_add_(0, latents * n_thresholds + step, ones)
        slots = self.slots[latents, labels].long()
        cells = (latents * self.n_candidates + slots) * n_thresholds + step
        is_candidate = slots >= 0
        self.sums["hits"].index_add_(0, cells[is_candidate], ones[is_candidate])

    def to_part(self) -> Part:
        return {name: counts.int() for name, counts in self.sums.items()}

    def compute(self) -> Overlap:
        """Return the counts at each threshold: those of it and of all above."""
        found = self.sums["hits"].view(self.shape), self.sums["masks"].view(self.shape[0], -1)
        hits, masks = (of.flip(-1).cumsum(-1).flip(-1).long().cpu().numpy() for of in found)
        return Overlap(hits, masks, self.sums["n"].long().cpu().numpy())


def measure_overlap(
    sae: SparseAutoencoder,
    screen: LabelScreen,
    labels: PatchLabels,
    normalise: Normalise,
    thresholds: Sequence[float],
) -> Measurement[OverlapMeter]:
    """Return what the second pass counts, on training or on test tokens."""
    return Measurement(sae, partial(OverlapMeter, screen, labels, normalise, thresholds))


class Segmenters(NamedTuple):
    """A latent and a threshold for each of some labels."""

    labels: Int64[np.ndarray, " n"]
    latents: Int64[np.ndarray, " n"]
    thresholds: Float32[np.ndarray, " n"]


def make_maps(
    batch: LatentBatch, latents: Int64[np.ndarray, " n"], ranges: Ranges | None
) -> Float32[Tensor, "batch n n_patches"]:
    """Return the normalised maps of some latents, which may be named more than once, on every image of a batch."""
    unique, back = np.unique(latents, return_inverse=True)
    tokens, found, _ = batch.entries
    values = normalise_entries(batch, ranges)
    places = torch.full((batch.d_sae,), -1, dtype=torch.int64, device=values.device)
    places[torch.from_numpy(unique).to(values.device)] = torch.arange(len(unique), device=values.device)
    columns = places[found]
    is_wanted = columns >= 0
    maps = values.new_zeros(batch.n_images * batch.n_patches, len(unique))
    maps[tokens[is_wanted], columns[is_wanted]] = values[is_wanted]
    return maps.view(batch.n_images, batch.n_patches, -1).transpose(1, 2)[:, torch.from_numpy(back).to(maps.device)]


class PixelCounts(NamedTuple):
    """Pixels of the label maps in counts, of each segmenter: in its mask and its label, in its mask, in its label."""

    hits: Int64[np.ndarray, " n"]
    masks: Int64[np.ndarray, " n"]
    n: Int64[np.ndarray, " n"]


class PixelMeter(SumMeter):
    """Counts `PixelCounts`: a latent's map, enlarged bilinearly to the size of the label map, above its threshold."""

    def __init__(
        self,
        chosen: Segmenters,
        ranges: Ranges | None,
        images: ImageSet,
        device: torch.device | str = "cpu",
        known: PixelMeter | None = None,
    ) -> None:
        n = len(chosen.labels)
        super().__init__(device, hits=(n,), masks=(n,), n=(n,))
        self.chosen, self.images, self.ranges = chosen, images, ranges and ranges.to(torch.device(device))
        self.labels = torch.from_numpy(chosen.labels).to(device)
        self.thresholds = torch.from_numpy(chosen.thresholds).to(device)

    def update(self, batch: LatentBatch) -> None:
        if not len(self.labels):
            return
        maps = make_maps(batch, self.chosen.latents, self.ranges)
        grid = round(batch.n_patches**0.5)
        for index, of_image in zip(batch.index.tolist(), maps, strict=True):
            with spent_on(Kind.reading):
                pixels = torch.from_numpy(self.images.label_map(index)).to(maps.device)
            counts = torch.bincount(pixels.flatten().long(), minlength=IGNORE_LABEL + 1)
            self.sums["n"] += counts[self.labels]
            active = (of_image.amax(1) > self.thresholds).nonzero().squeeze(1)  # enlarging exceeds no peak
            for some in active.split(max(1, MAX_PIXELS // pixels.numel())):
                large = F.interpolate(of_image[some].view(1, -1, grid, grid), size=pixels.shape, mode="bilinear")[0]
                masks = (large > self.thresholds[some, None, None]) & (pixels != IGNORE_LABEL)
                self.sums["masks"][some] += masks.sum((1, 2))
                self.sums["hits"][some] += (masks & (pixels == self.labels[some, None, None])).sum((1, 2))

    def compute(self) -> PixelCounts:
        """Return the counts of all images."""
        hits, masks, n = (of.long().cpu().numpy() for of in self.sums.values())
        return PixelCounts(hits, masks, n)


def measure_pixels(
    sae: SparseAutoencoder, chosen: Segmenters, ranges: Ranges | None, images: ImageSet
) -> Measurement[PixelMeter]:
    """Return what is counted in pixels."""
    return Measurement(sae, partial(PixelMeter, chosen, ranges, images))


def compute_iou(
    hits: Int64[np.ndarray, "*shape"], masks: Int64[np.ndarray, "*shape"], n: Int64[np.ndarray, "*#shape"] | int
) -> Float64[np.ndarray, "*shape"]:
    """Return intersections over unions, 0..1; NaN where both mask and label are empty.

    Args:
        hits, masks, n: patches or pixels in both, in the mask, of the label.
    """
    unions = np.asarray(masks + n - hits, dtype=np.float64)
    return np.where(unions > 0, hits / np.where(unions > 0, unions, 1), np.nan)
