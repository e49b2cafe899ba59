"""One reading of a split's tokens for everything that is measured on them, of any number of SAEs.

A pass reads each batch of tokens once, puts it through each SAE once, and shows the activations to every meter of that
SAE. It is cut into parts (`runtime.parts`); each meter's part is a file of its own, so that an interrupted pass goes on
with the missing parts, in any combination. Neither the combination nor interruptions change a bit of the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from infoscope.runtime.parts import Part, compute_parts_together, cut_images
from infoscope.runtime.profile import Kind, counted
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.activation import Entries, find_rows
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_reads_patches, check_tokens
from infoscope.vision.tokens.source import TokenRows

BATCH_IMAGES = 64
"""Images read at a time."""
MAX_LATENT_VALUES = 2**26
"""Latents held at a time (256 MiB in float32); a batch that has more is encoded in parts."""
_TABLE_VALUES = 16
"""Such values that meters hold for each image and latent: some eight tables in float64."""


class LatentBatch:
    """How strongly each latent fires on the patches of some whole images.

    What follows from it is computed when it is first asked for.

    Args:
        codes: of all tokens, as the SAE encodes them; they may be below 0. Tokens are counted through all images.
        index: positions in the image set.
        rows: of the tokens.
        n_patches: of each image.
        d_sae: latents.
        is_signed: whether codes may be below 0.
        factor: of each token, see `SparseAutoencoder.token_factor`; None: 1.
    """

    def __init__(
        self,
        codes: Entries,
        index: Int[Tensor, " batch"],
        rows: Int[np.ndarray, " batch"],
        n_patches: int,
        d_sae: int,
        is_signed: bool = False,
        factor: Float32[Tensor, "batch n_patches 1"] | None = None,
    ) -> None:
        self.codes, self.index, self.rows, self.is_signed, self.factor = codes, index, rows, is_signed, factor
        self.n_images, self.n_patches, self.d_sae = len(rows), n_patches, d_sae

    @cached_property
    def entries(self) -> Entries:
        """What fires: codes above 0."""
        if not self.is_signed:
            return self.codes
        fires = self.codes.values > 0
        return Entries(*(of[fires] for of in self.codes))

    @cached_property
    def peaks(self) -> Float32[Tensor, "batch d_sae"]:
        """The largest activation of each latent in each image."""
        values = self.entries.values
        peaks = values.new_zeros(self.n_images * self.d_sae)
        return peaks.scatter_reduce_(0, self._cells, values, "amax").view(self.n_images, self.d_sae)

    @cached_property
    def sums(self) -> Float64[Tensor, "batch d_sae"]:
        """The sum over the patches of each image."""
        return self.sum_in_images(self.entries.values.double())

    @cached_property
    def squares(self) -> Float64[Tensor, "batch d_sae"]:
        """The sum of squares over the patches of each image."""
        return self.sum_in_images(self.entries.values.double().square())

    @cached_property
    def counts(self) -> Float64[Tensor, "batch d_sae"]:
        """On how many patches of each image a latent fires."""
        values = self.entries.values
        return self.sum_in_images(values.new_ones((), dtype=torch.float64).expand(len(values)))

    def sum_in_images(self, values: Float64[Tensor, " n_entries"]) -> Float64[Tensor, "batch d_sae"]:
        """Sum one value per entry over the patches of each image."""
        sums = values.new_zeros(self.n_images * self.d_sae)
        return sums.index_add_(0, self._cells, values).view(self.n_images, self.d_sae)

    @cached_property
    def _cells(self) -> Int64[Tensor, " n_entries"]:
        """The place of each entry's image and latent in a table [batch, d_sae]."""
        images = find_rows(self.entries.tokens, self.n_images, self.n_patches)
        return images.mul_(self.d_sae).add_(self.entries.latents)


