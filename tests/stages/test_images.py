"""Images are known again one by one, however they are divided, named or counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from infoscope.pipeline.context import Context
from infoscope.runtime.progress import Display
from infoscope.stages.images import hash_each_image
from tests.support.pipeline_samples import N_TEST, make_tiny_config


def hash_test_images(folder: Path, *overrides: str) -> set[str]:
    ctx = Context(make_tiny_config(folder, *overrides), Display.silent())
    hashes = hash_each_image(ctx, "test", ctx.config.data)
    assert len({*hashes}) == len(hashes)
    return {*hashes}


def test_more_scenes_of_a_seed_hold_the_fewer(tmp_path: Path) -> None:
    few = hash_test_images(tmp_path)
    assert len(few) == N_TEST
    assert few < hash_test_images(tmp_path, f"data.n_test={N_TEST + 4}", "data.size_px=48")
    assert not few & hash_test_images(tmp_path, "data.seed=1")


def test_a_folder_that_is_divided_anew_or_renamed_has_the_same_images(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    options = ("data=image_folder", "data.test_share=0.5", f"data.root={folder}")
    first, second = (hash_test_images(tmp_path, *options, f"data.seed={seed}") for seed in range(2))
    assert 0 < len(first & second) < len(first | second) <= 24
    shutil.copytree(folder, tmp_path / "others")
    for file in (tmp_path / "others").iterdir():
        file.rename(file.with_name(f"other-{file.name}"))
    renamed = hash_test_images(tmp_path, *options[:1], "data.test_share=0.9", f"data.root={tmp_path / 'others'}")
    assert first & renamed
