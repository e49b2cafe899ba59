"""Which latent is the best mask of each label: chosen on training images, measured on test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int16, Int64, UInt8

from infoscope.analyses.segmentation import Overlap, PixelCounts, Ranges, Segmenters, compute_iou, make_maps
from infoscope.runtime.arrays import load_result, save_result
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import BATCH_IMAGES, iterate_latents
from infoscope.scope.partition import find_ends
from infoscope.scope.separation import match_frequency
from infoscope.vision.tokens.source import TokenRows

N_SIMILAR = 20
"""Latents of about the same firing rate as the best one, whose mean IoU is what such a latent has by chance."""
N_EXAMPLES = 2
"""Test images of each label that are shown."""
N_DRAWS = 20
"""Draws of as many latents of a group as the smallest group has: the best of more is better by chance alone."""


class LabelScores(NamedTuple):
    """How well each latent masks one label, at the threshold that is its best on training images.

    step: of the threshold; -1 where the label is none of the latent's candidates.
    train, test: IoU on the grid; NaN there, and in `test` where no test image has the label.
    """

    step: Int64[np.ndarray, " d_sae"]
    train: Float64[np.ndarray, " d_sae"]
    test: Float64[np.ndarray, " d_sae"]

    def choose(self, among: np.ndarray | None = None) -> int | None:
        """Return the latent of largest IoU on training images, among some by index or mask; None: none has any."""
        members = np.arange(len(self.train))[slice(None) if among is None else among]
        known = members[np.isfinite(self.train[members])]
        return int(known[np.argmax(self.train[known])]) if len(known) else None


class Mean(NamedTuple):
    """Mean and standard deviation over latents or draws; NaN without any."""

    mean: float
    sd: float


class LabelResult(NamedTuple):
    """What is told of one label.

    label: index; latent, threshold: the best on training images.
    train, test: its IoU on the grid; pixels: on test images, in pixels.
    everywhere: the IoU on test images of a mask that covers everything.
    similar: IoU on test images of other latents of about its firing rate, each at its own best threshold.
    groups: IoU on test images of the latent that is the best of a group on training images.
    equal: the same, of as many latents of the group as the smallest group has, mean over draws.
    matched: the same, of as many latents of high and of low scope that fire equally often, mean over draws; empty where
        the groups are others.
    """

    label: int
    latent: int
    threshold: float
    train: float
    test: float
    pixels: float
    everywhere: float
    similar: Mean
    groups: Mapping[str, float]
    equal: Mapping[str, float]
    matched: Mapping[str, float]


class Examples(NamedTuple):
    """Test images of each segmenter's label, those with most patches of it, and the latent's map on them.

    index: positions in the image set, -1 where there are no more. maps: normalised.
    """

    index: Int64[np.ndarray, "n n_examples"]
    maps: Float32[np.ndarray, "n n_examples grid grid"]


@dataclass(frozen=True)
class Segmentation:
    """Patches and pixels in counts, from which every IoU follows; of one SAE.

    candidates: labels of each latent that were counted.
    chosen: the best latent and threshold of each label on training images; labels that none of them shows have none.
    pixels: of these, on test images.
    """

    label_names: tuple[str, ...]
    thresholds: Float32[np.ndarray, " n_thresholds"]
    candidates: Int16[np.ndarray, "d_sae n_candidates"]
    train: Overlap
    test: Overlap
    chosen: Segmenters
    pixels: PixelCounts
    examples: Examples

    @cached_property
    def firing_rate(self) -> Float64[np.ndarray, " d_sae"]:
        """Share of the labelled training patches in a latent's mask at threshold 0."""
        return self.train.masks[:, 0] / max(1, int(self.train.n.sum()))

    def score(self, label: int) -> LabelScores:
        """Return how well each latent masks a label."""
        return score_label(self.candidates, self.train, self.test, label)

    @cached_property
    def best_labels(self) -> tuple[Int64[np.ndarray, " d_sae"], Float64[np.ndarray, " d_sae"]]:
        """The label that each latent masks best on training images, and with which IoU; -1 and NaN if it is silent."""
        best, iou = np.full(len(self.candidates), -1), np.full(len(self.candidates), np.nan)
        for label in np.flatnonzero(self.train.n):
            found = self.score(int(label)).train
            is_better = np.where(np.isnan(found), 0, found) > np.where(np.isnan(iou), 0, iou)
            best[is_better], iou[is_better] = label, found[is_better]
        return best, iou

    def tell(self, groups: Mapping[str, Bool[np.ndarray, " d_sae"]]) -> list[LabelResult]:
        """Return what is told of each label that has a latent.

        Args:
            groups: of latents, by name.
        """
        everywhere = self.test.n / max(1, int(self.test.n.sum()))
        in_pixels = compute_iou(*self.pixels)
        equal, matched = draw_equal(groups), draw_matched(groups, self.firing_rate)
        found = []
        for place, (label, latent, threshold) in enumerate(zip(*self.chosen, strict=True)):
            scores = self.score(label)
            has_test = bool(self.test.n[label])
            found.append(
                LabelResult(
                    int(label),
                    int(latent),
                    float(threshold),
                    float(scores.train[latent]),
                    float(scores.test[latent]),
                    float(in_pixels[place]) if has_test else np.nan,
                    float(everywhere[label]) if has_test else np.nan,
                    self._find_similar(scores, latent),
                    {name: _read(scores, [members]).mean for name, members in groups.items()},
                    {name: _read(scores, draws).mean for name, draws in equal.items()},
                    {name: _read(scores, draws).mean for name, draws in matched.items()},
                )
            )
        return found

    def _find_similar(self, scores: LabelScores, latent: int) -> Mean:
        others = np.flatnonzero(np.isfinite(scores.train) & (self.firing_rate > 0))
        others = others[others != latent]
        distance = np.abs(self.firing_rate[others] - self.firing_rate[latent])
        return _summarise(scores.test[others[np.argsort(distance, kind="stable")[:N_SIMILAR]]])

    def save(self, folder: Path) -> None:
        """Write segment.npz and segment.json into `folder`."""
        parts = {"train": self.train, "test": self.test, "chosen": self.chosen, "pixels": self.pixels}
        parts["examples"] = self.examples
        arrays = {
            f"{of}_{name}": _shrink(array) for of, part in parts.items() for name, array in part._asdict().items()
        }
        own = {"thresholds": self.thresholds, "candidates": self.candidates}
        save_result(folder, "segment", {**own, **arrays}, {"label_names": list(self.label_names)}, compressed=True)

    @classmethod
    def load(cls, folder: Path) -> Segmentation:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "segment")

        def read(of: str) -> dict[str, np.ndarray]:
            found = {key: array for key, array in arrays.items() if key.startswith(f"{of}_")}
            return {
                key.removeprefix(f"{of}_"): array.astype(np.int64) if array.dtype.kind == "i" else array
                for key, array in found.items()
            }

        return cls(
            tuple(facts["label_names"]),
            arrays["thresholds"],
            arrays["candidates"],
            Overlap(**read("train")),
            Overlap(**read("test")),
            Segmenters(**read("chosen")),
            PixelCounts(**read("pixels")),
            Examples(**read("examples")),
        )


