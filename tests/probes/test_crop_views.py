"""Segmentation and depth on crops and windows: on scenes, on trees of other data sets, on real photographs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from infoscope.data.ade20k import ADE20K
from infoscope.data.images import ImageSet, Truth
from infoscope.data.nyud import BTS_CROP, NYUd
from infoscope.data.scenes.scene_set import SceneSet, save_scenes
from infoscope.pipeline.context import Context
from infoscope.probes.config import CropConfig, DenseSchedule, ProbeConfig, Task
from infoscope.probes.crop_views import CropViews
from infoscope.probes.dense import DenseProbes, make_dense_views
from infoscope.probes.dense_images import WholeImages
from infoscope.probes.dense_views import Part, compute_standardisation
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.runtime.errors import InputError
from infoscope.runtime.forks import map_ahead
from infoscope.sae.activations import TopK
from infoscope.sae.edit import EditMode
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.editing import AblationEditor
from infoscope.stages.backbone import load_backbone as load_configured
from infoscope.stages.backbone import load_backbone_at
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER
from infoscope.vision.planted import ContextFree
from tests.support.data_sets import open_set
from tests.support.pipeline_samples import Recorder, find_artifacts, make_tiny_config, run_tiny
from tests.support.probe_samples import run_dense

pytestmark = pytest.mark.long

N_TRAIN, N_TEST, SIDE, D_SAE = 12, 4, 96, 256


class Pictures(ImageSet):
    """Photographs in memory, with both truths."""

    truths = frozenset({Truth.label_maps, Truth.depth})
    label_names = ("a", "b", "c", "d")

    def __init__(self, sizes: list[tuple[int, int]], seed: int = 0) -> None:
        super().__init__("train", [f"picture {i}" for i in range(len(sizes))])
        rng = np.random.default_rng(seed)
        self.maps = [
            np.kron(rng.integers(0, 4, (h // 16 + 1, w // 16 + 1)), np.ones((16, 16), int))[:h, :w].astype(np.uint8)
            for h, w in sizes
        ]

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {}

    def decode(self, index: int) -> np.ndarray:
        colours = np.array([[220, 30, 30], [30, 200, 40], [40, 60, 230], [240, 240, 60]], np.uint8)
        return colours[self.maps[index]]

    def label_map(self, index: int) -> np.ndarray:
        return self.maps[index]

    def depth_m(self, index: int) -> np.ndarray:
        return (1 + 2 * self.maps[index]).astype(np.float32)


@cache
def backbone_at(image_px: int) -> Backbone:
    return load_backbone(ModelConfig(image_px=image_px))


@cache
def formula_at(image_px: int) -> Backbone:
    """A backbone of patches of 16 px that costs next to nothing, for photographs of full size."""
    return ContextFree(image_px // 16, 16, 16)


def make_ablations(n: int) -> list[Ablation]:
    rng, variants = np.random.default_rng(0), [np.zeros(D_SAE, bool)]
    variants += [rng.random(D_SAE) < 0.3 for _ in range(n - 1)]
    modes = list(EditMode)
    return [
        Ablation(f"v{i}", modes[i % 2], removed, Role.group if i else Role.original)
        for i, removed in enumerate(variants)
    ]


def encode(images: ImageSet, layer: int = -2) -> Any:
    """Whole images' tokens, as a cache of them."""
    pixels = np.stack([images.load(i, SIDE) for i in range(len(images))])
    patches = backbone_at(SIDE).tokens(torch.from_numpy(pixels).permute(0, 3, 1, 2), layer).patches.clone()
    return SimpleNamespace(
        grid=12,
        image_index=np.arange(len(images)),
        tokens=lambda rows: Tokens(patches[rows][:, :0], patches[rows]),
    )


class Few:
    """Which images a cache holds, where nothing else of it is read."""

    def __init__(self, n: int) -> None:
        self.image_index = np.arange(n)


def make_inputs(
    train: ImageSet,
    test: ImageSet,
    whole: bool = False,
    n_workers: int = 0,
    make: Callable[[int], Backbone] = backbone_at,
) -> ProbeInputs:
    backbone = make(SIDE)
    sae = SparseAutoencoder(backbone.d_in, D_SAE, TopK(8), seed=3).requires_grad_(False)
    data = [ProbeData(encode(images) if whole else Few(len(images)), images) for images in (train, test)]  # pyright: ignore[reportArgumentType]
    return ProbeInputs(sae, *data, backbone, -2, backbone_at=make, n_workers=n_workers)


