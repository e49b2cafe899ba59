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

from infoscope.probes.config import ProbeConfig, Readout
from infoscope.probes.editing import VariantEditor, VariantShares
from infoscope.probes.features import MEANS, SHARES_FILE
from infoscope.probes.inputs import ProbeData, ProbeInputs, Progress
from infoscope.probes.variants import Variant
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.sae.edit import GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.vision.backbone import Tokens
from infoscope.vision.token_shards import RowWriter

PASSES = {"train": "editing training images", "test": "editing test images"}
"""What a pass over a split is called when it reports its progress."""

PART_IMAGES = 1024
"""Images between which an interrupted pass can go on, and that processes share out; whole batches of `_READ_IMAGES`."""
_MEANS_FILES = {"mean_x": "float32", "indices": "int32", "values": "float32"}
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
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[tuple[float, float]]:
    """Return (share of activation mass, share of energy) that each variant removes from these test images.

    Args:
        folder: where an interrupted run goes on from; None: nowhere.
    """
    wanted = _Wanted(inputs, config, {str(i): variant for i, variant in enumerate(variants)}, False, True, False)
    shares = VariantShares(inputs.sae, variants)
    for part in _pass_over(wanted, "test", rows, lambda part: None, folder, progress):
        shares.add(part)
    return shares.compute()


