"""What predictions are made from, and tokens without a group of latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_edits, check_tokens, choose_layer
from infoscope.scope.ablations import choose_rows
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.hooks import POST_NORM, PROJECTED
from infoscope.vision.tokens.source import TokenRows


@dataclass(frozen=True)
class PredictInputs:
    """What predictions are made from.

    Args:
        sae: the SAE whose latents are ablated; computation runs on the device of its weights.
        tokens: of the test images, of the block `layer`.
        backbone: goes on from edited tokens.
        layer: the hooked block, negative from the end.
        edits_patches, edits_prefix: which tokens the SAE was trained on, and so which are edited.
        check_origin: False insists on another layer or backbone than the SAE was trained on, see `choose_layer`.

    Raises:
        InputError: if the model cannot predict from there, or the SAE was trained on other tokens.
    """

    sae: SparseAutoencoder
    tokens: TokenRows
    backbone: Backbone
    layer: int = -2
    edits_patches: bool = True
    edits_prefix: bool = False
    check_origin: bool = True

    def __post_init__(self) -> None:
        check_predictions(self.backbone, self.layer)
        check_edits(self.sae, self.edits_patches, self.edits_prefix)
        choose_layer(self.sae, self.backbone, self.layer, self.check_origin)
        if self.check_origin:
            check_tokens(self.sae, self.tokens)
        assert self.edits_patches or self.edits_prefix, "an SAE is trained on some tokens"

    @property
    def reads(self) -> TokenChoice:
        """Which tokens are edited."""
        if not self.edits_prefix:
            return TokenChoice.patch
        return TokenChoice.all if self.edits_patches else TokenChoice.cls

    @property
    def device(self) -> torch.device:
        """Where tokens are edited and sent on."""
        return self.sae.W_dec.device

    def choose_rows(self, n_images: int | None, seed: int) -> Int[np.ndarray, " n_images"]:
        """Return the rows of the images that take part, ascending: all, or so many, drawn at random.

        Raises:
            InputError: there are no test images.
        """
        if not len(self.tokens):
            raise InputError("Expected test images to predict, got none: raise data.test_share, or add images.")
        return choose_rows(len(self.tokens), n_images, seed)

    def load(self, rows: Int[np.ndarray, " batch"]) -> Tokens:
        """Return the tokens of some rows on the device."""
        return next(tokens for _, tokens in self.iterate(rows, len(rows)))

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        """Yield (rows, their tokens on the device), a batch at a time."""
        for batch, tokens in self.tokens.iterate(rows, batch_images):
            yield batch, Tokens(tokens.prefix.to(self.device), tokens.patches.to(self.device))


def check_predictions(backbone: Backbone, layer: int) -> None:
    """Refuse, before hours of work, a model that cannot predict or a layer from which no edit reaches the prediction.

    Raises:
        InputError: a model without a text tower, a layer that does not exist, the last one of a CLS-pooled model, a
            site from which nothing goes on.
    """
    _ = backbone.logit_scale
    if backbone.site == PROJECTED:
        raise InputError(
            "Predictions go on from the tokens that are read, and nothing follows those of model.site=projected: drop"
            " it, or use model.site=pooled."
        )
    is_last = backbone.check_layer(layer) == backbone.n_layers - 1
    if is_last and (backbone.pools_prefix or backbone.site == POST_NORM):
        raise InputError(
            f"Predictions need a block after the hooked one, but model.layer={layer} is the last: use an earlier layer."
        )


def take_tokens(tokens: Tokens, reads: TokenChoice) -> Float[Tensor, "batch n_read d_in"]:
    """Return the tokens that an SAE reads, prefix first; with `cls` all of the prefix."""
    parts = [tokens.prefix] * (reads is not TokenChoice.patch) + [tokens.patches] * (reads is not TokenChoice.cls)
    return torch.cat(parts, dim=1)


def put_tokens(tokens: Tokens, read: Float[Tensor, "batch n_read d_in"], reads: TokenChoice) -> Tokens:
    """Return tokens with others in place of those that `take_tokens` takes."""
    n_prefix = tokens.prefix.shape[1]
    match reads:
        case TokenChoice.patch:
            return Tokens(tokens.prefix, read)
        case TokenChoice.cls:
            return Tokens(read, tokens.patches)
        case TokenChoice.all:
            return Tokens(read[:, :n_prefix], read[:, n_prefix:])


class TokenEditor:
    """Encodes a batch of tokens once and forms their edited versions; tokens the SAE does not read stay as they are."""

    def __init__(self, inputs: PredictInputs, tokens: Tokens) -> None:
        self.inputs, self.tokens = inputs, tokens
        self.editor = GroupEditor(inputs.sae, take_tokens(tokens, inputs.reads))

    def edit(self, removed: Bool[Tensor, " d_sae"], mode: EditMode) -> Tokens:
        """Return the tokens without a group of latents."""
        return put_tokens(self.tokens, self.editor.edit(removed, mode), self.inputs.reads)
