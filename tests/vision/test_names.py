"""One backbone has one name, whoever says it."""

from __future__ import annotations

from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.names import find_backbone_name, name_fingerprint, name_model


def test_quick_gelu_is_no_part_of_a_name() -> None:
    loaded = name_fingerprint({"kind": "open_clip", "weights": "tag:ViT-B-16-quickgelu:openai"})
    said = ModelConfig(name="mine", kind=ModelKind.open_clip, arch="ViT-B-16-quickgelu", pretrained="openai")
    assert loaded == name_model(said) == find_backbone_name("openai/clip-vit-base-patch16")
