import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from infoscope.data.config import RAISE, SKIP, DataConfig, DataKind, Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.scenes.scene_set import SceneSet, save_scenes
from infoscope.data.sets import make_image_sets
from infoscope.runtime.errors import InputError


def compose(*changes: str) -> DataConfig:
    """What the command line does with `data.*` changes."""
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.from_dotlist(list(changes)))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, DataConfig)
    return config


def test_defaults_are_the_demo():
    config = compose()
    assert (config.kind, config.n_train, config.n_test, config.size_px) == (DataKind.scenes, 3000, 1000, 104)
    assert config.on_error is RAISE


def test_choices_are_typed_by_name():
    config = compose("kind=image_folder", "root=photos", "on_error=skip", "resize=crop")
    assert (config.kind, config.on_error, config.resize) == (DataKind.image_folder, SKIP, Resize.crop)
    assert compose("on_error=raise").on_error is RAISE


def test_a_wrong_choice_lists_the_right_ones():
    with pytest.raises(OmegaConfBaseException, match="raise, skip"):
        compose("on_error=stop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["kind=image_folder"], "Expected a root for data.kind=image_folder, got none"),
        (["root=photos"], "Expected no data.root for data.kind=scenes, got 'photos'"),
        (["n_train=0"], "data.n_train to be at least 1, got 0"),
        (["n_test=0"], "data.n_test to be at least 1, got 0"),
        (["size_px=31"], "data.size_px to be at least 32, got 31"),
        (["seed=-1"], "data.seed to be at least 0, got -1"),
        (["n_workers=-1"], "data.n_workers to be at least 0, got -1"),
        (["test_share=1.0"], "data.test_share to be at least 0 and below 1, got 1.0"),
        (["test_share=-0.1"], "data.test_share to be at least 0 and below 1, got -0.1"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        compose(*changes)


def test_scenes_are_opened_where_they_were_rendered(tmp_path):
    folders = {split: tmp_path / split for split in ("train", "test")}
    for split, folder in folders.items():
        folder.mkdir()
        save_scenes(folder, 0, split, 2, 32)
    train, test = make_image_sets(DataConfig(n_train=2, n_test=2, size_px=32), folders)
    assert isinstance(train, SceneSet)
    assert (train.split, test.split) == ("train", "test")


def test_an_image_folder_is_split_as_configured(tmp_path):
    for i in range(20):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
    config = DataConfig(
        kind=DataKind.image_folder, root=str(tmp_path), seed=2, test_share=0.5, resize=Resize.crop, on_error=SKIP
    )
    train, test = make_image_sets(config)
    expected = ImageFolder(tmp_path, "test", seed=2, test_share=0.5, resize=Resize.crop, on_error=SKIP)
    assert test.image_ids == expected.image_ids
    assert test.fingerprint == expected.fingerprint
    assert len(train) + len(test) == 20
