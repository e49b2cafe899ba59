"""transformers' names of CLIP, SigLIP, DINOv2 and ViT (DeiT, MAE), written as open_clip, DINOv2 and timm name them.

The weights are the same, but for queries, keys and values, which others keep in one matrix, projections, which CLIP
keeps transposed, and a leading dimension of positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]
"""Patterns of whole names, and what they become; `#q` at the end marks a part of a joint matrix."""

_CLIP_BLOCK = (
    (r"self_attn\.([qkv])_proj\.(weight|bias)", r"attn.in_proj_\2#\1"),
    (r"self_attn\.out_proj\.(weight|bias)", r"attn.out_proj.\1"),
    (r"layer_norm([12])\.(weight|bias)", r"ln_\1.\2"),
    (r"mlp\.fc1\.(weight|bias)", r"mlp.c_fc.\1"),
    (r"mlp\.fc2\.(weight|bias)", r"mlp.c_proj.\1"),
)
_SIGLIP_BLOCK = (
    (r"self_attn\.([qkv])_proj\.(weight|bias)", r"attn.qkv.\2#\1"),
    (r"self_attn\.out_proj\.(weight|bias)", r"attn.proj.\1"),
    (r"layer_norm([12])\.(weight|bias)", r"norm\1.\2"),
    (r"mlp\.fc([12])\.(weight|bias)", r"mlp.fc\1.\2"),
)
_VIT_BLOCK = (
    (r"attention\.attention\.([qkv])(?:uery|ey|alue)\.(weight|bias)", r"attn.qkv.\2#\1"),
    (r"attention\.output\.dense\.(weight|bias)", r"attn.proj.\1"),
    (r"attention\.([qkv])_proj\.(weight|bias)", r"attn.qkv.\2#\1"),  # DINOv2 of transformers 5.24
    (r"attention\.o_proj\.(weight|bias)", r"attn.proj.\1"),
    (r"norm([12])\.(weight|bias)", r"norm\1.\2"),  # DINOv2
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"mlp\.fc([12])\.(weight|bias)", r"mlp.fc\1.\2"),
    (r"mlp\.weights_in\.(weight|bias)", r"mlp.w12.\1"),
    (r"mlp\.weights_out\.(weight|bias)", r"mlp.w3.\1"),
    (r"layernorm_before\.(weight|bias)", r"norm1.\1"),  # ViT, DeiT, MAE
    (r"layernorm_after\.(weight|bias)", r"norm2.\1"),
    (r"intermediate\.dense\.(weight|bias)", r"mlp.fc1.\1"),
    (r"output\.dense\.(weight|bias)", r"mlp.fc2.\1"),
)


def _in_blocks(theirs: str, ours: str, rules: Rules) -> Rules:
    """Return rules for every block of a tower; the number of the block becomes the first group."""
    shifted = [(pattern, re.sub(r"\\(\d)", lambda m: f"\\{int(m[1]) + 1}", new)) for pattern, new in rules]
    return [(rf"{theirs}(\d+)\.{pattern}", rf"{ours}\1.{new}") for pattern, new in shifted]


_TEXT = (
    (r"text_model\.embeddings\.token_embedding\.weight", r"token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", r"positional_embedding"),
    (r"text_model\.final_layer_norm\.(weight|bias)", r"ln_final.\1"),
    *_in_blocks(r"text_model\.encoder\.layers\.", "transformer.resblocks.", _CLIP_BLOCK),
)
_CLIP = (
    *_TEXT,
    (r"text_projection\.weight", "text_projection"),
    (r"visual_projection\.weight", "visual.proj"),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.(weight|bias)", r"visual.ln_pre.\1"),
    (r"vision_model\.post_layernorm\.(weight|bias)", r"visual.ln_post.\1"),
    *_in_blocks(r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks.", _CLIP_BLOCK),
)
_SIGLIP = (
    *((pattern, f"text.{new}") for pattern, new in _TEXT),
    (r"text_model\.head\.(weight|bias)", r"text.text_projection.\1"),
    (r"vision_model\.embeddings\.patch_embedding\.(weight|bias)", r"visual.trunk.patch_embed.proj.\1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.trunk.pos_embed"),
    (r"vision_model\.post_layernorm\.(weight|bias)", r"visual.trunk.norm.\1"),
    (r"vision_model\.head\.probe", "visual.trunk.attn_pool.latent"),
    (r"vision_model\.head\.attention\.in_proj_(weight|bias)", r"visual.trunk.attn_pool.qkv.\1"),
    (r"vision_model\.head\.attention\.out_proj\.(weight|bias)", r"visual.trunk.attn_pool.proj.\1"),
    (r"vision_model\.head\.layernorm\.(weight|bias)", r"visual.trunk.attn_pool.norm.\1"),
    (r"vision_model\.head\.mlp\.fc([12])\.(weight|bias)", r"visual.trunk.attn_pool.mlp.fc\1.\2"),
    *_in_blocks(r"vision_model\.encoder\.layers\.", "visual.trunk.blocks.", _SIGLIP_BLOCK),
)
_VIT = (
    (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"pooler\.dense\.(weight|bias)", r"head.pooler.\1"),  # behind the last token, like a classifier
    *_in_blocks(r"encoder\.layer\.", "blocks.", _VIT_BLOCK),
)
_TRANSPOSED = {"text_projection", "visual.proj"}


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that their authors or open_clip use; those of others as they are.

    Names that no rule knows stay, so that they are missed or refused where the weights are fitted to a model.

    Args:
        state: by names from the root of the model.
    """
    if "embeddings.patch_embedding.weight" in state:  # a bare tower
        state = {f"vision_model.{name}": value for name, value in state.items()}
    if "vision_model.embeddings.class_embedding" in state:
        return _apply(_CLIP, state)
    if "vision_model.embeddings.patch_embedding.weight" in state:
        return _split_pool(_apply(_SIGLIP, state))
    if "embeddings.patch_embeddings.projection.weight" in state:
        return _apply(_VIT, state)
    return dict(state)


def _apply(rules: Rules, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, and join what is kept in parts; a joint matrix that lacks a part keeps the names of the others."""
    found, parts = dict[str, Tensor](), dict[str, dict[str, str]]()
    for name, value in state.items():
        new, _, part = _rename(rules, name).partition("#")
        if part:
            parts.setdefault(new, {})[part] = name
        else:
            found[new] = value.T if new in _TRANSPOSED and value.ndim == 2 else value
    for new, names in parts.items():
        if names.keys() == set("qkv"):
            found[new] = torch.cat([state[names[part]] for part in "qkv"])
        else:
            found.update({name: state[name] for name in names.values()})
    if "visual.trunk.pos_embed" in found:
        found["visual.trunk.pos_embed"] = found["visual.trunk.pos_embed"][None]
    return found


def _rename(rules: Rules, name: str) -> str:
    matches = ((re.fullmatch(pattern, name), new) for pattern, new in rules)
    return next((match.expand(new) for match, new in matches if match), name)


def _split_pool(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split what asks from what answers in SigLIP's attention pool, as timm has it."""
    for kind in ("weight", "bias"):
        joint = state.pop(f"visual.trunk.attn_pool.qkv.{kind}", None)
        if joint is not None:
            n = len(joint) // 3
            state[f"visual.trunk.attn_pool.q.{kind}"] = joint[:n]
            state[f"visual.trunk.attn_pool.kv.{kind}"] = joint[n:]
    return state
