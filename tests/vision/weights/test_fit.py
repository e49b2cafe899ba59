"""Weights that do not fit are refused by both sizes, by names and shapes, and by an architecture that they fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.weights.fit import check_fit, check_size
from tests.support.clip_samples import make_clip, make_clip_cfg

State = dict[str, Tensor]


def make_meta(arch: str) -> Any:
    """Return an architecture of open_clip's or timm's without numbers, with a small text tower."""
    with torch.device("meta"):
        if timm.is_model(arch):
            return timm.create_model(arch, num_classes=0)
        cfg = copy.deepcopy(open_clip.get_model_config(arch))
        assert cfg is not None
        text = {**cfg["text_cfg"], "layers": 1}
        make = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
        return make(**{**cfg, "text_cfg": text})


@pytest.mark.long
@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (
            "ViT-B-16",
            "ViT-L-14",
            "768 wide, 12 blocks deep, .* 16 px; that of ViT-L-14 is 1024 .*=ViT-B-16 or",
        ),
        ("ViT-B-32", "ViT-B-16", "patches of 32 px; that of ViT-B-16 is .* 16 px; give model.arch=ViT-B-32"),
        ("ViT-B-16", "vit_base_patch14_dinov2", "give model.kind=open_clip model.arch=ViT-B-16"),
        ("vit_small_patch14_dinov2", "ViT-B-16", "384 wide.*give model.kind=timm model.arch=vit_small_patch14_dinov2"),
    ],
)
def test_a_tower_of_another_size(theirs, ours, words):
    state = make_meta(theirs).state_dict()
    with pytest.raises(InputError, match=rf"w\.pt does not fit model\.arch={ours}: its image tower is .*{words}"):
        check_size(make_meta(ours), state, Path("w.pt"), ours, None)
    assert check_size(make_meta(theirs), state, Path("w.pt"), theirs, None) == ()


def test_positions_of_another_grid_that_cannot_be_interpolated():
    state, model = make_meta("ViT-B-16-SigLIP").state_dict(), make_meta("ViT-B-16-SigLIP-384")
    words = (
        r"its visual\.trunk\.pos_embed is \[1, 196, 768\], expected \[1, 576, 768\]; give model\.arch=ViT-B-16-SigLIP"
    )
    with pytest.raises(InputError, match=words):
        check_fit(model, state, Path("w.pt"), "ViT-B-16-SigLIP-384", state)


@pytest.mark.long
def test_registers_that_the_file_lacks(tmp_path):
    path, theirs = tmp_path / "w.pt", "vit_small_patch14_dinov2"
    torch.save({name: torch.zeros(value.shape).half() for name, value in make_meta(theirs).state_dict().items()}, path)
    options: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3, "pretrained": str(path)}
    config = ModelConfig("t", kind=ModelKind.timm, arch="vit_small_patch14_reg4_dinov2", **options)
    with pytest.raises(InputError, match=f"it lacks reg_token; its pos_embed is .*give model.arch={theirs}"):
        load_backbone(config)


class TestValues:
    @pytest.fixture(autouse=True)
    def _tiny_arch(self, monkeypatch) -> None:
        monkeypatch.setattr(open_clip, "get_model_config", lambda _name: copy.deepcopy(make_clip_cfg()))

    def load(self, state: State, path: Path, **options: Any) -> OpenClipBackbone:
        torch.save(state, path)
        config = ModelConfig("tiny", arch="ViT-B-16", pretrained=str(path), quick_gelu=False, **options)
        backbone = load_backbone(config)
        assert isinstance(backbone, OpenClipBackbone)
        return backbone

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_become_float32(self, tmp_path, dtype):
        state = {name: value.to(dtype) for name, value in make_clip().state_dict().items()}
        backbone = self.load(state, tmp_path / "w.pt")
        for name, value in backbone.clip.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state[name].float())
        larger = self.load(state, tmp_path / "w.pt", image_px=48)  # positions of half precision are interpolated too
        assert larger.notes == ""
        assert larger.grid == 6

    def test_positions_that_nobody_asked_to_interpolate_are_told(self, tmp_path):
        state = make_clip(make_clip_cfg(image_size=48)).state_dict()
        assert "positions of 6 x 6 patches are interpolated to 4 x 4" in self.load(state, tmp_path / "w.pt").notes

    def test_quantised_weights_are_refused(self, tmp_path):
        state = make_clip().state_dict()
        with pytest.raises(InputError, match=r"holds visual\.proj as int8: it is quantised"):
            self.load({**state, "visual.proj": (100 * state["visual.proj"]).to(torch.int8)}, tmp_path / "w.pt")

    def test_what_the_model_has_not_is_refused(self, tmp_path):
        state = make_clip().state_dict()
        with pytest.raises(InputError, match=r"it holds visual\.extra\.weight; give the whole file"):
            self.load({**state, "visual.extra.weight": torch.ones(3)}, tmp_path / "w.pt")
