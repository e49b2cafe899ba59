"""What classification reads: one vector per image and variant, extracted once and kept in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.errors import InputError
from infoscope.probes.config import Readout
from infoscope.probes.editing import VariantEditor
from infoscope.probes.heads import BATCH_NORM_EPS, Standardisation, VectorBatch
from infoscope.probes.inputs import ProbeData, ProbeInputs, Progress
from infoscope.vision.backbone import Tokens


@torch.no_grad()
def extract_vectors(
    inputs: ProbeInputs,
    data: ProbeData,
    rows: Int[np.ndarray, " n"],
    editor: VariantEditor,
    readouts: Sequence[Readout],
    batch_images: int,
    progress: Progress | None = None,
) -> dict[str, Float[Tensor, "n_variants n d"]]:
    """Return {readout: one vector for each variant and image}, images in the order of `rows`.

    Raises:
        InputError: if a vector is not finite.
    """
    vectors: dict[str, Tensor] = {}
    for start in range(0, len(rows), batch_images):
        batch = rows[start : start + batch_images]
        tokens = data.tokens.tokens(batch)
        edited = _edit(inputs, Tokens(tokens.prefix.to(inputs.device), tokens.patches.to(inputs.device)), editor)
        for readout in readouts:
            read = _read(inputs, edited, readout)
            if readout.name not in vectors:
                vectors[readout.name] = torch.empty(read.shape[0], len(rows), read.shape[2], device=read.device)
            vectors[readout.name][:, start : start + len(batch)] = read
        if progress:
            progress("features for classification", start + len(batch), len(rows))
    for name, values in vectors.items():
        if not torch.isfinite(values).all():
            raise InputError(f"The readout {name} gave NaN or Inf: check the SAE and the tokens it was trained on.")
    return vectors


class _EditedTokens(NamedTuple):
    prefix: Float[Tensor, "n_variants batch n_prefix d"]
    patches: Float[Tensor, "n_variants batch n_patches d"]


def _edit(inputs: ProbeInputs, tokens: Tokens, editor: VariantEditor) -> _EditedTokens:
    """Edit the tokens that the SAE was trained on; the others are the same in every variant."""
    parts = {"prefix": (tokens.prefix, inputs.edits_prefix), "patches": (tokens.patches, inputs.edits_patches)}
    edited = {}
    for name, (part, is_edited) in parts.items():
        batch, n_tokens, d = part.shape
        if is_edited:
            flat = part.reshape(-1, d)
            values = editor.edit(flat, inputs.sae.encode_sparse(flat))
        else:
            values = part.reshape(1, -1, d).expand(len(editor), -1, -1)
        edited[name] = values.unflatten(1, (batch, n_tokens))
    return _EditedTokens(**edited)


def _read(inputs: ProbeInputs, edited: _EditedTokens, readout: Readout) -> Float[Tensor, "n_variants batch d"]:
    match readout:
        case Readout.patch_mean:
            return edited.patches.mean(2)
        case Readout.cls_layer:
            return edited.prefix[:, :, 0]
        case Readout.cls_final:
            assert inputs.backbone is not None
            n_variants, batch = edited.patches.shape[:2]
            both = Tokens(edited.prefix.flatten(0, 1), edited.patches.flatten(0, 1))
            return inputs.backbone.resume(both, inputs.layer).unflatten(0, (n_variants, batch))


def standardise_vectors(vectors: Float[Tensor, "n_variants n d"]) -> Standardisation:
    """Return the mean and the standard deviation of every channel over the images."""
    variance, mean = torch.var_mean(vectors, dim=1, correction=0)
    return Standardisation(mean, (variance + BATCH_NORM_EPS).sqrt())


class VectorBatches:
    """Shuffled batches of cached vectors; an epoch's order is a function of (seed, epoch), its last batch is kept.

    Args:
        rows: the images to train on, positions in the vectors.
        labels: of the same images.
    """

    def __init__(
        self,
        vectors: dict[str, Float[Tensor, "n_variants n d"]],
        rows: Int[Tensor, " n_fit"],
        labels: Int[Tensor, " n_fit"],
        batch_images: int,
        n_epochs: int,
        seed: int,
    ) -> None:
        self.vectors, self.rows, self.labels = vectors, rows, labels
        self.batch_images, self.n_epochs, self.seed = min(batch_images, len(rows)), n_epochs, seed

    def __len__(self) -> int:
        return self.n_epochs * -(-len(self.rows) // self.batch_images)

    def __iter__(self) -> Iterator[VectorBatch]:
        for epoch in range(self.n_epochs):
            order = np.random.default_rng([self.seed, 12, epoch]).permutation(len(self.rows))
            for chosen in torch.from_numpy(order).to(self.rows.device).split(self.batch_images):
                images = self.rows[chosen]
                batch = {name: values.index_select(1, images) for name, values in self.vectors.items()}
                yield VectorBatch(batch, self.labels[chosen])
