"""The pass over a split's tokens that makes features: every image is read and encoded once, for all variants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.errors import InputError
from infoscope.probes.config import ProbeConfig, Readout
from infoscope.probes.editing import VariantEditor, VariantShares
from infoscope.probes.features import MEANS, SHARES_FILE
from infoscope.probes.inputs import ProbeData, ProbeInputs, Progress
from infoscope.probes.variants import Variant
from infoscope.sae.edit import GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.vision.backbone import Tokens
from infoscope.vision.extract import RowWriter

PASSES = {"train": "editing training images", "test": "editing test images"}
"""What a pass over a split is called when it reports its progress."""

_READ_IMAGES = 64
"""Images read at a time; they are edited in smaller batches."""
_COPIES = 12
"""Tokens are held so many times over while a transformer block works on them: its MLP alone makes eight."""


class EditedTokens(NamedTuple):
    """Tokens in every variant; those that the SAE was not trained on are the same in each."""

    prefix: Float[Tensor, "n_variants batch n_prefix d"]
    patches: Float[Tensor, "n_variants batch n_patches d"]


@dataclass(frozen=True)
class EncodedBatch:
    """Some images' tokens on the device, and the latents of those that are edited (patches first)."""

    inputs: ProbeInputs
    tokens: Tokens
    group: GroupEditor

    def edit(self, editor: VariantEditor) -> EditedTokens:
        """Return the tokens in every variant."""
        edited, start, parts = editor.edit(self.group.x, self.group.acts), 0, []
        chosen = (self.inputs.edits_patches, self.inputs.edits_prefix)
        for part, is_edited in zip((self.tokens.patches, self.tokens.prefix), chosen, strict=True):
            if is_edited:
                n_tokens = part.shape[0] * part.shape[1]
                parts.append(edited[:, start : start + n_tokens].unflatten(1, part.shape[:2]))
                start += n_tokens
            else:
                parts.append(part.expand(len(editor), -1, -1, -1))
        return EditedTokens(prefix=parts[1], patches=parts[0])

    def read(self, edited: EditedTokens, readout: Readout) -> Float[Tensor, "n_variants batch d"]:
        """Return what classification reads of the edited tokens, computed directly."""
        match readout:
            case Readout.patch_mean:
                return edited.patches.mean(2)
            case Readout.cls_layer:
                return edited.prefix[:, :, 0]
            case Readout.cls_final:
                assert self.inputs.backbone is not None
                n_variants, batch = edited.patches.shape[:2]
                both = Tokens(edited.prefix.flatten(0, 1), edited.patches.flatten(0, 1))
                return self.inputs.backbone.resume(both, self.inputs.layer).unflatten(0, (n_variants, batch))


def iterate_encoded(
    inputs: ProbeInputs, data: ProbeData, rows: Int[np.ndarray, " n"], batch_images: int
) -> Iterator[EncodedBatch]:
    """Yield images in the order of `rows`, at most `batch_images` at a time; their tokens are read in one pass."""
    for _, read in data.tokens.iterate(rows, _READ_IMAGES):
        for start in range(0, len(read.patches), batch_images):
            tokens = Tokens(*(part[start : start + batch_images].to(inputs.device) for part in read))
            edited = [tokens.patches] * inputs.edits_patches + [tokens.prefix] * inputs.edits_prefix
            flat = torch.cat([part.flatten(0, 1) for part in edited])
            yield EncodedBatch(inputs, tokens, GroupEditor(inputs.sae, flat))


def measure_shares(
    inputs: ProbeInputs,
    config: ProbeConfig,
    rows: Int[np.ndarray, " n"],
    variants: Sequence[Variant],
    progress: Progress | None = None,
) -> list[tuple[float, float]]:
    """Return (share of activation mass, share of energy) that each variant removes from these test images."""
    shares, n_done = VariantShares(inputs.sae, variants), 0
    for batch in iterate_encoded(inputs, inputs.test, rows, config.feature_batch_images):
        shares.update(batch.group)
        n_done += len(batch.tokens.patches)
        if progress:
            progress(PASSES["test"], n_done, len(rows))
    return shares.compute()


