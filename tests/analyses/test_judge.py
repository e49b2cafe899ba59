from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope import load_backbone
from infoscope.analyses.judge import JudgedImages, judge_images
from infoscope.data.images import ImageBatch
from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone
from infoscope.vision.planted import PlantedRegisters


def make_images(n: int, side: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def judge(backbone: Backbone, images: torch.Tensor, place: Path, left_out: tuple[int, ...] = ()) -> JudgedImages:
    def read(positions: np.ndarray) -> Iterator[ImageBatch]:
        for part in np.array_split(np.setdiff1d(positions, left_out), 2):
            if len(part):
                yield ImageBatch(torch.from_numpy(part), images[part])

    return judge_images(backbone, read, len(images), place)


def test_a_clip_judges_by_its_image_embeddings(tmp_path: Path) -> None:
    backbone = load_backbone("scenes_clip", progress=False)
    images = make_images(3, backbone.image_px)
    found = judge(backbone, images, tmp_path / "judge")
    np.testing.assert_allclose(found.embeddings, backbone.embed_images(images).numpy(), atol=1e-6)
    backbone.has_projection = False  # then by what it pools
    pooled = judge(backbone, images, tmp_path / "pooled").embeddings
    assert pooled.shape == (3, backbone.d_in)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)


def test_parts_resume_and_unreadable_images_have_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", (4, 4))
    backbone = PlantedRegisters()
    images = make_images(11, backbone.image_px)
    found = judge(backbone, images, tmp_path / "judge", left_out=(4, 5, 6, 7, 9))  # a whole part among them
    assert found.image_index.tolist() == [0, 1, 2, 3, 8, 10]
    n_encoded = backbone.n_images_encoded
    (tmp_path / "judge-00002.pt").unlink()
    again = judge(backbone, images, tmp_path / "judge", left_out=(4, 5, 6, 7, 9))
    assert backbone.n_images_encoded == n_encoded + 2
    np.testing.assert_array_equal(again.embeddings, found.embeddings)
    found.save(tmp_path)
    loaded = JudgedImages.load(tmp_path)
    np.testing.assert_array_equal(loaded.of_images(np.array([10, 0])), found.embeddings[[5, 0]])
    for unseen in (9, 11):
        with pytest.raises(InputError, match="judge to have seen every image"):
            loaded.of_images(np.array([0, unseen]))


def test_nothing_to_judge_and_no_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = PlantedRegisters()
    images = make_images(2, backbone.image_px)
    with pytest.raises(InputError, match="Expected images for the judge"):
        judge(backbone, images, tmp_path / "none", left_out=(0, 1))
    monkeypatch.setattr(type(backbone), "pool_images", lambda self, images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(InputError, match="The judge gave NaN"):
        judge(backbone, images, tmp_path / "nan")
