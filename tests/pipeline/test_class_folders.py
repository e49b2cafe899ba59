"""Class labels from folders through the chain: classes without an image in a split are counted, and break nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from infoscope.analyses.adaptation import HALVES, SAME, Adaptation
from infoscope.analyses.description import Description
from infoscope.analyses.masking import MaskingResult
from infoscope.data.photographs import compute_split_position
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.runtime.errors import InputError
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER
from tests.support.pipeline_samples import draw_without_saving, find_folder, run_tiny, save_noise

CLASSES = ("ball", "cone", "cube", "ring")  # words that scenes_clip knows
TEST_SHARE = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_without_saving(monkeypatch)


def is_held_out(name: str) -> bool:
    return compute_split_position(0, name) < TEST_SHARE


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Balls and cubes; one cone, which is a training image, and one ring, which is a test image."""
    cone = next(name for i in range(99) if not is_held_out(name := f"cone/{i}.png"))
    ring = next(name for i in range(99) if is_held_out(name := f"ring/{i}.png"))
    names = [*(f"{name}/{i}.png" for name in ("ball", "cube") for i in range(18)), cone, ring]
    for number, name in enumerate(names):
        save_noise(tmp_path / "set" / name, number)
    return tmp_path / "set"


def test_classes_without_images_in_a_split(root: Path, tmp_path: Path) -> None:
    names = [path.relative_to(root).as_posix() for path in root.rglob("*.png")]
    counts = {
        split: [sum(name.startswith(of) and is_held_out(name) == held_out for name in names) for of in CLASSES]
        for split, held_out in (("train", False), ("test", True))
    }
    assert (counts["train"][3], counts["test"][1]) == (0, 0)
    given = ("model=scenes_clip", "data=class_folders", f"data.root={root}", f"data.test_share={TEST_SHARE}")
    few = (*given, "sae.n_tokens=4000", "describe.n_label_images=2", "describe.n_class_latents=3")

    masked = run_tiny(tmp_path, *few, "stage=masking", "masking.n_latents=[1,5]", "masking.n_draws=1")
    said = "set: 4 classes (ball, cone, cube and 1 more), class folders, data.test_share=0.3 of their images held out: "
    assert said + f"{sum(counts['train'])} training images, {sum(counts['test'])} test images" in masked.text
    assert "classes without a training image: 1; classes without a test image: 1" in masked.text
    found = MaskingResult.load(find_folder(tmp_path, "masking"))
    assert found.class_names == CLASSES
    assert found.n_images.tolist() == counts["test"]
    assert found.n_ranked[3] == 0 < found.n_ranked[0]
    assert all(0 <= found.top1(place) <= 1 for place in range(len(found.masks)))

    run_tiny(tmp_path, *few, "stage=describe")
    described = Description.load(find_folder(tmp_path, "describe"))
    assert described.class_names == list(CLASSES)
    assert described.class_images == counts["train"]
    assert described.label_entropy is not None
    assert np.isfinite(described.label_entropy).any()
    assert described.top_class is not None
    assert not (described.top_class == 3).any()

    weights, generator = load_file(SHIPPED_FOLDER / "open_clip_model.safetensors"), torch.Generator().manual_seed(0)
    noisy = {name: values + 1e-3 * torch.randn(values.shape, generator=generator) for name, values in weights.items()}
    save_file(noisy, tmp_path / "noisy.safetensors")
    adapted = (f"adapt.pretrained={tmp_path / 'noisy.safetensors'}", "adapt.n_draws=2")
    run_tiny(tmp_path, *few, "stage=adapt", *adapted)
    compared = Adaptation.load(find_folder(tmp_path, "adapt"))
    assert compared.class_images.tolist() == counts["train"]
    assert np.isnan(compared.jaccard[SAME]).tolist() == [False, False, False, True]
    assert np.isnan(compared.jaccard[HALVES]).tolist() == [False, True, False, True]

    probed = run_tiny(tmp_path, *few, "stage=probe", "probe.tasks=[classification]")
    assert "probe" in probed.stages("built")


@pytest.mark.long
def test_scenes_in_class_folders_are_the_scenes(tmp_path: Path) -> None:
    """The masking curve knows the labels of both splits: it is the same to the last digit, whatever their order."""
    few = (
        "model=scenes_clip",
        "stage=masking",
        "masking.n_latents=[1,5]",
        "masking.n_draws=0",
        "describe.strong_above=0",
    )
    run_tiny(tmp_path, *few, "data.n_train=48", "data.n_test=48", "sae.n_tokens=4000")
    for folder in (tmp_path / "artifacts" / "scenes").iterdir():
        if not folder.name.startswith("."):
            scenes = SceneSet(folder)
            for i, label in enumerate(scenes.labels("class")):
                file = tmp_path / "set" / scenes.split / scenes.class_names[label] / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scenes.photograph(i)).save(file)
    sae = find_folder(tmp_path, "train_sae")
    given = (
        "data=class_folders",
        f"data.root={tmp_path / 'set'}",
        "debug=tiny_import",
        "sae=import",
        f"sae.path={sae}",
    )
    run_tiny(tmp_path / "again", *few, *given)
    one, other = (MaskingResult.load(find_folder(of, "masking")) for of in (tmp_path, tmp_path / "again"))
    assert one.masks == other.masks
    assert len({round(one.top1(place), 3) for place in range(len(one.masks))}) > 3  # there is something to compare
    assert [one.top1(place) for place in range(len(one.masks))] == pytest.approx(
        [other.top1(place) for place in range(len(one.masks))]
    )
    counts = [dict(zip(of.class_names, of.n_images.tolist(), strict=True)) for of in (one, other)]
    assert counts[0] == counts[1]


def test_data_without_classes_name_those_that_have_them(root: Path, tmp_path: Path) -> None:
    folder = ("model=scenes_clip", "data=class_folders", f"data.root={root}", "probe=miniature", "probe.target=mood")
    with pytest.raises(InputError, match=r"target of class folders \(class\), got 'mood': choose .*probe\.target, "):
        run_tiny(tmp_path / "no", *folder, "stage=quality")
    (root / "ball").rename(root / "zebra")
    folder = ("model=scenes_clip", "data=class_folders", f"data.root={root}", f"data.test_share={TEST_SHARE}")
    for stage in ("stage=masking", "stage=predict"):
        with pytest.raises(InputError, match=r"words of the model's own vocabulary .* 'zebra'"):
            run_tiny(tmp_path / "no", *folder, stage)
        assert not [path for path in (tmp_path / "no" / "artifacts").glob("*/*") if path.name[0] != "."]
    folder = ("model=scenes_clip", "data=image_folder", f"data.root={root}", f"data.test_share={TEST_SHARE}")
    for stage in ("stage=masking", "stage=probe"):
        with pytest.raises(Exception, match=r"give data=class_folders if its subfolders are classes, "):
            run_tiny(tmp_path, *folder, stage)
