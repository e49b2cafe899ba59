"""Weights as their authors publish them, brought to timm's names and to a tower's grid, by timm's own rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

MODULES = ("vision_transformer", "deit")
"""timm's modules of plain vision transformers."""
NO_ENCODER = ("head.", "head_dist.", "decoder_")
"""What files hold but no encoder does: classifiers, and the decoder of MAE's pretraining."""


def to_timm(state: Mapping[str, Tensor], tower: Any) -> dict[str, Tensor]:
    """Return weights under timm's names, without what is no part of the tower.

    Args:
        state: DINOv2's, DeiT-III's, MAE's, timm's or open_clip's, by names from the root of the model.
        tower: timm's; positions of another grid are interpolated to its own.

    Raises:
        Exception: of many kinds, for weights of other models.
    """
    named = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): value for name, value in state.items()}  # in chunks
    if "register_tokens" in named or any(".mlp.w12." in name for name in named):
        named.setdefault("mask_token", torch.zeros(1, 1))  # by which timm knows DINOv2
    found = checkpoint_filter_fn(named, tower, adapt_layer_scale=True)
    unused = (*NO_ENCODER, "attn_pool.") if tower.attn_pool is None else NO_ENCODER
    return {name: value for name, value in found.items() if not name.startswith(unused)}
