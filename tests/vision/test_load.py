"""The dispatcher of backbone families: a new one is a folder and a line in its table."""

import sys
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from infoscope.vision import load
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import compute_model_fingerprint, find_facts, load_backbone, make_backbone
from tests.support.clip_samples import make_images

FAMILY = """
from infoscope.vision.planted import ContextFree


def fingerprint(config, trained_folder):
    return {"kind": "toy", "seed": config.seed, "trained": str(trained_folder)}


def count_blocks(config):
    return 2


def facts(config, trained_folder):
    return None


def make(config, trained_folder):
    backbone = ContextFree(grid=4, patch_px=8, d_in=6, seed=config.seed)
    backbone.fingerprint = fingerprint(config, trained_folder)
    backbone.notes = "a toy."
    return backbone
"""


class ToyKind(Enum):
    """What a line in `ModelKind` would be."""

    toy = "toy"


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Iterator[ModelConfig]:
    folder = tmp_path / "toy_family"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(load.FAMILIES, "toy", "toy_family.family")
    config = ModelConfig("toy", kind=ToyKind.toy, seed=3)  # pyright: ignore[reportArgumentType]
    yield config
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_family"]:
        del sys.modules[name]


def test_every_kind_has_a_family_that_offers_the_whole_interface():
    assert set(load.FAMILIES) == {kind.name for kind in ModelKind} - {ModelKind.own.name}  # another one stands for it
    for module in map(import_module, load.FAMILIES.values()):
        assert isinstance(module, ModuleType)
        assert all(callable(getattr(module, name)) for name in ("fingerprint", "facts", "make"))


def test_a_new_family_is_a_folder_and_a_line(toy, caplog):
    assert "toy_family.family" not in sys.modules  # imported when it is first asked for
    assert compute_model_fingerprint(toy, Path("a")) == {"kind": "toy", "seed": 3, "trained": "a"}
    assert find_facts(toy) is None
    made, loaded = make_backbone(toy), load_backbone(toy, seed=4, progress=False)
    assert (made.fingerprint["seed"], loaded.fingerprint["seed"]) == (3, 4)
    assert not made.training
    assert "a toy." in caplog.text
    tokens = made.tokens(make_images(2, 32), layer=0)
    assert tokens.patches.shape == (2, 16, 6)
    assert not torch.equal(tokens.patches, loaded.tokens(make_images(2, 32), layer=0).patches)