@torch.no_grad()
def write_features(
    inputs: ProbeInputs,
    config: ProbeConfig,
    variants: Mapping[str, Variant],
    rows: Mapping[str, Int[np.ndarray, " n"]],
    folders: Mapping[str, Path],
    check_disk: Callable[[int], None],
    progress: Progress | None = None,
) -> None:
    """Fill the folders that are missing: of variants, by key, and of the means of images, under `MEANS`.

    A variant's folder gets `<split>-<readout>.npy` [n, d] (`probe.feature_dtype`) for each readout of CLS, and the
    shares that it removes from the test tokens; the means are `ImageMeans`. A split is read once for all of them, and
    not at all if nothing is to be had from it.

    Args:
        variants: by key; those without a folder are left out.
        rows: of each split, the images, ascending.
        check_disk: refuses a number of bytes that the disk has no room for.

    Raises:
        InputError: a vector that is not finite, or too large for float16; no room on the disk.
        OSError: the disk is full.
    """
    missing = {key: variants[key] for key in folders if key != MEANS}
    reads_cls, n_images = bool(missing and config.cls_readouts), sum(len(of) for of in rows.values())
    n_vectors = n_images * len(missing) * len(config.cls_readouts)
    vectors_bytes = n_vectors * inputs.sae.d_in * np.dtype(config.feature_dtype).itemsize
    check_disk(vectors_bytes)
    for split, data in (("train", inputs.train), ("test", inputs.test)):
        shares = VariantShares(inputs.sae, list(missing.values())) if split == "test" and missing else None
        if not (MEANS in folders or reads_cls or shares):
            continue
        means, n_done = None, 0
        with ExitStack() as stack:
            writers: list[_MeansWriter | _VectorsWriter] = []
            if MEANS in folders:
                means = stack.enter_context(closing(_MeansWriter(folders[MEANS], split, inputs.sae)))
                writers.append(means)
            if reads_cls:
                writers.append(
                    stack.enter_context(closing(_VectorsWriter(config, inputs.sae, missing, folders, split)))
                )
            for batch in iterate_encoded(inputs, data, rows[split], config.feature_batch_images):
                for writer in writers:
                    writer.write(batch)
                if shares:
                    shares.update(batch.group)
                if means and n_done == 0 and split == "train":  # now it is known how sparse the means are
                    check_disk(vectors_bytes + means.bytes_per_image() * n_images)
                n_done += len(batch.tokens.patches)
                if progress:
                    progress(PASSES[split], n_done, len(rows[split]))
        assert n_done == len(rows[split]), f"{n_done} of {len(rows[split])} images came"
        if shares:
            for key, values in zip(missing, shares.compute(), strict=True):
                (folders[key] / SHARES_FILE).write_text(json.dumps(values))


class _MeansWriter:
    """Writes the files of `ImageMeans` image by image."""

    def __init__(self, folder: Path, split: str, sae: SparseAutoencoder) -> None:
        self.path, self.d_sae = folder / f"{split}-indptr.npy", sae.d_sae
        self.counts = [np.zeros(1, np.int64)]
        self.files = {
            name: RowWriter(folder / f"{split}-{name}.npy", shape, dtype)
            for name, shape, dtype in (
                ("mean_x", (sae.d_in,), "float32"),
                ("indices", (), "int32"),
                ("values", (), "float32"),
            )
        }

    def write(self, batch: EncodedBatch) -> None:
        """Append the means of some images."""
        n_images, n_patches, _ = batch.tokens.patches.shape
        acts = [part[: n_images * n_patches].reshape(n_images, -1) for part in batch.group.acts]
        sums = torch.zeros(n_images, self.d_sae, device=acts[0].device, dtype=acts[0].dtype)
        z = sums.scatter_add_(1, acts[1], acts[0]) / n_patches
        image, latent = z.nonzero(as_tuple=True)
        rows = {"mean_x": batch.tokens.patches.mean(1), "indices": latent.int(), "values": z[image, latent]}
        _check(rows["mean_x"], Readout.patch_mean)
        _check(rows["values"], Readout.patch_mean)
        for name, file in self.files.items():
            file.write(rows[name])
        self.counts.append(torch.bincount(image, minlength=n_images).cpu().numpy())

    def bytes_per_image(self) -> int:
        """Return the mean size of an image's row so far."""
        n_bytes = sum(file.n_rows * int(np.prod(file.row_shape)) * file.dtype.itemsize for file in self.files.values())
        return n_bytes // self.files["mean_x"].n_rows + 8

    def close(self) -> None:
        """Write where each image's entries lie, and close the files."""
        for file in self.files.values():
            file.close()
        np.save(self.path, np.concatenate(self.counts).cumsum())


class _VectorsWriter:
    """Writes what each readout of CLS makes of every variant, some variants at a time."""

    def __init__(
        self,
        config: ProbeConfig,
        sae: SparseAutoencoder,
        variants: Mapping[str, Variant],
        folders: Mapping[str, Path],
        split: str,
    ) -> None:
        self.config, self.sae, self.variants, self.files = config, sae, variants, {}
        self.editors: list[tuple[list[str], VariantEditor]] = []
        for key in variants:
            for readout in config.cls_readouts:
                path = folders[key] / f"{split}-{readout.name}.npy"
                self.files[key, readout] = RowWriter(path, (sae.d_in,), config.feature_dtype)

    def _make_editors(self, batch: EncodedBatch) -> None:
        """Cut the variants into slices whose tokens, with what a block makes of them, fit into `probe.memory_gb`."""
        variant_bytes = _COPIES * 4 * sum(part.numel() for part in batch.tokens)
        size = max(1, min(self.config.variants_per_chunk, int(self.config.memory_gb * 1e9 // variant_bytes)))
        keys = list(self.variants)
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            self.editors.append((chunk, VariantEditor(self.sae, [self.variants[key] for key in chunk])))

    def write(self, batch: EncodedBatch) -> None:
        """Append the vectors of some images."""
        if not self.editors:
            self._make_editors(batch)
        for keys, editor in self.editors:
            edited = batch.edit(editor)
            for readout in self.config.cls_readouts:
                vectors = batch.read(edited, readout)
                _check(vectors, readout, self.config.feature_dtype)
                for key, rows in zip(keys, vectors, strict=True):
                    self.files[key, readout].write(rows)

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()


def _check(vectors: Tensor, readout: Readout, dtype: str = "float32") -> None:
    """Refuse what is not finite, or will not be as `dtype`."""
    if not torch.isfinite(vectors).all():
        raise InputError(f"The readout {readout.name} gave NaN or Inf: check the SAE and the tokens it was trained on.")
    if dtype == "float16" and vectors.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(f"The vectors of {readout.name} are too large for float16: set probe.feature_dtype=float32.")
