"""One backbone has one name, whoever says it."""

from __future__ import annotations

import pytest

from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.names import find_backbone_name, name_fingerprint, name_model


def test_quick_gelu_is_no_part_of_a_name() -> None:
    loaded = name_fingerprint({"kind": "open_clip", "weights": "tag:ViT-B-16-quickgelu:openai"})
    said = ModelConfig(name="mine", kind=ModelKind.open_clip, arch="ViT-B-16-quickgelu", pretrained="openai")
    assert loaded == name_model(said) == find_backbone_name("openai/clip-vit-base-patch16")


@pytest.mark.parametrize(
    ("theirs", "known"),
    [
        ("clip_vit_b32_datacomp_xl_s13b_b90k", "ViT-B-32 datacomp_xl_s13b_b90k"),
        ("clip_vit_l14_datacomp_xl_s13b_b90k", "ViT-L-14 datacomp_xl_s13b_b90k"),
        ("clip_vit_l14_336_openai", "openai/clip-vit-large-patch14-336"),
        ("clip_vit_h14_dfn5b", "ViT-H-14-quickgelu dfn5b"),
        ("clip_ViT-B32", "ViT-B/32"),
        ("clip_ViT-L14", "ViT-L/14"),
        ("clip_RN50", "RN50 openai"),
    ],
)
def test_names_of_toolkits_folders_are_known(theirs: str, known: str) -> None:
    assert find_backbone_name(theirs) == find_backbone_name(known) is not None
