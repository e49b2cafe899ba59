"""A backbone read behind its end: whole images as one vector each, or each patch as the tower would embed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.checks import LaterChecks, is_finite
from infoscope.vision.hooks import POOLED, PROJECTED, HookPoint


class EmbeddedBackbone(Backbone):
    """Another backbone, whose tokens are embeddings of width d_embed, not normalised.

    At `POOLED` an image is one patch, its embedding, from which `resume` and `embed_tokens` go on with nothing left to
    run. At `PROJECTED` it is the grid of its patches, each as `Backbone.embed_patches` gives it, and nothing goes on
    from there. There is no prefix.

    Args:
        tower: the backbone, at `RESID_POST`.
        site: `POOLED` or `PROJECTED`.
    """

    def __init__(self, tower: Backbone, site: str) -> None:
        assert site in (POOLED, PROJECTED), f"{site} is within the tower"
        grid = 1 if site == POOLED else tower.grid
        nothing = torch.zeros(1, 1, tower.d_in)
        super().__init__(
            d_in=tower.embed_patches(nothing).shape[-1],
            n_layers=tower.n_layers,
            n_prefix_tokens=0,
            grid=grid,
            patch_px=tower.image_px // grid,
            mean=tower.mean.flatten().tolist(),
            std=tower.std.flatten().tolist(),
            fingerprint=tower.fingerprint,
            precision=tower.precision,
        )
        self.tower, self.site, self.notes = tower, site, tower.notes

    @property
    def blocks(self) -> list[nn.Module]:
        return self.tower.blocks

    @property
    def n_products(self) -> int:
        return self.tower.n_products

    def cast_weights(self) -> None:
        self.tower.cast_weights()

    def pool_images(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d_out"]:
        self.n_images_encoded += len(images)
        return self.tower.pool_images(images)

    def embed_tokens(self, tokens: Tokens, layer: int, with_gradient: bool = False) -> Float[Tensor, "batch embed_dim"]:
        _ = self.logit_scale  # of a model without texts it is refused
        with torch.inference_mode(not with_gradient):
            return F.normalize(self.resume(tokens, layer, with_gradient), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        return self.tower.encode_texts(texts)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        return self.tower.embed_texts(texts)

    def check_texts(self, texts: Sequence[str], what: str = "texts") -> None:
        self.tower.check_texts(texts, what)

    def find_cut(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        return self.tower.find_cut(texts)

    @property
    def logit_scale(self) -> float:
        return self.tower.logit_scale

    def check_layer(self, layer: int) -> int:
        return HookPoint(layer, self.site).check(self.n_layers).layer

    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[int]) -> list[Tokens]:
        (last,) = self.tower._tokens(pixels, [self.n_layers - 1])
        patches = self.tower.embed(last)[:, None] if self.site == POOLED else self.tower.embed_patches(last.patches)
        return [Tokens(patches[:, :0], patches)] * len(layers)

    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_out"]:
        return tokens.patches[:, 0]


class CaptionTower(EmbeddedBackbone):
    """The text tower of a CLIP as a backbone whose pictures are texts, by their numbers: a text's embedding is a token.

    Args:
        tower: a CLIP, at any site.
        caption: number -> text.

    Raises:
        InputError: if the model has no text tower.
    """

    def __init__(self, tower: Backbone, caption: Callable[[int], str]) -> None:
        super().__init__(tower.tower if isinstance(tower, EmbeddedBackbone) else tower, POOLED)
        _ = self.logit_scale  # of a model without texts it is refused
        self.caption = caption

    @torch.inference_mode()
    def tokens_of_layers(
        self, images: Int64[Tensor, " batch"], layers: Sequence[int], checks: Sequence[LaterChecks]
    ) -> list[Tokens]:
        self.n_images_encoded += len(images)
        embedded = self._encode(images)[:, None]
        for one in checks:
            one.require(is_finite(embedded), "The text tower gave NaN or Inf: check its weights.")
        return [Tokens(embedded[:, :0], embedded)] * len(layers)

    def pool_images(self, images: Int64[Tensor, " batch"]) -> Float[Tensor, "batch d_out"]:
        return F.normalize(self._encode(images), dim=-1)

    def _encode(self, numbers: Int64[Tensor, " batch"]) -> Float[Tensor, "batch d_embed"]:
        return self.tower.encode_texts([self.caption(number) for number in numbers.tolist()])
