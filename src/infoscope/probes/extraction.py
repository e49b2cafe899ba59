"""The pass over a split's tokens that makes features: read once for all SAEs, encoded once by each for all variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.config import ProbeConfig, Readout
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts_together, cut
from infoscope.sae.edit import GroupEditor
from infoscope.scope.ablations import Ablation, Progress, no_progress
from infoscope.scope.editing import AblationEditor, AblationShares
from infoscope.vision.backbone import Tokens

PASSES = {"train": "editing training images", "test": "editing test images"}
"""What a pass over a split is called when it reports its progress."""

PART_IMAGES = 1024
"""Images between which an interrupted pass can go on, and that processes share out; whole batches of `_READ_IMAGES`."""
_READ_IMAGES = 64
"""Images read at a time; they are edited in smaller batches."""
_COPIES = 12
"""Tokens are held so many times over while a transformer block works on them: its MLP alone makes eight."""


class EncodedBatch:
    """Some images' tokens on the device, and the latents of those that the SAE was trained on (patches first)."""

    def __init__(self, inputs: ProbeInputs, tokens: Tokens) -> None:
        self.inputs, self.tokens = inputs, tokens
        edited = [tokens.patches] * inputs.edits_patches + [tokens.prefix] * inputs.edits_prefix
        self.group = GroupEditor(inputs.sae, torch.cat([part.flatten(0, 1) for part in edited]))

    def edit(self, editor: AblationEditor) -> Tokens:
        """Return the tokens in every variant, [n_variants, batch, n, d]; those that the SAE does not read stay."""
        edited, inputs = editor.edit(self.group.x, self.group.acts), self.inputs
        n_patches = inputs.edits_patches * self.tokens.patches.shape[:2].numel()

        def form(old: Tensor, new: Tensor, is_edited: bool) -> Tensor:
            return new.unflatten(1, old.shape[:2]) if is_edited else old.expand(len(editor), -1, -1, -1)

        return Tokens(
            prefix=form(self.tokens.prefix, edited[:, n_patches:], inputs.edits_prefix),
            patches=form(self.tokens.patches, edited[:, :n_patches], inputs.edits_patches),
        )

    def read(self, edited: Tokens, readout: Readout) -> Float[Tensor, "n_variants batch d"]:
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


def iterate_tokens(
    data: ProbeData, rows: Int[np.ndarray, " n"], batch_images: int, device: torch.device
) -> Iterator[Tokens]:
    """Yield the tokens of images in the order of `rows`, at most `batch_images` at a time, read in one pass."""
    for _, read in data.tokens.iterate(rows, _READ_IMAGES):
        for start in range(0, len(read.patches), batch_images):
            yield Tokens(*(part[start : start + batch_images].to(device) for part in read))


