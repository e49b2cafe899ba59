"""Where tokens are read: a block, counted from either end, and a site in it."""

import pytest

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig
from infoscope.vision.hooks import HookPoint


def test_a_block_is_counted_from_either_end():
    assert HookPoint(-2).check(12) == HookPoint(10).check(12) == HookPoint(10)
    for layer in (-13, 12):
        with pytest.raises(InputError, match=rf"^Expected model\.layer in -12\.\.11 .* got {layer}\.$"):
            HookPoint(layer).check(12)


def test_its_key_is_the_layer_as_it_was_asked_for():
    assert ModelConfig(layer=-3).hook.key() == {"layer": -3}


def test_another_site_is_refused():
    with pytest.raises(InputError, match=r"read at resid_post, .* got 'mlp_out': no other site is supported\.$"):
        HookPoint(1, "mlp_out")
