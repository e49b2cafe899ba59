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
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64
from torch import Tensor

from infoscope.runtime.parts import Part, compute_parts_together, cut_images
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps, check_tokens
from infoscope.vision.tokens.source import TokenRows

BATCH_IMAGES = 64
"""Images read at a time."""
MAX_LATENT_VALUES = 2**26
"""Dense latents held at a time (256 MiB in float32); a batch that has more is encoded in parts."""


class Entries(NamedTuple):
    """The activations above 0 of some tokens, token by token.

    tokens: which one, counted through all images of the batch. latents: ascending within a token.
    """

    tokens: Int64[Tensor, " n_entries"]
    latents: Int64[Tensor, " n_entries"]
    values: Float64[Tensor, " n_entries"]


class LatentBatch:
    """The activations of some whole images' patches. What follows from them is computed when it is first asked for.

    Args:
        codes: of each image, as the SAE encodes it.
        index: positions in the image set.
        rows: of the tokens.
        is_signed: whether codes may be below 0.
        factor: of each token, see `SparseAutoencoder.token_factor`; None: 1.
    """

    def __init__(
        self,
        codes: Float32[Tensor, "batch n_patches d_sae"],
        index: Int[Tensor, " batch"],
        rows: Int[np.ndarray, " batch"],
        is_signed: bool = False,
        factor: Float32[Tensor, "batch n_patches 1"] | None = None,
    ) -> None:
        self.codes, self.index, self.rows, self.is_signed, self.factor = codes, index, rows, is_signed, factor
        self.n_images, self.n_patches, self.d_sae = codes.shape

    @cached_property
    def dense(self) -> Float32[Tensor, "batch n_patches d_sae"]:
        """How strongly each latent fires: its code, 0 where that is below 0."""
        return self.codes.clamp_min(0) if self.is_signed else self.codes

    @cached_property
    def peaks(self) -> Float32[Tensor, "batch d_sae"]:
        """The largest activation of each latent in each image."""
        return self.dense.amax(dim=1)

    @cached_property
    def entries(self) -> Entries:
        """What is not 0."""
        dense = self.dense.flatten(0, 1)
        tokens, latents = (dense > 0).nonzero(as_tuple=True)
        return Entries(tokens, latents, dense[tokens, latents].double())

    @cached_property
    def sums(self) -> Float64[Tensor, "batch d_sae"]:
        """The sum over the patches of each image."""
        return self.sum_in_images(self.entries.values)

    @cached_property
    def squares(self) -> Float64[Tensor, "batch d_sae"]:
        """The sum of squares over the patches of each image."""
        return self.sum_in_images(self.entries.values**2)

    @cached_property
    def counts(self) -> Float64[Tensor, "batch d_sae"]:
        """On how many patches of each image a latent fires."""
        return self.sum_in_images(torch.ones_like(self.entries.values))

    def sum_in_images(self, values: Float64[Tensor, " n_entries"]) -> Float64[Tensor, "batch d_sae"]:
        """Sum one value per entry over the patches of each image."""
        tokens, latents, _ = self.entries
        cells = tokens // self.n_patches * self.d_sae + latents
        sums = values.new_zeros(self.n_images * self.d_sae)
        return sums.index_add_(0, cells, values).view(self.n_images, self.d_sae)


def iterate_latents(
    sae: SparseAutoencoder, patches: Float[Tensor, "batch n_patches d_in"]
) -> Iterator[tuple[slice, Float[Tensor, "part n_patches d_sae"]]]:
    """Encode a batch of images' patch tokens in parts of whole images, so that dense latents stay within bounds.

    They are the SAE's own, which may be below 0 where its activation is signed: a `LatentBatch` tells what fires.
    """
    patches, n_at_once = patches.to(sae.W_enc.device), max(1, MAX_LATENT_VALUES // (patches.shape[1] * sae.d_sae))
    for start in range(0, len(patches), n_at_once):
        part = slice(start, start + n_at_once)
        yield part, _encode(sae, patches[part])


@torch.inference_mode()
def _encode(sae: SparseAutoencoder, patches: Tensor) -> Tensor:
    """Return the codes. (A generator in inference mode would hold those of a part while it computes the next.)"""
    return sae.encode(patches)


class Meter(ABC):
    """Measures something of an SAE's activations, some images at a time."""

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
    """

    sae: SparseAutoencoder
    make_meter: Callable[[torch.device | str, M | None], M]
    place: Path | None = None

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
        check_has_maps(one.sae.origin)
        check_tokens(one.sae, tokens)
    parts = cut_images(len(tokens))
    known: dict[Key, M] = {}  # of the parts that this process measured

    def measure(number: int, missing: Sequence[Key]) -> dict[Key, Part]:
        new = {key: wanted[key].make_meter(wanted[key].sae.W_enc.device, known.get(key)) for key in missing}
        rows = np.arange(len(tokens))[parts[number]]
        for batch, read in tokens.iterate(rows, BATCH_IMAGES):
            index = torch.from_numpy(tokens.image_index[batch])
            for sae in {wanted[key].sae: None for key in missing}:
                meters = [meter for key, meter in new.items() if wanted[key].sae is sae]
                patches = read.patches.to(sae.W_enc.device)
                factor = sae.token_factor(patches)
                for part, codes in iterate_latents(sae, patches):
                    of_part = None if factor is None else factor[part]
                    some = LatentBatch(codes, index[part], batch[part], sae.activation.is_signed, of_part)
                    for meter in meters:
                        meter.update(some)
                    del codes, some  # before the next part is encoded
            progress(int(batch[-1]) + 1)
        found = {key: meter.to_part() for key, meter in new.items()}
        for key, part in found.items():
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
