"""timm's vision transformers as frozen backbones: DINOv2 with and without registers, DeiT-III, MAE and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Attention, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.cls_attention import attend_for_cls

POOLS = ("token", "avg", "avgmax", "max", "map", "prr")


class TimmBackbone(Backbone):
    """A plain vision transformer of timm's.

    Its prefix is CLS, then registers. `resume` ends with the tower's own norm and pooling: the vector before its
    classifier, which headless models (DINOv2, MAE) give as it is.

    Args:
        trunk: the tower.
        options: mean, std, fingerprint and precision, as of `Backbone`.
    """

    def __init__(self, trunk: nn.Module, **options: Any) -> None:
        tower = check_tower(trunk)
        embed: Any = tower.patch_embed
        super().__init__(
            d_in=tower.embed_dim,
            n_layers=len(tower.blocks),
            n_prefix_tokens=tower.num_prefix_tokens,
            grid=embed.grid_size[0],
            patch_px=embed.patch_size[0],
            **options,
        )
        self.trunk = tower

    @property
    def pools_prefix(self) -> bool:
        return self.trunk.global_pool == "token"  # the other ways read the patches

    @property
    def has_cls(self) -> bool:
        return self.trunk.has_class_token

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.trunk.blocks)

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[int]) -> list[Tokens]:
        ascending = sorted(set(layers))
        with self._autocast():
            found: Any = self.trunk.forward_intermediates(
                pixels,
                indices=ascending,
                return_prefix_tokens=True,
                norm=False,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        if not self.n_prefix_tokens:
            found = [(patches, patches[:, :0]) for patches in found]
        by_layer = {
            layer: Tokens(prefix.float(), patches.float())
            for layer, (patches, prefix) in zip(ascending, found, strict=True)
        }
        return [by_layer[layer] for layer in layers]

    def _norm(self, tokens: Tokens) -> Tokens:
        with self._autocast():
            return Tokens(*(self.trunk.norm(part).float() for part in tokens))

    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_out"]:
        x = torch.cat([tokens.prefix, tokens.patches], dim=1)
        with self._autocast():
            for i, block in enumerate(self.trunk.blocks):
                if i <= layer:
                    continue
                for_cls = i == self.n_layers - 1 and self.pools_prefix and _has_plain_attention(block)
                x = _run_for_cls(block, x) if for_cls else block(x)
        n_prefix = min(self.n_prefix_tokens, x.shape[1])
        return self._pool(Tokens(x[:, :n_prefix], x[:, n_prefix:]))

    def _pool(self, tokens: Tokens) -> Float[Tensor, "batch d_out"]:
        with self._autocast():
            x = torch.cat([tokens.prefix, tokens.patches], dim=1)
            pooled: Any = self.trunk.forward_head(self.trunk.norm(x), pre_logits=True)
        return pooled.float()


def check_tower(trunk: nn.Module) -> VisionTransformer:
    """Return a timm tower made to take whole patches: where the side is no multiple of them, its rest was unseen.

    Raises:
        InputError: if it is no plain vision transformer that pools, or its patches or grid are not square.
    """
    if (
        not isinstance(trunk, VisionTransformer)
        or isinstance(trunk, VisionTransformerDistilled)  # its CLS is a pair
        or type(trunk.patch_embed) is not PatchEmbed
        or trunk.global_pool not in POOLS
    ):
        raise InputError(
            f"Expected a plain vision transformer of timm's that pools its tokens, got {type(trunk).__name__}: choose a"
            " vit_* or deit3_* architecture, or a ViT-* of open_clip's."
        )
    embed: Any = trunk.patch_embed
    grid, patch = embed.grid_size, embed.patch_size
    if grid[0] != grid[1] or patch[0] != patch[1]:
        raise InputError(f"Expected square patches and a square grid, got patches {patch} and grid {grid}.")
    whole = (grid[0] * patch[0], grid[1] * patch[1])
    if tuple(embed.img_size) != whole:
        trunk.set_input_size(whole)
    return trunk


def _has_plain_attention(block: Any) -> bool:
    """Whether `_run_for_cls` is this block: no norm of queries, keys or answers, and no gate."""
    if type(block) is not Block or type(block.attn) is not Attention:
        return False
    attn: Any = block.attn
    norms = (attn.q_norm, attn.k_norm, getattr(attn, "norm", None))
    return all(norm is None or isinstance(norm, nn.Identity) for norm in norms) and getattr(attn, "gate", None) is None


def _run_for_cls(block: Any, x: Float[Tensor, "batch n_tokens d_in"]) -> Float[Tensor, "batch 1 d_in"]:
    """Run the last block for CLS alone: only CLS asks, all tokens answer."""
    attn = block.attn
    answer = attend_for_cls(block.norm1(x), attn.qkv.weight, attn.qkv.bias, attn.num_heads)
    cls = x[:, :1] + block.ls1(attn.proj(answer)[:, None])
    return cls + block.ls2(block.mlp(block.norm2(cls)))