def make_config(**changes) -> ProbeConfig:
    settings: dict[str, Any] = {
        "tasks": [Task.segmentation, Task.depth],
        "segmentation_lrs": [0.01],
        "depth_lrs": [0.01],
        "dense_steps": 12,
        "dense_batch_images": 4,
        "n_depth_bins": 16,
        "held_out_share": 0.2,
        "n_pixels_per_image": None,
        "n_held_out_pixels_per_image": None,
    }
    return ProbeConfig(**{**settings, **changes})


def make_crops(**changes) -> CropConfig:
    settings: dict[str, Any] = {"crop_px": 48, "stride_px": 32, "short_side_px": 80, "n_norm_crops": 16}
    return CropConfig(**{**settings, **changes})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[SceneSet, SceneSet]:
    sets = []
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        folder = tmp_path_factory.mktemp(split)
        save_scenes(folder, 0, split, n, SIDE)
        sets.append(SceneSet(folder))
    return sets[0], sets[1]


@pytest.fixture
def pictures() -> tuple[Pictures, Pictures]:
    sizes = [(64, 64), (90, 70), (50, 120), (40, 45)]
    return Pictures(sizes * 3), Pictures(sizes, seed=1)


def open_views(inputs: ProbeInputs, config: ProbeConfig) -> list[Any]:
    n_train, n_test = len(inputs.train.images), len(inputs.test.images)
    return make_dense_views(inputs, config, {"train": np.arange(n_train), "test": np.arange(n_test)})


WHOLE = {"crop_px": SIDE, "stride_px": SIDE, "short_side_px": SIDE, "scale_range": [1.0, 1.0], "flip": False}