@torch.no_grad()
def write_features(
    inputs: ProbeInputs,
    config: ProbeConfig,
    variants: Mapping[str, Variant],
    rows: Mapping[str, Int[np.ndarray, " n"]],
    folders: Mapping[str, Path],
    check_disk: Callable[[int], None],
    folder: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """Fill the folders that are missing: of variants, by key, and of the means of images, under `MEANS`.

    A variant's folder gets `<split>-<readout>.npy` [n, d] (`probe.feature_dtype`) for each readout of CLS, and the
    shares that it removes from the test tokens; the means are `ImageMeans`. A split is read once for all of them, and
    not at all if nothing is to be had from it. Several processes share the images; the main one writes the files.

    Args:
        variants: by key; those without a folder are left out.
        rows: of each split, the images, ascending.
        check_disk: refuses a number of bytes that the disk has no room for.
        folder: where an interrupted run goes on from, emptied in the end; None: nowhere.

    Raises:
        InputError: a vector that is not finite, or too large for float16; no room on the disk.
        OSError: the disk is full.
    """
    missing = {key: variants[key] for key in folders if key != MEANS}
    reads_cls, n_images = bool(missing and config.cls_readouts), sum(len(of) for of in rows.values())
    n_vectors = n_images * len(missing) * len(config.cls_readouts)
    vectors_bytes = n_vectors * inputs.sae.d_in * np.dtype(config.feature_dtype).itemsize
    copies = 1 if folder is None else 2  # the parts, and what they are joined to
    check_disk(copies * vectors_bytes)

    def check_means(part: Part) -> None:  # how sparse they are is known when there are some
        if "mean_x" in part:
            n_bytes = sum(part[name].nbytes for name in _MEANS_FILES) // len(part["mean_x"])
            check_disk(copies * (vectors_bytes + n_bytes * n_images))

    for split in ("train", "test"):
        wanted = _Wanted(inputs, config, missing, reads_cls, split == "test" and bool(missing), MEANS in folders)
        if not (wanted.means or wanted.vectors or wanted.shares):
            continue
        parts = _pass_over(wanted, split, rows[split], check_means, folder, progress)
        if not processes.is_main():
            continue
        shares = VariantShares(inputs.sae, list(missing.values())) if wanted.shares else None
        with ExitStack() as stack:
            writers: list[_MeansWriter | _VectorsWriter] = []
            if wanted.means:
                writers.append(stack.enter_context(closing(_MeansWriter(folders[MEANS], split, inputs.sae))))
            if wanted.vectors:
                writers.append(stack.enter_context(closing(_VectorsWriter(wanted, folders, split))))
            for part in parts:
                for writer in writers:
                    writer.write(part)
                if shares:
                    shares.add(part)
        if shares:
            for key, values in zip(missing, shares.compute(), strict=True):
                (folders[key] / SHARES_FILE).write_text(json.dumps(values), encoding="utf-8")


@dataclass(frozen=True)
class _Wanted:
    """What a pass over a split is made for: CLS of every variant, the shares each removes, the means of images."""

    inputs: ProbeInputs
    config: ProbeConfig
    variants: Mapping[str, Variant]
    vectors: bool
    shares: bool
    means: bool


def _pass_over(
    wanted: _Wanted,
    split: str,
    rows: Int[np.ndarray, " n"],
    on_first: Callable[[Part], None],
    folder: Path | None,
    progress: Progress | None,
) -> Iterator[Part]:
    """Return what is wanted of some images, part after part; `on_first` is shown the first before it is kept."""
    inputs, config = wanted.inputs, wanted.config
    data, slices = (inputs.train if split == "train" else inputs.test), cut(len(rows), PART_IMAGES)
    editors: list[tuple[list[str], VariantEditor]] = []
    is_first = True

    def read(number: int) -> Part:
        shares = VariantShares(inputs.sae, list(wanted.variants.values())) if wanted.shares else None
        columns: dict[str, list[Tensor]] = {}
        n_done = slices[number].start
        for batch in iterate_encoded(inputs, data, rows[slices[number]], config.feature_batch_images):
            found = _mean_images(batch) if wanted.means else {}
            if wanted.vectors:
                if not editors:
                    editors.extend(_make_editors(wanted, batch))
                found |= _read_vectors(config, batch, editors)
            for name, rows_of in found.items():
                columns.setdefault(name, []).append(rows_of.cpu())
            if shares:
                shares.update(batch.group)
            n_done += len(batch.tokens.patches)
            if progress:
                progress(PASSES[split], n_done, len(rows))
        assert n_done == slices[number].stop, f"{n_done} of {slices[number].stop} images came"
        part = {name: torch.cat(of) for name, of in columns.items()}
        nonlocal is_first
        if is_first:
            on_first(part)
            is_first = False
        return part | (shares.state() if shares else {})

    return compute_parts(len(slices), read, folder, split)


def _mean_images(batch: EncodedBatch) -> dict[str, Tensor]:
    """Return the means of some images: of the tokens, and of their latents as sparse rows."""
    n_images, n_patches, _ = batch.tokens.patches.shape
    acts = [part[: n_images * n_patches].reshape(n_images, -1) for part in batch.group.acts]
    sums = torch.zeros(n_images, batch.inputs.sae.d_sae, device=acts[0].device, dtype=acts[0].dtype)
    z = sums.scatter_add_(1, acts[1], acts[0]) / n_patches
    image, latent = z.nonzero(as_tuple=True)
    found = {"mean_x": batch.tokens.patches.mean(1), "indices": latent.int(), "values": z[image, latent]}
    _check(found["mean_x"], Readout.patch_mean)
    _check(found["values"], Readout.patch_mean)
    return {**found, "counts": torch.bincount(image, minlength=n_images)}


def _make_editors(wanted: _Wanted, batch: EncodedBatch) -> list[tuple[list[str], VariantEditor]]:
    """Cut the variants into slices whose tokens, with what a block makes of them, fit into `probe.memory_gb`."""
    config, keys = wanted.config, list(wanted.variants)
    variant_bytes = _COPIES * 4 * sum(part.numel() for part in batch.tokens)
    size = max(1, min(config.variants_per_chunk, int(config.memory_gb * 1e9 // variant_bytes)))
    chunks = [keys[part] for part in cut(len(keys), size)]
    return [(chunk, VariantEditor(wanted.inputs.sae, [wanted.variants[key] for key in chunk])) for chunk in chunks]


def _read_vectors(
    config: ProbeConfig, batch: EncodedBatch, editors: list[tuple[list[str], VariantEditor]]
) -> dict[str, Tensor]:
    """Return what each readout of CLS makes of every variant of some images, some variants at a time."""
    found, dtype = {}, getattr(torch, config.feature_dtype)
    for keys, editor in editors:
        edited = batch.edit(editor)
        for readout in config.cls_readouts:
            vectors = batch.read(edited, readout)
            _check(vectors, readout, config.feature_dtype)
            found |= {f"{key}/{readout.name}": rows.to(dtype) for key, rows in zip(keys, vectors, strict=True)}
    return found


class _MeansWriter:
    """Writes the files of `ImageMeans` part by part."""

    def __init__(self, folder: Path, split: str, sae: SparseAutoencoder) -> None:
        self.path = folder / f"{split}-indptr.npy"
        self.counts = [np.zeros(1, np.int64)]
        shapes = {"mean_x": (sae.d_in,), "indices": (), "values": ()}
        self.files = {
            name: RowWriter(folder / f"{split}-{name}.npy", shapes[name], dtype) for name, dtype in _MEANS_FILES.items()
        }

    def write(self, part: Part) -> None:
        """Append the means of some images."""
        for name, file in self.files.items():
            file.write(part[name])
        self.counts.append(part["counts"].numpy())

    def close(self) -> None:
        """Write where each image's entries lie, and close the files."""
        for file in self.files.values():
            file.close()
        np.save(self.path, np.concatenate(self.counts).cumsum())


class _VectorsWriter:
    """Writes what each readout of CLS makes of every variant, part by part."""

    def __init__(self, wanted: _Wanted, folders: Mapping[str, Path], split: str) -> None:
        config = wanted.config
        self.files = {
            f"{key}/{readout.name}": RowWriter(
                folders[key] / f"{split}-{readout.name}.npy", (wanted.inputs.sae.d_in,), config.feature_dtype
            )
            for key in wanted.variants
            for readout in config.cls_readouts
        }

    def write(self, part: Part) -> None:
        """Append the vectors of some images."""
        for name, file in self.files.items():
            file.write(part[name])

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