def iterate_latents(
    sae: SparseAutoencoder,
    patches: Float[Tensor, "batch n_patches d_in"],
    index: Int[Tensor, " batch"],
    rows: Int[np.ndarray, " batch"],
) -> Iterator[LatentBatch]:
    """Encode a batch of images' patch tokens in parts of whole images, so that latents stay within bounds.

    Args:
        index, rows: of each image, see `LatentBatch`.
    """
    n_images, n_patches, _ = patches.shape
    n_values = max(n_patches * (sae.activation.max_active or sae.d_sae), _TABLE_VALUES * sae.d_sae)
    n_at_once = max(1, MAX_LATENT_VALUES // n_values)
    for start in range(0, n_images, n_at_once):
        part = slice(start, start + n_at_once)
        latents = _encode(sae, patches[part], index[part], rows[part])
        yield latents
        del latents  # before the next part is encoded


@torch.inference_mode()
def _encode(sae: SparseAutoencoder, patches: Tensor, index: Tensor, rows: np.ndarray) -> LatentBatch:
    """Return some images' latents. (A generator in inference mode would hold those of a part while it makes others.)"""
    codes, factor = sae.encode_entries(patches.flatten(0, 1)), sae.token_factor(patches)
    return LatentBatch(codes, index, rows, patches.shape[1], sae.d_sae, sae.activation.is_signed, factor)


class Meter(ABC):
    """Measures something of an SAE's activations, some images at a time."""

    reads_known: ClassVar[bool] = True
    """Whether it may leave out what cannot count with what the meter of earlier images knows, which is held for it."""

    @abstractmethod
    def update(self, batch: LatentBatch) -> None:
        """Add some images."""

    @abstractmethod
    def to_part(self) -> Part:
        """Return the state after the images so far, for `add`."""

    @abstractmethod
    def add(self, part: Part) -> None:
        """Add the part of other images."""


class SumMeter(Meter):
    """Sums in float64 by name; those of parts add up to those of all images.

    Args:
        shapes: of the sums.
    """

    def __init__(self, device: torch.device | str, **shapes: tuple[int, ...]) -> None:
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def to_part(self) -> Part:
        return self.sums

    def add(self, part: Part) -> None:
        for name, values in self.sums.items():
            values += part[name]


Key = TypeVar("Key")
M = TypeVar("M", bound=Meter)


@dataclass(frozen=True)
class Measurement(Generic[M]):
    """What a pass measures of one SAE.

    sae: whose activations; those of one object are computed once for all that is measured of it.
    make_meter: takes a device and a meter of other images or None; returns a meter of no image, which may leave out
        what cannot count with what the other one knows.
    place: <folder>/<name> of the files of finished parts, see `compute_parts`; None: they are not kept.
    other_weights: the tokens are meant to be those of other weights than the SAE was trained on.
    """

    sae: SparseAutoencoder
    make_meter: Callable[[torch.device | str, M | None], M]
    place: Path | None = None
    other_weights: bool = False

    def kept_in(self, place: Path) -> Measurement[M]:
        """Return the same, with files of finished parts."""
        return replace(self, place=place)


@torch.inference_mode()
def run_pass(tokens: TokenRows, wanted: Mapping[Key, Measurement[M]], progress: Advance = ignore) -> dict[Key, M]:
    """Read the patch tokens of a split once, and return the meters of all its images, on the CPU.

    Args:
        wanted: what is measured, by any key; of all of them, or of none, parts are kept.
        progress: called with the row up to which images are done; other processes' parts are among them.

    Raises:
        InputError: an SAE of CLS tokens, or of other tokens than these.
    """
    for one in wanted.values():
        check_reads_patches(one.sae.origin)
        check_tokens(one.sae, tokens, other_weights=one.other_weights)
    parts = cut_images(len(tokens))
    known: dict[Key, M] = {}  # of the parts that this process measured

    def measure(number: int, missing: Sequence[Key]) -> dict[Key, Part]:
        new = {key: wanted[key].make_meter(wanted[key].sae.W_enc.device, known.get(key)) for key in missing}
        rows = np.arange(len(tokens))[parts[number]]
        saes = list({wanted[key].sae: None for key in missing})
        for batch, patches in counted(Kind.reading, tokens.iterate_patches(rows, BATCH_IMAGES, saes[0].W_enc.device)):
            index = torch.from_numpy(tokens.image_index[batch])
            for sae in saes:
                meters = [meter for key, meter in new.items() if wanted[key].sae is sae]
                for latents in iterate_latents(sae, patches.to(sae.W_enc.device), index, batch):
                    for meter in meters:
                        meter.update(latents)
                    del latents  # before the next part is encoded
            progress(int(batch[-1]) + 1)
        found = {key: meter.to_part() for key, meter in new.items()}
        for key, part in found.items():
            if not new[key].reads_known:
                continue
            if key not in known:
                known[key] = wanted[key].make_meter(wanted[key].sae.W_enc.device, None)
            known[key].add(part)
        return found

    joined = {key: one.make_meter("cpu", None) for key, one in wanted.items()}
    for part in compute_parts_together(len(parts), measure, {key: one.place for key, one in wanted.items()}):
        for key, meter in joined.items():
            meter.add(part[key])
    return joined


def measure_one(tokens: TokenRows, wanted: Measurement[M], progress: Advance = ignore) -> M:
    """Return the meter of one measurement alone, see `run_pass`."""
    return run_pass(tokens, {"one": wanted}, progress)["one"]
