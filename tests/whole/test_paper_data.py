"""The paper's arrangement at thumbnail size: SAE and classes from ImageNet, label maps from ADE20K, depth from NYU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.config.tree import compose
from infoscope.data.images import Truth
from infoscope.data.recognition import name_settings
from infoscope.data.sets import make_image_sets
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.stages.probe.run import list_probe_groups
from infoscope.stages.probe.stage import find_paper_reference
from tests.support.pipeline_samples import Recorder, make_overrides, run_tiny, save_noise

WNIDS = ("n01440764", "n01443537")
SMALL = (
    "model=scenes_clip",
    "data=imagenet",
    "data.subset=true",
    "data.n_workers=0",
    "probe_data=paper",
    "probe.classification_epochs=1",
    "probe.n_dense_train_images=4",
    "probe.n_dense_test_images=2",
    "probe.n_draws=1",
    "sae.n_tokens=4000",
)


@pytest.fixture
def roots(tmp_path: Path) -> list[str]:
    """Three data sets in their own layouts; the overrides that name them."""
    imagenet, ade, nyu = (tmp_path / name for name in ("imagenet", "ADEChallengeData2016", "nyu"))
    for split, n_images in (("train", 10), ("val", 4)):
        for number, wnid in enumerate(WNIDS):
            for i in range(n_images):
                save_noise(imagenet / split / wnid / f"{wnid}_{i}.JPEG", 100 * number + i)
    ade.mkdir()
    names = "\n".join(f"{i}\t0.1\t1\t1\tthing {i}, other name" for i in range(1, 151))
    (ade / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{names}\n")
    for split, short, n_images in (("training", "train", 6), ("validation", "val", 3)):
        for i in range(1, n_images + 1):
            name = f"ADE_{short}_{i:08d}"
            save_noise(ade / "images" / split / f"{name}.jpg", 200 + i)
            labels = np.random.default_rng(i).integers(0, 4, (50, 60)).astype(np.uint8)
            file = ade / "annotations" / split / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(file)
    for folder, n_images in (("sync/kitchen_0001", 6), ("official_splits/test/bathroom", 3)):
        for i in range(n_images):
            save_noise(nyu / folder / f"rgb_{i:05d}.jpg", 300 + i, (640, 480))
            depth_mm = np.full((480, 640), 1000 + 500 * i, np.uint16)
            Image.fromarray(depth_mm).save(nyu / folder / f"sync_depth_{i:05d}.png")
    return [f"data.root={imagenet}", f"probe_data.segmentation.root={ade}", f"probe_data.depth.root={nyu}"]


def test_every_task_reads_its_own_data(tmp_path: Path, roots: list[str]) -> None:
    made = run_tiny(tmp_path / "out", *SMALL, *roots)
    assert made.files is not None
    summary = json.loads(made.files.summary.read_text())
    assert "GELU, mean [0.5,0.5,0.5], std [0.25,0.25,0.25] (by open_clip_config.json)" in summary["context"]["model"]
    original = summary["removal"][0]
    assert original["role"] == "original"
    assert all(original[name] is not None for name in ("top1_patch_mean", "top1_cls_final", "miou", "depth_rmse_m"))
    assert len(made.names("built", "tokens")) == 6  # two splits of three data sets
    assert run_tiny(tmp_path / "out", *SMALL, *roots).stages("built") == []


def test_they_are_checked_beforehand(tmp_path: Path, roots: list[str]) -> None:
    few = [f"probe_data.{task}.subset=true" for task in ("segmentation", "depth")]
    run_tiny(tmp_path / "out", *SMALL, *roots, *few, "stage=check_data")
    written = sorted(path.name for path in (tmp_path / "out" / "check_data").iterdir())
    uses = ("data-imagenet", "depth-nyud", "segmentation-ade20k")
    assert written == [f"{use}-{split}.json" for use in uses for split in ("test", "train")]
    found = json.loads((tmp_path / "out" / "check_data" / "depth-nyud-train.json").read_text())
    assert found["n_images"] == 6
    assert found["errors"] == {}
    assert found["depth"] == {"min_m": 1.0, "median_m": 2.0, "max_m": 3.5, "measured_share": 1.0}


@pytest.mark.parametrize("stage", ["probe", "report", "check_data"])
def test_another_unit_of_depth_is_refused_before_anything_is_built(
    tmp_path: Path, roots: list[str], stage: str
) -> None:
    for file in (tmp_path / "nyu").rglob("*.png"):
        depth = np.array(Image.open(file)) * 0.256
        Image.fromarray(depth.astype(np.uint16)).save(file)
    few = [f"probe_data.{task}.subset=true" for task in ("segmentation", "depth")]
    with pytest.raises(InputError, match=r"looks like 1/256 m.*multiply what is stored by 3\.906"):
        run_tiny(tmp_path / "out", *SMALL, *roots, *few, f"stage={stage}")
    assert not (tmp_path / "out" / "artifacts").exists()


def test_the_data_of_a_probe_are_told_by_its_own_settings(tmp_path: Path, roots: list[str]) -> None:
    scenes = ["data=scenes", f"probe_data.depth={{kind: nyud, root: {tmp_path / 'ADEChallengeData2016'}}}"]
    with pytest.raises(InputError) as caught:
        run_tiny(tmp_path / "out", *scenes, "stage=check_data")
    assert "is ADEChallengeData2016" in str(caught.value)
    assert f"set probe_data.depth.kind=ade20k probe_data.depth.root={tmp_path / 'ADEChallengeData2016'}, or for" in str(
        caught.value
    )
    assert not (tmp_path / "out" / "artifacts").exists()  # no scene was rendered before
    kept = name_settings("Set data.root=/data/data.root, or data=own; /x holds data.mdb.", "probe_data.depth")
    assert kept == "Set probe_data.depth.root=/data/data.root, or probe_data.depth.kind=own; /x holds data.mdb."


def test_tokens_that_crops_make_idle_are_not_kept(tmp_path: Path, roots: list[str]) -> None:
    config = compose([*make_overrides(tmp_path, *SMALL), *roots, "probe.segmentation_crops.crop_px=512"])
    kept = {
        task: data.store_tokens
        for data, probe in list_probe_groups(Context(config, Recorder()))
        for task in (task.name for task in probe.tasks)
    }
    assert kept == {"classification": config.data.store_tokens, "segmentation": False, "depth": True}


def test_a_sample_is_drawn_and_keeps_its_truth(tmp_path: Path, roots: list[str]) -> None:
    drawn = ["data.max_train=8", "data.max_test=3", "probe_data.depth.max_train=2"]
    config = compose([*make_overrides(tmp_path, *SMALL), *roots])
    whole = make_image_sets(config.data)
    sample = make_image_sets(compose([*make_overrides(tmp_path, *SMALL), *roots, *drawn]).data)
    again = make_image_sets(compose([*make_overrides(tmp_path, *SMALL), *roots, *drawn]).data)
    other = make_image_sets(compose([*make_overrides(tmp_path, *SMALL), *roots, *drawn, "data.seed=1"]).data)
    assert [len(images) for images in sample] == [8, 3]
    assert sample[0].image_ids == again[0].image_ids != other[0].image_ids
    assert sample[0].fingerprint == again[0].fingerprint != other[0].fingerprint
    for few, many in zip(sample, whole, strict=True):
        places = [many.image_ids.index(name) for name in few.image_ids]
        np.testing.assert_array_equal(few.labels("class"), many.labels("class")[places])
        np.testing.assert_array_equal(few.load(0, 32), many.load(places[0], 32))
        assert few.class_names == many.class_names
    depth = make_image_sets(compose([*make_overrides(tmp_path, *SMALL), *roots, *drawn]).probe_data.depth)[0]
    assert [depth.depth_m(i).max() for i in range(2)] == sorted(depth.depth_m(i).max() for i in range(2))
    assert depth.truths == {Truth.depth}


REAL = ("model=clip_b16", "data=imagenet", "data.root=i", "probe=plain", "probe_data=paper")
ROOTS = ("probe_data.segmentation.root=a", "probe_data.depth.root=n")


@pytest.mark.parametrize(
    ("changes", "reference"),
    [
        ((), "clip_b16"),
        (("model=clip_l14",), "clip_l14"),
        (("model=clip_b32",), None),
        (("model.quick_gelu=false",), None),
        (("model.pretrained=random",), None),
        (("model.pretrained=laion2b_s34b_b88k",), None),
        (("model.pretrained=metaclip_400m",), None),  # QuickGELU too
        (("data.max_train=1000",), None),
        (("probe_data.depth.max_test=5",), None),
        (("data.subset=true",), None),
        (("data=image_folder",), None),
        (("probe_data=own",), None),
    ],
)
def test_the_papers_values_stand_beside_its_own_model_and_data_alone(
    changes: tuple[str, ...], reference: str | None
) -> None:
    chosen = {override.partition("=")[0]: override for override in (*REAL, *changes)}
    roots = () if chosen["probe_data"] == "probe_data=own" else ROOTS
    assert find_paper_reference(compose([*chosen.values(), *roots])) == reference
