"""What fires in each image of a split: the sparse table of images and latents from which all else is arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64, UInt16
from scipy.sparse import csr_array

from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, Meter

_COLUMNS = ("means", "peaks", "n_on", "n_strong")
_ARRAYS = ("starts", "latents", *_COLUMNS, "image_index")
ENTRY_BYTES = 16
"""Of a latent that fires in an image."""


@dataclass(frozen=True)
class ImageCodes:
    """What fires in each image of a split, of one SAE; of signed codes the positive part alone.

    The entries of row i, a latent each, are starts[i] .. starts[i + 1] - 1, ascending in `latents`.

    means: mean activation over all patches of the image, in the SAE's own units.
    peaks: the largest activation on a patch.
    n_on: patches on which it fires.
    n_strong: patches on which its activation is larger than `strong_above`.
    image_index: position of each row's image in its image set.
    n_patches: of each image.
    """

    starts: Int64[np.ndarray, " n_images_plus_1"]
    latents: Int32[np.ndarray, " n_entries"]
    means: Float32[np.ndarray, " n_entries"]
    peaks: Float32[np.ndarray, " n_entries"]
    n_on: UInt16[np.ndarray, " n_entries"]
    n_strong: UInt16[np.ndarray, " n_entries"]
    image_index: Int64[np.ndarray, " n_images"]
    d_sae: int
    n_patches: int
    strong_above: float

    @property
    def n_images(self) -> int:
        """Rows."""
        return len(self.image_index)

    def matrix(self, of: str) -> csr_array:
        """Return a column of the entries as a sparse float64 table [n_images, d_sae], 0 where a latent does not fire.

        Args:
            of: "means", "peaks", "n_on" or "n_strong".
        """
        assert of in _COLUMNS, of
        values = np.asarray(getattr(self, of), dtype=np.float64)
        shape = (self.n_images, self.d_sae)
        return csr_array((values, np.asarray(self.latents), np.asarray(self.starts)), shape=shape)

    def save(self, folder: Path) -> None:
        """Write one .npy file per array and image_codes.json into an existing folder."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        facts = {name: getattr(self, name) for name in ("d_sae", "n_patches", "strong_above")}
        (folder / "image_codes.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ImageCodes:
        """Open what `save` wrote; entries are read from the disk where they are used."""
        facts = json.loads((folder / "image_codes.json").read_text(encoding="utf-8"))
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}, **facts)


class CodeMeter(Meter):
    """Collects `ImageCodes`, images in the order of a pass."""

    reads_known = False

    def __init__(self, d_sae: int, strong_above: float, device: torch.device | str, known: CodeMeter | None) -> None:
        self.d_sae, self.strong_above = d_sae, strong_above
        self.parts: list[Part] = []

    def update(self, batch: LatentBatch) -> None:
        assert batch.n_patches < 2**16, batch.n_patches  # they are counted in uint16
        strong = batch.sum_in_images((batch.entries.values > self.strong_above).double())
        images, latents = batch.counts.nonzero(as_tuple=True)  # by image, ascending in latents
        found = {
            "n_entries": torch.bincount(images, minlength=batch.n_images),
            "image_index": batch.index,
            "n_patches": torch.tensor([batch.n_patches]),
            "latents": latents.int(),
            "means": (batch.sums[images, latents] / batch.n_patches).float(),
            "peaks": batch.peaks[images, latents],
            "n_on": batch.counts[images, latents].int(),
            "n_strong": strong[images, latents].int(),
        }
        self.parts.append({name: values.cpu() for name, values in found.items()})

    def to_part(self) -> Part:
        return self._join()

    def add(self, part: Part) -> None:
        self.parts.append(part)

    def _join(self) -> Mapping[str, torch.Tensor]:
        return {name: torch.cat([part[name] for part in self.parts]) for name in self.parts[0]}

    def compute(self) -> ImageCodes:
        """Return the codes of all images.

        Raises:
            InputError: if there were none.
        """
        if not self.parts:
            raise InputError("Expected images to describe the latents on, got none: check the data set and its split.")
        found = {name: values.numpy() for name, values in self._join().items()}
        return ImageCodes(
            starts=np.concatenate([[0], np.cumsum(found["n_entries"])]),
            latents=found["latents"],
            means=found["means"],
            peaks=found["peaks"],
            n_on=found["n_on"].astype(np.uint16),
            n_strong=found["n_strong"].astype(np.uint16),
            image_index=found["image_index"].astype(np.int64),
            d_sae=self.d_sae,
            n_patches=int(found["n_patches"][0]),
            strong_above=self.strong_above,
        )


def measure_image_codes(sae: SparseAutoencoder, strong_above: float) -> Measurement[CodeMeter]:
    """Return what a pass measures for `ImageCodes`.

    Args:
        strong_above: activation above which a patch counts in `n_strong`.
    """
    return Measurement(sae, partial(CodeMeter, sae.d_sae, strong_above))
