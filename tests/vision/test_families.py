"""Every family as conf/model names it, at its true size, from a file in the format in which its authors publish it.

The weights are random. What a family is compared with is made by its own library from the same file.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from infoscope.config.tree import CONF_FOLDER
from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import compute_model_fingerprint, load_backbone
from tests.support.clip_samples import make_images

pytestmark = pytest.mark.long

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL_TEXT = {"context_length": 8, "vocab_size": 20, "width": 64, "heads": 1, "layers": 1}
State = dict[str, Tensor]


def as_facebook_writes_dinov2(state: State) -> State:
    """With a mask token; with registers also a position for CLS, which timm adds to CLS itself."""
    state = {**state, "mask_token": torch.zeros(1, 768)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        of_cls = torch.full((1, 1, 768), 0.25, dtype=state["pos_embed"].dtype)
        state["pos_embed"] = torch.cat([of_cls, state["pos_embed"]], 1)
    return state


def as_facebook_writes_deit3(state: State) -> dict[str, State]:
    """Under `model`, layer scales by another name, with a classifier."""
    named = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for name, v in state.items()}
    return {"model": {**named, "head.weight": torch.zeros(1000, 768), "head.bias": torch.zeros(1000)}}


@dataclass(frozen=True)
class Published:
    """How a family's weights are published, and what is expected of it."""

    file_name: str
    n_prefix: int
    grid: int
    preprocessing: tuple[tuple[float, ...], tuple[float, ...]]
    convert: Callable[[State], Any] = lambda state: state


FAMILIES = {
    "clip_b16": Published("ViT-B-16.safetensors", 1, 14, OPENAI),
    "siglip_b16": Published("open_clip_model.safetensors", 0, 14, HALF),
    "dinov2_b14": Published("dinov2_vitb14_pretrain.pth", 1, 16, IMAGENET, as_facebook_writes_dinov2),
    "dinov2_b14_reg": Published("dinov2_vitb14_reg4_pretrain.pth", 5, 16, IMAGENET, as_facebook_writes_dinov2),
    "deit3_b16": Published("deit_3_base_224_1k.pth", 1, 14, IMAGENET, as_facebook_writes_deit3),
    "mae_b16": Published("mae_pretrain_vit_base.pth", 1, 14, IMAGENET, lambda state: {"model": state}),
}


@dataclass(frozen=True)
class Family:
    """One family, loaded from a file, beside its own library's model of that file."""

    published: Published
    config: ModelConfig
    backbone: Backbone
    theirs: Any
    tower: Any
    """The image tower in `theirs`."""
    images: Tensor
    tokens: Tokens
    """After the layer of its configuration."""

    @property
    def blocks(self) -> nn.Sequential:
        """The blocks of their tower."""
        return self.tower.blocks if hasattr(self.tower, "blocks") else self.tower.transformer.resblocks

    @property
    def layer(self) -> int:
        """The hooked block, from 0."""
        return self.backbone.check_layer(self.config.layer)

    def forward(self) -> Tensor:
        """The plain forward: the embedding of a CLIP, the vector before the classifier elsewhere."""
        pixels = self.backbone.normalise(self.images)
        if self.config.kind is ModelKind.timm:
            return self.theirs.forward_head(self.theirs.forward_features(pixels), pre_logits=True)
        return self.theirs.encode_image(pixels, normalize=True)

    def go_on(self, tokens: Tokens) -> Tensor:
        """The same from tokens, by our backbone."""
        resume = self.backbone.resume if self.config.kind is ModelKind.timm else self.backbone.embed_tokens
        return resume(tokens, self.config.layer)


def load_conf(name: str) -> ModelConfig:
    content = yaml.safe_load((CONF_FOLDER / "model" / f"{name}.yaml").read_text())
    return ModelConfig(**{**content, "kind": ModelKind[content["kind"]]})


