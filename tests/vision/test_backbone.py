"""Tokens are open_clip's own, going on from them is the plain forward, and what cannot be done is refused."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.timm.backbone import TimmBackbone
from tests.support.clip_samples import (
    GRID,
    MEAN,
    N_LAYERS,
    PATCH_PX,
    STD,
    WIDTH,
    check_gradient,
    make_backbone,
    make_clip_cfg,
    make_images,
    shrink_cfg,
)

CONFIGS = {
    "plain": make_clip_cfg(),
    "layer scale": make_clip_cfg(ls_init_value=0.1),
    "quick gelu": {**make_clip_cfg(), "quick_gelu": True},
    "no ln_pre": make_clip_cfg(no_ln_pre=True),
    "ln after pool": make_clip_cfg(final_ln_after_pool=True),
    "patch dropout": make_clip_cfg(patch_dropout=0.5),
    **{
        arch: shrink_cfg(arch)
        for arch in ("ViT-B-32", "ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-g-14")
    },
}


@pytest.fixture(params=CONFIGS, ids=[name.replace(" ", "_") for name in CONFIGS])
def backbone(request) -> OpenClipBackbone:
    return make_backbone(CONFIGS[request.param])


@pytest.fixture(scope="module")
def plain() -> OpenClipBackbone:
    return make_backbone()


class TestAgainstOpenClip:
    def test_tokens_are_its_intermediates_at_every_layer(self, backbone):
        images = make_images(3, backbone.image_px)
        pixels = backbone.normalise(images)
        theirs = backbone.visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
        assert len(theirs["image_intermediates"]) == backbone.n_layers
        for layer in range(backbone.n_layers):
            prefix, patches = backbone.tokens(images, layer)
            assert patches.shape == (3, backbone.grid**2, backbone.d_in)
            torch.testing.assert_close(patches, theirs["image_intermediates"][layer], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(prefix, theirs["image_intermediates_prefix"][layer], rtol=1e-5, atol=1e-5)

    def test_tokens_are_what_a_hook_on_the_block_sees(self, backbone):
        images, seen = make_images(2, backbone.image_px), {}
        blocks = backbone.visual.transformer.resblocks
        hooks = [
            block.register_forward_hook(lambda _module, _inputs, output, i=i: seen.__setitem__(i, output.clone()))
            for i, block in enumerate(blocks)
        ]
        backbone.visual(backbone.normalise(images))
        for hook in hooks:
            hook.remove()
        for layer in range(-backbone.n_layers, 0):
            prefix, patches = backbone.tokens(images, layer)
            expected = seen[layer + backbone.n_layers]
            torch.testing.assert_close(torch.cat([prefix, patches], 1), expected, rtol=1e-5, atol=1e-5)

    def test_going_on_with_unedited_tokens_is_the_plain_forward(self, backbone):
        images = make_images(3, backbone.image_px)
        pixels = backbone.normalise(images)
        features, embeddings = backbone.visual(pixels), backbone.clip.encode_image(pixels, normalize=True)
        for layer in range(backbone.n_layers - 1):
            pooled = backbone.resume(backbone.tokens(images, layer), layer)
            assert pooled.shape == (3, backbone.d_in)
            projected = pooled @ backbone.visual.proj
            torch.testing.assert_close(projected, features, rtol=1e-4, atol=1e-5)
            unit = torch.nn.functional.normalize(projected, dim=-1)
            torch.testing.assert_close(unit, embeddings, rtol=1e-4, atol=1e-5)

    def test_the_last_block_for_cls_alone_is_the_whole_block(self, backbone):
        last = backbone.visual.transformer.resblocks[-1]
        x = torch.randn(3, backbone.grid**2 + 1, backbone.d_in, generator=torch.Generator().manual_seed(1))
        for_cls = backbone._run_for_cls(last, x)
        assert for_cls.shape == (3, 1, backbone.d_in)
        torch.testing.assert_close(for_cls, last(x)[:, :1], rtol=1e-5, atol=1e-5)

    def test_embeddings_are_those_of_encode_image(self, backbone):
        images = make_images(2, backbone.image_px)
        expected = backbone.clip.encode_image(backbone.normalise(images), normalize=True)
        torch.testing.assert_close(backbone.embed_images(images), expected)

    def test_preprocessing_is_its_own(self, plain):
        theirs = open_clip.image_transform(plain.image_px, is_train=False, mean=MEAN, std=STD)
        images = make_images(4)
        expected = torch.stack([theirs(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
        torch.testing.assert_close(plain.normalise(images), expected)


def test_a_tower_of_one_block_pools_images_too():
    backbone, images = make_backbone(make_clip_cfg(layers=1)), make_images(2)
    backbone.has_projection = False
    assert torch.equal(backbone.pool_images(images).norm(dim=-1).round(decimals=5), torch.ones(2))
    projected = backbone.pool_images(images) @ backbone.visual.proj
    unit = torch.nn.functional.normalize(projected, dim=-1)
    torch.testing.assert_close(unit, backbone.clip.encode_image(backbone.normalise(images), normalize=True))
    trunk = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1).eval()
    tower = TimmBackbone(trunk, mean=MEAN, std=STD, fingerprint={})
    expected = torch.nn.functional.normalize(trunk(tower.normalise(images)), dim=-1)
    torch.testing.assert_close(tower.pool_images(images), expected)
    with pytest.raises(InputError, match=r"^Going on from the last block \(0\) cannot change CLS"):
        tower.resume(tower.tokens(images, 0), 0)


def test_preprocessing_is_mean_and_std_of_values_in_0_to_1(plain):
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1] = 255
    pixels = plain.normalise(images)
    assert pixels.dtype == torch.float32
    black, white = -np.array(MEAN) / STD, (1 - np.array(MEAN)) / STD
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(black.tolist(), rel=1e-6)
    assert pixels[1, :, 3, 3].tolist() == pytest.approx(white.tolist(), rel=1e-6)


def test_an_edit_of_one_patch_reaches_cls_from_every_layer_but_the_last(plain):
    images = make_images(2)
    for layer in range(plain.n_layers - 1):
        tokens = plain.tokens(images, layer)
        patches = tokens.patches.clone()
        patches[0, 5, :8] += 3.0  # not all coordinates: LayerNorm would take that out
        before, after = plain.resume(tokens, layer), plain.resume(Tokens(tokens.prefix, patches), layer)
        assert (after[0] - before[0]).norm() > 1e-3 * before[0].norm()
        assert torch.equal(after[1], before[1])


def test_a_gradient_goes_through_the_blocks_that_are_left(backbone):
    for layer in (0, backbone.n_layers - 2):
        check_gradient(backbone, backbone.tokens(make_images(2, backbone.image_px), layer), layer)


def test_sizes_are_those_of_the_tower(plain):
    assert (plain.d_in, plain.n_layers, plain.n_prefix_tokens) == (WIDTH, N_LAYERS, 1)
    assert (plain.grid, plain.patch_px, plain.image_px) == (GRID, PATCH_PX, GRID * PATCH_PX)
    assert plain.pools_prefix


def test_patches_run_row_by_row(plain):
    """One changed pixel changes the embedding of one patch: the one whose row and column it lies in."""
    images = make_images(1)
    changed = images.clone()
    changed[0, :, 1 * PATCH_PX + 3, 2 * PATCH_PX + 5] ^= 255
    first, second = (plain.visual._embeds(plain.normalise(x))[0, 1:] for x in (images, changed))
    assert (first != second).any(-1).nonzero().flatten().tolist() == [1 * GRID + 2]


def test_negative_layers_count_from_the_end(plain):
    images = make_images(2)
    for layer in range(N_LAYERS):
        assert torch.equal(plain.tokens(images, layer).patches, plain.tokens(images, layer - N_LAYERS).patches)
    tokens = plain.tokens(images, -2)
    assert torch.equal(plain.resume(tokens, -2), plain.resume(tokens, N_LAYERS - 2))


def test_an_image_does_not_depend_on_its_batch(plain):
    images = make_images(5)
    together = plain.tokens(images, -2).patches
    alone = torch.cat([plain.tokens(images[i : i + 1], -2).patches for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [N_LAYERS, -N_LAYERS - 1, 99])
def test_a_layer_that_does_not_exist_is_refused(plain, layer):
    with pytest.raises(InputError, match=rf"model.layer in -4..3 \(the model has 4 blocks\), got {layer}"):
        plain.tokens(make_images(1), layer)
    with pytest.raises(InputError, match=f"got {layer}"):
        plain.resume(plain.tokens(make_images(1), 0), layer)


@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (2, 3, 32, 24), (2, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_shape_are_refused(plain, shape):
    with pytest.raises(InputError, match=r"Expected images \[batch, 3, 32, 32\], got \["):
        plain.tokens(torch.zeros(shape, dtype=torch.uint8), 0)


@pytest.mark.parametrize("layer", [-1, N_LAYERS - 1])
def test_going_on_from_the_last_block_is_refused(plain, layer):
    tokens = plain.tokens(make_images(1), layer)
    with pytest.raises(InputError, match=r"last block \(3\) cannot change CLS.*patch_mean"):
        plain.resume(tokens, layer)


@pytest.mark.parametrize("where", ["patches", "prefix"])
def test_nan_is_reported_with_its_layer(where):
    backbone = make_backbone()
    with torch.no_grad():
        if where == "patches":
            backbone.visual.positional_embedding[3] = torch.nan
        else:
            backbone.visual.class_embedding[0] = torch.inf
    with pytest.raises(InputError, match="NaN or Inf after block 0: check its weights"):
        backbone.tokens(make_images(1), 0)


def test_the_cost_is_counted_in_images():
    backbone = make_backbone()
    assert backbone.n_images_encoded == 0
    tokens = backbone.tokens(make_images(3), 0)
    backbone.resume(tokens, 0)
    assert backbone.n_images_encoded == 3  # going on encodes nothing anew
    backbone.embed_images(make_images(2))
    assert backbone.n_images_encoded == 5
    with pytest.raises(InputError):
        backbone.tokens(make_images(7), 99)
    assert backbone.n_images_encoded == 5


class MeanOfPatches(Backbone):
    """No CLS: the pooled vector is the mean patch."""

    def __init__(self) -> None:
        super().__init__(
            d_in=3, n_layers=2, n_prefix_tokens=0, grid=2, patch_px=2, mean=(0, 0, 0), std=(1, 1, 1), fingerprint={}
        )

    def _tokens(self, pixels, layers):
        patches = torch.nn.functional.avg_pool2d(pixels, 2).flatten(2).mT
        return [Tokens(patches[:, :0], patches) for _ in layers]

    def _resume(self, tokens, layer):
        return tokens.patches.mean(1)


def test_a_model_that_pools_patches_may_go_on_from_its_last_block():
    backbone = MeanOfPatches()
    images = make_images(2, 4)
    assert not backbone.pools_prefix
    tokens = backbone.tokens(images, -1)
    assert tokens.prefix.shape == (2, 0, 3)
    torch.testing.assert_close(backbone.resume(tokens, -1), (images / 255).mean((2, 3)))


def test_bfloat16_is_close_and_leaves_float32_tokens(plain):
    rough = make_backbone(precision="bfloat16")
    images = make_images(3)
    exact, tokens = plain.tokens(images, -2), rough.tokens(images, -2)
    assert tokens.patches.dtype == tokens.prefix.dtype == torch.float32
    assert not torch.equal(tokens.patches, exact.patches)
    assert (tokens.patches - exact.patches).norm() < 0.02 * exact.patches.norm()
    pooled, expected = rough.resume(tokens, -2), plain.resume(exact, -2)
    assert pooled.dtype == rough.embed_images(images).dtype == torch.float32
    assert (pooled - expected).norm() < 0.03 * expected.norm()