def score_label(
    candidates: Int16[np.ndarray, "d_sae n_candidates"], train: Overlap, test: Overlap | None, label: int
) -> LabelScores:
    """Return how well each latent masks a label; without test counts its IoU there is NaN."""
    step = np.full(len(candidates), -1)
    of_train, of_test = np.full((2, len(candidates)), np.nan)
    latents, slots = np.nonzero(candidates == label)
    if train.n[label] == 0:
        return LabelScores(step, of_train, of_test)
    iou = compute_iou(train.hits[latents, slots], train.masks[latents], train.n[label])
    step[latents] = best = iou.argmax(axis=1)
    of_train[latents] = iou[np.arange(len(latents)), best]
    if test is not None and test.n[label]:
        counts = test.hits[latents, slots, best], test.masks[latents, best], test.n[label]
        of_test[latents] = compute_iou(*counts)
    return LabelScores(step, of_train, of_test)


def choose_segmenters(
    candidates: Int16[np.ndarray, "d_sae n_candidates"], train: Overlap, thresholds: Sequence[float]
) -> Segmenters:
    """Return the best latent and threshold of each label on training images; labels that none shows are left out."""
    labels, latents, chosen = [], [], []
    for label in np.flatnonzero(train.n).tolist():
        scores = score_label(candidates, train, None, label)
        latent = scores.choose()
        if latent is not None and scores.train[latent] > 0:
            labels.append(label)
            latents.append(latent)
            chosen.append(thresholds[scores.step[latent]])
    return Segmenters(np.array(labels, np.int64), np.array(latents, np.int64), np.array(chosen, np.float32))


