"""IoU of latents with label maps: against brute force, on the grid and in pixels; test images choose nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infoscope.analyses import segmentation
from infoscope.analyses.config import Normalise, SegmentConfig
from infoscope.analyses.segment_result import (
    Examples,
    Segmentation,
    choose_segmenters,
    draw_equal,
    draw_matched,
    score_label,
)
from infoscope.analyses.segmentation import (
    Overlap,
    PatchLabels,
    Segmenters,
    compute_iou,
    count_candidates,
    measure_overlap,
    measure_pixels,
    measure_screen,
)
from infoscope.data.images import ImageSet, Truth
from infoscope.runtime import parts
from infoscope.sae import passes
from infoscope.sae.activations import ReLU
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import measure_one
from infoscope.scope.confound_meters import compute_patch_labels
from tests.support.memory_tokens import MemoryTokens

GRID, N_PATCHES, N_IMAGES = 4, 16, 30
SKY, FAINT_SKY, EVERYWHERE, NOISE, CONSTANT, SILENT = range(6)
THRESHOLDS = SegmentConfig(n_thresholds=8).thresholds


class Maps(ImageSet):
    """Label maps of 12 x 20 pixels, of 3 labels and some ignored pixels; every map is read once at most."""

    truths = frozenset({Truth.label_maps})
    label_names = ("sky", "wall", "never")

    def __init__(self, seed: int) -> None:
        super().__init__("train", [f"{i:04d}" for i in range(N_IMAGES)])
        rng = np.random.default_rng(seed)
        self.maps = rng.choice(np.array([0, 1, 255], np.uint8), (N_IMAGES, GRID, GRID), p=[0.4, 0.5, 0.1])
        self.maps = self.maps.repeat(3, axis=1).repeat(5, axis=2)
        self.maps[rng.random(self.maps.shape) < 0.1] = 1
        self.n_read = 0

    @property
    def fingerprint(self):
        return {}

    def label_map(self, index):
        self.n_read += 1
        return self.maps[index]


class Activations(MemoryTokens):
    """Tokens whose channels are the latents' activations; rows are images in reverse, and the last is not there."""

    def __init__(self, images: Maps, seed: int) -> None:
        rng = np.random.default_rng(seed)
        index = np.arange(N_IMAGES - 1)[::-1]
        self.labels = np.stack([compute_patch_labels(images.maps[i], GRID) for i in index])
        is_sky = self.labels == 0
        self.acts = np.zeros((*self.labels.shape, 6), np.float32)
        self.acts[..., SKY] = np.where(is_sky, rng.uniform(1, 2, is_sky.shape), rng.uniform(0, 0.4, is_sky.shape))
        self.acts[..., FAINT_SKY] = is_sky * (rng.random(is_sky.shape) < 0.6)
        self.acts[..., EVERYWHERE] = rng.uniform(0.5, 1, is_sky.shape)
        self.acts[..., NOISE] = np.maximum(rng.normal(size=is_sky.shape), 0)
        self.acts[..., CONSTANT] = 0.7
        super().__init__(torch.from_numpy(self.acts), first=N_IMAGES - 2)

    def normalised(self, normalise: Normalise, of: Activations | None = None) -> np.ndarray:
        """Maps [n, n_patches, 6] min-max normalised, over the split of `of` (itself) or image by image."""
        over = self.acts if normalise is Normalise.image else (of or self).acts
        axes = (1,) if normalise is Normalise.image else (0, 1)
        low, high = over.min(axes, keepdims=True), over.max(axes, keepdims=True)
        return np.where(high > low, (self.acts - low) / np.where(high > low, high - low, 1), 0).astype(np.float32)


def make_identity_sae() -> SparseAutoencoder:
    sae = SparseAutoencoder(6, 6, ReLU())
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(6))
    return sae.requires_grad_(False)


SAE = make_identity_sae()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 3)


