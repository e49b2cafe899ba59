"""Files that hold several sets of weights: the averaged one is read and that is said, or the user is asked."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import compute_checksum
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import compute_model_fingerprint, find_facts, load_backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.weights.sets import choose_set, read_weights
from tests.support.clip_samples import make_clip, make_clip_cfg, make_images

State = dict[str, Tensor]
ARCH = "ViT-B-16"


@pytest.fixture(scope="module")
def raw() -> State:
    return dict(make_clip(seed=0).state_dict())


@pytest.fixture(scope="module")
def ema() -> State:
    return dict(make_clip(seed=1).state_dict())


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


AVERAGED = {
    "timm": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "DeiT": lambda raw, ema: {"model": raw, "model_ema": ema},
    "ema": lambda raw, ema: {"model": raw, "ema": ema},
    "ema_state_dict": lambda raw, ema: {"state_dict": raw, "ema_state_dict": under("module.", ema)},
    "model_ema_state_dict": lambda raw, ema: {"model_state_dict": raw, "model_ema_state_dict": ema},
    "DINO": lambda raw, ema: {"student": under("module.backbone.", raw), "teacher": under("backbone.", ema)},
    "DINOv2": lambda raw, ema: {"model": {**under("student.backbone.", raw), **under("teacher.backbone.", ema)}},
    "Lightning": lambda raw, ema: {"state_dict": {**under("model.", raw), **under("ema_model.module.", ema)}},
    "Lightning model_ema": lambda raw, ema: {"state_dict": {**under("net.", raw), **under("model_ema.", ema)}},
    "Lightning beside bare names": lambda raw, ema: {"state_dict": {**raw, **under("ema.", ema)}},
    "Lightning averaging": lambda raw, ema: {
        "state_dict": under("model.", ema),
        "current_model_state": under("model.", raw),
        "averaging_state": {"n_averaged": torch.tensor(4)},
    },
    "Lightning callback": lambda raw, ema: {
        "state_dict": under("model.", raw),
        "callbacks": {"StochasticWeightAveraging{'a': 0.5}": {"average_model_state": under("model.", ema)}},
    },
    "two averages": lambda raw, ema: {"state_dict": raw, "model_ema": raw, "state_dict_ema": ema},  # timm's order
}


@pytest.mark.long
@pytest.mark.parametrize("spelling", AVERAGED)
def test_the_averaged_set_is_read_and_said(raw, ema, tmp_path, spelling):
    training = {
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}},
        "args": argparse.Namespace(lr=1),
    }
    path = save({**AVERAGED[spelling](raw, ema), **training}, tmp_path / "checkpoint.pth")
    found = read_weights(path, ARCH)
    assert found.state.keys() == ema.keys()
    assert all(torch.equal(found.state[name], value) for name, value in ema.items())
    assert found.notes[0].startswith(f"of {1 + len(found.others)} sets of weights {found.chosen} is read, not ")
    assert found.left_out == ()
    assert choose_set(path, ARCH, None) == found.chosen
    for other in found.others:  # each of the others can be asked for by the name that is said
        asked = read_weights(path, ARCH, other)
        assert torch.equal(asked.state["visual.proj"], raw["visual.proj"])
        assert choose_set(path, ARCH, other) == other


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda raw, ema: {**under("one.", raw), **under("two.", ema)}, "one or model.weights_key=two"),
        (lambda raw, ema: {"base_encoder": raw, "momentum_encoder": ema}, "base_encoder or .*=momentum_encoder"),
        (
            lambda raw, ema: {"student": raw, "teacher": make_clip(make_clip_cfg(layers=5)).state_dict()},
            "student or .*=teacher",
        ),
        (lambda raw, ema: {**raw, **{f"model_ema.{n.replace('.', '')}": v for n, v in ema.items()}}, "raw"),
        (lambda raw, ema: {"model": raw, "ema": {"shadow_params": list(ema.values())}}, "model"),
    ],
)
def test_where_no_rule_decides_the_user_is_asked(raw, ema, tmp_path, content, named):
    path = save(content(raw, ema), tmp_path / "checkpoint.pth")
    for read in (read_weights, choose_set):
        with pytest.raises(InputError, match=rf"checkpoint\.pth holds .*: choose by model\.weights_key=.*{named}"):
            read(path, ARCH, None)
    key = named.rpartition("=")[2]
    assert read_weights(path, ARCH, key).state


def test_a_key_that_names_no_set_is_refused(raw, ema, tmp_path):
    path = save({"student": under("backbone.", raw), "teacher": under("backbone.", ema)}, tmp_path / "a.pth")
    assert torch.equal(read_weights(path, ARCH, "student").state["visual.proj"], raw["visual.proj"])
    for key in ("optimizer", "backbone", "stud"):  # none, both, half of a name
        with pytest.raises(InputError, match=r"model\.weights_key .*\(student\.backbone, teacher\.backbone\), got"):
            read_weights(path, ARCH, key)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "name": "run", "state_dict": under("module.", state), "optimizer": {}, "scaler": {}},
        lambda state: {"n_averaged": torch.tensor(5), **under("module.", state)},
        lambda state: under("_orig_mod.module.", state),
        lambda state: under("module._orig_mod.", state),
        lambda state: {
            n.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module."): v for n, v in state.items()
        },
        lambda state: {"state_dict": under("model.clip._orig_mod.", state), "hyper_parameters": {"lr": 0.1}},
        lambda state: {"model": {"state_dict": under("backbone.", state)}},
        lambda state: {"module": state},
    ],
)
def test_wrappers_of_one_set_say_nothing(raw, tmp_path, wrap):
    path = save(wrap(raw), tmp_path / "a.pt")
    found = read_weights(path, ARCH)
    assert (found.chosen, found.notes) == ("", [])
    assert choose_set(path, ARCH, None) == ""
    assert {name for name in found.state if name != "n_averaged"} == raw.keys()
    assert all(torch.equal(found.state[name], value) for name, value in raw.items())


def test_what_else_is_in_the_file_is_named(raw, tmp_path):
    more = {"state_dict.head.weight": torch.ones(2, 2), "decoder.0.weight": torch.ones(2), "scheduler.x": torch.ones(2)}
    path = save({**under("state_dict.model.", raw), **more}, tmp_path / "a.pt")
    assert read_weights(path, ARCH).left_out == ("state_dict.head", "decoder")


OTHERS = {
    "lora": ({"base.q_proj.lora_A.weight": (4, 2)}, "a LoRA or PEFT adapter: merge it"),
    "sae": ({"W_enc": (4, 8), "W_dec": (8, 4), "b_enc": (8,)}, "a sparse autoencoder .*no backbone"),
    "overcomplete": ({"dictionary._weights": (8, 4), "encoder.final_block.0.weight": (8, 4)}, "a sparse autoencoder"),
    "resnet": ({"conv1.weight": (8, 3, 7, 7), "layer1.0.conv1.weight": (8, 8, 3, 3)}, "a ResNet"),
    "diffusers": ({"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)}, "a diffusion model"),
    "torchvision": (
        {"conv_proj.weight": (8, 3, 4, 4), "encoder.layers.encoder_layer_0.ln_1.weight": (8,)},
        "torchvision",
    ),
    "optimizer": ({"optimizer.state.0.exp_avg": (4, 4)}, "the state of an optimizer alone"),
    "text": ({"text_model.embeddings.token_embedding.weight": (9, 4)}, "a text tower alone"),
    "part": ({"blocks.0.attn.qkv.weight": (12, 4)}, "without its patch embedding"),
    "unknown": ({"fc.weight": (2, 2)}, "nothing that is known"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_without_an_image_tower_is_named_by_its_content(tmp_path, name):
    shapes, words = OTHERS[name]
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path)
    message = (
        rf"other\.safetensors does not fit .*: it holds {len(shapes)} tensors .* no image tower .*looks like .*{words}"
    )
    with pytest.raises(InputError, match=message) as caught:
        choose_set(path, ARCH, None)
    assert next(iter(shapes)) in str(caught.value)


class TestBackbones:
    @pytest.fixture(autouse=True)
    def _tiny_arch(self, monkeypatch) -> None:
        monkeypatch.setattr(open_clip, "get_model_config", lambda _name: copy.deepcopy(make_clip_cfg()))

    def test_the_choice_is_told_and_is_in_the_fingerprint(self, raw, ema, tmp_path, caplog):
        path = save({"state_dict": raw, "state_dict_ema": ema}, tmp_path / "a.pt")
        config = ModelConfig("tiny", arch=ARCH, pretrained=str(path), quick_gelu=False)
        backbone = load_backbone(config)
        assert isinstance(backbone, OpenClipBackbone)
        assert torch.equal(backbone.visual.get_parameter("proj"), ema["visual.proj"])
        assert "of 2 sets of weights state_dict_ema is read, not state_dict" in caplog.text
        assert backbone.fingerprint["weights"].endswith(":state_dict_ema")
        config.weights_key = "state_dict"
        assert torch.equal(load_backbone(config).get_parameter("visual.proj"), raw["visual.proj"])
        fingerprint = compute_model_fingerprint(config)["weights"]
        assert fingerprint == f"sha256:{compute_checksum(path)}:state_dict"
        facts = find_facts(config)
        assert facts is not None
        assert facts.words.endswith(", state_dict of the sets of weights in the file")

    def test_python_chooses_by_an_argument(self, raw, ema, tmp_path, caplog):
        path = save({"student": raw, "teacher": ema}, tmp_path / "a.pt")
        backbone = load_backbone(f"ViT-B-16:{path}", quick_gelu=False, weights_key="student")
        assert isinstance(backbone, OpenClipBackbone)
        assert torch.equal(backbone.visual.get_parameter("proj"), raw["visual.proj"])
        assert "(weights_key chooses)" in caplog.text
        with pytest.raises(InputError, match=r"Expected weights_key to be .*\(student, teacher\), got 'other'"):
            load_backbone(f"ViT-B-16:{path}", quick_gelu=False, weights_key="other")
        with pytest.raises(InputError, match="chooses among the sets of weights in a local file"):
            load_backbone("ViT-B-16:random", weights_key="student")

    def test_a_file_that_holds_no_weights_is_said_before_its_origin_is_asked_for(self, tmp_path):
        (tmp_path / "a.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n")
        with pytest.raises(InputError, match="a git-lfs pointer"):
            compute_model_fingerprint(ModelConfig("tiny", arch=ARCH, pretrained=str(tmp_path / "a.pt")))

    def test_an_image_tower_alone_gives_tokens_and_no_predictions(self, raw, tmp_path, caplog):
        whole = load_backbone(
            ModelConfig("tiny", arch=ARCH, pretrained=str(save(raw, tmp_path / "a.pt")), quick_gelu=False)
        )
        assert isinstance(whole, OpenClipBackbone)
        visual = {name: value for name, value in raw.items() if name.startswith("visual.")}
        bare = {f"image_encoder.{name.removeprefix('visual.')}": value for name, value in visual.items()}
        images = make_images(2)
        for state in (visual, {**visual, "logit_scale": raw["logit_scale"]}, bare):
            path = save(state, tmp_path / "tower.pt")
            tower = load_backbone(ModelConfig("tiny", arch=ARCH, pretrained=str(path), quick_gelu=False))
            assert isinstance(tower, OpenClipBackbone)
            assert torch.equal(tower.tokens(images, -2).patches, whole.tokens(images, -2).patches)
            assert torch.equal(tower.embed_images(images), whole.embed_images(images))
            assert "no text tower" in caplog.text
            with pytest.raises(InputError, match="hold an image tower alone"):
                _ = tower.logit_scale
            with pytest.raises(InputError, match="hold an image tower alone"):
                tower.embed_texts(["a"])
            with pytest.raises(InputError, match="hold an image tower alone"):
                tower.embed_tokens(tower.tokens(images, -2), -2)

    @pytest.mark.parametrize("missing", ["ln_final.weight", "logit_scale", "visual.ln_post.bias", "visual.proj"])
    def test_a_part_that_is_missing_is_named(self, raw, tmp_path, missing):
        path = save({name: value for name, value in raw.items() if name != missing}, tmp_path / "a.pt")
        with pytest.raises(
            InputError, match=rf"a\.pt does not fit model\.arch=ViT-B-16: it lacks {missing}; give the whole"
        ):
            load_backbone(ModelConfig("tiny", arch=ARCH, pretrained=str(path), quick_gelu=False))
