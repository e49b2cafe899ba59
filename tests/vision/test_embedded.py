"""Sites behind the tower: image embeddings as tokens, and patches as the tower would embed them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.hooks import POOLED, POST_NORM, PROJECTED
from infoscope.vision.load import load_backbone
from infoscope.vision.planted import PlantedRegisters
from tests.support.clip_samples import GRID, make_backbone, make_clip_cfg, make_images
from tests.support.timm_samples import TOWERS, make_tower, wrap

D_EMBED = 24


@pytest.fixture(params=[{}, {"final_ln_after_pool": True}], ids=["plain", "ln_after_pool"])
def clip(request):
    return make_backbone(make_clip_cfg(**request.param))


class TestClip:
    def test_a_pooled_token_is_the_image_embedding_before_it_is_normalised(self, clip):
        images = make_images(3)
        prefix, patches = clip.read_at(POOLED).tokens(images, -1)
        assert (prefix.shape, patches.shape) == ((3, 0, D_EMBED), (3, 1, D_EMBED))
        assert_close(patches[:, 0], clip.clip.encode_image(clip.normalise(images)), rtol=1e-5, atol=1e-6)

    def test_its_sizes_are_those_of_the_embedding_and_of_the_whole_image(self, clip):
        pooled, projected = clip.read_at(POOLED), clip.read_at(PROJECTED)
        assert (pooled.d_in, pooled.grid, pooled.image_px, pooled.n_prefix_tokens) == (D_EMBED, 1, clip.image_px, 0)
        assert (projected.d_in, projected.grid, projected.patch_px) == (D_EMBED, GRID, clip.patch_px)
        assert pooled.fingerprint == projected.fingerprint == clip.fingerprint
        assert pooled.n_products == clip.n_products

    def test_nothing_is_left_to_run_after_a_pooled_token(self, clip):
        images = make_images(2)
        pooled = clip.read_at(POOLED)
        tokens = pooled.tokens(images, -1)
        assert_close(pooled.resume(tokens, -1), tokens.patches[:, 0], rtol=0, atol=0)
        assert_close(pooled.embed_tokens(tokens, -1), clip.embed_images(images), rtol=1e-5, atol=1e-6)
        assert_close(pooled.pool_images(images), clip.embed_images(images), rtol=0, atol=0)
        assert pooled.logit_scale == clip.logit_scale

    def test_the_projection_of_a_patch_in_the_place_of_cls_is_an_embedding(self, clip):
        """An image whose patches are all as its CLS token would be projected to its embedding everywhere."""
        images = make_images(2)
        prefix, patches = clip.tokens(images, -1)
        as_cls = clip.embed_patches(prefix.expand(-1, patches.shape[1], -1))
        expected = clip.read_at(POOLED).tokens(images, -1).patches.expand_as(as_cls)
        assert_close(as_cls, expected, rtol=1e-5, atol=1e-6)

    def test_a_projected_patch_goes_through_norm_and_projection_alone(self, clip):
        images = make_images(2)
        patches = clip.tokens(images, -1).patches
        found = clip.read_at(PROJECTED).tokens(images, -1)
        expected = clip.visual.ln_post(patches) @ clip.visual.proj
        assert found.prefix.shape == (2, 0, D_EMBED)
        assert_close(found.patches, expected, rtol=1e-5, atol=1e-6)

    def test_projected_patches_reach_no_embedding(self, clip):
        projected = clip.read_at(PROJECTED)
        with pytest.raises(InputError, match="Going on from the last block"):
            projected.embed_tokens(projected.tokens(make_images(1), -1), -1)

    @pytest.mark.parametrize("site", [POOLED, PROJECTED])
    def test_another_block_is_refused(self, clip, site):
        with pytest.raises(
            InputError,
            match=rf"^Expected model\.layer=-1 with model\.site={site}, which lies behind the last block, got 1\.$",
        ):
            clip.read_at(site).tokens(make_images(1), 1)

    def test_the_cost_is_counted(self, clip):
        pooled = clip.read_at(POOLED)
        pooled.tokens(make_images(3), -1)
        pooled.pool_images(make_images(2))
        assert pooled.n_images_encoded == 5

    def test_bfloat16_leaves_float32(self):
        exact, rough = (make_backbone(precision=one).read_at(POOLED) for one in ("float32", "bfloat16"))
        tokens, expected = (one.tokens(make_images(3), -1).patches for one in (rough, exact))
        assert tokens.dtype == torch.float32
        assert_close(normalize(tokens, dim=-1), normalize(expected, dim=-1), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", TOWERS, ids=[name.replace(" ", "_") for name in TOWERS])
def test_every_tower_of_timms_embeds_patches_as_it_pools(name):
    """A picture whose tokens are all the same is embedded, by every way of pooling, as each of them alone."""
    tower = wrap(make_tower(**TOWERS[name]))
    images = make_images(2)
    last = tower.tokens(images, -1)
    pooled = tower.read_at(POOLED).tokens(images, -1).patches[:, 0]
    assert_close(
        pooled, tower.trunk.forward_head(tower.trunk.forward_features(tower.normalise(images)), pre_logits=True)
    )
    one = last.patches[:, :1]
    same = type(last)(one.expand_as(last.prefix), one.expand_as(last.patches))
    assert_close(tower.embed(same), tower.embed_patches(one)[:, 0], rtol=1e-4, atol=1e-5)


def test_of_a_headless_tower_it_is_the_patch_behind_the_final_norm():
    tower, images = wrap(make_tower()), make_images(2)
    projected = tower.read_at(PROJECTED).tokens(images, -1).patches
    assert_close(projected, tower.read_at(POST_NORM).tokens(images, -1).patches)


def test_planted_tokens_pool_as_they_say():
    planted = PlantedRegisters()
    images = make_images(2, planted.image_px)
    pooled = planted.read_at(POOLED).tokens(images, -1).patches[:, 0]
    assert_close(pooled, planted.tokens(images, 0).patches.mean(1))
    assert_close(planted.read_at(PROJECTED).tokens(images, -1).patches, planted.tokens(images, -1).patches)


def test_models_are_loaded_at_the_site():
    scenes = load_backbone("scenes_clip", site="pooled", progress=False)
    assert (scenes.site, scenes.grid, scenes.d_in) == (POOLED, 1, 128)
    assert not any(weight.requires_grad for weight in scenes.parameters())
    assert not scenes.training
    texts = scenes.embed_texts(["a red ball"])
    assert texts.shape == (1, 128)


def test_the_layer_of_the_sites_behind_the_tower_is_the_last():
    for site in (POOLED, PROJECTED):
        hook = ModelConfig(site=site).hook  # whatever model.layer says
        assert hook.key() == {"layer": -1, "site": site}
        assert hook.check(12).layer == 11
