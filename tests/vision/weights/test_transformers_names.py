"""transformers' layouts of CLIP, SigLIP, DINOv2, ViT and MAE give the tokens of the same weights under other names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.clip_backbone import ClipBackbone
from infoscope.vision.open_clip.weights import load_weights
from infoscope.vision.timm.weights import load_timm_weights
from infoscope.vision.weights.transformers_names import translate
from tests.support.clip_samples import make_clip, make_clip_cfg, make_images

State = dict[str, Tensor]
NORMS = ("weight", "bias")


def split(state: State, joint: str, parts: tuple[str, ...], kinds: tuple[str, str] = (".weight", ".bias")) -> State:
    """Return the parts of a joint matrix of queries, keys and values, each under its name."""
    found = {}
    for kind, theirs in zip(kinds, (".weight", ".bias"), strict=True):
        for part, value in zip(parts, state[joint + kind].chunk(3), strict=True):
            found[part + theirs] = value
    return found


def move(state: State, ours: str, theirs: str) -> State:
    return {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in NORMS}


def write_clip_tower(state: State, ours: str, theirs: str, n_layers: int) -> State:
    """Return the blocks of one of CLIP's towers."""
    found = {}
    for i in range(n_layers):
        block, layer = f"{ours}.resblocks.{i}", f"{theirs}.encoder.layers.{i}"
        parts = tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv")
        found |= split(state, f"{block}.attn.in_proj", parts, ("_weight", "_bias"))
        found |= move(state, f"{block}.attn.out_proj", f"{layer}.self_attn.out_proj")
        found |= move(state, f"{block}.ln_1", f"{layer}.layer_norm1") | move(
            state, f"{block}.ln_2", f"{layer}.layer_norm2"
        )
        found |= move(state, f"{block}.mlp.c_fc", f"{layer}.mlp.fc1") | move(
            state, f"{block}.mlp.c_proj", f"{layer}.mlp.fc2"
        )
    return found