@pytest.mark.parametrize("task", [Task.segmentation, Task.depth])
def test_a_crop_that_is_the_whole_image_is_the_whole_image(scenes, task):
    inputs = make_inputs(*scenes, whole=True)
    n_fit = N_TRAIN - round(0.2 * N_TRAIN)
    config = make_config(tasks=[task], dense_batch_images=n_fit // 2, dense_steps=4)
    crops = CropConfig(**WHOLE, n_norm_crops=n_fit, n_held_out=None)
    (whole,) = open_views(inputs, config)
    (cropped,) = open_views(inputs, replace(config, **{f"{task.name}_crops": crops}))
    assert isinstance(whole, WholeImages)
    assert isinstance(cropped, CropViews)
    editor = AblationEditor(inputs.sae, make_ablations(3))
    for batch, sliced in zip(whole.iterate_batches(editor), cropped.iterate_batches(editor), strict=True):
        tokens, expected = (next(tokens for _, tokens in part.iterate_tokens(1)) for part in (sliced, batch))
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
        truths = [part.labels if task is Task.segmentation else part.depth_m for part in (batch, sliced)]
        assert torch.equal(*truths)
    for expected, found in zip(*(compute_standardisation(views, editor) for views in (whole, cropped)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    heads = DenseProbes(inputs, config, whole).fit(editor)
    maps = {task: [head.select(torch.zeros(3, dtype=torch.int64)) for head in heads.values()]}
    seen = [list(views.predict(Part.test, slice(None), editor, maps)) for views in (whole, cropped)]
    assert len(seen[0]) == len(seen[1]) == N_TEST
    for expected, found in zip(*seen, strict=True):
        assert torch.equal(found.truth, expected.truth)
        if task is Task.depth:
            torch.testing.assert_close(found.values, expected.values, rtol=1e-3, atol=1e-3)
        else:
            assert (found.values == expected.values).float().mean() > 0.999
    outcomes = [run_dense(DenseProbes(inputs, config, views), editor)[task.name] for views in (whole, cropped)]
    for name, values in outcomes[0].metrics.items():
        torch.testing.assert_close(outcomes[1].metrics[name], values, rtol=2e-2, atol=2e-3)


def test_steps_are_functions_of_seed_and_step_however_many_read_them(pictures):
    config = make_config(tasks=[Task.segmentation], segmentation_crops=make_crops(), n_pixels_per_image=50)
    (views,) = open_views(make_inputs(*pictures), config)
    alone, ahead = (list(map_ahead(views.steps.__getitem__, range(5), n_workers, "")) for n_workers in (0, 2))
    for step, (one, other) in enumerate(zip(alone, ahead, strict=True)):
        again = views.steps[step]
        for part, same, anew in zip(one, other, again, strict=True):
            assert torch.equal(part, same)
            assert torch.equal(part, anew)
    assert not torch.equal(alone[0].images, alone[1].images)
    (other,) = open_views(make_inputs(*pictures), replace(config, seed=1))
    assert not torch.equal(other.steps[0].images, alone[0].images)


def test_the_truth_at_some_pixels_is_picked_from_all(pictures):
    config = make_config(tasks=[Task.segmentation], segmentation_crops=make_crops(), n_pixels_per_image=50)
    inputs = make_inputs(*pictures)
    (some,), (every,) = open_views(inputs, config), open_views(inputs, replace(config, n_pixels_per_image=None))
    few, whole = some.steps[3], every.steps[3]
    assert torch.equal(few.images, whole.images)
    assert whole.pixels is None
    flat = few.pixels[..., 0] * 48 + few.pixels[..., 1]
    assert torch.equal(few.truth, whole.truth.gather(1, flat))
    editor = AblationEditor(inputs.sae, make_ablations(1))
    read = [views._make_batch(step, editor).pixels for views, step in ((some, few), (every, whole))]
    maps = torch.randn(1, 4, 36, 2, generator=torch.Generator().manual_seed(0))
    picked = read[1].read(maps).gather(2, flat[None, ..., None].expand(1, -1, -1, 2))
    torch.testing.assert_close(read[0].read(maps), picked)


def test_memory_changes_no_result(pictures):
    config = make_config(
        segmentation_crops=make_crops(), depth_crops=make_crops(flip=False, scale_range=[1.0, 1.0]), dense_steps=3
    )
    inputs, variants = make_inputs(*pictures), make_ablations(4)
    found = []
    for memory_gb in (1.0, 1e-9):
        editor = AblationEditor(inputs.sae, variants)
        outcomes = {}
        for views in open_views(inputs, replace(config, memory_gb=memory_gb)):
            outcomes |= run_dense(DenseProbes(inputs, config, views), editor)
        found.append(outcomes)
    assert found[0].keys() == found[1].keys() == {"segmentation", "depth"}
    for task, outcome in found[0].items():
        for kind in ("metrics", "frozen_head"):
            for name, values in getattr(outcome, kind).items():
                torch.testing.assert_close(getattr(found[1][task], kind)[name], values, rtol=1e-3, atol=1e-3)


def test_photographs_of_any_size_are_learned_from(pictures):
    """Colour tells the label and the depth: heads on crops find both, at the photographs' own sizes."""
    crops = make_crops(crop_px=64, stride_px=40, short_side_px=96, n_steps=60, n_held_out=2)
    config = make_config(
        segmentation_crops=crops,
        depth_crops=replace(crops, scale_range=[1.0, 1.0]),
        segmentation_lrs=[0.003, 0.02],
        dense_warmup_steps=5,
        dense_schedule=DenseSchedule.linear,
        n_pixels_per_image=256,
    )
    inputs = make_inputs(*pictures)
    outcomes: dict[str, Any] = {}
    editor = AblationEditor(inputs.sae, make_ablations(2))
    for views in open_views(inputs, config):
        assert len(views.parts[Part.held_out]) == 2
        outcomes |= run_dense(DenseProbes(inputs, config, views), editor)
    assert outcomes["segmentation"].metrics["miou"].min() > 0.6
    assert outcomes["depth"].metrics["rmse_m"].max() < 1.5  # the standard deviation of the depths is 2.2 m
    assert set(outcomes["segmentation"].lr[0]["held_out"]) == {"0.003", "0.02"}
    assert torch.equal(outcomes["depth"].metrics["rmse_m"][:1], outcomes["depth"].frozen_head["rmse_m"][:1])


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_map_of_another_size_is_refused_wherever_it_is_read(pictures, n_workers):
    pictures[0].maps = [labels[:, :-1] for labels in pictures[0].maps]
    pictures[0].decode = lambda index: np.zeros((70, 70, 3), np.uint8)
    config = make_config(tasks=[Task.segmentation], segmentation_crops=make_crops())
    (views,) = open_views(make_inputs(*pictures), config)
    with pytest.raises(InputError, match=r"label map of picture \d+ at the size of its image, 70x70, got \d+x\d+"):
        list(map_ahead(views.steps.__getitem__, range(2), n_workers, ""))


def test_crops_need_a_backbone_and_photographs(pictures, scenes):
    config = make_config(tasks=[Task.depth], depth_crops=make_crops())
    with pytest.raises(InputError, match="depth on crops needs the backbone"):
        open_views(replace(make_inputs(*pictures), backbone_at=None), config)

    class Squares(Pictures):
        decode = ImageSet.decode

    (views,) = open_views(make_inputs(Squares([(50, 50)] * 5), pictures[1]), config)
    with pytest.raises(InputError, match="Squares does not give: probe whole images"):
        list(map_ahead(views.steps.__getitem__, range(1), 1, ""))


# -- the backbone at the size of crops ---------------------------------------------------------------------------------


def test_tokens_of_crops_are_those_of_a_model_built_at_their_size(tmp_path):
    ctx = Context(make_tiny_config(tmp_path, "model=scenes_clip"), Recorder())
    backbone = load_backbone_at(ctx, 128)
    assert backbone.image_px == 128
    assert load_backbone_at(ctx, 128) is backbone
    assert load_backbone_at(ctx, load_configured(ctx).image_px) is load_configured(ctx)
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip: Any = open_clip.create_model(f"local-dir:{SHIPPED_FOLDER}", force_image_size=128).eval()
    with torch.no_grad():
        theirs = clip.visual.forward_intermediates(
            backbone.normalise(images), indices=[len(clip.visual.transformer.resblocks) - 2], output_fmt="NLC"
        )["image_intermediates"][0]
    torch.testing.assert_close(backbone.tokens(images, -2).patches, theirs, rtol=1e-4, atol=1e-4)


def test_a_model_of_one_size_alone_is_refused(tmp_path):
    ctx = Context(make_tiny_config(tmp_path, "model=planted_registers"), Recorder())
    assert load_backbone_at(ctx, 96) is load_configured(ctx)
    with pytest.raises(InputError, match="crops of 128 px, but planted_registers takes images of 96 px alone"):
        load_backbone_at(ctx, 128)


# -- data sets as they lie on disk -------------------------------------------------------------------------------------


def save_ade20k(root: Path, sizes: list[tuple[int, int]]) -> None:
    """Photographs of different sizes; the colour tells the label."""
    for split, short in (("training", "train"), ("validation", "val")):
        pictures = Pictures(sizes, seed=len(short))
        for i in range(len(sizes)):
            for kind, extension, values in (
                ("images", "jpg", pictures.decode(i)),
                ("annotations", "png", pictures.maps[i]),
            ):
                file = root / kind / split / f"ADE_{short}_{i + 1:08d}.{extension}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(file, **({"quality": 95} if extension == "jpg" else {}))


def test_an_ade20k_of_different_sizes_runs_through(tmp_path):
    save_ade20k(tmp_path, [(60, 90), (128, 70), (33, 50), (100, 100)])
    train, test = (open_set(ADE20K, tmp_path, split) for split in ("train", "test"))
    config = make_config(tasks=[Task.segmentation], segmentation_crops=make_crops(n_held_out=1), dense_steps=8)
    inputs = make_inputs(train, test, n_workers=1)
    (views,) = open_views(inputs, config)
    editor = AblationEditor(inputs.sae, make_ablations(2))
    probes = DenseProbes(inputs, config, views)
    outcome = run_dense(probes, editor)["segmentation"]
    assert outcome.metrics["miou"].min() > 1 / 150
    seen = list(views.predict(Part.test, slice(None), editor, {Task.segmentation: [outcome.heads]}))
    assert [tuple(prediction.values.shape) for prediction in seen] == [(2, *test.label_map(i).shape) for i in range(4)]


def test_crops_of_nyu_leave_its_blank_borders_out(tmp_path):
    for folder, n_images in (("sync/kitchen_0001", 4), ("official_splits/test/bathroom", 2)):
        for i in range(n_images):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            image, depth_mm = np.full((480, 640, 3), 255, np.uint8), np.full((480, 640), 9000, np.uint16)
            image[BTS_CROP], depth_mm[BTS_CROP] = 100, 1000 + 500 * i
            Image.fromarray(image).save(tmp_path / folder / f"rgb_{i:05d}.jpg", quality=100)
            Image.fromarray(depth_mm).save(tmp_path / folder / f"sync_depth_{i:05d}.png")
    train, test = (open_set(NYUd, tmp_path, split) for split in ("train", "test"))
    crops = CropConfig(416, 277, None, [1.0, 1.0], n_norm_crops=2, n_held_out=1)
    config = make_config(tasks=[Task.depth], depth_crops=crops, dense_steps=2, dense_batch_images=2, memory_gb=0.2)
    inputs = make_inputs(train, test, make=formula_at)
    (views,) = open_views(inputs, config)
    for step in range(3):
        read = views.steps[step]
        assert read.images.shape == (2, 3, 416, 416)
        assert read.images.max() < 130
        assert read.truth.max() < 9
    editor = AblationEditor(inputs.sae, make_ablations(2))
    outcome = run_dense(DenseProbes(inputs, config, views), editor)["depth"]
    assert 0 < outcome.metrics["rmse_m"].max() < 9
    (first, _) = views.predict(Part.test, slice(None), editor, {Task.depth: [outcome.heads]})
    assert first.values.shape == (2, 480, 640)
    assert (first.truth > 0).sum() == 426 * 560  # the Eigen crop


def test_the_tiny_experiment_with_crops(tmp_path):
    crops = [f"probe.segmentation_crops.{setting}" for setting in ("crop_px=64", "stride_px=40", "short_side_px=96")]
    overrides = (
        "model=scenes_clip",
        "stage=probe",
        "seeds=[0]",
        "probe.tasks=[segmentation,depth]",
        *crops,
        "probe.segmentation_crops.n_held_out=2",
        "probe.segmentation_crops.n_steps=6",
        "probe.segmentation_lrs=[0.03]",
        "probe.n_draws=0",
    )
    run_tiny(tmp_path, *overrides)
    (folder,) = [name for name in find_artifacts(tmp_path) if name.startswith("probe/") and "-original-" in name]
    result = json.loads((tmp_path / "artifacts" / folder / "result.json").read_text())
    assert result["metrics"]["segmentation"]["miou"] > 1 / 13
    assert result["metrics"]["segmentation"]["pixel_accuracy"] > 0.3
    assert result["metrics"]["depth"]["rmse_m"] > 0
    again = run_tiny(tmp_path, *overrides)
    assert again.stages("built") == []
    assert "probe" in run_tiny(tmp_path, *overrides, "probe.segmentation_crops.flip=false").stages("built")


# -- real photographs --------------------------------------------------------------------------------------------------

SAMPLES = os.environ.get("INFOSCOPE_SAMPLES")


@pytest.mark.skipif(not SAMPLES, reason="INFOSCOPE_SAMPLES is not set")
def test_windows_over_real_photographs_give_maps_at_their_own_size():
    assert SAMPLES is not None
    root = Path(SAMPLES)
    ade, nyu = open_set(ADE20K, root / "ADEChallengeData2016", "test"), open_set(NYUd, root / "nyu", "test")
    for task, images, crops in (
        (Task.segmentation, ade, CropConfig(256, 170, 256, n_norm_crops=2, n_held_out=1)),
        (Task.depth, nyu, CropConfig(416, 277, None, [1.0, 1.0], n_norm_crops=2, n_held_out=1)),
    ):
        config = make_config(tasks=[task], dense_batch_images=2, dense_steps=2, **{f"{task.name}_crops": crops})
        inputs = make_inputs(images, images, make=formula_at)
        (views,) = open_views(inputs, config)
        editor = AblationEditor(inputs.sae, make_ablations(1))
        outcome = run_dense(DenseProbes(inputs, config, views), editor)[task.name]
        assert all(bool(torch.isfinite(values).all()) for values in outcome.metrics.values())
        seen = list(views.predict(Part.test, slice(None), editor, {task: [outcome.heads]}))
        sizes = [images.photograph(i).shape[:2] for i in range(len(images))]
        assert [tuple(prediction.values.shape[1:]) for prediction in seen] == sizes
