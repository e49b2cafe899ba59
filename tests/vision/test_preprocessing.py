"""Mean and std are those of RGB values in 0..1; numbers of another scale and other nonsense are refused."""

from __future__ import annotations

import open_clip
import pytest
import timm
from timm.models import get_arch_pretrained_cfgs

from infoscope.config.tree import compose
from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.preprocessing import check_preprocessing

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LARGE = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
NAN, INF = float("nan"), float("inf")

NONSENSE = [
    (
        LARGE["mean"],
        LARGE["std"],
        r"mean to be in 0\.\.1, .*the scale 0\.\.255: divide by 255, model\.mean=\[0\.485,0\.456,0\.406\]"
        r" model\.std=\[0\.229,0\.224,0\.225\]\.$",
    ),
    (MEAN, LARGE["std"], r"std to be in 0\.01\.\.1, .*divide by 255, model\.std=\[0\.229,0\.224,0\.225\]"),
    ([127.5] * 3, [127.5] * 3, r"divide by 255, model\.mean=\[0\.5,0\.5,0\.5\]"),
    (LARGE["mean"], None, "divide by 255"),
    (MEAN, [1 / 255] * 3, r"divided by 255 twice: multiply, model\.std=\[1,1,1\]"),
    (MEAN, [value / 255 for value in STD], r"divided by 255 twice: multiply, model\.std=\[0\.229,0\.224,0\.225\]"),
    ([value / 255 for value in MEAN], STD, r"divided by 255 twice: multiply, model\.mean=\[0\.485,0\.456,0\.406\]"),
    (STD, MEAN, r"are swapped: .*give model\.mean=\[0\.485,0\.456,0\.406\] and model\.std=\[0\.229,0\.224,0\.225\]"),
    (open_clip.OPENAI_DATASET_STD, open_clip.OPENAI_DATASET_MEAN, "are swapped"),
    (MEAN, None, r"model\.mean comes without model\.std"),
    (None, STD, r"model\.std comes without model\.mean"),
    ([-0.1, 0.5, 0.5], STD, r"mean to be in 0\.\.1"),
    ([1.5, 0.5, 0.5], STD, r"mean to be in 0\.\.1"),
    ([0.485, 116.0, 0.4], STD, r"got \[0\.485,116,0\.4\] \(pixels [^;]+\.$"),
    ([-1.0] * 3, [2.0] * 3, r"mean to be in 0\.\.1"),
    (MEAN, [2.0] * 3, r"std to be in 0\.01\.\.1"),
    (MEAN, [0.0, 0.2, 0.2], r"std to be in 0\.01\.\.1"),
    (MEAN, [-0.2] * 3, r"std to be in 0\.01\.\.1"),
    ([NAN, 0.5, 0.5], STD, "mean to be finite numbers on the scale 0..1"),
    (MEAN, [INF, 0.5, 0.5], "std to be finite numbers on the scale 0..1"),
    ([0.5, 0.5], STD, r"three numbers \(R, G, B\) on the scale 0\.\.1, got 2"),
    ([], STD, "three numbers"),
]
"""mean, std, and what is said of them."""


@pytest.mark.parametrize(("mean", "std", "message"), NONSENSE)
@pytest.mark.parametrize("door", ["open_clip", "timm"])
def test_nonsense_is_refused_with_the_scale(mean, std, message, door):
    arch = "ViT-B-16" if door == "open_clip" else "vit_tiny_patch16_224"
    options = {"arch": arch, "pretrained": "random", "mean": mean, "std": std}
    with pytest.raises(InputError, match=message) as caught:
        ModelConfig("m", kind=ModelKind[door], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mean", "std", "message"), NONSENSE)
def test_python_refuses_it_in_its_own_words(mean, std, message):
    with pytest.raises(InputError, match=message.replace(r"model\.", "")) as caught:
        load_backbone("ViT-B-16:random", mean=mean, std=std)
    assert "model." not in str(caught.value)


@pytest.mark.parametrize("value", ["half", 0.5, ["0.5"] * 3, [True] * 3, [None] * 3, [[0.5]] * 3])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match="Expected mean to hold three numbers"):
        load_backbone("ViT-B-16:random", mean=value, std=STD)


@pytest.mark.long
def test_the_command_line():
    with pytest.raises(InputError, match=r"divide by 255, model\.mean=\[0\.4851,0\.4561,0\.4059\]"):
        compose(["model=clip_b16", "model.mean=[123.7,116.3,103.5]", "model.std=[58.4,57.1,57.4]"])
    with pytest.raises(InputError, match=r"model\.std to be in 0\.01\.\.1, got \[0\.5,0,0\.5\]"):
        compose(["model=dinov2_b14", "model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0,0.5]"])
    with pytest.raises(InputError, match=r"model\.mean\[1\] to be a finite number on the scale 0\.\.1, got nan"):
        compose(["model=clip_b16", "model.mean=[0.5,nan,0.5]", "model.std=[0.5,0.5,0.5]"])


def test_what_models_were_trained_with_is_accepted():
    """All of open_clip's and timm's, among them values that are taken as they are (mean 0, std 1)."""
    known = {(0.0, 0.0, 0.0, 1.0, 1.0, 1.0)}
    for arch, tag in open_clip.list_pretrained():
        cfg = open_clip.get_pretrained_cfg(arch, tag)
        known.add((*cfg["mean"], *cfg["std"]))
    for arch in timm.list_models(module="vision_transformer"):
        known |= {(*cfg.mean, *cfg.std) for cfg in get_arch_pretrained_cfgs(arch).values()}
    assert len(known) == 4
    for numbers in known:
        assert check_preprocessing(numbers[:3], numbers[3:], "") == (numbers[:3], numbers[3:])