def write_text(state: State, n_layers: int, prefix: str = "") -> State:
    return {
        "text_model.embeddings.token_embedding.weight": state[f"{prefix}token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state[f"{prefix}positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(8)[None],
        **move(state, f"{prefix}ln_final", "text_model.final_layer_norm"),
        **write_clip_tower(state, f"{prefix}transformer", "text_model", n_layers),
    }


def write_clip(state: State) -> State:
    """Return the weights of an open_clip CLIP as transformers' CLIPModel names them."""
    return {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        **write_text(state, 1),
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        **move(state, "visual.ln_pre", "vision_model.pre_layrnorm"),
        **move(state, "visual.ln_post", "vision_model.post_layernorm"),
        **write_clip_tower(state, "visual.transformer", "vision_model", 4),
    }


def write_siglip(state: State) -> State:
    """Return the weights of open_clip's SigLIP as transformers' SiglipModel names them."""
    trunk = {name.removeprefix("visual.trunk."): v for name, v in state.items() if name.startswith("visual.trunk.")}
    pool, found = "vision_model.head", {}
    for i in range(3):
        block, layer = f"blocks.{i}", f"vision_model.encoder.layers.{i}"
        found |= split(trunk, f"{block}.attn.qkv", tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv"))
        found |= move(trunk, f"{block}.attn.proj", f"{layer}.self_attn.out_proj")
        for part, theirs in {
            "norm1": "layer_norm1",
            "norm2": "layer_norm2",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
        }.items():
            found |= move(trunk, f"{block}.{part}", f"{layer}.{theirs}")
    for kind in NORMS:
        joint = [trunk[f"attn_pool.{part}.{kind}"] for part in ("q", "kv")]
        found[f"{pool}.attention.in_proj_{kind}"] = torch.cat(joint)
    for part, theirs in {
        "proj": "attention.out_proj",
        "norm": "layernorm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items():
        found |= move(trunk, f"attn_pool.{part}", f"{pool}.{theirs}")
    return {
        "logit_scale": state["logit_scale"][None],
        "logit_bias": state["logit_bias"][None],
        **write_text(state, 1, "text."),
        **move(state, "text.text_projection", "text_model.head"),
        **move(trunk, "patch_embed.proj", "vision_model.embeddings.patch_embedding"),
        "vision_model.embeddings.position_embedding.weight": trunk["pos_embed"][0],
        **move(trunk, "norm", "vision_model.post_layernorm"),
        f"{pool}.probe": trunk["attn_pool.latent"],
        **found,
    }


def write_vit(state: State, depth: int, kind: str) -> State:
    """Return the weights of a timm tower as transformers' Dinov2Model or ViTModel names them."""
    dinov2 = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    swiglu = {**dinov2, "mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    vit = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    found = {}
    for i in range(depth):
        block, layer = f"blocks.{i}", f"encoder.layer.{i}"
        parts = tuple(f"{layer}.attention.attention.{part}" for part in ("query", "key", "value"))
        output = f"{layer}.attention.output.dense"
        if kind == "dinov2 of 5.24":
            parts, output = tuple(f"{layer}.attention.{part}_proj" for part in "qkv"), f"{layer}.attention.o_proj"
        found |= split(state, f"{block}.attn.qkv", parts) | move(state, f"{block}.attn.proj", output)
        for ours, theirs in {"swiglu": swiglu, "vit": vit}.get(kind, dinov2).items():
            found |= move(state, f"{block}.{ours}", f"{layer}.{theirs}")
        if kind != "vit":
            found |= {f"{layer}.layer_scale{n}.lambda1": state[f"{block}.ls{n}.gamma"] for n in (1, 2)}
    cls, positions = state["cls_token"], state["pos_embed"]
    if "reg_token" in state:  # timm has the position of CLS in CLS itself
        of_cls = torch.full_like(cls, 0.25)
        cls, positions = cls - of_cls, torch.cat([of_cls, positions], 1)
        found["embeddings.register_tokens"] = state["reg_token"]
    if kind != "vit":
        found["embeddings.mask_token"] = torch.zeros(1, cls.shape[-1])
    return {
        "embeddings.cls_token": cls,
        "embeddings.position_embeddings": positions,
        **move(state, "patch_embed.proj", "embeddings.patch_embeddings.projection"),
        **move(state, "norm", "layernorm"),
        **found,
    }


def save(state: State, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def randomise(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


class TestClip:
    @pytest.fixture(autouse=True)
    def _tiny_arch(self, monkeypatch) -> None:
        monkeypatch.setattr(open_clip, "get_model_config", lambda _name: copy.deepcopy(make_clip_cfg()))

    def load(self, path: Path) -> ClipBackbone:
        backbone = load_backbone(ModelConfig("tiny", arch="ViT-B-16", pretrained=str(path), quick_gelu=False))
        assert isinstance(backbone, ClipBackbone)
        return backbone

    @pytest.mark.parametrize("prefix", ["", "model.clip.", "module."])
    def test_a_whole_clip(self, tmp_path, prefix):
        clip = make_clip()
        theirs = {prefix + name: value for name, value in write_clip(dict(clip.state_dict())).items()}
        backbone, images = self.load(save(theirs, tmp_path / "model.safetensors")), make_images(2)
        assert backbone.notes == ""
        for name, value in clip.state_dict().items():
            assert torch.equal(backbone.clip.state_dict()[name], value)
        with torch.inference_mode():
            assert torch.equal(
                backbone.embed_images(images), clip.encode_image(backbone.normalise(images), normalize=True)
            )
        assert backbone.logit_scale == float(clip.logit_scale.exp())

    @pytest.mark.parametrize("with_projection", [True, False])
    @pytest.mark.parametrize("is_bare", [True, False])
    def test_its_image_tower_alone(self, tmp_path, with_projection, is_bare):
        clip = make_clip()
        theirs = {n: v for n, v in write_clip(dict(clip.state_dict())).items() if n.startswith("vision_model.")}
        if is_bare:
            theirs = {name.removeprefix("vision_model."): value for name, value in theirs.items()}
        if with_projection and not is_bare:
            theirs["visual_projection.weight"] = clip.state_dict()["visual.proj"].T
        backbone, images = self.load(save(theirs, tmp_path / "model.safetensors")), make_images(2)
        whole = self.load(save(write_clip(dict(clip.state_dict())), tmp_path / "whole.safetensors"))
        assert torch.equal(backbone.tokens(images, -1).patches, whole.tokens(images, -1).patches)
        assert torch.equal(backbone.resume(backbone.tokens(images, 0), 0), whole.resume(whole.tokens(images, 0), 0))
        with pytest.raises(InputError, match="hold an image tower alone"):
            _ = backbone.logit_scale
        if "visual_projection.weight" in theirs:
            assert torch.equal(backbone.embed_images(images), whole.embed_images(images))
        else:
            with pytest.raises(InputError, match="no projection, so images have no embeddings"):
                backbone.embed_images(images)

    def test_a_missing_key_or_value_is_refused(self, tmp_path):
        theirs = write_clip(dict(make_clip().state_dict()))
        del theirs["vision_model.encoder.layers.2.self_attn.k_proj.bias"]
        with pytest.raises(InputError, match=r"it lacks visual\.transformer\.resblocks\.2\.attn\.in_proj_bias"):
            self.load(save(theirs, tmp_path / "model.safetensors"))

    def test_both_layouts_of_the_text_tower_fit_both(self, tmp_path):
        clip = make_clip()
        state = dict(clip.state_dict())
        custom = {n if n.startswith(("visual.", "logit")) else f"text.{n}": v for n, v in state.items()}
        assert self.load(save(custom, tmp_path / "custom.safetensors")).notes == ""
        other = open_clip.CustomTextCLIP(**make_clip_cfg()).eval()
        for name, content in {"plain": state, "custom": custom, "transformers": write_clip(state)}.items():
            path = save(content, tmp_path / f"{name}.safetensors")
            load_weights(other, path, ModelConfig("tiny", arch="ViT-B-16", pretrained=str(path)))
            assert torch.equal(other.state_dict()["text.text_projection"], state["text_projection"])


@pytest.fixture(scope="module")
def siglip() -> Any:
    """open_clip's SigLIP with its timm tower made small."""
    cfg = copy.deepcopy(open_clip.get_model_config("ViT-B-16-SigLIP"))
    assert cfg is not None
    cfg["vision_cfg"].update(image_size=32)
    cfg["text_cfg"].update(context_length=8, vocab_size=20, width=16, heads=2, layers=1)
    model = open_clip.CustomTextCLIP(**{k: v for k, v in cfg.items() if k != "custom_text"})
    model.visual.trunk.blocks = model.visual.trunk.blocks[:3]
    return randomise(model)


@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.long
def test_siglip(siglip, tmp_path, with_text):
    theirs = write_siglip(dict(siglip.state_dict()))
    if not with_text:
        theirs = {name: value for name, value in theirs.items() if name.startswith("vision_model.")}
    path = save(theirs, tmp_path / "model.safetensors")
    model = copy.deepcopy(siglip)
    for parameter in model.parameters():
        parameter.zero_()
    loaded = load_weights(model, path, ModelConfig("s", arch="ViT-B-16-SigLIP", pretrained=str(path)))
    assert loaded.has_text is with_text
    for name, value in siglip.state_dict().items():
        if with_text or name.startswith("visual."):
            assert torch.equal(model.state_dict()[name], value)


def make_tower(kind: str, n_registers: int = 0) -> VisionTransformer:
    own: dict[str, Any] = {"vit": {}, "swiglu": {"init_values": 0.1, "mlp_layer": SwiGLUPacked}}.get(
        kind, {"init_values": 0.1}
    )
    registers = {"reg_tokens": n_registers, "no_embed_class": True} if n_registers else {}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}
    return randomise(VisionTransformer(**{**sizes, **own, **registers}))


@pytest.mark.long
@pytest.mark.parametrize("prefix", ["", "dinov2.", "backbone.dinov2_with_registers."])
@pytest.mark.parametrize(
    ("kind", "n_registers"),
    [("dinov2", 0), ("dinov2", 4), ("dinov2 of 5.24", 0), ("swiglu", 0), ("swiglu", 4), ("vit", 0)],
)
def test_towers_of_timm(tmp_path, kind, n_registers, prefix):
    tower = make_tower(kind, n_registers)
    theirs = {prefix + name: v for name, v in write_vit(dict(tower.state_dict()), 3, kind).items()}
    more = {"classifier.weight": torch.ones(5, 32)} if prefix else {"pooler.dense.weight": torch.ones(32, 32)}
    path = save({**theirs, **more}, tmp_path / "model.safetensors")
    again = randomise(make_tower(kind, n_registers))
    config = ModelConfig("t", kind=ModelKind.timm, arch="tiny", pretrained=str(path))
    notes = load_timm_weights(again, path, "tiny", config)
    assert notes == (("classifier in it is not read",) if prefix else ())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again.forward_features(pixels), tower.forward_features(pixels), rtol=1e-6, atol=1e-6)


def test_dinov2_as_it_is_trained(tmp_path):
    """Its blocks lie in chunks, its teacher beside a head."""
    tower = make_tower("dinov2", 4)
    state = dict(tower.state_dict())
    of_cls = torch.full((1, 1, 32), 0.25)
    state |= {"cls_token": state["cls_token"] - of_cls, "pos_embed": torch.cat([of_cls, state["pos_embed"]], 1)}
    named = {
        n.replace("blocks.", f"blocks.{int(n.split('.')[1]) // 2}.") if n[:3] == "blo" else n: v
        for n, v in state.items()
    }
    named["register_tokens"] = named.pop("reg_token")
    path = tmp_path / "teacher_checkpoint.pth"
    torch.save({"teacher": {**{f"backbone.{n}": v for n, v in named.items()}, "dino_head.mlp.0.weight": of_cls}}, path)
    again = make_tower("dinov2", 4)
    config = ModelConfig("t", kind=ModelKind.timm, arch="tiny", pretrained=str(path))
    assert load_timm_weights(again, path, "tiny", config) == ("teacher.dino_head in it is not read",)
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_names_that_no_rule_knows_stay():
    state = {
        "embeddings.patch_embeddings.projection.weight": torch.ones(2, 3, 4, 4),
        "encoder.layer.0.gate": torch.ones(2),
    }
    assert set(translate(state)) == {"patch_embed.proj.weight", "encoder.layer.0.gate"}
    assert set(translate({"other": torch.ones(1)})) == {"other"}


class TestAgainstTransformers:
    """The same forward passes as transformers' own models, where that package is installed."""

    def test_dinov2(self, tmp_path):
        theirs_of = pytest.importorskip("transformers")
        config = theirs_of.Dinov2Config(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, mlp_ratio=4
        )
        theirs = randomise(theirs_of.Dinov2Model(config))
        path, tower = save(dict(theirs.state_dict()), tmp_path / "model.safetensors"), make_tower("dinov2")
        load_timm_weights(tower, path, "tiny", ModelConfig("t", kind=ModelKind.timm, arch="tiny", pretrained=str(path)))
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            tower.forward_features(pixels), theirs(pixels).last_hidden_state, rtol=1e-4, atol=1e-5
        )
