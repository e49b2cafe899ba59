"""Crops and windows: where they lie, that image and truth stay together, and that slices of variants change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from infoscope.config.tree import compose
from infoscope.data.nyud import BTS_CROP
from infoscope.probes.config import CropConfig, DenseSchedule, Task
from infoscope.probes.crops import (
    Crop,
    choose_crop,
    compute_size,
    cut_image,
    cut_truth,
    cut_windows,
    get_fill,
    merge_windows,
    place_windows,
    round_to_patches,
)
from infoscope.probes.heads import (
    DepthHeads,
    MapBatch,
    SegmentationHeads,
    Standardisation,
    compute_cross_entropy,
    compute_map_cross_entropy,
)
from infoscope.probes.module import ProbeModule
from infoscope.probes.pixels import AllPixels, PixelSample, compute_pixel_weights
from infoscope.probes.slices import SlicedBatch, divide, encode_in_parts
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import BatchTopK
from infoscope.sae.edit import EditMode
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.editing import AblationEditor
from tests.support.probe_samples import GRID, PIXELS, D, make_config, make_identity_sae, mask

FILL = np.array([9, 8, 7], np.uint8)


def make_coded(height: int, width: int, block_px: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A label map of blocks, and an image whose colour is 20 x the label."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 12, (height // block_px + 1, width // block_px + 1))
    labels = np.kron(coarse, np.ones((block_px, block_px), int))[:height, :width].astype(np.uint8)
    return np.repeat(labels[..., None] * np.uint8(20), 3, axis=2), labels


@pytest.mark.parametrize(
    ("size", "window", "stride", "expected"),
    [
        (512, 512, 341, [0]),
        (300, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (1000, 512, 341, [0, 341, 488]),
        (10, 4, 4, [0, 4, 6]),
    ],
)
def test_windows_lie_as_in_mmsegmentation(size, window, stride, expected):
    assert place_windows(size, window, stride) == expected


@pytest.mark.parametrize(("height", "width", "stride"), [(24, 24, 10), (20, 50, 10), (37, 31, 24), (70, 25, 7)])
def test_windows_cover_every_pixel_and_are_averaged_exactly(height, width, stride):
    window, grid, n = 24, 4, 3
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    windows = cut_windows(image, CropConfig(window, stride, None), window, FILL)
    maps = torch.randn(2, len(windows.images), grid * grid, n, generator=torch.Generator().manual_seed(0))
    total, seen = (np.zeros((*shape, max(height, window), max(width, window))) for shape in ((2, n), ()))
    corners = [(top, left) for top in windows.tops_px for left in windows.lefts_px]
    for i, (top, left) in enumerate(corners):
        square = maps[:, i].transpose(1, 2).unflatten(-1, (grid, grid))
        upsampled = F.interpolate(square, (window, window), mode="bilinear").numpy()
        for row in range(window):
            for column in range(window):
                total[:, :, top + row, left + column] += upsampled[:, :, row, column]
                seen[top + row, left + column] += 1
        inside = image[top : top + window, left : left + window].transpose(2, 0, 1)
        assert np.array_equal(windows.images[i][:, : inside.shape[1], : inside.shape[2]], inside)
        assert (windows.images[i][:, inside.shape[1] :] == FILL[:, None, None]).all()
        assert (windows.images[i][:, :, inside.shape[2] :] == FILL[:, None, None]).all()
    assert seen.min() >= 1
    expected = torch.from_numpy((total / seen)[..., :height, :width]).float()
    torch.testing.assert_close(merge_windows(maps, windows, height, width), expected, rtol=1e-5, atol=1e-6)
    resized = F.interpolate(expected, (33, 41), mode="bilinear")
    torch.testing.assert_close(merge_windows(maps, windows, 33, 41), resized, rtol=1e-5, atol=1e-6)


def test_photographs_keep_their_aspect_when_they_are_resized_for_windows():
    image, _ = make_coded(60, 90, 15)
    windows = cut_windows(image, CropConfig(24, 16, 40), 24, FILL)
    assert (windows.height_px, windows.width_px) == (40, 60)
    whole = np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC))
    assert np.array_equal(windows.images[0].transpose(1, 2, 0), whole[:24, :24])
    assert np.array_equal(windows.images[-1].transpose(1, 2, 0), whole[-24:, -24:])


@pytest.mark.long
@pytest.mark.parametrize("short_side", [None, 80])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 2.0)])
def test_image_and_truth_stay_together(short_side, scales):
    """Colour encodes the label: it must be the same after any crop, away from the blurred edges of the blocks."""
    image, labels = make_coded(75, 110, 25)
    crops, n_padded, flips, n_compared = CropConfig(64, 64, short_side, list(scales)), 0, set(), 0
    for seed in range(60):
        crop = choose_crop(np.random.default_rng(seed), *labels.shape, crops, 64)
        cut, truth = cut_image(image, crop, 64, FILL), cut_truth(labels, crop, 64, 255)
        ignored = truth == 255
        n_padded += ignored.sum()
        flips.add(crop.flip)
        assert (cut[ignored] == FILL).all()
        decoded = np.rint(cut[..., 0] / 20).astype(int)
        exact = (crop.height_px, crop.width_px) == labels.shape
        inside = ~ignored if exact else ~ignored & away_from_edges(truth, 6)
        n_compared += inside.sum()
        assert (decoded[inside] == truth[inside]).all()
        expected_px = min(64, crop.height_px) * min(64, crop.width_px)
        assert (~ignored).sum() == expected_px
    assert flips == {False, True}
    assert n_compared > 60 * 500
    assert (n_padded > 0) == (scales[0] == 0.5)


def away_from_edges(labels: np.ndarray, by: int) -> np.ndarray:
    padded = np.pad(labels, by, constant_values=254)  # beyond the crop, too, an edge may lie
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * by + 1, 2 * by + 1))
    return windows.min((-1, -2)) == windows.max((-1, -2))


def test_a_crop_is_what_resizing_all_of_it_first_would_give():
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((160, 120)))
    whole = np.asarray(Image.fromarray(image).resize((100, 75), Image.Resampling.BICUBIC)).astype(int)
    cut = cut_image(image, Crop(75, 100, 20, 31), 48, FILL).astype(int)
    assert np.abs(cut - whole[20:68, 31:79]).max() <= 1
    mirrored = cut_image(image, Crop(75, 100, 20, 31, flip=True), 48, FILL)
    assert np.array_equal(mirrored[:, ::-1], cut)


def test_scales_and_places_fill_their_ranges():
    crops = CropConfig(32, 32, 64, [0.5, 2.0])
    drawn = [choose_crop(np.random.default_rng(seed), 100, 200, crops, 32) for seed in range(400)]
    heights = np.array([crop.height_px for crop in drawn])
    assert heights.min() < 36
    assert heights.max() > 124
    assert abs(heights.mean() - 80) < 5
    assert all(abs(crop.width_px - 2 * crop.height_px) <= 1 for crop in drawn)
    assert all(0 <= crop.left_px <= crop.width_px - 32 for crop in drawn)
    assert 0.4 < np.mean([crop.flip for crop in drawn]) < 0.6
    assert not any(
        choose_crop(np.random.default_rng(i), 100, 200, CropConfig(32, 32, flip=False), 32).flip for i in range(20)
    )


def test_sizes_are_multiples_of_the_patch():
    assert [round_to_patches(512, patch) for patch in (14, 16, 32)] == [518, 512, 512]
    assert [round_to_patches(416, patch) for patch in (14, 16, 32)] == [420, 416, 416]
    assert round_to_patches(3, 14) == 14
    assert compute_size(480, 640, None) == (480, 640)
    assert compute_size(375, 500, 512) == (512, 683)
    assert compute_size(375, 500, 512, 0.5) == (256, 341)


def test_bts_crop_holds_a_crop_of_every_patch():
    height, width = (part.stop - part.start for part in BTS_CROP)
    assert (height, width) == (427, 565)
    assert height >= max(round_to_patches(416, patch) for patch in (8, 14, 16, 32))


def test_padding_is_the_mean_colour():
    assert get_fill(torch.tensor([0.481, 0.458, 0.408]).view(1, 3, 1, 1)).tolist() == [123, 117, 104]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_px": 64, "stride_px": 65}, "stride_px"),
        ({"scale_range": [2.0, 0.5]}, "smaller number first"),
        ({"scale_range": [1.0]}, "scale_range"),
        ({"scale_range": [0.0, 1.0]}, "scale_range"),
        ({"crop_px": 0}, "crop_px"),
        ({"n_held_out": 0}, "n_held_out"),
    ],
)
def test_contradictory_crops_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        CropConfig(**settings)


def test_crops_decide_the_results_of_their_own_task_alone():
    changed = {"segmentation_crops": CropConfig(crop_px=64, stride_px=32), "depth_crops": CropConfig(flip=False)}
    for task, counts in ((Task.segmentation, True), (Task.depth, False), (Task.classification, False)):
        keys = [make_config(tasks=[task], **settings).cache_key_fields() for settings in ({}, changed)]
        assert (keys[0] != keys[1]) is counts
    key = make_config(segmentation_crops=CropConfig(crop_px=64, stride_px=32)).cache_key_fields()
    assert key["segmentation_crops"]["crop_px"] == 64


@pytest.mark.long
def test_presets_show_crops_alike():
    dinov2, clip = (compose([f"probe={name}"]).probe for name in ("dinov2", "clip_paper"))
    assert (dinov2.segmentation_crops, dinov2.depth_crops) == (clip.segmentation_crops, clip.depth_crops)
    assert dinov2.crops(Task.segmentation) == CropConfig(512, 341, 512, [0.5, 2.0], True, 40_000)
    assert dinov2.crops(Task.depth) == CropConfig(416, 277, None, [1.0, 1.0], True, 38_400)
    assert dinov2.dense_schedule is DenseSchedule.linear
    assert compose(["probe=plain"]).probe.crops(Task.segmentation) is None
    assert (
        compose(["probe=dinov2", "probe.depth_crops.crop_px=null", "probe.dense_steps=2000"]).probe.crops(Task.depth)
        is None
    )


# -- slices of variants ------------------------------------------------------------------------------------------------

VARIANTS = [
    Ablation(f"v{i}", mode, mask(removed), Role.original if not removed else Role.group)
    for i, (mode, removed) in enumerate(
        [
            (EditMode.error_preserving, []),
            (EditMode.error_preserving, [0, 1, 2]),
            (EditMode.reconstruct, [3, 4]),
            (EditMode.error_preserving, [6]),
            (EditMode.reconstruct, list(range(16))),
        ]
    )
]
V, B, N_LABELS = len(VARIANTS), 3, 3


def make_batch(memory_bytes: float, all_pixels: bool) -> SlicedBatch:
    draw = torch.Generator().manual_seed(0)
    sae, rng = make_identity_sae(), np.random.default_rng(0)
    patches = torch.randn(B, GRID * GRID, D, generator=draw)
    if all_pixels:
        pixels, n_pixels = AllPixels(PIXELS, PIXELS), PIXELS * PIXELS
    else:
        n_pixels = 20
        rows, columns = rng.integers(0, PIXELS, (2, B, n_pixels))
        weights = [compute_pixel_weights(r, c, PIXELS, PIXELS, GRID) for r, c in zip(rows, columns, strict=True)]
        pixels = PixelSample(torch.from_numpy(np.stack(weights)))
    labels = torch.from_numpy(rng.integers(0, N_LABELS, (B, n_pixels)).astype(np.uint8))
    labels[0, ::2], labels[2] = 255, 255  # images count by how many of their pixels are labelled
    depth_m = torch.rand(B, n_pixels, generator=draw) * 12
    acts = sae.encode_sparse(patches.flatten(0, 1))
    return SlicedBatch(patches, acts, AblationEditor(sae, VARIANTS), pixels, labels, depth_m, memory_bytes)


def make_head(task: Task) -> SegmentationHeads | DepthHeads:
    draw = torch.Generator().manual_seed(1)
    std = Standardisation(torch.randn(V, D, generator=draw), torch.rand(V, D, generator=draw) + 0.5)
    if task is Task.segmentation:
        head = SegmentationHeads(V, D, N_LABELS, [0.1, 0.2], std)
    else:
        head = DepthHeads(10.0, V, D, 8, [0.1, 0.2], std)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    return head


@pytest.mark.parametrize("task", [Task.segmentation, Task.depth])
@pytest.mark.parametrize("all_pixels", [False, True])
@pytest.mark.parametrize("memory_bytes", [1.0, 60e3, 1e9])
def test_losses_in_slices_are_those_of_the_whole_batch(task, all_pixels, memory_bytes):
    batch, head = make_batch(memory_bytes, all_pixels), make_head(task)
    tokens = batch.editor.edit(batch.patches.flatten(0, 1), batch.acts).unflatten(1, batch.patches.shape[:2])
    weights = torch.rand(V, 2, generator=torch.Generator().manual_seed(2))
    found = []
    for losses in (
        head.losses(MapBatch(tokens, batch.pixels, batch.labels, batch.depth_m)),
        batch.losses(head),
    ):
        head.zero_grad()
        (losses * weights).sum().backward()
        found.append([losses.detach(), *(parameter.grad.clone() for parameter in head.parameters())])
    for whole, sliced in zip(*found, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-6)
    n_slices = len(list(batch._iterate_slices(head)))
    n_least = {1.0: V * B if task is Task.segmentation else V, 1e9: 1}
    assert n_slices == n_least.get(memory_bytes, n_slices)


def test_cross_entropy_of_maps_is_that_of_their_pixels():
    logits = torch.randn(2, 3, 2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 5, (3, 6, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels[1, 2:] = 255
    flat = logits.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    expected = compute_cross_entropy(flat, labels.flatten(), 255)
    torch.testing.assert_close(compute_map_cross_entropy(logits, labels, 255), expected)
    assert (compute_map_cross_entropy(logits, torch.full_like(labels, 255), 255) == 0).all()


def test_slices_cover_everything_in_order():
    for n, bytes_each, memory in ((7, 10, 25), (7, 10, 1), (7, 10, 1e9), (1, 0, 0)):
        parts = divide(n, bytes_each, memory)
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
        assert all(part.stop - part.start == 1 or (part.stop - part.start) * bytes_each <= memory for part in parts)


def test_latents_encoded_in_parts_are_the_same():
    sae = SparseAutoencoder(D, 4 * D, BatchTopK(3))  # before training: every positive one, a different number per token
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(0))
    whole, parts = sae.encode_sparse(x), encode_in_parts(sae, x, 7 * 8 * 4 * D)
    dense = [torch.zeros(30, 4 * D).scatter_add_(1, acts.indices, acts.values) for acts in (whole, parts)]
    torch.testing.assert_close(dense[1], dense[0])


def test_rates_rise_and_fall():
    def factors(**settings) -> list[float]:
        module = ProbeModule({}, 10, torch.optim.AdamW, **settings)
        return [module.compute_rate_factor(step) for step in range(11)]

    assert factors(schedule=DenseSchedule.linear) == pytest.approx([1 - i / 10 for i in range(11)])
    warm = factors(schedule=DenseSchedule.linear, n_warmup_steps=4)
    assert warm[:4] == pytest.approx([0.25, 0.9 * 0.5, 0.8 * 0.75, 0.7])
    assert warm[4:] == pytest.approx([1 - i / 10 for i in range(4, 11)])
    assert factors()[5] == pytest.approx(0.5)
