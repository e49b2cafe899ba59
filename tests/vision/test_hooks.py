"""Where tokens are read: a block, counted from either end, and a site in it."""

import pytest

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.hooks import HookPoint
from infoscope.vision.load import load_backbone


def test_a_block_is_counted_from_either_end():
    assert HookPoint(-2).check(12) == HookPoint(10).check(12) == HookPoint(10)
    for layer in (-13, 12):
        with pytest.raises(InputError, match=rf"^Expected model\.layer in -12\.\.11 .* got {layer}\.$"):
            HookPoint(layer).check(12)


def test_a_block_has_one_key_however_it_is_written():
    for layer in (9, -3):
        assert ModelConfig(layer=layer).hook.count_from_end(12).key() == {"layer": -3}
    for layer in (11, -1):
        hook = ModelConfig(layer=layer, site="post_norm").hook.count_from_end(12)
        assert hook.key() == {"layer": -1, "site": "post_norm"}
    with pytest.raises(InputError, match=r"got 12\.$"):
        HookPoint(12).count_from_end(12)


def test_only_the_last_block_has_a_norm_after_it():
    assert HookPoint(-1, "post_norm").check(12) == HookPoint(11, "post_norm")
    with pytest.raises(InputError, match=r"^Expected model\.layer=-1 with model\.site=post_norm, .* got -2\.$"):
        HookPoint(-2, "post_norm").check(12)
    with pytest.raises(InputError, match=r"^site=\"post_norm\" is for timm's towers such as DINOv2"):
        load_backbone("scenes_clip", site="post_norm", progress=False)


def test_another_site_is_refused():
    with pytest.raises(InputError, match=r"read at resid_post, .* got 'mlp_out': no other site is supported\.$"):
        HookPoint(1, "mlp_out")
