"""Small towers of timm, with every way of pooling."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from infoscope.vision.timm.backbone import TimmBackbone

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
TOWERS = {
    "cls": {},
    "layer scale": {"init_values": 0.1},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "no bias": {"qkv_bias": False},
    "norm before blocks": {"pre_norm": True},
    "norm of queries": {"qk_norm": True},
    "norm of answers": {"scale_attn_norm": True},
    "norm after pooling": {"fc_norm": True},
    "mean of patches": {"global_pool": "avg"},
    "mean of all": {"global_pool": "avg", "pool_include_prefix": True},
    "maximum": {"global_pool": "max"},
    "attention pool": {"global_pool": "map"},
    "attention pool without CLS": {"global_pool": "map", "class_token": False},
    "registers without CLS": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
    "classifier": {"num_classes": 7},
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight off its start, so that zeros, ones and small layer scales hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def make_tower(**options) -> VisionTransformer:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = randomise(VisionTransformer(**{**sizes, **options}))
    assert isinstance(tower, VisionTransformer)
    return tower


def wrap(tower: nn.Module, **options) -> TimmBackbone:
    return TimmBackbone(tower, mean=MEAN, std=STD, fingerprint={}, **options).eval()
