import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infoscope.data.images import resize_image
from infoscope.data.reader import iterate_images
from infoscope.data.scenes import factors as scene_factors
from infoscope.data.scenes import render
from infoscope.data.scenes.scene_set import SceneSet, make_scenes_fingerprint, save_scenes
from infoscope.runtime.errors import InputError

N, SIZE_PX = 70, 32  # more than one task of 64 scenes


@pytest.fixture(scope="module")
def rendered() -> list[render.Scene]:
    return render.render_split_part(3, "test", 0, N, SIZE_PX)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    save_scenes(folder, 3, "test", N, SIZE_PX)
    return folder


def test_a_set_gives_back_what_was_rendered(folder, rendered):
    scene_set = SceneSet(folder)
    assert len(scene_set) == N
    assert scene_set.split == "test"
    assert scene_set.image_ids == sorted(set(scene_set.image_ids))
    for i in (0, 63, 64, N - 1):
        assert np.array_equal(scene_set.load(i, SIZE_PX), rendered[i].image)
        assert np.array_equal(scene_set.label_map(i), rendered[i].label_map)
        assert np.abs(scene_set.depth_m(i) - rendered[i].depth_m).max() <= 0.000501
        assert np.array_equal(scene_set.depth_m(i) == 0, rendered[i].depth_m == 0)
        assert scene_set.factors(i) == rendered[i].factors
        assert scene_set.caption(i) == scene_factors.caption(rendered[i].factors)
    assert scene_set.depth_m(0).dtype == np.float32


def test_a_caption_in_part_is_what_the_generator_says(folder, rendered):
    said = SceneSet(folder).caption(5, np.random.default_rng(1))
    assert said == scene_factors.caption(rendered[5].factors, np.random.default_rng(1))


def test_other_sizes_are_resized(folder, rendered):
    image = SceneSet(folder).load(2, 24)
    assert np.array_equal(image, resize_image(rendered[2].image, 24))


def test_iterating_at_the_stored_size_gives_the_stored_pixels(folder, rendered):
    batches = list(iterate_images(SceneSet(folder), SIZE_PX, 32))
    assert [len(batch.index) for batch in batches] == [32, 32, 6]
    pixels = np.concatenate([batch.images.permute(0, 2, 3, 1).numpy() for batch in batches])
    assert np.array_equal(pixels, np.stack([scene.image for scene in rendered]))


def test_labels_are_indices_of_words(folder, rendered):
    scene_set = SceneSet(folder)
    assert scene_set.targets == ("class", "colour", "texture", "size", "place", "light", "weather", "camera")
    kinds = [scene_factors.KINDS[label] for label in scene_set.labels("class")]
    assert kinds == [scene.factors.objects[0].kind for scene in rendered]
    for target, words in scene_factors.GLOBAL_FACTORS.items():
        assert [words[label] for label in scene_set.labels(target)] == [
            getattr(scene.factors, target) for scene in rendered
        ]
        assert scene_set.n_target_classes(target) == len(words)
    for target, words in {
        "colour": list(scene_factors.COLOURS),
        "texture": scene_factors.TEXTURES,
        "size": list(scene_factors.SIZES),
    }.items():
        of_nearest = [getattr(scene.factors.objects[0], target) for scene in rendered]
        assert [words[label] for label in scene_set.labels(target)] == of_nearest
        assert scene_set.n_target_classes(target) == len(words)
    assert scene_set.labels("class").dtype == np.int64
    assert scene_set.n_target_classes("class") == scene_set.n_classes == 9
    assert len(scene_set.label_names) == 12


def test_an_unknown_target_is_refused(folder):
    for ask in (SceneSet(folder).labels, SceneSet(folder).n_target_classes):
        with pytest.raises(InputError, match=r"class, colour, .*light, weather, camera.*got 'hue'"):
            ask("hue")


def test_worker_processes_write_the_same_files(folder, tmp_path):
    done = []
    save_scenes(tmp_path, 3, "test", N, SIZE_PX, n_workers=2, progress=done.append)
    assert done == [64, N]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["depth_mm.npy", "factors.json", "images.npy", "label_maps.npy"]
    assert all((tmp_path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_growing_a_set_keeps_its_beginning(folder, tmp_path):
    save_scenes(tmp_path, 3, "test", 5, SIZE_PX)
    assert np.array_equal(SceneSet(tmp_path).images, SceneSet(folder).images[:5])


def test_the_fingerprint_is_known_before_rendering(folder):
    expected = make_scenes_fingerprint(3, "test", N, SIZE_PX)
    assert SceneSet(folder).fingerprint == expected
    assert json.loads(json.dumps(expected)) == expected
    assert expected["renderer"] == render.RENDERER_VERSION
    others = [(4, "test", N, SIZE_PX), (3, "train", N, SIZE_PX), (3, "test", 9, SIZE_PX), (3, "test", N, 40)]
    assert all(make_scenes_fingerprint(*other) != expected for other in others)


def test_a_pickled_set_carries_no_pixels(folder):
    scene_set = SceneSet(folder)
    expected = scene_set.load(1, SIZE_PX)
    pickled = pickle.dumps(scene_set)
    assert len(pickled) < scene_set.images.nbytes / 2
    assert np.array_equal(pickle.loads(pickled).load(1, SIZE_PX), expected)


def test_a_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no readable factors\.json"):
        SceneSet(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error(tmp_path):
    (tmp_path / "images.npy").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_scenes(tmp_path, 0, "train", 4, 64)


def test_rendering_imports_no_torch():
    """Worker processes that render start in a fraction of a second only as long as this holds."""
    code = "import sys, infoscope.data.scenes.render; print('torch' in sys.modules, 'PIL' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