def measure(normalise: Normalise = Normalise.split) -> tuple:
    """The screen of training images, and the overlaps of training and test images."""
    sets = [Maps(seed) for seed in (0, 1)]
    tokens = [Activations(images, 2 + i) for i, images in enumerate(sets)]
    labels = [PatchLabels(images, GRID) for images in sets]
    screen = measure_one(tokens[0], measure_screen(SAE, labels[0], normalise)).compute()
    overlaps = [
        measure_one(of, measure_overlap(SAE, screen, maps, normalise, THRESHOLDS)).compute()
        for of, maps in zip(tokens, labels, strict=True)
    ]
    return sets, tokens, screen, overlaps


def count(maps: np.ndarray, labels: np.ndarray) -> Overlap:
    """What `OverlapMeter` counts, one latent, label and threshold at a time."""
    hits, masks = np.zeros((6, 3, len(THRESHOLDS)), int), np.zeros((6, len(THRESHOLDS)), int)
    for latent in range(6):
        for i, threshold in enumerate(THRESHOLDS):
            mask = (maps[..., latent] > np.float32(threshold)) & (labels != 255)
            masks[latent, i] = mask.sum()
            for label in range(3):
                hits[latent, label, i] = (mask & (labels == label)).sum()
    return Overlap(hits, masks, np.array([(labels == label).sum() for label in range(3)]))


@pytest.mark.parametrize("normalise", list(Normalise))
def test_overlaps_are_those_of_brute_force(normalise: Normalise) -> None:
    sets, tokens, screen, overlaps = measure(normalise)
    assert screen.candidates.tolist() == [[0, 1, 2]] * 6  # so few pairs that all are counted
    for images, of, overlap in zip(sets, tokens, overlaps, strict=True):
        expected = count(of.normalised(normalise, tokens[0]), of.labels)
        for found, brute in zip(overlap, expected, strict=True):
            np.testing.assert_array_equal(found, brute)
        assert images.n_read == len(of)  # once for both passes
    assert overlaps[0].masks[CONSTANT].sum() == 0
    assert overlaps[0].masks[SILENT].sum() == 0
    is_partial = overlaps[0].masks[EVERYWHERE, 0] < overlaps[0].n.sum()
    assert is_partial  # the smallest activation of the split, or of each image, is no part of the mask


def test_of_many_pairs_a_latent_keeps_the_labels_that_it_goes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, _, (everything, _) = measure()
    monkeypatch.setattr(segmentation, "MAX_PAIRS", 6)
    assert count_candidates(6, 3) == 1
    _, _, screen, (few, _) = measure()
    assert screen.candidates[SKY, 0] == screen.candidates[FAINT_SKY, 0] == 0
    np.testing.assert_array_equal(few.masks, everything.masks)
    np.testing.assert_array_equal(few.hits[:, 0], everything.hits[np.arange(6), screen.candidates[:, 0]])
    best = choose_segmenters(screen.candidates, few, THRESHOLDS)
    assert best.latents[best.labels == 0] == SKY


@pytest.mark.parametrize("normalise", list(Normalise))
def test_pixels_are_those_of_brute_force(normalise: Normalise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "MAX_PIXELS", 500)  # two maps at a time
    (_, images), (train, tokens), screen, _ = measure(normalise)
    chosen = Segmenters(
        np.array([0, 1, 2, 1]), np.array([SKY, NOISE, NOISE, SKY]), np.array([0.25, 0.125, 0.5, 0], np.float32)
    )
    ranges = screen.ranges if normalise is Normalise.split else None
    found = measure_one(tokens, measure_pixels(SAE, chosen, ranges, images)).compute()
    maps = torch.from_numpy(tokens.normalised(normalise, train)).view(-1, GRID, GRID, 6).permute(3, 0, 1, 2)
    truth = images.maps[tokens.image_index]
    for place, (label, latent, threshold) in enumerate(zip(*chosen, strict=True)):
        large = F.interpolate(maps[latent][:, None], size=(12, 20), mode="bilinear")[:, 0].numpy()
        mask = (large > threshold) & (truth != 255)
        expected = [(mask & (truth == label)).sum(), mask.sum(), (truth == label).sum()]
        assert [int(of[place]) for of in found] == expected
    assert compute_iou(*found)[0] > 0.5


