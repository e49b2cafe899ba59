"""OpenAI's own files are TorchScript archives: their tensors are read, and nothing in them is run."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted.torchscript import is_torchscript, read_torchscript
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from tests.support.clip_samples import make_clip, make_clip_cfg, make_images

ARCH = "ViT-B-16"
CFG = {**make_clip_cfg(), "quick_gelu": True}


class OpenAIClip(nn.Module):
    """What OpenAI traced: both towers, and three numbers kept as buffers."""

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        for name, child in clip.named_children():
            self.add_module(name, child)
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.logit_scale = clip.logit_scale
        self.register_buffer("input_resolution", torch.tensor(clip.visual.image_size[0]))
        self.register_buffer("context_length", torch.tensor(clip.context_length))
        self.register_buffer("vocab_size", torch.tensor(clip.vocab_size))
        self.register_buffer("attn_mask", clip.attn_mask)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x, attn_mask=self.attn_mask))[:, -1] @ self.text_projection
        return self.logit_scale.exp() * self.visual(image) @ x.T


@pytest.fixture
def clip() -> open_clip.CLIP:
    """Weights that survive half precision, in which OpenAI's files are."""
    clip = make_clip(CFG)
    for parameter in clip.parameters():
        parameter.copy_(parameter.half().float())
    return clip


@pytest.fixture
def archive(clip, tmp_path) -> Path:
    path = tmp_path / "ViT-B-16.pt"
    inputs = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer: shapes become constants
        traced = torch.jit.trace(OpenAIClip(copy.deepcopy(clip)).eval(), inputs, check_trace=False)
    traced.half().save(str(path))
    return path


@pytest.fixture(autouse=True)
def tiny_arch(monkeypatch) -> None:
    cfg = make_clip_cfg()  # it says nothing of QuickGELU, as open_clip's ViT-B-16 does not
    monkeypatch.setattr(open_clip, "get_model_config", lambda _name: copy.deepcopy(cfg))


def test_the_tensors_are_those_that_torch_reads(archive):
    theirs = torch.jit.load(str(archive)).state_dict()
    ours = read_torchscript(archive)
    assert is_torchscript(archive)
    assert set(ours) == set(theirs) - {"input_resolution", "context_length", "vocab_size", "attn_mask"}
    for name, value in ours.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, theirs[name])


def test_a_backbone_of_it_is_the_clip_with_quick_gelu(clip, archive, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_args, **_options: pytest.fail("the archive's code was loaded"))
    backbone = load_backbone(ModelConfig("tiny", arch=ARCH, pretrained=str(archive)))
    assert isinstance(backbone, OpenClipBackbone)
    images = make_images(2)
    with torch.inference_mode():
        expected = clip.encode_image(backbone.normalise(images), normalize=True)
    assert torch.equal(backbone.embed_images(images), expected)
    assert backbone.visual.proj.dtype == torch.float32
    plain = load_backbone(ModelConfig("tiny", arch=ARCH, pretrained=str(archive), quick_gelu=False))
    assert (plain.tokens(images, -2).patches - backbone.tokens(images, -2).patches).abs().max() > 1e-4
    assert plain.fingerprint != backbone.fingerprint


def refuse(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(ModelConfig("tiny", arch=ARCH, pretrained=str(path)))
    assert "\n" not in str(caught.value)


def test_another_architecture_is_one_sentence(tmp_path):
    path = tmp_path / "other.pt"
    torch.jit.script(nn.Linear(3, 2)).save(str(path))
    refuse(path, r"other\.pt does not fit model\.arch=ViT-B-16")


def test_a_damaged_archive_is_one_sentence(archive, tmp_path):
    path = tmp_path / "broken.pt"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if "/data/" not in name:
                target.writestr(name, source.read(name))
    refuse(path, r"Cannot read weights file .*broken\.pt")
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("jit/code/model.py", "")
    refuse(path, r"Cannot read weights file .*broken\.pt")


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_a_command_in_its_pickle_is_refused_and_does_not_run(tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "it_ran"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("evil/code/model.py", "")
        target.writestr("evil/data.pkl", pickle.dumps(Malicious(trace), protocol=2))
    refuse(path, r"Cannot read weights file .*evil\.pt: it asks for posix\.mkdir, which runs commands")
    assert not trace.exists()
