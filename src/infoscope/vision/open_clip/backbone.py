"""CLIPs as frozen backbones: open_clip's own image towers, and those of timm's (SigLIP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Tokens
from infoscope.vision.cls_attention import attend_for_cls
from infoscope.vision.open_clip.clip_backbone import ClipBackbone, Tokenizer
from infoscope.vision.timm.backbone import TimmBackbone


class OpenClipBackbone(ClipBackbone):
    """A CLIP whose image tower is open_clip's own VisionTransformer with CLS pooling.

    Args:
        clip, make_tokenizer: as of `ClipBackbone`.
        options: mean, std, fingerprint and precision, as of `Backbone`.
    """

    def __init__(
        self, clip: torch.nn.Module, make_tokenizer: Callable[[], Tokenizer] | None = None, **options: Any
    ) -> None:
        visual: Any = clip.visual
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type != "tok":
            raise InputError(
                f"Expected open_clip's vision transformer with CLS pooling, or timm's (SigLIP), got"
                f" {type(visual).__name__}: choose a ViT-* architecture."
            )
        tower: Any = visual  # open_clip annotates its sizes as plain numbers
        grid, patch = tower.grid_size, tower.patch_size
        if grid[0] != grid[1] or patch[0] != patch[1]:
            raise InputError(f"Expected square patches and a square grid, got patches {patch} and grid {grid}.")
        super().__init__(
            clip,
            make_tokenizer,
            d_in=tower.class_embedding.shape[0],
            n_layers=len(visual.transformer.resblocks),
            n_prefix_tokens=1,
            grid=grid[0],
            patch_px=patch[0],
            **options,
        )
        self.visual: VisionTransformer = visual

    @property
    def blocks(self) -> list[torch.nn.Module]:
        return list(self.visual.transformer.resblocks)

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[int]) -> list[Tokens]:
        found = {}
        with self._autocast():
            x = self.visual._embeds(pixels)
            for number, block in enumerate(self.visual.transformer.resblocks[: max(layers) + 1]):
                x = block(x)
                if number in layers:
                    found[number] = x.float()
        return [Tokens(found[layer][:, :1], found[layer][:, 1:]) for layer in layers]

    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_out"]:
        x = torch.cat([tokens.prefix, tokens.patches], dim=1)
        blocks = list(self.visual.transformer.resblocks[layer + 1 :])
        with self._autocast():
            for block in blocks[:-1]:
                x = block(x)
            x = self._run_for_cls(blocks[-1], x) if isinstance(blocks[-1], ResidualAttentionBlock) else blocks[-1](x)
        return self._pool(Tokens(x[:, :1], x[:, 1:]))

    def _pool(self, tokens: Tokens) -> Float[Tensor, "batch d_out"]:
        with self._autocast():
            pooled, _ = self.visual._pool(torch.cat([tokens.prefix, tokens.patches], dim=1))
        return pooled.float()

    @staticmethod
    def _run_for_cls(block: Any, x: Float[Tensor, "batch n_tokens d_in"]) -> Float[Tensor, "batch 1 d_in"]:
        """Run the last block for CLS alone: only CLS asks, all tokens answer."""
        attn = block.attn
        answer = attend_for_cls(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias, attn.num_heads)
        cls = x[:, :1] + block.ls_1(attn.out_proj(answer)[:, None])
        return cls + block.ls_2(block.mlp(block.ln_2(cls)))

    def _project(self, pooled: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch embed_dim"]:
        proj = self.visual.proj  # the final LayerNorm is behind it already
        return pooled if proj is None else pooled @ proj


class TimmClipBackbone(ClipBackbone, TimmBackbone):
    """A CLIP whose image tower is a plain vision transformer of timm's: SigLIP, which pools its patches by attention.

    Args: as `OpenClipBackbone`.
    """

    def __init__(
        self, clip: torch.nn.Module, make_tokenizer: Callable[[], Tokenizer] | None = None, **options: Any
    ) -> None:
        visual: Any = clip.visual
        super().__init__(clip, make_tokenizer, trunk=visual.trunk, **options)
        self.head = visual.head

    def _project(self, pooled: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch embed_dim"]:
        return self.head(self.trunk.head(pooled))