def make_result(test: Overlap | None = None) -> Segmentation:
    (_, images), (_, tokens), screen, (train, measured) = measure()
    chosen = choose_segmenters(screen.candidates, train, THRESHOLDS)
    pixels = measure_one(tokens, measure_pixels(SAE, chosen, screen.ranges, images)).compute()
    examples = Examples(np.full((len(chosen.labels), 1), -1), np.zeros((len(chosen.labels), 1, GRID, GRID), np.float32))
    thresholds = np.array(THRESHOLDS, np.float32)
    of = screen.candidates, train, test or measured, chosen, pixels, examples
    return Segmentation(Maps.label_names, thresholds, *of)


def test_the_planted_latent_is_found_on_training_images_and_measured_on_others(tmp_path: Path) -> None:
    result = make_result()
    result.save(tmp_path)
    result = Segmentation.load(tmp_path)
    groups = {"low": np.arange(6) == FAINT_SKY, "high": np.arange(6) == NOISE, "none": np.zeros(6, dtype=bool)}
    sky, wall = result.tell(groups)
    assert (sky.label, sky.latent, wall.label) == (0, SKY, 1)  # the label that no image shows has none
    assert sky.threshold > 0  # a faint activation elsewhere is no sky
    assert sky.train > 0.99
    assert sky.test > 0.99
    assert sky.pixels > 0.5
    assert sky.everywhere == result.test.n[0] / result.test.n.sum()
    scores = result.score(0)
    assert 0 < scores.test[NOISE] < sky.groups["low"] == scores.test[FAINT_SKY] < sky.test
    assert sky.groups["high"] == scores.test[NOISE]
    assert np.isnan(sky.groups["none"])
    assert sky.similar.mean == pytest.approx(scores.test[[FAINT_SKY, EVERYWHERE, NOISE]].mean())
    best, iou = result.best_labels
    assert best[SKY] == best[FAINT_SKY] == 0
    assert iou[SKY] == sky.train
    assert best[SILENT] == -1
    assert np.isnan(iou[SILENT])


def test_test_images_choose_nothing() -> None:
    usual = make_result()
    other = make_result(test=Overlap(usual.test.hits * 0, usual.test.masks, usual.test.n))
    for found, before in zip(other.tell({}), usual.tell({}), strict=True):
        assert found[:4] == before[:4]  # label, latent, threshold, IoU on training images
        assert found.test == 0 < before.test


def test_a_label_that_no_test_image_shows_has_no_iou_there() -> None:
    usual = make_result()
    lacking = Overlap(usual.test.hits, usual.test.masks, np.array([0, 5, 0]))
    scores = score_label(usual.candidates, usual.train, lacking, 0)
    assert np.isnan(scores.test).all()
    assert scores.train[SKY] > 0.99


def test_groups_are_compared_at_equal_numbers() -> None:
    drawn = draw_equal({"low": np.arange(100) < 80, "high": np.arange(100) >= 90, "none": np.zeros(100, bool)})
    assert [latents.tolist() for latents in drawn["high"]] == [list(range(90, 100))]
    assert len(drawn["low"]) == 20
    assert all(len(set(latents)) == 10 and max(latents) < 80 for latents in drawn["low"])


def test_groups_are_compared_at_equal_firing_rates() -> None:
    rate = np.array([0.5, 0.5, 0.1, 0.1, 0.1, 0.001])
    groups = {"low": np.arange(6) < 4, "high": np.arange(6) >= 4}
    drawn = draw_matched(groups, rate)
    assert all(latents.tolist() == [4] for latents in drawn["high"])
    assert {latents.tolist()[0] for latents in drawn["low"]} == {2, 3}
    assert all(len(latents) == 1 for latents in drawn["low"])
    assert draw_matched({"band 1 of 2": groups["low"], "band 2 of 2": groups["high"]}, rate) == {}