@torch.inference_mode()
def find_examples(
    tokens: TokenRows,
    sae: SparseAutoencoder,
    chosen: Segmenters,
    ranges: Ranges | None,
    labels: UInt8[np.ndarray, "n_rows n_patches"],
    n_examples: int = N_EXAMPLES,
) -> Examples:
    """Return, for each segmenter, the images with most patches of its label, whatever its map is like there.

    Args:
        tokens: of the test images.
        labels: of their patches, row by row.
    """
    grid, n = math.isqrt(labels.shape[1]), len(chosen.labels)
    rows = np.full((n, n_examples), -1)
    for place, label in enumerate(chosen.labels):
        n_of_label = (labels == label).sum(axis=1)
        best = np.argsort(-n_of_label, kind="stable")[:n_examples]
        best = best[n_of_label[best] > 0]
        rows[place, : len(best)] = best
    maps = np.zeros((n, n_examples, grid, grid), dtype=np.float32)
    wanted, device = np.unique(rows[rows >= 0]), sae.W_enc.device
    for batch, patches in tokens.iterate_patches(wanted, BATCH_IMAGES, device):
        index = torch.from_numpy(tokens.image_index[batch])
        for part in iterate_latents(sae, patches.to(device), index, batch):
            of_part = make_maps(part, chosen.latents, ranges and ranges.to(device)).cpu().numpy()
            for row, of_row in zip(part.rows, of_part, strict=True):
                places, which = np.nonzero(rows == row)
                maps[places, which] = of_row[places].reshape(-1, grid, grid)
    return Examples(np.where(rows >= 0, tokens.image_index[rows], -1), maps)


def draw_equal(groups: Mapping[str, Bool[np.ndarray, " d_sae"]], seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Return, by group, draws of as many of its latents as the smallest group has; of that one itself once."""
    sizes = [int(members.sum()) for members in groups.values() if members.any()]
    rng, drawn = np.random.default_rng(seed), {}
    for name, members in groups.items():
        latents = np.flatnonzero(members)
        n = min(sizes, default=0)
        is_smallest = len(latents) <= n
        drawn[name] = [
            latents if is_smallest else rng.choice(latents, n, False) for _ in range(1 if is_smallest else N_DRAWS)
        ]
    return drawn


def draw_matched(
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]], firing_rate: Float64[np.ndarray, " d_sae"]
) -> dict[str, list[np.ndarray]]:
    """Return draws of latents above gamma and up to it, equally many in every bin of log firing rate."""
    if (ends := find_ends(groups)) is None:
        return {}
    high, low = (groups[name] for name in ends)
    pairs = [match_frequency(high, low, firing_rate, seed) for seed in range(N_DRAWS)]
    return {name: [np.flatnonzero(pair[i]) for pair in pairs] for i, name in enumerate(ends)}


def _read(scores: LabelScores, draws: Sequence[np.ndarray]) -> Mean:
    """Return the test IoU of the latents that are the best of some sets on training images."""
    best = [scores.choose(members) for members in draws]
    return _summarise(np.array([np.nan if latent is None else scores.test[latent] for latent in best]))


def _summarise(values: Float64[np.ndarray, " n"]) -> Mean:
    known = values[np.isfinite(values)]
    return Mean(float(known.mean()), float(known.std())) if len(known) else Mean(np.nan, np.nan)


def _shrink(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int32) if array.dtype == np.int64 and array.max(initial=0) < 2**31 else array
