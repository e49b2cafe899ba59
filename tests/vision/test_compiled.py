"""Compiled blocks give the tokens of plain ones up to rounding, and all else goes on with the plain ones.

Here dynamo takes the blocks apart and torch's own operations run them, for a compiler of C++ takes half a minute.
"""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import timm
import torch
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.planted import PlantedRegisters
from infoscope.vision.timm.backbone import TimmBackbone
from tests.support.clip_samples import check_gradient, make_backbone, make_images

BATCH = 4


def make_timm() -> Backbone:
    tower = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=48, num_heads=3, num_classes=0)
    return TimmBackbone(tower, mean=(0.5,) * 3, std=(0.5,) * 3, fingerprint={}).eval().requires_grad_(False)


@pytest.fixture(params=[make_backbone, make_timm], ids=["open_clip", "timm"])
def backbone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    return request.param()


def count_compiled_calls(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> list[int]:
    """Return a list that grows by the size of each batch that goes through the first block compiled."""
    seen: list[int] = []
    block = backbone.blocks[0]
    compiled: Any = block._compiled_call_impl

    def call(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch._dynamo.eval_frame._stance.stance == "default":
            seen.append(len(x))
        return compiled(x, *args, **kwargs)

    monkeypatch.setattr(block, "_compiled_call_impl", call)
    return seen


def test_full_and_filled_batches_go_through_compiled_blocks(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(2 * BATCH, backbone.image_px)
    expected = {n: backbone.tokens(images[:n], -2) for n in range(1, 2 * BATCH)}
    backbone.compile_blocks(BATCH)
    seen, n_before = count_compiled_calls(monkeypatch, backbone), backbone.n_images_encoded
    for n, tokens in expected.items():
        found = backbone.tokens(images[:n], -2)
        for ours, theirs in zip(found, tokens, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.patches, tokens.patches) or BATCH // 2 < n <= BATCH
    assert seen == [BATCH] * (BATCH - BATCH // 2)
    assert backbone.n_images_encoded - n_before == sum(expected)


def test_edited_tokens_go_on_through_plain_blocks(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(BATCH, backbone.image_px)
    tokens = backbone.tokens(images, 0)
    edited = Tokens(tokens.prefix, tokens.patches * 0.5)
    expected, gradient = backbone.resume(edited, 0), check_gradient(backbone, tokens, 0)
    backbone.compile_blocks(BATCH)
    seen = count_compiled_calls(monkeypatch, backbone)
    assert torch.equal(backbone.resume(edited, 0), expected)
    torch.testing.assert_close(check_gradient(backbone, tokens, 0), gradient)
    assert not seen


def test_where_compiling_fails_the_plain_blocks_go_on(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nMore words.")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=fail))
    images = make_images(BATCH, backbone.image_px)
    expected = backbone.tokens(images, -2)
    with pytest.raises(InputError, match=r"cannot be compiled \(.*Failed to find C compiler") as caught:
        backbone.compile_blocks(BATCH)
    assert "\n" not in str(caught.value)
    assert torch.equal(backbone.tokens(images, -2).patches, expected.patches)


def test_a_formula_has_no_blocks_to_compile() -> None:
    backbone = PlantedRegisters(grid=4)
    images = make_images(BATCH, backbone.image_px)
    expected = backbone.tokens(images, -1)
    backbone.compile_blocks(BATCH)
    assert backbone.n_products == 0
    assert torch.equal(backbone.tokens(images, -1).patches, expected.patches)