def make_weights(make: Callable[[], nn.Module]) -> State:
    """Return random weights in half precision, as large as trained ones: no layer scale of 1e-5, no zero biases."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in make().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.03 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith("gamma") or (name.endswith("weight") and state[name].ndim == 1):
            state[name] += 0.7
    return {name: value.half() for name, value in state.items()}


def make_open_clip(arch: str, **more: Any) -> nn.Module:
    """Return open_clip's architecture with its own image tower and a small text tower."""
    cfg = {**copy.deepcopy(open_clip.get_model_config(arch)), "text_cfg": SMALL_TEXT, **more}
    make: Any = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
    return make(**cfg)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Iterator[Family]:
    published, config = FAMILIES[request.param], load_conf(request.param)
    path = tmp_path_factory.mktemp("published") / published.file_name
    patch = pytest.MonkeyPatch()
    try:
        arch = str(config.arch)
        if config.kind is ModelKind.timm:
            state = make_weights(lambda: timm.create_model(arch, num_classes=0))
            torch.save(published.convert(state), path)
            options = {"img_size": config.image_px} if config.image_px else {}
            theirs = timm.create_model(
                arch, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=0, **options
            )
        else:
            cfg = {**copy.deepcopy(open_clip.get_model_config(arch)), "text_cfg": SMALL_TEXT}
            patch.setattr(open_clip, "get_model_config", lambda _name: copy.deepcopy(cfg))
            theirs = make_open_clip(arch, quick_gelu=config.origin == "openai")
            state = make_weights(lambda: make_open_clip(arch))
            save_file(state, path)
            theirs.load_state_dict(state)
        config = replace(config, pretrained=str(path))
        backbone = load_backbone(config)
        theirs.eval().requires_grad_(False)
        visual = getattr(theirs, "visual", theirs)
        images = make_images(1, backbone.image_px)
        tokens = backbone.tokens(images, config.layer)
        yield Family(published, config, backbone, theirs, getattr(visual, "trunk", visual), images, tokens)
    finally:
        patch.undo()
        path.unlink()


def test_sizes_and_preprocessing_are_its_own(family):
    backbone, published = family.backbone, family.published
    assert (backbone.n_prefix_tokens, backbone.grid, backbone.d_in) == (published.n_prefix, published.grid, 768)
    assert backbone.n_layers == 12
    mean, std = backbone.mean.flatten().tolist(), backbone.std.flatten().tolist()
    assert mean == pytest.approx(published.preprocessing[0])
    assert std == pytest.approx(published.preprocessing[1])
    if family.config.kind is ModelKind.timm:
        data = resolve_model_data_config(family.theirs)
        assert (mean, std) == (pytest.approx(data["mean"]), pytest.approx(data["std"]))
        assert backbone.image_px == (family.config.image_px or data["input_size"][-1])
    else:
        assert backbone.image_px == family.theirs.visual.image_size[0]
    assert backbone.has_cls == backbone.pools_prefix == (published.n_prefix > 0)


def test_tokens_are_its_own_intermediates_and_what_a_hook_sees(family):
    pixels, seen = family.backbone.normalise(family.images), []
    hook = family.blocks[family.layer].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    visual = getattr(family.theirs, "visual", family.theirs)
    if family.config.kind is ModelKind.timm:
        found = visual.forward_intermediates(
            pixels, [family.layer], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        patches, prefix = found[0]
    else:
        options = {"output_fmt": "NLC", "output_extra_tokens": True, "intermediates_only": True}
        found = visual.forward_intermediates(pixels, indices=[family.layer], **options)
        patches = found["image_intermediates"][0]
        prefix = found.get("image_intermediates_prefix", [patches[:, :0]])[0]
    hook.remove()
    assert patches.shape == (1, family.published.grid**2, 768)
    torch.testing.assert_close(family.tokens.patches, patches, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(family.tokens.prefix, prefix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(list(family.tokens), 1), seen[0], rtol=1e-4, atol=1e-4)


def test_going_on_with_unedited_tokens_is_the_plain_forward_and_edited_ones_change_it(family):
    with torch.inference_mode():
        expected = family.forward()
    plain = family.go_on(family.tokens)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    patches = family.tokens.patches.clone()
    patches[0, :20, :300] *= -1
    edited = family.go_on(Tokens(family.tokens.prefix, patches))
    assert (edited - plain).norm() > 1e-3 * plain.norm()


def test_only_a_tower_that_pools_patches_goes_on_from_its_last_block(family):
    assert family.backbone.pools_prefix == (family.config.name != "siglip_b16")
    if family.backbone.pools_prefix:
        with pytest.raises(InputError, match=r"last block \(11\) cannot change CLS"):
            family.backbone.resume(family.tokens, -1)
    else:
        assert family.backbone.resume(family.tokens, -1).shape == (1, 768)


def test_the_fingerprint_knows_the_file_and_not_where_it_lies(family):
    found = compute_model_fingerprint(family.config)
    assert found == family.backbone.fingerprint
    assert found["weights"].startswith("sha256:")
    assert str(Path(str(family.config.pretrained)).parent) not in json.dumps(found)


@pytest.mark.parametrize("name", ["dinov2_b14", "dinov2_b14_reg"])
def test_dinov2_at_its_native_size(name):
    config = replace(load_conf(name), pretrained="random", image_px=None)
    backbone = load_backbone(config)
    assert (backbone.grid, backbone.image_px) == (37, 518)
    tokens = backbone.tokens(make_images(1, 518), 0)
    assert tokens.patches.shape == (1, 1369, 768)
    assert tokens.prefix.shape[1] == FAMILIES[name].n_prefix
