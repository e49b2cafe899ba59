"""A frozen vision transformer: tokens after any block, and going on from there with edited tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from infoscope.runtime.errors import InputError, get_first_line
from infoscope.vision.checks import LaterChecks, is_finite
from infoscope.vision.hooks import AT_END, POST_NORM, PROJECTED, RESID_POST, HookPoint


class Tokens(NamedTuple):
    """The residual stream after one block.

    prefix: [batch, n_prefix_tokens, d_in], CLS first, then registers; empty for towers without them.
    patches: [batch, grid * grid, d_in], row by row from the top left.
    """

    prefix: Float[Tensor, "batch n_prefix d_in"]
    patches: Float[Tensor, "batch n_patches d_in"]


class Backbone(nn.Module, ABC):
    """A frozen vision transformer as every later stage sees it.

    Args:
        d_in: width of a token.
        n_layers: number of blocks; layers are counted from 0, negative ones from the end.
        n_prefix_tokens: tokens before the patches (CLS, registers).
        grid: patches per side.
        patch_px: side of a patch in pixels.
        mean, std: the model's own normalisation of RGB values in 0..1.
        precision: float32, or bfloat16 by autocast; tokens leave it as float32.
        fingerprint: what determines the numbers it gives (architecture, hash of the weights): plain JSON types.
    """

    n_images_encoded: int
    """Images that have gone through `tokens` or `embed_images` so far: the cost of a stage, and what tests count."""
    notes: str = ""
    """A sentence on what was decided or left out when its weights were read; empty: nothing."""

    site: str = RESID_POST
    """Where in a block tokens are read, see `HookPoint`."""

    def __init__(
        self,
        *,
        d_in: int,
        n_layers: int,
        n_prefix_tokens: int,
        grid: int,
        patch_px: int,
        mean: Sequence[float],
        std: Sequence[float],
        fingerprint: dict[str, Any],
        precision: str = "float32",
    ) -> None:
        super().__init__()
        self.d_in, self.n_layers, self.n_prefix_tokens = d_in, n_layers, n_prefix_tokens
        self.grid, self.patch_px = grid, patch_px
        self.fingerprint, self.precision = fingerprint, precision
        self.n_images_encoded = 0
        self._has_compiled, self._compiled_images = False, 0
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    @property
    def image_px(self) -> int:
        """Side of the input in pixels."""
        return self.grid * self.patch_px

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks, in order; none where tokens are a formula."""
        return []

    def cast_weights(self) -> None:
        """On a GPU, keep weights in bfloat16 that autocast would make bfloat16 in every forward: no number changes.

        (On a CPU attention would take another path.) The last block's weights stay float32: `resume` runs parts of it
        that autocast leaves in float32.
        """
        if self.precision == "bfloat16" and self.mean.is_cuda:
            for block in self.blocks[:-1]:
                for module in block.modules():
                    if isinstance(module, nn.Linear | nn.MultiheadAttention):
                        for weight in module.parameters(recurse=False):
                            weight.data = weight.data.bfloat16()

    @property
    def n_products(self) -> int:
        """Multiplications of weights in the blocks, for one image."""
        n_weights = sum(weight.numel() for block in self.blocks for weight in block.parameters())
        return n_weights * (self.n_prefix_tokens + self.grid**2)

    @torch.inference_mode()
    def compile_blocks(self, batch_images: int) -> None:
        """Compile the blocks for batches of so many images, which takes seconds; their numbers are rounded otherwise.

        `tokens` fills batches of more than half as many up to that, so that there is one shape; all else (smaller
        batches, larger ones, `resume`) goes through the blocks as they were.

        Raises:
            InputError: they cannot be compiled, for want of a C++ compiler or of triton; all is as it was.
        """
        if not self.blocks:
            return
        for block in self.blocks:
            block.compile(dynamic=False)
        self._has_compiled = True
        images = torch.zeros(batch_images, 3, self.image_px, self.image_px, dtype=torch.uint8)
        try:
            self._tokens(self.normalise(images), [self.n_layers - 1])
        except Exception as error:  # of compilers, of every kind
            reason = get_first_line(getattr(error, "inner_exception", error))  # dynamo's own says the backend's name
            raise InputError(
                f"The backbone's blocks cannot be compiled ({reason}): set trainer.compile=false."
            ) from error
        self._compiled_images = batch_images

    def _plain(self) -> AbstractContextManager[object]:
        """Let blocks run as they are, compiled or not."""
        return torch.compiler.set_stance("force_eager") if self._has_compiled else nullcontext()

    def normalise(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Return uint8 images as the model wants them: in 0..1, then (value - mean) / std."""
        pixels = images.to(self.mean.device, non_blocking=True).float() / 255
        return pixels.sub_(self.mean).div_(self.std)

    def check_layer(self, layer: int) -> int:
        """Return `layer` counted from 0.

        Raises:
            InputError: if the layer does not exist.
        """
        return HookPoint(layer).check(self.n_layers).layer

    def read_at(self, site: str) -> Backbone:
        """Return it, made to give the tokens of another site; of those behind the tower, a backbone around it.

        Raises:
            InputError: if it cannot.
        """
        if site in AT_END:
            from infoscope.vision.embedded import EmbeddedBackbone

            return EmbeddedBackbone(self, site)
        if site == POST_NORM and type(self)._norm is Backbone._norm:
            raise InputError(
                f"model.site={POST_NORM} is for timm's towers such as DINOv2, and this is none: use {RESID_POST}."
            )
        self.site = site
        return self

    def tokens(
        self, images: UInt8[Tensor, "batch 3 height width"], layer: int, checks: LaterChecks | None = None
    ) -> Tokens:
        """Return the tokens after block `layer` (0-based, negative from the end) of square images of side `image_px`.

        Args:
            checks: where it is noted that every token must be finite, so that nobody waits for the device here; who
                gives it asks it before results are kept.

        Raises:
            InputError: if the layer does not exist, the images have another size, or a token is not finite.
        """
        later = LaterChecks() if checks is None else checks
        (tokens,) = self.tokens_of_layers(images, [layer], [later])
        if checks is None:
            later.ask()
        return tokens

    @torch.inference_mode()
    def tokens_of_layers(
        self, images: UInt8[Tensor, "batch 3 height width"], layers: Sequence[int], checks: Sequence[LaterChecks]
    ) -> list[Tokens]:
        """Return what `tokens` does of each of several layers, from one forward.

        Args:
            checks: one for each layer; who gives them asks them.

        Raises:
            InputError: if a layer does not exist, or the images have another size.
        """
        layers = [self.check_layer(layer) for layer in layers]
        if tuple(images.shape[1:]) != (3, self.image_px, self.image_px):
            raise InputError(f"Expected images [batch, 3, {self.image_px}, {self.image_px}], got {list(images.shape)}.")
        self.n_images_encoded += len(images)
        if self._compiled_images // 2 < len(images) <= self._compiled_images:
            n_missing = self._compiled_images - len(images)
            filled = F.pad(images, (0,) * 7 + (n_missing,))
            found = self._tokens(self.normalise(filled), layers)
            found = [Tokens(*(part[: len(images)] for part in tokens)) for tokens in found]
        else:
            with self._plain():
                found = self._tokens(self.normalise(images), layers)
        for place, layer in enumerate(layers):
            if self.site == POST_NORM and layer == self.n_layers - 1:
                found[place] = self._norm(found[place])
            checks[place].require(
                is_finite(found[place].patches) & is_finite(found[place].prefix),
                f"The backbone gave NaN or Inf after block {layer}: check its weights, or use model.precision=float32.",
            )
        return found

    def resume(self, tokens: Tokens, layer: int, with_gradient: bool = False) -> Float[Tensor, "batch d_out"]:
        """Run edited tokens of block `layer` through the blocks after it and pool: the vector before projection.

        With unedited tokens this equals the plain forward. Only what the pooled vector needs is computed.

        Args:
            with_gradient: record it for autograd, whatever the caller's mode, so that what becomes of the vector has a
                gradient to the tokens.

        Raises:
            InputError: if the layer does not exist, or is the last one of a CLS-pooled model: nothing would be left
                through which an edit of patches could reach CLS.
        """
        layer = self.check_layer(layer)
        if layer == self.n_layers - 1 and (self.pools_prefix or self.site in (POST_NORM, PROJECTED)):
            raise InputError(
                f"Going on from the last block ({layer}) cannot change CLS: expected an earlier model.layer, or the"
                " readout patch_mean."
            )
        with torch.inference_mode(not with_gradient), self._plain():
            return self._resume(tokens, layer)

    def pool_images(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d_out"]:
        """Return one vector of unit norm per image: a CLIP's image embedding, else the tower's pooled vector.

        Raises:
            InputError: as `tokens`.
        """
        if self.n_layers == 1 and self.site == RESID_POST:
            with torch.inference_mode(), self._plain():  # `resume` has nothing to run, and would refuse
                return F.normalize(self._pool(self.tokens(images, 0)), dim=-1)
        layer = max(self.n_layers - 2, 0)
        return F.normalize(self.resume(self.tokens(images, layer), layer), dim=-1)

    @torch.inference_mode()
    def embed(self, tokens: Tokens) -> Float[Tensor, "batch d_embed"]:
        """Return what the tower makes of its last block's tokens: normed, pooled and, by a CLIP, projected.

        A CLIP's image embedding is this over its norm.

        Args:
            tokens: of the last block, at `RESID_POST`; patches may be fewer than an image has.
        """
        with self._plain():
            return self._embed(tokens)

    @torch.inference_mode()
    def embed_patches(self, patches: Float[Tensor, "batch n_patches d_in"]) -> Float[Tensor, "batch n_patches d_embed"]:
        """Return what the tower would make of each of its last block's patches alone, in the place of all its tokens.

        Of a CLIP that pools by CLS that is the patch through the final norm and the projection.
        """
        alone = patches.flatten(0, 1)[:, None]
        each = self.embed(Tokens(alone.expand(-1, self.n_prefix_tokens, -1), alone))
        return each.unflatten(0, patches.shape[:2])

    def embed_tokens(self, tokens: Tokens, layer: int, with_gradient: bool = False) -> Float[Tensor, "batch embed_dim"]:
        """Go on from edited tokens of block `layer` to what texts are compared with, of unit norm.

        Args:
            with_gradient: as of `resume`.

        Raises:
            InputError: as `resume`, or if the model has no text tower.
        """
        raise self._no_text()

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        """Return text embeddings before they are normalised.

        Raises:
            InputError: as `embed_texts`.
        """
        raise self._no_text()

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        """Return text embeddings of unit norm.

        Raises:
            InputError: if the model has no text tower, no tokenizer, or one that does not know a word.
        """
        raise self._no_text()

    def check_texts(self, texts: Sequence[str], what: str = "texts") -> None:
        """Refuse texts that cannot be embedded; none of them is.

        Args:
            what: they are, for the error.

        Raises:
            InputError: as `embed_texts`.
        """
        raise self._no_text()

    def find_cut(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        """Return how many tokens the text tower reads of a text, and the places of texts that are longer.

        Raises:
            InputError: as `embed_texts`.
        """
        raise self._no_text()

    @property
    def logit_scale(self) -> float:
        """What the cosine of image and text is multiplied by before softmax: 1 / temperature.

        Raises:
            InputError: if the model has no text tower.
        """
        raise self._no_text()

    def _no_text(self) -> InputError:
        return InputError(
            f"{type(self).__name__} has no text tower to hold words against images by: use a CLIP, such as"
            " model=scenes_clip or model=clip_b16."
        )

    @property
    def pools_prefix(self) -> bool:
        """Whether the pooled vector is read from a prefix token (CLS) rather than from patches."""
        return self.n_prefix_tokens > 0

    @property
    def has_cls(self) -> bool:
        """Whether the first prefix token is CLS; a model may have registers alone."""
        return self.n_prefix_tokens > 0

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _norm(self, tokens: Tokens) -> Tokens:
        """Return the last block's tokens through the final norm, of towers that can."""
        raise AssertionError(f"{type(self).__name__} has no final norm to give tokens through: read_at refuses it")

    @abstractmethod
    def _tokens(self, pixels: Float[Tensor, "batch 3 height width"], layers: Sequence[int]) -> list[Tokens]: ...

    @abstractmethod
    def _resume(self, tokens: Tokens, layer: int) -> Float[Tensor, "batch d_out"]: ...

    def _pool(self, tokens: Tokens) -> Float[Tensor, "batch d_out"]:
        """Return the last block's tokens, normed and pooled."""
        return self._resume(tokens, self.n_layers - 1)

    def _embed(self, tokens: Tokens) -> Float[Tensor, "batch d_embed"]:
        return self._pool(tokens)