def measure_shares(
    inputs: ProbeInputs,
    config: ProbeConfig,
    rows: Int[np.ndarray, " n"],
    variants: Sequence[Ablation],
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> list[tuple[float, float]]:
    """Return (share of activation mass, share of energy) that each variant removes from these test images.

    Args:
        folder: where an interrupted run goes on from; None: nowhere.
    """
    by_number = {str(number): variant for number, variant in enumerate(variants)}
    wanted = Wanted(inputs, config, by_number, vectors=False, shares=True, means=False, folder=folder)
    shares = wanted.start_shares()
    for [part] in pass_over([wanted], "test", rows, lambda parts: None, progress):
        shares.add(part)
    return shares.compute()


@dataclass
class Wanted:
    """What a pass over a split is made for, of one SAE: CLS of every variant, the shares each removes, image means."""

    inputs: ProbeInputs
    config: ProbeConfig
    variants: Mapping[str, Ablation]
    vectors: bool
    shares: bool
    means: bool
    folder: Path | None
    editors: list[tuple[list[str], AblationEditor]] = field(default_factory=list)
    """Of the variants, some at a time; made when the size of a batch is known."""

    def start_shares(self) -> AblationShares:
        """Return the shares of no token yet."""
        return AblationShares(self.inputs.sae, list(self.variants.values()))

    def read(self, batch: EncodedBatch) -> dict[str, Tensor]:
        """Return what is wanted of each image of a batch."""
        found, config = _mean_images(batch) if self.means else {}, self.config
        if self.vectors and not self.editors:
            self.editors = self._make_editors(batch)
        for keys, editor in self.editors:
            edited = batch.edit(editor)
            for readout in config.cls_readouts:
                vectors = batch.read(edited, readout)
                _check(vectors, readout, config.feature_dtype)
                # A copy: a view of CLS would keep the edited tokens of all images of a part in memory.
                vectors = vectors.to(getattr(torch, config.feature_dtype), copy=True)
                found |= {f"{key}/{readout.name}": rows for key, rows in zip(keys, vectors, strict=True)}
        return found

    def _make_editors(self, batch: EncodedBatch) -> list[tuple[list[str], AblationEditor]]:
        """Cut the variants into slices whose tokens, with what a block makes of them, fit into `probe.memory_gb`."""
        config, keys = self.config, list(self.variants)
        variant_bytes = _COPIES * 4 * sum(part.numel() for part in batch.tokens)
        size = max(1, min(config.variants_per_chunk, int(config.memory_gb * 1e9 // variant_bytes)))
        chunks = [keys[part] for part in cut(len(keys), size)]
        return [(chunk, AblationEditor(self.inputs.sae, [self.variants[key] for key in chunk])) for chunk in chunks]


class _PartInWork:
    """What is known of the images of a part so far."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted, self.shares = wanted, wanted.start_shares() if wanted.shares else None
        self.columns: dict[str, list[Tensor]] = {}

    def update(self, tokens: Tokens) -> None:
        """Add some images."""
        batch = EncodedBatch(self.wanted.inputs, tokens)
        for name, rows_of in self.wanted.read(batch).items():
            self.columns.setdefault(name, []).append(rows_of.cpu())
        if self.shares:
            self.shares.update(batch.group)

    def to_part(self) -> Part:
        """Return everything."""
        return {name: torch.cat(of) for name, of in self.columns.items()} | (self.shares.state() if self.shares else {})


def pass_over(
    wanted: Sequence[Wanted],
    split: str,
    rows: Int[np.ndarray, " n"],
    on_first: Callable[[Sequence[Part]], None],
    progress: Progress,
) -> Iterator[Sequence[Part]]:
    """Return what is wanted of some images of each SAE, part after part; `on_first` is shown the first before it is
    kept."""
    inputs, config, slices = wanted[0].inputs, wanted[0].config, cut(len(rows), PART_IMAGES)
    data = inputs.train if split == "train" else inputs.test
    is_first = True

    def read(number: int, missing: Sequence[int]) -> dict[int, Part]:
        new, n_done = {place: _PartInWork(wanted[place]) for place in missing}, slices[number].start
        for tokens in iterate_tokens(data, rows[slices[number]], config.feature_batch_images, inputs.device):
            for one in new.values():
                one.update(tokens)
            n_done += len(tokens.patches)
            progress(PASSES[split], n_done, len(rows))
        assert n_done == slices[number].stop, f"{n_done} of {slices[number].stop} images came"
        parts = {place: one.to_part() for place, one in new.items()}
        nonlocal is_first
        if is_first:
            on_first(list(parts.values()))
            is_first = False
        return parts

    places = {place: one.folder and one.folder / split for place, one in enumerate(wanted)}
    return (list(parts.values()) for parts in compute_parts_together(len(slices), read, places))


def _mean_images(batch: EncodedBatch) -> dict[str, Tensor]:
    """Return the means of some images: of the tokens, of what their latents write as sparse rows, of token norms."""
    sae, (n_images, n_patches, _) = batch.inputs.sae, batch.tokens.patches.shape
    acts = [part[: n_images * n_patches].reshape(n_images, -1) for part in batch.group.written]
    sums = torch.zeros(n_images, sae.d_sae, device=acts[0].device, dtype=acts[0].dtype)
    z = sums.scatter_add_(1, acts[1], acts[0]) / n_patches
    image, latent = z.nonzero(as_tuple=True)
    found = {"mean_x": batch.tokens.patches.mean(1), "indices": latent.int(), "values": z[image, latent]}
    stats = sae.token_stats(batch.tokens.patches)
    if stats is not None:
        found["stats"] = torch.cat(stats, dim=-1).mean(1)
    _check(found["mean_x"], Readout.patch_mean)
    _check(found["values"], Readout.patch_mean)
    return {**found, "counts": torch.bincount(image, minlength=n_images)}


def _check(vectors: Tensor, readout: Readout, dtype: str = "float32") -> None:
    """Refuse what is not finite, or will not be as `dtype`."""
    if not torch.isfinite(vectors).all():
        raise InputError(f"The readout {readout.name} gave NaN or Inf: check the SAE and the tokens it was trained on.")
    if dtype == "float16" and vectors.abs().max() > torch.finfo(torch.float16).max:
        raise InputError(f"The vectors of {readout.name} are too large for float16: set probe.feature_dtype=float32.")
